"""The metadata cache: built once, kept right, and never behind a commit that was acknowledged."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import attrs
import orjson
import pytest
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.task import Clock

from bench.tables import FolderLog, FolderPage, write_checkpoint, write_commit
from delta_proxy.delta.actions import LogError
from delta_proxy.delta.cache import MetadataCache, UnknownTable, _Scratch
from delta_proxy.delta.index import TableIndex
from delta_proxy.delta.log import NotATable
from delta_proxy.delta.source import TableSource
from delta_proxy.s3.errors import ServiceUnavailable
from tests.helpers import result_of, start

from .tables import PROTOCOL, ROOT, Line, add, metadata, remove


class SlowLog(FolderLog):
    """A table in a folder whose listings wait for `release`, and that can be made to fail."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.held: list[Deferred[None]] = []
        self.holding = False
        self.failure: Exception | None = None

    async def list(
        self, prefix: str = "", *, delimiter: str = "", start_after: str = "", max_keys: int = 1000
    ) -> FolderPage:
        page = await super().list(prefix, start_after=start_after, max_keys=3)
        if self.failure is not None:
            raise self.failure
        if self.holding:
            gate: Deferred[None] = Deferred()
            self.held.append(gate)
            await gate
        return page

    def release(self) -> None:
        """Let the listings that wait go on."""
        held, self.held = self.held, []
        for gate in held:
            gate.callback(None)

    @property
    def listings(self) -> int:
        """How many listings began at a page of their own."""
        return sum(asked.startswith("list") for asked in self.asked)


@attrs.define
class Seen:
    """What the observer was told."""

    built: list[tuple[str, int]] = attrs.field(factory=list)
    advanced: list[tuple[str, int]] = attrs.field(factory=list)

    def index_built(self, table: str, files: int, seconds: float) -> None:
        """Note a build."""
        self.built.append((table, files))

    def index_advanced(self, table: str, files: int) -> None:
        """Note an advance."""
        self.advanced.append((table, files))


class Bench:
    """A table in a folder, and caches over it."""

    def __init__(self, directory: Path) -> None:
        self.table = directory / "table"
        self.log = SlowLog(self.table)
        self.clock = Clock()
        self.clock.advance(1_000)
        self.directory = directory / "cache"
        self.directory.mkdir()
        self.seen = Seen()
        self.cache = self.new_cache()

    def new_cache(self, identity: str = "here") -> MetadataCache:
        """A cache as a new process has it."""
        return MetadataCache(
            {"trades": TableSource(identity, ROOT, self.log)},
            clock=self.clock,
            defer_to_pool=maybeDeferred,
            directory=self.directory,
            ttl_seconds=120,
            observer=self.seen,
        )

    def commit(self, version: int, *lines: Line) -> None:
        """Write a commit of the table; version 0 begins with protocol and metaData."""
        log = self.table / "_delta_log"
        log.mkdir(parents=True, exist_ok=True)
        whole = [PROTOCOL, metadata("p"), *lines] if version == 0 else lines
        body = b"\n".join(line if isinstance(line, bytes) else orjson.dumps(line) for line in whole)
        (log / f"{version:020d}.json").write_bytes(body)

    def refreshed(self) -> TableIndex:
        """The index as of now."""
        index: TableIndex = self.after(self.cache.refreshed("trades"))
        return index

    def after(self, work: Any) -> Any:
        """The result of work that waits for the clock."""
        started = start(work)
        self.clock.pump([0.0] * 3 + [0.2] * 5)
        return result_of(started)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A table with one file in version 0."""
    made = Bench(tmp_path)
    made.commit(0, add("x", p="a"))
    return made


def test_an_index_is_built_once_however_many_wait(bench: Bench) -> None:
    bench.log.holding = True
    waiting = [start(bench.cache.table("trades")) for _ in range(5)]
    bench.log.release()
    indexes = {id(result_of(one)) for one in waiting}
    assert (len(indexes), bench.seen.built) == (1, [("trades", 1)])


def test_a_waiter_that_is_cancelled_leaves_the_build_to_the_others(bench: Bench) -> None:
    bench.log.holding = True
    gone, stays = start(bench.cache.table("trades")), start(bench.cache.table("trades"))
    gone.cancel()
    with pytest.raises(CancelledError):
        result_of(gone)
    bench.log.release()
    assert result_of(stays).lookup("x")


def test_a_commit_acknowledged_before_the_request_is_seen(bench: Bench) -> None:
    result_of(bench.cache.table("trades"))
    bench.commit(1, add("y", p="b"))
    assert bench.refreshed().lookup("y")
    bench.commit(2, add("z", p="b"))
    assert bench.refreshed().version == 2


def test_a_request_during_a_listing_waits_for_the_next_one(bench: Bench) -> None:
    result_of(bench.cache.table("trades"))
    bench.log.holding = True
    early = start(bench.cache.refreshed("trades"))
    bench.clock.advance(0)
    bench.commit(1, add("y", p="a"))
    late = start(bench.cache.refreshed("trades"))
    bench.log.holding = False
    bench.log.release()
    assert not result_of(early).lookup("y")
    bench.clock.advance(0.2)
    assert result_of(late).lookup("y")


def test_requests_within_the_interval_share_one_listing(bench: Bench) -> None:
    result_of(bench.cache.table("trades"))
    bench.refreshed()
    before = bench.log.listings
    waiting = [start(bench.cache.refreshed("trades", 5)) for _ in range(10)]
    bench.clock.advance(1)
    assert bench.log.listings == before
    bench.clock.advance(5)
    assert {result_of(one).version for one in waiting} == {0}
    assert bench.log.listings == before + 1


def test_a_request_that_joined_a_running_build_looks_again(bench: Bench) -> None:
    bench.log.holding = True
    building = start(bench.cache.table("trades"))
    bench.commit(1, add("y", p="a"))
    late = start(bench.cache.refreshed("trades"))
    bench.log.holding = False
    bench.log.release()
    result_of(building)
    bench.clock.pump([0, 0.2])
    assert result_of(late).lookup("y")


def test_an_old_index_is_advanced_in_the_background(bench: Bench) -> None:
    result_of(bench.cache.table("trades"))
    bench.commit(1, add("y", p="a"))
    bench.clock.advance(119)
    assert result_of(bench.cache.table("trades")).version == 0
    bench.clock.advance(1)
    assert result_of(bench.cache.table("trades")).version == 0
    bench.clock.advance(0)
    assert result_of(bench.cache.table("trades")).version == 1
    assert bench.seen.advanced == [("trades", 2)]


def test_a_failed_build_is_tried_again_after_a_moment(bench: Bench) -> None:
    bench.log.failure = ServiceUnavailable()
    with pytest.raises(ServiceUnavailable):
        result_of(bench.cache.table("trades"))
    bench.log.failure = None
    with pytest.raises(ServiceUnavailable):
        result_of(bench.cache.table("trades"))
    bench.clock.advance(1)
    assert result_of(bench.cache.table("trades")).version == 0


def test_a_refresh_that_fails_is_an_error_and_not_a_stale_answer(bench: Bench) -> None:
    result_of(bench.cache.table("trades"))
    bench.log.failure = ServiceUnavailable()
    with pytest.raises(ServiceUnavailable):
        bench.refreshed()
    bench.log.failure = None
    assert bench.refreshed().version == 0


def test_an_index_nobody_asked_for_in_a_long_time_is_brought_up_to_date_before_it_decides(
    bench: Bench,
) -> None:
    result_of(bench.cache.table("trades"))
    bench.clock.advance(240)
    bench.commit(1, add("x", p="another"))
    index: TableIndex = bench.after(bench.cache.table("trades"))
    assert (index.version, len(index.lookup("x"))) == (1, 2)


def test_a_clock_that_is_set_back_neither_keeps_an_index_young_nor_a_request_waiting(bench: Bench) -> None:
    result_of(bench.cache.table("trades"))
    bench.commit(1, add("y", p="a"))
    bench.clock.rightNow -= 3_600
    index = bench.after(bench.cache.table("trades"))
    assert (index.version, bench.cache.at_hand("trades")) == (1, index)
    bench.clock.rightNow -= 3_600
    assert bench.refreshed().version == 1


def test_an_index_that_could_not_be_refreshed_for_a_long_time_is_an_error(bench: Bench) -> None:
    result_of(bench.cache.table("trades"))
    bench.log.failure = ServiceUnavailable()
    bench.clock.advance(239)
    assert bench.after(bench.cache.table("trades")).version == 0
    bench.clock.advance(1)
    with pytest.raises(ServiceUnavailable):
        bench.after(bench.cache.table("trades"))


def test_a_place_without_a_log_is_no_table(bench: Bench) -> None:
    shutil.rmtree(bench.table)
    with pytest.raises(NotATable):
        result_of(bench.cache.table("trades"))
    with pytest.raises(UnknownTable):
        result_of(bench.cache.table("unheard-of"))


@pytest.mark.parametrize("commit", [[b"{"], [{"add": {}}]])
def test_a_new_commit_that_cannot_be_understood_fails_the_refresh(
    bench: Bench, commit: Iterable[Line]
) -> None:
    result_of(bench.cache.table("trades"))
    bench.commit(1, *commit)
    with pytest.raises(LogError):
        bench.refreshed()


def test_a_hole_in_the_new_commits_fails_the_refresh(bench: Bench) -> None:
    result_of(bench.cache.table("trades"))
    bench.commit(2, add("y", p="a"))
    with pytest.raises(LogError):
        bench.refreshed()


def test_a_table_that_was_deleted_is_gone(bench: Bench) -> None:
    result_of(bench.cache.table("trades"))
    shutil.rmtree(bench.table)
    with pytest.raises(NotATable):
        bench.refreshed()
    assert bench.cache.state("trades") is None


@pytest.mark.parametrize("versions", [1, 3])
def test_a_table_that_was_recreated_is_built_from_scratch(bench: Bench, versions: int) -> None:
    bench.commit(1, add("y", p="a"))
    old = result_of(bench.cache.table("trades"))
    shutil.rmtree(bench.table)
    bench.table.mkdir()
    (bench.table / "keep-the-inode-away").write_bytes(b"x")
    log = bench.table / "_delta_log"
    log.mkdir()
    lines = [PROTOCOL, metadata("p", identity="another"), add("z", p="a")]
    (log / f"{0:020d}.json").write_bytes(b"\n".join(map(orjson.dumps, lines)))
    for version in range(1, versions):
        bench.commit(version, add(f"n{version}", p="a"))
    new = bench.refreshed()
    assert (new.version, bool(new.lookup("z")), new.lookup("x")) == (versions - 1, True, ())
    assert new.identity != old.identity


def write_table_with_history(table: Path) -> Callable[[int], str]:
    """Ten files in version 10's checkpoint, which says nothing of the file that version 1 added."""
    from bench.tables import path

    log = table / "_delta_log"
    shutil.rmtree(log)
    write_checkpoint(log, 10, 10)
    write_commit(log, 0, range(0), header=True)
    write_commit(log, 1, [77])
    for version in range(2, 13):
        write_commit(log, version, [])
    return path


def test_the_history_is_read_after_the_first_build(bench: Bench) -> None:
    path = write_table_with_history(bench.table)
    index = result_of(bench.cache.table("trades"))
    assert (index.version, index.lookup(path(77)), index.complete) == (12, (), False)
    complete = result_of(bench.cache.complete("trades"))
    assert [entry.live for entry in complete.lookup(path(77))] == [False]
    read = len(bench.log.asked)
    assert result_of(bench.cache.complete("trades")).complete
    assert len(bench.log.asked) == read


def test_a_path_is_looked_for_in_newer_commits_and_in_the_history(bench: Bench) -> None:
    path = write_table_with_history(bench.table)
    result_of(bench.cache.table("trades"))
    _, entries = bench.after(bench.cache.locate("trades", path(77)))
    assert entries
    write_commit(bench.table / "_delta_log", 13, [78])
    assert bench.after(bench.cache.locate("trades", path(78)))[1]
    assert bench.after(bench.cache.locate("trades", path(79)))[1] == ()


def test_a_path_of_the_newest_version_is_judged_with_what_older_ones_said(bench: Bench) -> None:
    path = write_table_with_history(bench.table)
    bench.log.holding = True
    built = start(bench.cache.table("trades"))
    while not built.called:
        bench.log.release()
    located = start(bench.cache.locate("trades", path(3)))
    assert not located.called
    bench.log.holding = False
    bench.log.release()
    index, entries = result_of(located)
    assert (index.complete, bool(entries)) == (True, True)


def test_a_restart_takes_the_index_from_disk_and_only_reads_newer_commits(bench: Bench) -> None:
    result_of(bench.cache.table("trades"))
    bench.commit(1, add("y", p="a"))
    bench.log.asked.clear()
    bench.cache = bench.new_cache()
    index = result_of(bench.cache.table("trades"))
    assert (index.version, bool(index.lookup("x")), bool(index.lookup("y"))) == (1, True, True)
    assert [asked for asked in bench.log.asked if asked.startswith("read")] == [
        "read _delta_log/00000000000000000001.json"
    ]


def test_the_index_of_another_place_is_not_taken(bench: Bench) -> None:
    result_of(bench.cache.table("trades"))
    bench.log.asked.clear()
    result_of(bench.new_cache("elsewhere").table("trades"))
    assert "read _delta_log/00000000000000000000.json" in bench.log.asked


def test_a_reload_keeps_the_index_of_a_table_that_stays(bench: Bench) -> None:
    index = result_of(bench.cache.table("trades"))
    bench.cache.replace_sources({"trades": TableSource("here", ROOT, bench.log)})
    assert result_of(bench.cache.table("trades")) is index
    bench.cache.replace_sources({})
    with pytest.raises(UnknownTable):
        result_of(bench.cache.table("trades"))


def test_however_many_tables_and_reloads_there_are_the_locks_take_one_descriptor(bench: Bench) -> None:
    locks = os.path.realpath(bench.directory / "locks")

    def descriptors() -> int:
        return sum(os.path.realpath(path) == locks for path in Path("/proc/self/fd").iterdir())

    cache = bench.cache
    for number in range(3):
        aliases = (f"trades{number}", f"quotes{number}")
        cache = cache.successor({alias: TableSource(alias, ROOT, bench.log) for alias in aliases})
        for alias in aliases:
            result_of(cache.table(alias))
    assert descriptors() == 1


def test_requests_that_began_before_a_reload_keep_their_tables(bench: Bench) -> None:
    index = result_of(bench.cache.table("trades"))
    moved = bench.cache.successor({"trades": TableSource("elsewhere", ROOT, bench.log)})
    emptied = bench.cache.successor({})
    assert result_of(bench.cache.table("trades")) is index
    assert bench.cache.at_hand("trades") is index
    assert moved.at_hand("trades") is None
    with pytest.raises(UnknownTable):
        result_of(emptied.table("trades"))
    same = bench.cache.successor({"trades": TableSource("here", ROOT, bench.log)})
    assert same.at_hand("trades") is index


def test_the_log_that_was_cleaned_up_under_an_index_takes_nothing_from_it(bench: Bench) -> None:
    path = write_table_with_history(bench.table)
    log = bench.table / "_delta_log"
    result_of(bench.cache.complete("trades"))
    for file in list(log.iterdir()):
        os.unlink(file)
    write_checkpoint(log, 20, 12)
    index = bench.refreshed()
    assert (index.version, bool(index.lookup(path(11))), bool(index.lookup(path(77)))) == (20, True, True)
    assert not any(entry.live for entry in index.lookup(path(77)))


def test_nothing_is_left_in_the_cache_directory_but_the_index_and_its_lock(bench: Bench) -> None:
    result_of(bench.cache.table("trades"))
    bench.commit(1, remove("x", p="a"))
    bench.refreshed()
    assert {file.suffix or file.name for file in bench.directory.iterdir()} == {".arrow", "locks"}


def test_work_that_the_end_of_the_process_breaks_off_ends_without_a_word_and_leaves_no_files(
    bench: Bench,
) -> None:
    answers = [True]

    def pool(function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        return maybeDeferred(function, *arguments) if answers else Deferred()

    async def fetch() -> None:
        async with _Scratch(pool, bench.directory):
            await Deferred()

    work = fetch().__await__()
    next(work)
    answers.clear()
    work.close()
    assert not list(bench.directory.glob("fetched-*"))
