"""What the index downloads is what the views serve from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import attrs
import pytest
from twisted.internet.defer import Deferred, execute
from twisted.internet.task import Clock

from delta_proxy.delta.catalog import LogCatalog
from delta_proxy.delta.disk_cache import DiskCache
from delta_proxy.delta.paths import TableRoot
from delta_proxy.delta.shared_log import SharedLog
from delta_proxy.delta.views import TableViews
from delta_proxy.upstream.client import Downloaded, ListedObject, ListPage, ObjectStat, SmallObject
from tests.helpers import result_of

PATH = "_delta_log/00000000000000000010.checkpoint.parquet"
MODIFIED = "Sun, 22 Nov 2026 10:00:00 GMT"


@attrs.define
class OneFile:
    """A store with one log file; `served` is the ETag that a download gets, `listed` the one of a listing."""

    body: bytes = b"PAR1"
    listed: str = '"a"'
    served: str = '"a"'
    downloads: int = 0
    reads: int = 0
    stats: int = 0

    async def list(self, prefix: str = "", **_: Any) -> ListPage:
        found = ListedObject(PATH, len(self.body), self.listed, "2026-11-22T10:00:00.000Z", "STANDARD")
        return ListPage((found,), (), False)

    async def stat(self, path: str) -> ObjectStat:
        self.stats += 1
        return ObjectStat(len(self.body), self.listed, MODIFIED)

    async def read(self, path: str, *, limit: int) -> SmallObject:
        self.reads += 1
        return SmallObject(self.body, self.served, MODIFIED)

    async def download(self, path: str, into: Path) -> Downloaded:
        self.downloads += 1
        into.write_bytes(self.body)  # noqa: ASYNC240 - a few bytes
        return Downloaded(len(self.body), self.served)


def in_place(function: Any, *arguments: Any) -> Deferred[Any]:
    return execute(function, *arguments)


@pytest.fixture
def store() -> OneFile:
    return OneFile()


@pytest.fixture
def log(store: OneFile, tmp_path: Path) -> SharedLog:
    clock = Clock()
    directory = tmp_path / "cache"
    directory.mkdir(mode=0o700)
    disk = DiskCache(directory, limit_bytes=1 << 20, defer_to_pool=in_place, clock=clock)
    table = TableViews("table", TableRoot("lake", "t"), cast(Any, store), LogCatalog(clock, 120))
    return SharedLog(table, disk, in_place)


def test_a_file_is_downloaded_once_however_often_the_index_reads_it(
    log: SharedLog, store: OneFile, tmp_path: Path
) -> None:
    for name in ("first", "second"):
        result_of(log.download(PATH, tmp_path / name))
        assert (tmp_path / name).read_bytes() == store.body
    assert store.downloads == 1


def test_a_listed_file_is_not_asked_about_again(log: SharedLog, store: OneFile, tmp_path: Path) -> None:
    result_of(log.list("_delta_log/"))
    result_of(log.download(PATH, tmp_path / "file"))
    assert store.stats == 0


def test_a_file_that_was_replaced_after_the_listing_is_read_as_it_is_now(
    log: SharedLog, store: OneFile, tmp_path: Path
) -> None:
    result_of(log.list("_delta_log/"))
    store.body, store.served = b"PAR1 anew", '"b"'
    result_of(log.download(PATH, tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == store.body


def test_a_cached_file_that_has_vanished_is_downloaded_again(
    log: SharedLog, store: OneFile, tmp_path: Path
) -> None:
    result_of(log.download(PATH, tmp_path / "first"))
    for cached in (tmp_path / "cache").glob("??/*"):
        cached.unlink()
    result_of(log.download(PATH, tmp_path / "second"))
    assert (tmp_path / "second").read_bytes() == store.body


def test_a_commit_that_the_index_was_made_of_is_not_downloaded_for_its_views(
    log: SharedLog, store: OneFile, tmp_path: Path
) -> None:
    result_of(log.list("_delta_log/"))
    assert result_of(log.read(PATH, limit=100)).body == store.body
    result_of(log.download(PATH, tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == store.body
    assert (store.reads, store.downloads) == (1, 0)


def test_a_commit_that_was_replaced_after_the_index_was_made_is_downloaded(
    log: SharedLog, store: OneFile, tmp_path: Path
) -> None:
    result_of(log.read(PATH, limit=100))
    store.body, store.listed, store.served = b"PAR1 anew", '"b"', '"b"'
    result_of(log.list("_delta_log/"))
    result_of(log.download(PATH, tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == store.body


def test_what_may_change_is_not_kept_for_the_views(log: SharedLog) -> None:
    result_of(log.read("_delta_log/_last_checkpoint", limit=100))
    assert len(log.table.recent) == 0
