"""What each client reads through the proxy is what it reads directly with a filter on the granted partition.

Every table of the shared folder with partition columns and every value of those, in its newest and in every
older version, before two stores. Each pair of table and value is an alias of its own over a copy of the
table, so that one proxy serves them all. What a client cannot read directly it is not asked to read through
the proxy.
"""

from __future__ import annotations

import datetime
import decimal
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
import polars
import pyarrow as pa
import pytest
from deltalake import DeltaTable, QueryBuilder
from deltalake.exceptions import DeltaError, TableNotFoundError

from delta_proxy import demo

from .conftest import ProxyFor
from .raw import get
from .servers import BUCKET, SHARED_TABLES, Endpoint, Proxy, Store
from .test_clients import duckdb_connection
from .test_shared_tables import CASES, Case, tables

FOLDERS = (
    sorted(each.name for each in SHARED_TABLES.iterdir() if each.is_dir()) if SHARED_TABLES.is_dir() else []
)
PARTITIONED = [each.name for each in tables()]

pytestmark = pytest.mark.skipif(not FOLDERS, reason="the folder of shared tables is not there")

Rows = list[str]
Read = Callable[[Endpoint, str, int | None], pa.Table]


def by_deltalake(at: Endpoint, uri: str, version: int | None) -> pa.Table:
    """deltalake's own engine."""
    table = DeltaTable(uri, version=version, storage_options=at.storage_options)
    return pa.table(QueryBuilder().register("t", table).execute("select * from t").read_all())


def by_polars(at: Endpoint, uri: str, version: int | None) -> pa.Table:
    """polars' scan."""
    scan = polars.scan_delta(uri, version=version, storage_options=at.storage_options)
    return scan.collect().to_arrow()


def by_pyarrow(at: Endpoint, uri: str, version: int | None) -> pa.Table:
    """pyarrow, with the files that deltalake names."""
    table = DeltaTable(uri, version=version, storage_options=at.storage_options)
    return table.to_pyarrow_dataset().to_table()


def by_duckdb(at: Endpoint, uri: str, version: int | None) -> pa.Table:
    """duckdb's delta extension."""
    chosen = "" if version is None else f", version := {version}"
    with duckdb_connection(at) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        return connection.execute(f"SELECT * FROM delta_scan('{uri}'{chosen})").to_arrow_table()


CLIENTS: dict[str, Read] = {
    "deltalake": by_deltalake,
    "polars": by_polars,
    "pyarrow": by_pyarrow,
    "duckdb": by_duckdb,
}


@attrs.frozen
class Direct:
    """A table as it is read from the store itself."""

    at: Endpoint
    table: str

    @property
    def uri(self) -> str:
        """Where it lies."""
        return f"s3://{BUCKET}/views/all-{self.table}"

    @functools.cached_property
    def versions(self) -> Sequence[int]:
        """The versions that can still be read."""
        newest = self.opened(None).version()
        return [version for version in range(newest + 1) if self._is_readable(version)]

    def opened(self, version: int | None) -> DeltaTable:
        """The table as deltalake opens it."""
        return DeltaTable(self.uri, version=version, storage_options=self.at.storage_options)

    def _is_readable(self, version: int) -> bool:
        try:
            self.opened(version)
        except DeltaError:
            return False
        return True

    @functools.cache  # noqa: B019 - one instance a table, for the length of the session
    def files(self, version: int, column: str, value: Any) -> frozenset[str]:
        """The files of the partition in a version; none where the column did not partition it."""
        table = self.opened(version)
        if column not in table.metadata().partition_columns:
            return frozenset()
        actions = pa.table(table.get_add_actions(flatten=True))
        pairs = zip(actions["path"].to_pylist(), actions[f"partition.{column}"].to_pylist(), strict=True)
        return frozenset(path for path, found in pairs if plain(found) == plain(value))

    def rows(self, client: str, version: int | None, column: str, value: Any) -> Rows | None:
        """The rows of the partition; None when the client cannot read the table."""
        whole = self.whole(client, version)
        if whole is None:
            return None
        partitioned = self.opened(version).metadata().partition_columns
        wanted = plain(value)
        rows = whole.to_pylist() if column in partitioned else []
        return as_rows(row for row in rows if plain(row[column]) == wanted)

    @functools.cache  # noqa: B019
    def whole(self, client: str, version: int | None) -> pa.Table | None:
        """All rows; None for a client that cannot read the table, or misreads its partition values."""
        try:
            read = CLIENTS[client](self.at, self.uri, version)
        except Exception:  # noqa: BLE001 - each client has its own, and it does so without the proxy
            return None
        table = self.opened(version)
        found = self._partitions(read, table) if read.num_rows else []
        return (
            read
            if client == "deltalake" or found == self._partitions(self.whole("deltalake", version), table)
            else None
        )

    def _partitions(self, read: pa.Table | None, table: DeltaTable) -> Rows:
        columns = table.metadata().partition_columns
        return as_rows(
            {name: plain(row[name]) for name in columns} for row in (read.to_pylist() if read else [])
        )


def plain(value: Any) -> Any:
    """A value in the one form that all clients' forms of it can be brought to."""
    if isinstance(value, datetime.datetime):
        return value.astimezone(datetime.UTC).replace(tzinfo=None) if value.tzinfo else value
    if isinstance(value, decimal.Decimal):
        return value.normalize()
    return value


def as_rows(rows: Iterable[dict[str, Any]]) -> Rows:
    """Rows in one order."""
    return sorted(repr(sorted(row.items())) for row in rows)


@functools.cache
def direct(at: Store, table: str) -> Direct:
    """A table in a store, what was read of it kept."""
    return Direct(at, table)


# One value of each partition column, and its nulls; the sweep over all values is slow.
QUICK = [
    case
    for case in CASES
    if case.value is None
    or next(each for each in CASES if each.table == case.table and each.column == case.column) is case
]
NO_MATCH = [f"no-match-{name}" for name in PARTITIONED]
NOTHING = [f"nothing-{name}" for name in FOLDERS]


def grants(served: Sequence[Case]) -> dict[str, Any]:
    """A grant for each case, one that holds for nothing for each partitioned table, and `[]` for each."""
    columns = {
        name: DeltaTable(str(SHARED_TABLES / name)).metadata().partition_columns[0] for name in PARTITIONED
    }
    return (
        {case.alias: case.grant for case in served}
        | {f"no-match-{name}": [{column: []}] for name, column in columns.items()}
        | {f"nothing-{name}": [] for name in FOLDERS}
    )


def table_of(alias: str) -> str:
    """The table behind an alias."""
    cases = {case.alias: case.table for case in CASES}
    return cases.get(alias) or alias.removeprefix("no-match-").removeprefix("nothing-").removeprefix("all-")


Serve = Callable[[str, Sequence[Case]], tuple[Proxy, Store]]


@pytest.fixture(scope="session")
def serve(request: pytest.FixtureRequest, proxy_for: ProxyFor) -> Serve:
    """A function (kind of store, cases) → a proxy with the aliases of the cases, and the store behind it.

    Before the one store the proxy redirects, before the other it streams.
    """
    there: set[tuple[str, str]] = set()

    def find(kind: str, served: Sequence[Case]) -> tuple[Proxy, Store]:
        moto = kind == "moto"
        store: Store = request.getfixturevalue("moto_store" if moto else "gateway_store")
        granted = grants(served)
        aliases = [*granted, *(f"all-{name}" for name in FOLDERS)]
        for alias in aliases:
            if (kind, alias) not in there:
                store.upload(SHARED_TABLES / table_of(alias), f"views/{alias}")
                there.add((kind, alias))
        settings = {
            "tableMapping": {alias: f"s3://{BUCKET}/views/{alias}" for alias in aliases},
            "allowedPartitions": granted,
            "getMode": "proxy" if moto else "presignedUrl",
            "logView": "filtered",
        }
        return proxy_for(store, **settings), store

    return find


def through(alias: str) -> str:
    """The table of an alias in the virtual bucket."""
    return f"s3://{demo.PROXY_BUCKET}/{alias}"


def check_files(proxy: Proxy, store: Store, case: Case) -> None:
    """Each version holds the files of the granted partition."""
    whole = direct(store, case.table)
    for version in whole.versions:
        table = DeltaTable(through(case.alias), version=version, storage_options=proxy.storage_options)
        seen = frozenset(pa.table(table.get_add_actions(flatten=True))["path"].to_pylist())
        assert seen == whole.files(version, case.column, case.value), version


def check_rows(proxy: Proxy, store: Store, case: Case, version: int | None) -> None:
    """Each client reads the rows of the granted partition."""
    for client, read in CLIENTS.items():
        wanted = direct(store, case.table).rows(client, version, case.column, case.value)
        if wanted is not None:
            seen = as_rows(read(proxy, through(case.alias), version).to_pylist())
            assert seen == wanted, (client, version)


def check_empty(proxy: Proxy, store: Store, alias: str, clients: Mapping[str, Read]) -> None:
    """A table opens with its columns and its history, and has no rows."""
    whole = direct(store, table_of(alias))
    for client, read in clients.items():
        rows = whole.whole(client, None)
        if rows is not None:
            seen = read(proxy, through(alias), None)
            assert (seen.num_rows, sorted(seen.column_names)) == (0, sorted(rows.column_names)), client
    opened = DeltaTable(through(alias), storage_options=proxy.storage_options)
    assert len(opened.history()) == len(whole.opened(None).history())


stores = pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.xdist_group(f"views-{kind}")) for kind in ("moto", "versitygw")],
)
gateway = pytest.mark.xdist_group("views-versitygw")


def name_of(case: Case) -> str:
    """A case in the name of its test."""
    return f"{case.table}-{case.column}={case.value}"


@stores
@pytest.mark.parametrize("case", QUICK, ids=name_of)
def test_clients_read_the_granted_partition_and_nothing_else(serve: Serve, kind: str, case: Case) -> None:
    proxy, store = serve(kind, QUICK)
    check_files(proxy, store, case)
    check_rows(proxy, store, case, None)


@pytest.mark.slow
@stores
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_clients_read_every_partition_in_every_version(serve: Serve, kind: str, case: Case) -> None:
    proxy, store = serve(kind, CASES)
    check_files(proxy, store, case)
    for version in (None, *direct(store, case.table).versions):
        check_rows(proxy, store, case, version)


@gateway
@pytest.mark.parametrize("alias", [*NO_MATCH, *NOTHING])
def test_a_table_nothing_of_which_is_granted_opens_and_has_no_rows(serve: Serve, alias: str) -> None:
    check_empty(*serve("versitygw", QUICK), alias, {"deltalake": by_deltalake})


@pytest.mark.slow
@stores
@pytest.mark.parametrize("alias", [*NO_MATCH, *NOTHING])
def test_no_client_finds_rows_where_nothing_is_granted(serve: Serve, kind: str, alias: str) -> None:
    check_empty(*serve(kind, CASES), alias, CLIENTS)


@gateway
def test_each_client_is_asked_to_read_many_tables(serve: Serve) -> None:
    _, store = serve("versitygw", QUICK)
    for client in CLIENTS:
        read = {
            case.table
            for case in QUICK
            if direct(store, case.table).rows(client, None, case.column, case.value)
        }
        assert len(read) >= 8, client


@gateway
def test_a_table_that_is_not_there_stays_so(serve: Serve) -> None:
    proxy, _ = serve("versitygw", QUICK)
    with pytest.raises(TableNotFoundError):
        DeltaTable(through("unheard-of"), storage_options=proxy.storage_options)
    assert get(proxy, "unheard-of/_delta_log/_last_checkpoint").status == 404
