"""Under which key a view is kept: that of a grant which moves with the clock never comes back for less."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import attrs
import orjson
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock

from bench.tables import FolderLog
from delta_proxy.delta.cache import MetadataCache
from delta_proxy.delta.catalog import LogCatalog
from delta_proxy.delta.disk_cache import DiskCache, MemoryCache
from delta_proxy.delta.masks import GrantMasks
from delta_proxy.delta.source import TableSource
from delta_proxy.delta.views import LogViews, TableViews, view_key
from delta_proxy.upstream.client import Downloaded, ObjectStat
from tests.delta.tables import NOW, PROTOCOL, ROOT, add, grant, index_of, metadata
from tests.helpers import result_of, start

ONE_DAY = grant({"day": {"gte": "now-1d"}}, {"day": "2020-01-01"})
DAYS: dict[str, Any] = metadata("day")
DAYS["metaData"]["schemaString"] = DAYS["metaData"]["schemaString"].replace('"string"', '"date"')


@attrs.define
class FolderStore:
    """A table in a folder, with what a view asks of its store."""

    log: FolderLog

    async def stat(self, path: str) -> ObjectStat:
        body = await self.log.read(path, limit=1 << 20)
        return ObjectStat(body.size, body.etag, "Sun, 22 Nov 2026 00:00:00 GMT")

    async def download(self, path: str, into: Path) -> Downloaded:
        await self.log.download(path, into)
        stat = await self.stat(path)
        return Downloaded(stat.size, stat.etag)


def inline(function: Any, *args: Any, **keywords: Any) -> Deferred[Any]:
    """A thread pool that needs no thread."""
    return maybeDeferred(function, *args, **keywords)


class Bench:
    """The views of one table in a folder, at a time that the test tells."""

    def __init__(self, folder: Path) -> None:
        self.now = NOW
        self.clock = Clock()
        self.log = FolderLog(folder / "table")
        (folder / "table" / "_delta_log").mkdir(parents=True)
        for name in ("index", "disk"):
            (folder / name).mkdir(mode=0o700)
        source = TableSource("table", ROOT, cast(Any, self.log))
        self.cache = MetadataCache(
            {"t": source}, clock=self.clock, defer_to_pool=inline, directory=folder / "index", ttl_seconds=120
        )
        masks = GrantMasks()
        disk = DiskCache(folder / "disk", limit_bytes=1 << 20, defer_to_pool=inline, clock=self.clock)
        table = TableViews("table", ROOT, cast(Any, FolderStore(self.log)), LogCatalog(self.clock, 120))
        self.views = LogViews(
            {"t": table},
            cache=self.cache,
            disk=disk,
            memory=MemoryCache(1 << 20),
            masks=masks,
            defer_to_pool=inline,
            now=lambda: self.now,
        )

    def commit(self, version: int, *lines: dict[str, Any]) -> None:
        file = self.log.folder / f"_delta_log/{version:020d}.json"
        file.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))

    def read(self, version: int) -> bytes:
        reading = start(self.views.log_file("t", ONE_DAY, f"_delta_log/{version:020d}.json"))
        self.clock.pump([1.0] * 5)
        content = result_of(reading).content
        assert isinstance(content, bytes)
        return content


def test_a_view_made_while_the_index_was_behind_does_not_come_back_when_its_values_expire(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path)
    bench.commit(0, PROTOCOL, DAYS, add("always", day="2020-01-01"))
    assert b"always" in bench.read(0)
    bench.commit(1, add("passing", day="2026-11-22"), add("always-too", day="2020-01-01"))

    assert b"passing" in bench.read(1)
    bench.now += timedelta(days=3)
    assert b"passing" not in bench.read(1)
    assert b"always-too" in bench.read(1)


def test_the_key_of_a_moving_grant_tells_the_values_and_not_their_numbers(tmp_path: Path) -> None:
    def key(folder: str, days: Iterable[str], now: datetime = NOW) -> str:
        (tmp_path / folder).mkdir()
        index = index_of(tmp_path / folder, [PROTOCOL, DAYS, *(add(f"f{day}", day=day) for day in days)])
        return view_key(ONE_DAY, GrantMasks().of(index, ONE_DAY, now))

    before = key("a", ["2026-11-21", "2026-11-22"], datetime(2026, 11, 22, 0, 0, tzinfo=UTC))
    assert key("b", ["2026-11-22", "2026-11-21"]) == before
    assert key("c", ["2026-11-22", "2026-11-23"]) != before
    assert key("d", ["2026-11-22", "2026-11-21"], NOW + timedelta(days=1)) != before
