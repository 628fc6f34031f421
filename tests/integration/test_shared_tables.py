"""Tables that other implementations wrote: a grant of one partition value opens its files and no others.

The oracle is deltalake, which reads the table from its folder and knows nothing of the proxy. Every pair of
table and partition value is a user of its own with that grant alone, so that one proxy serves them all.
"""

from __future__ import annotations

import datetime
import decimal
import functools
import pathlib
from typing import Any

import attrs
import pyarrow as pa
import pytest
from botocore.exceptions import ClientError
from deltalake import DeltaTable

from delta_proxy import demo

from .conftest import ProxyFor
from .servers import BUCKET, SHARED_TABLES, Proxy, Store

EVERYTHING, SECRET = "everything", "a-secret"

pytestmark = [
    pytest.mark.skipif(not SHARED_TABLES.is_dir(), reason="the folder of shared tables is not there"),
    pytest.mark.filterwarnings("ignore:`partition_filters` is deprecated:DeprecationWarning"),
]


@attrs.frozen
class Case:
    """One table, one partition column, one of its values (None: null)."""

    table: str
    column: str
    value: Any

    @property
    def user(self) -> str:
        """The user to whom this case is granted, and the access key."""
        return f"case-{CASES.index(self)}"

    @property
    def grant(self) -> list[dict[str, Any]]:
        """The grant as the configuration holds it."""
        return [{self.column: as_json(self.value)}]


def tables() -> list[pathlib.Path]:
    """The folders of the tables that have partition columns."""
    folders = sorted(SHARED_TABLES.iterdir()) if SHARED_TABLES.is_dir() else []
    return [each for each in folders if each.is_dir() and DeltaTable(str(each)).metadata().partition_columns]


def cases() -> list[Case]:
    """Every value of every partition column of the files that the newest version holds."""
    found = []
    for folder in tables():
        table = DeltaTable(str(folder))
        actions = pa.table(table.get_add_actions(flatten=True))
        for column in table.metadata().partition_columns:
            values = set(actions[f"partition.{column}"].to_pylist())
            found += [Case(folder.name, column, value) for value in sorted(values, key=str)]
    return found


def as_json(value: Any) -> Any:
    """A partition value as a grant spells it: numbers and booleans as such, all else as text."""
    if isinstance(value, datetime.datetime):
        text = value.strftime("%Y-%m-%d %H:%M:%S.%f")
        return f"{text}Z" if value.tzinfo else text
    if isinstance(value, datetime.date | decimal.Decimal):
        return str(value)
    return value


@functools.cache
def files(table: str, column: str | None = None, value: Any = None) -> frozenset[str]:
    """The paths in the table of its newest version's files, or of those with the partition value."""
    folder = SHARED_TABLES / table
    # deltalake spells null as the empty string in a partition filter.
    text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    filters = [(column, "=", text)] if column is not None else None
    uris = DeltaTable(str(folder)).file_uris(partition_filters=filters)
    return frozenset(uri.removeprefix(f"{folder}/") for uri in uris)


CASES = cases()


@pytest.fixture(scope="module")
def uploaded(moto_store: Store) -> Store:
    """The store with every table in it."""
    for folder in tables():
        moto_store.upload(folder, f"shared/{folder.name}")
    return moto_store


@pytest.fixture(scope="module")
def served(uploaded: Store, proxy_for: ProxyFor) -> Proxy:
    """A proxy before every table, as the user to whom everything is granted sees it."""
    names = [folder.name for folder in tables()]
    grants: dict[str, Any] = {EVERYTHING: {name: [{}] for name in names}}
    grants |= {case.user: {case.table: case.grant} for case in CASES}
    proxy = proxy_for(
        uploaded,
        tableMapping={name: f"s3://{BUCKET}/shared/{name}" for name in names},
        users={
            name: {"accessKey": name, "secretKey": SECRET, "allowedPartitions": granted}
            for name, granted in grants.items()
        },
        interface="127.0.0.1",
        getMode="proxy",
    )
    return attrs.evolve(proxy, access_key=EVERYTHING, secret_key=SECRET)


def client_of(served: Proxy, case: Case) -> Any:
    """boto3 as the user of the case."""
    return attrs.evolve(served, access_key=case.user).boto3()


def status(client: Any, key: str) -> int:
    """The status of a GET."""
    try:
        answer = client.get_object(Bucket=demo.PROXY_BUCKET, Key=key)
    except ClientError as error:
        return int(error.response["ResponseMetadata"]["HTTPStatusCode"])
    answer["Body"].read()
    return int(answer["ResponseMetadata"]["HTTPStatusCode"])


def test_there_are_tables_to_test() -> None:
    assert len({case.table for case in CASES}) >= 14


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.table}-{case.column}={case.value}")
def test_the_files_served_are_those_of_the_granted_value_and_no_others(served: Proxy, case: Case) -> None:
    client = client_of(served, case)
    statuses = {path: status(client, f"{case.table}/{path}") for path in files(case.table)}
    wanted = files(case.table, case.column, case.value)
    assert wanted
    assert {path for path, status in statuses.items() if status == 200} == wanted
    assert {status for path, status in statuses.items() if path not in wanted} <= {403}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.table}-{case.column}={case.value}")
def test_the_files_listed_are_those_of_the_granted_value_and_no_others(served: Proxy, case: Case) -> None:
    pages = (
        client_of(served, case)
        .get_paginator("list_objects_v2")
        .paginate(Bucket=demo.PROXY_BUCKET, Prefix=f"{case.table}/", PaginationConfig={"PageSize": 3})
    )
    listed = {
        item["Key"].removeprefix(f"{case.table}/") for page in pages for item in page.get("Contents", ())
    }
    assert listed & files(case.table) == files(case.table, case.column, case.value)


@pytest.mark.parametrize("table", sorted({case.table for case in CASES}))
def test_an_open_table_reads_as_it_does_without_the_proxy(served: Proxy, uploaded: Store, table: str) -> None:
    through = DeltaTable(
        f"s3://{demo.PROXY_BUCKET}/{table}", storage_options=served.storage_options
    ).get_add_actions(flatten=True)
    direct = DeltaTable(
        f"s3://{BUCKET}/shared/{table}", storage_options=uploaded.storage_options
    ).get_add_actions(flatten=True)
    assert pa.table(through).equals(pa.table(direct))
