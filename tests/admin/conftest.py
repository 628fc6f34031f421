"""Fixtures: the command line in this process, over a database of each kind and a store in memory."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from typing import Any, cast

import attrs
import deltalake
import pyarrow as pa
import pytest
import pytest_twisted
from click.testing import CliRunner, Result
from twisted.internet.defer import Deferred
from twisted.internet.threads import blockingCallFromThread, deferToThread

from delta_proxy.access.keys import VARIABLE, generate_key
from delta_proxy.admin.cli import admin
from delta_proxy.admin.desk import Surroundings, Work
from tests.databases import database, kind, migrated, postgres, postgres_schema, sqlite_schema
from tests.fakes.store import FakeStore
from tests.upstream.parts import reactor, wait_for

__all__ = ["database", "kind", "migrated", "postgres", "postgres_schema", "sqlite_schema"]

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
BUCKET = "warehouse"
MICS = ("XLON", "XETR", "XPAR")


def threaded(test: Callable[..., None]) -> Callable[..., Any]:
    """A test whose commands read tables: it runs in a thread, while the reactor serves the store."""

    @functools.wraps(test)
    async def run(*arguments: Any, **fixtures: Any) -> None:
        await deferToThread(test, *arguments, **fixtures)

    return cast("Callable[..., Any]", pytest_twisted.ensureDeferred(run))


def _run(work: Work[Any]) -> Any:
    return blockingCallFromThread(reactor, lambda: Deferred.fromCoroutine(work(reactor)))


@attrs.define
class Cli:
    """Runs commands with one configuration, at one moment, as one operator."""

    folder: pathlib.Path
    config: dict[str, Any]
    environ: dict[str, str]
    now: datetime = NOW
    name: str = ""

    def run(self, *arguments: str) -> Result:
        """The finished command."""
        file = self.folder / "config.json"
        file.write_text(json.dumps(self.config))
        surroundings = Surroundings(self.environ, lambda: self.now, _run, lambda: "root")
        return CliRunner().invoke(admin, [*arguments, "--config", self.name or str(file)], obj=surroundings)

    def ok(self, *arguments: str) -> str:
        """What a command prints that must succeed."""
        done = self.run(*arguments)
        assert done.exit_code == 0, done.output
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """The document of a command that must succeed."""
        return json.loads(self.ok(*arguments, "--json"))

    def refused(self, *arguments: str) -> str:
        """The one line of a command that must fail with status 1."""
        done = self.run(*arguments)
        assert done.exit_code == 1, done.output
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1, done.stderr
        return done.stderr.removeprefix("Error: ").rstrip("\n")


@pytest.fixture
def settings() -> dict[str, Any]:
    """A configuration with two tables and no users, and a store that is nowhere."""
    return {
        "tableMapping": {"trades": f"s3://{BUCKET}/trades", "quotes": f"s3://{BUCKET}/quotes"},
        "storage": {"endpoint": "http://127.0.0.1:1", "region": "us-east-1", "addressingStyle": "path"},
        "port": 18080,
    }


@pytest.fixture
def cli(tmp_path: pathlib.Path, settings: dict[str, Any], migrated: str) -> Cli:
    """The command line with a database that has its schema and nothing in it."""
    with_database = settings | {"databaseEnabled": True, "database": {"uri": migrated}}
    return Cli(tmp_path, with_database, {VARIABLE: generate_key()})


@pytest.fixture
def plain(tmp_path: pathlib.Path, settings: dict[str, Any]) -> Cli:
    """The command line without a database."""
    return Cli(tmp_path, settings, {})


def write_table(folder: pathlib.Path, days: int = 3) -> None:
    """A table by MIC and day: one commit a day with a file for each MIC, of 1, 2 and 3 rows."""
    for day in range(1, days + 1):
        rows = [
            {"MIC": mic, "day": date(2026, 1, day), "price": float(row)}
            for number, mic in enumerate(MICS, 1)
            for row in range(number)
        ]
        deltalake.write_deltalake(
            folder, pa.Table.from_pylist(rows), mode="append", partition_by=["MIC", "day"]
        )


def files_below(folder: pathlib.Path) -> list[str]:
    """The paths of all files below a folder."""
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


@pytest.fixture
def table(tmp_path: pathlib.Path) -> pathlib.Path:
    """The table of `write_table`."""
    folder = tmp_path / "trades"
    write_table(folder)
    return folder


@pytest.fixture
def feature_table(served: pathlib.Path, memory_store: FakeStore) -> str:
    """The location of an empty table by MIC that asks its readers for a feature nobody knows."""
    for line in (served / "_delta_log" / f"{0:020}.json").read_bytes().splitlines():
        if b'"metaData"' in line:
            described = line
    protocol = {
        "minReaderVersion": 3,
        "minWriterVersion": 7,
        "readerFeatures": ["fancyFeature"],
        "writerFeatures": ["fancyFeature"],
    }
    commit = json.dumps({"protocol": protocol}).encode() + b"\n" + described + b"\n"
    memory_store.put(f"odd/_delta_log/{0:020}.json", commit)
    return f"s3://{BUCKET}/odd"


@pytest.fixture
def memory_store() -> FakeStore:
    """An empty store."""
    return FakeStore(BUCKET)


@pytest.fixture
def served(
    table: pathlib.Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, memory_store: FakeStore
) -> Iterator[pathlib.Path]:
    """The same table as `trades` in a store that the configuration names."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-access-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret-key")
    for path in files_below(table):
        memory_store.put(f"trades/{path}", (table / path).read_bytes())
    port = reactor.listenTCP(0, memory_store.site(), interface="127.0.0.1")
    settings["storage"]["endpoint"] = f"http://127.0.0.1:{port.getHost().port}"
    yield table

    async def stop() -> None:
        await port.stopListening()

    wait_for(stop())


def one_file(table: pathlib.Path, mic: str) -> str:
    """The path of a data file of a MIC."""
    return next(path for path in files_below(table) if path.startswith(f"MIC={mic}/"))
