"""What each client reads through the proxy is what it reads directly with a filter on the granted partition.

Every table of the shared folder with partition columns and every value of those, in its newest and in every
older version, before two stores. Each pair of table and value is a user of its own, so that one proxy over
one copy of each table serves them all. What a client cannot read directly, or misreads, it is not asked to
read through the proxy; a test names those tables.
"""

from __future__ import annotations

import datetime
import decimal
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
import duckdb
import polars
import pyarrow as pa
import pytest
from deltalake import DeltaTable, QueryBuilder
from deltalake.exceptions import DeltaError, TableNotFoundError

from delta_proxy import demo

from .conftest import ProxyFor
from .servers import BUCKET, SECRET_KEY, SHARED_TABLES, Endpoint, Proxy, Store
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


@functools.cache
def duckdb_at(at: Endpoint) -> duckdb.DuckDBPyConnection:
    """A connection to an endpoint as one user: loading the extensions takes longer than most reads."""
    connection = duckdb_connection(at)
    connection.execute("SET TimeZone = 'UTC'; SET threads = 2")
    return connection


def by_duckdb(at: Endpoint, uri: str, version: int | None) -> pa.Table:
    """duckdb's delta extension."""
    chosen = "" if version is None else f", version := {version}"
    return duckdb_at(at).execute(f"SELECT * FROM delta_scan('{uri}'{chosen})").to_arrow_table()


# (client, table): what a client cannot read from the store itself, or reads with other partition values.
SPARED = {
    ("duckdb", "data-reader-timestamp_ntz-name-mode"),
    ("polars", "data-reader-partition-values"),
    ("polars", "data-reader-timestamp_ntz-name-mode"),
    ("polars", "deltatbl-special-chars-in-partition-column"),
    ("polars", "dv-with-columnmapping"),
    ("polars", "kernel-timestamp-partition-col-ISO8601"),
    ("polars", "partition_cm_id"),
    ("polars", "partition_cm_name"),
    ("pyarrow", "basic-decimal-table"),
    ("pyarrow", "data-reader-timestamp_ntz-name-mode"),
    ("pyarrow", "dv-partitioned-with-checkpoint"),
    ("pyarrow", "dv-with-columnmapping"),
    ("pyarrow", "partition_cm_id"),
    ("pyarrow", "partition_cm_name"),
    ("pyarrow", "timestamp-partitioned-table"),
    ("pyarrow", "v1-multi-part-partitioned-struct-stats-only"),
}
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
        return f"s3://{BUCKET}/views/{self.table}"

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
    def columns(self, version: int | None) -> Sequence[str]:
        """The partition columns of a version."""
        return self.opened(version).metadata().partition_columns

    @functools.cache  # noqa: B019
    def actions(self, version: int) -> pa.Table:
        """The files of a version, with their partition values."""
        return pa.table(self.opened(version).get_add_actions(flatten=True))

    def files(self, version: int, column: str, value: Any) -> frozenset[str]:
        """The files of the partition in a version; none where the column did not partition it."""
        if column not in self.columns(version):
            return frozenset()
        actions = self.actions(version)
        pairs = zip(actions["path"].to_pylist(), actions[f"partition.{column}"].to_pylist(), strict=True)
        return frozenset(path for path, found in pairs if plain(found) == plain(value))

    def rows(self, client: str, version: int | None, column: str, value: Any) -> Rows | None:
        """The rows of the partition; None when the client cannot read the table."""
        whole = self.whole(client, version)
        if whole is None:
            return None
        wanted = plain(value)
        rows = whole.to_pylist() if column in self.columns(version) else []
        return as_rows(row for row in rows if plain(row[column]) == wanted)

    @functools.cache  # noqa: B019
    def whole(self, client: str, version: int | None) -> pa.Table | None:
        """All rows; None for a client that cannot read the table, or misreads its partition values."""
        try:
            read = CLIENTS[client](self.at, self.uri, version)
        except Exception:  # noqa: BLE001 - each client has its own, and it does so without the proxy
            return None
        if client == "deltalake":
            return read
        found, known = (self._partitions(each, version) for each in (read, self.whole("deltalake", version)))
        return read if found == known else None

    def _partitions(self, read: pa.Table | None, version: int | None) -> Rows:
        rows = read.to_pylist() if read else []
        return as_rows({name: plain(row[name]) for name in self.columns(version)} for row in rows)


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
NO_MATCH, NOTHING = "no-match", "nothing"


def user(name: str, grants: Mapping[str, Any]) -> dict[str, Any]:
    """A user whose access key is its name."""
    return {"accessKey": name, "secretKey": SECRET_KEY, "allowedPartitions": dict(grants)}


def users() -> dict[str, Any]:
    """A user for each case, one whose grants hold for nothing, and one with the grant of nothing."""
    columns = {
        name: DeltaTable(str(SHARED_TABLES / name)).metadata().partition_columns[0] for name in PARTITIONED
    }
    return {
        **{case.user: user(case.user, {case.table: case.grant}) for case in CASES},
        NO_MATCH: user(NO_MATCH, {name: [{column: []}] for name, column in columns.items()}),
        NOTHING: user(NOTHING, {name: [] for name in FOLDERS}),
    }


@attrs.frozen
class Served:
    """A store with the shared tables, and a proxy before it."""

    proxy: Proxy
    store: Store

    def seen_by(self, name: str) -> Proxy:
        """The proxy as one user reaches it."""
        return attrs.evolve(self.proxy, access_key=name, secret_key=SECRET_KEY)


Serve = Callable[[str], Served]


@pytest.fixture(scope="session")
def serve(request: pytest.FixtureRequest, proxy_for: ProxyFor) -> Serve:
    """A function from a kind of store to that store and the proxy before it.

    Before the one store the proxy redirects, before the other it streams.
    """

    @functools.cache
    def find(kind: str) -> Served:
        moto = kind == "moto"
        store: Store = request.getfixturevalue("moto_store" if moto else "gateway_store")
        for name in FOLDERS:
            store.upload(SHARED_TABLES / name, f"views/{name}")
        settings = {
            "tableMapping": {name: f"s3://{BUCKET}/views/{name}" for name in FOLDERS},
            "users": users(),
            "getMode": "proxy" if moto else "presignedUrl",
            "logView": "filtered",
        }
        return Served(proxy_for(store, **settings), store)

    return find


def through(table: str) -> str:
    """A table in the virtual bucket."""
    return f"s3://{demo.PROXY_BUCKET}/{table}"


def check_files(served: Served, case: Case) -> None:
    """Each version holds the files of the granted partition."""
    whole, options = direct(served.store, case.table), served.seen_by(case.user).storage_options
    for version in whole.versions:
        table = DeltaTable(through(case.table), version=version, storage_options=options)
        seen = frozenset(pa.table(table.get_add_actions(flatten=True))["path"].to_pylist())
        assert seen == whole.files(version, case.column, case.value), version


def check_rows(served: Served, case: Case, version: int | None) -> None:
    """Each client reads the rows of the granted partition."""
    for client, read in CLIENTS.items():
        wanted = direct(served.store, case.table).rows(client, version, case.column, case.value)
        if wanted is not None:
            seen = as_rows(read(served.seen_by(case.user), through(case.table), version).to_pylist())
            assert seen == wanted, (client, version)


def check_empty(served: Served, name: str, table: str, clients: Mapping[str, Read]) -> None:
    """To a user a table opens with its columns and its history, and has no rows."""
    whole, proxy = direct(served.store, table), served.seen_by(name)
    for client, read in clients.items():
        rows = whole.whole(client, None)
        if rows is not None:
            seen = read(proxy, through(table), None)
            assert (seen.num_rows, sorted(seen.column_names)) == (0, sorted(rows.column_names)), client
    opened = DeltaTable(through(table), storage_options=proxy.storage_options)
    assert len(opened.history()) == len(whole.opened(None).history())


stores = pytest.mark.parametrize(
    "kind",
    ["moto", "versitygw"],
)
empty = pytest.mark.parametrize(
    ("name", "table"), [*((NO_MATCH, each) for each in PARTITIONED), *((NOTHING, each) for each in FOLDERS)]
)


def name_of(case: Case) -> str:
    """A case in the name of its test."""
    return f"{case.table}-{case.column}={case.value}"


@stores
@pytest.mark.parametrize("case", QUICK, ids=name_of)
def test_clients_read_the_granted_partition_and_nothing_else(serve: Serve, kind: str, case: Case) -> None:
    check_rows(serve(kind), case, None)


@pytest.mark.slow
@stores
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_clients_read_every_partition_in_every_version(serve: Serve, kind: str, case: Case) -> None:
    served = serve(kind)
    check_files(served, case)
    for version in (None, *direct(served.store, case.table).versions):
        check_rows(served, case, version)


@empty
def test_a_table_nothing_of_which_is_granted_opens_and_has_no_rows(
    serve: Serve, name: str, table: str
) -> None:
    check_empty(serve("versitygw"), name, table, {"deltalake": by_deltalake})


@pytest.mark.slow
@stores
@empty
def test_no_client_finds_rows_where_nothing_is_granted(
    serve: Serve, kind: str, name: str, table: str
) -> None:
    check_empty(serve(kind), name, table, CLIENTS)


@pytest.mark.slow
@stores
def test_a_client_is_spared_only_what_it_cannot_read_directly(serve: Serve, kind: str) -> None:
    store = serve(kind).store
    spared = {
        (client, table)
        for client in CLIENTS
        for table in PARTITIONED
        if direct(store, table).whole(client, None) is None
    }
    assert spared == SPARED


def test_a_table_that_is_not_there_stays_so(serve: Serve) -> None:
    proxy = serve("versitygw").seen_by(NOTHING)
    with pytest.raises(TableNotFoundError):
        DeltaTable(through("unheard-of"), storage_options=proxy.storage_options)
