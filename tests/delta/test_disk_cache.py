"""Files and bytes that are kept, within a bound."""
# What the tests' own coroutines write is a few bytes.
# ruff: noqa: ASYNC240

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, execute
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread

from delta_proxy.delta.directory import UnusableDirectory
from delta_proxy.delta.disk_cache import CachedFile, DiskCache, MemoryCache, OpenFile, file_name, open_file
from tests.helpers import result_of, start

DAY = 86400.0


class Pool:
    """A thread pool whose work is done at once, or, while `held`, when the test says so."""

    def __init__(self) -> None:
        self.held = False
        self.work: list[tuple[Deferred[Any], Callable[..., Any], tuple[Any, ...]]] = []
        self.calls = 0

    def __call__(self, work: Callable[..., Any], /, *args: Any) -> Deferred[Any]:
        self.calls += 1
        if not self.held:
            return execute(work, *args)
        done: Deferred[Any] = Deferred()
        self.work.append((done, work, args))
        return done

    def turn(self) -> None:
        """Do the oldest piece of work."""
        done, work, args = self.work.pop(0)
        execute(work, *args).chainDeferred(done)

    def finish(self) -> None:
        """Do all work, and no longer hold it."""
        self.held = False
        while self.work:
            self.turn()


@attrs.define
class Counts:
    """Hits and misses by kind."""

    hits: list[str] = attrs.field(factory=list)
    misses: list[str] = attrs.field(factory=list)

    def cache_hit(self, kind: str) -> None:
        """Counted."""
        self.hits.append(kind)

    def cache_miss(self, kind: str) -> None:
        """Counted."""
        self.misses.append(kind)


class Rig:
    """A started cache over a directory, and what it was asked to make."""

    def __init__(self, directory: Path, *, limit: int = 100, now: float = DAY) -> None:
        self.clock = Clock()
        self.clock.advance(now)
        self.pool = Pool()
        self.counts = Counts()
        self.made: list[str] = []
        self.directory = directory
        self.cache = DiskCache(
            directory, limit_bytes=limit, defer_to_pool=self.pool, clock=self.clock, observer=self.counts
        )
        result_of(self.cache.start())

    def maker(self, key: str, body: bytes = b"body") -> Callable[[Path], Awaitable[object]]:
        """A `make` that writes the body and notes that it was asked."""

        async def make(path: Path) -> None:
            self.made.append(key)
            path.write_bytes(body)

        return make

    def get(self, key: str, body: bytes = b"body") -> CachedFile:
        """The file of a key, which has this body if it must be made; a second passes."""
        self.clock.advance(1)
        return result_of(self.cache.get(key, self.maker(key, body), kind="view"))

    def open(self, key: str, body: bytes = b"body") -> OpenFile:
        """The open file of a key."""
        return result_of(self.cache.open(key, self.maker(key, body), kind="view"))

    def path(self, key: str) -> Path:
        """Where the file of a key lies."""
        name = file_name(key)
        return self.directory / name[:2] / name


def files(directory: Path) -> list[Path]:
    """Every file below a directory but that of the locks."""
    return [path for path in directory.rglob("*") if path.is_file() and path.name != "locks"]


def existing(rig: Rig, keys: Iterable[str]) -> set[str]:
    """Those of the keys whose file is on disk."""
    return {key for key in keys if rig.path(key).exists()}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where a cache may lie."""
    return tmp_path / "cache"


def test_a_file_is_made_once_and_found_again(directory: Path) -> None:
    rig = Rig(directory)
    first, second = rig.get("k", b"hello"), rig.get("k")
    assert (first, first.size, first.path.read_bytes()) == (second, 5, b"hello")
    assert rig.made == ["k"]
    assert (rig.counts.misses, rig.counts.hits) == (["view"], ["view"])


def test_a_hit_does_not_touch_the_disk(directory: Path) -> None:
    rig = Rig(directory)
    rig.get("k")
    before = rig.pool.calls
    rig.get("k")
    assert rig.pool.calls == before


def test_a_name_tells_nothing_of_its_key(directory: Path) -> None:
    rig = Rig(directory)
    rig.get("../secret\x00name\ud800")
    (found,) = files(directory)
    assert found == rig.path("../secret\x00name\ud800")
    assert "secret" not in str(found)


def test_files_and_directories_are_their_owner_s_alone(directory: Path) -> None:
    rig = Rig(directory)

    async def make(path: Path) -> None:
        path.unlink()
        path.write_bytes(b"x")
        path.chmod(0o644)

    cached = result_of(rig.cache.get("k", make, kind="raw"))
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (directory, cached.path.parent, cached.path)]
    assert modes == [0o700, 0o700, 0o600]


def test_a_directory_open_to_others_is_refused(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    directory.chmod(0o755)
    with pytest.raises(UnusableDirectory):
        Rig(directory)


def test_all_who_wait_share_one_flight_and_one_miss(directory: Path) -> None:
    rig, gate, runs = Rig(directory), Deferred[None](), 0

    async def make(path: Path) -> None:
        nonlocal runs
        runs += 1
        await gate
        path.write_bytes(b"x")

    waiters = [start(rig.cache.get("k", make, kind="raw")) for _ in range(3)]
    gate.callback(None)
    assert len({result_of(waiter) for waiter in waiters}) == 1
    assert runs == 1
    assert (len(rig.counts.misses), len(rig.counts.hits)) == (1, 2)


def test_a_cancelled_waiter_does_not_cancel_the_flight(directory: Path) -> None:
    rig, gate = Rig(directory), Deferred[None]()

    async def make(path: Path) -> None:
        await gate
        path.write_bytes(b"x")

    first, second = (start(rig.cache.get("k", make, kind="raw")) for _ in range(2))
    first.cancel()
    with pytest.raises(CancelledError):
        result_of(first)
    gate.callback(None)
    assert result_of(second).size == 1


def test_a_failure_reaches_all_who_wait_and_nothing_is_kept(directory: Path) -> None:
    rig, gate = Rig(directory), Deferred[None]()

    async def make(path: Path) -> None:
        path.write_bytes(b"half")
        await gate

    waiters = [start(rig.cache.get("k", make, kind="raw")) for _ in range(2)]
    gate.errback(ZeroDivisionError())
    for waiter in waiters:
        with pytest.raises(ZeroDivisionError):
            result_of(waiter)
    assert files(directory) == []
    assert rig.get("k").size == 4
    assert rig.made == ["k"]


def test_a_file_has_no_name_until_it_is_whole(directory: Path) -> None:
    rig, seen = Rig(directory), list[list[Path]]()

    async def make(path: Path) -> None:
        path.write_bytes(b"half")
        seen.append(files(directory))

    cached = result_of(rig.cache.get("k", make, kind="raw"))
    ((temporary,),) = seen
    assert temporary != cached.path
    assert temporary.parent == cached.path.parent


def test_the_least_recently_used_files_go_first(directory: Path) -> None:
    before = Rig(directory, limit=1000)
    for key in "abc":
        before.get(key, bytes(330))
    rig = Rig(directory, limit=1000)
    rig.get("a")
    rig.get("d", bytes(100))
    assert existing(rig, "abcd") == {"a", "c", "d"}
    assert (rig.cache.files, rig.cache.total_bytes) == (3, 760)


def test_a_file_larger_than_the_bound_is_kept_until_the_next_comes(directory: Path) -> None:
    rig = Rig(directory, limit=100)
    rig.get("large", bytes(500))
    assert existing(rig, ["large"]) == {"large"}
    rig.get("small", bytes(5))
    assert existing(rig, ["large", "small"]) == {"small"}


def test_a_file_is_made_anew_only_after_its_eviction_is_over(directory: Path) -> None:
    rig = Rig(directory, limit=100)
    rig.get("b", bytes(60))
    rig.pool.held = True
    made = start(rig.cache.get("c", rig.maker("c", bytes(60)), kind="view"))
    while not made.called:
        rig.pool.turn()
    waiting = len(rig.pool.work)
    again = start(rig.cache.get("b", rig.maker("b", bytes(60)), kind="view"))
    assert len(rig.pool.work) == waiting
    rig.pool.finish()
    cached = result_of(again)
    assert (rig.made, cached.path.stat().st_size) == (["b", "c", "b"], 60)


def test_files_are_found_again_after_a_restart_with_their_order(directory: Path) -> None:
    before = Rig(directory, limit=100)
    for key in "abc":
        before.get(key, bytes(30))
    before.clock.advance(120)
    before.get("a")
    after = Rig(directory, limit=100, now=2 * DAY)
    assert after.cache.total_bytes == 90
    after.get("a")
    after.get("d", bytes(30))
    assert after.made == ["d"]
    assert existing(after, "abcd") == {"a", "c", "d"}


def test_the_time_of_use_survives_a_restart(directory: Path) -> None:
    before = Rig(directory, limit=100)
    for key in "abc":
        before.get(key, bytes(30))
    before.clock.advance(120)
    before.get("a")
    after = Rig(directory, limit=60, now=2 * DAY)
    assert existing(after, "abc") == {"a", "c"}


def test_a_file_of_another_process_is_found_without_making_it(directory: Path) -> None:
    one, other = Rig(directory), Rig(directory)
    one.get("k", b"theirs")
    assert other.get("k").path.read_bytes() == b"theirs"
    assert other.made == []
    assert other.counts.hits == ["view"]


def test_an_open_file_stays_readable_when_it_is_evicted(directory: Path) -> None:
    rig = Rig(directory)
    opened = rig.open("k", b"hello")
    rig.path("k").unlink()
    assert (opened.size, opened.read_at(1, 3), opened.read_at(5, 3)) == (5, b"ell", b"")
    opened.close()
    opened.close()


def test_files_that_fit_only_one_at_a_time_are_all_opened_by_those_who_ask_at_once(directory: Path) -> None:
    rig = Rig(directory, limit=1)
    rig.pool.held = True
    opening = [
        start(rig.cache.open(key, rig.maker(key, key.encode()), kind="view"))
        for key in map("key-{}".format, range(20))
    ]
    rig.pool.finish()
    opened = [result_of(each) for each in opening]
    assert [file.read_at(0, 10) for file in opened] == [f"key-{number}".encode() for number in range(20)]
    assert len(rig.made) == 20
    assert rig.cache.files == 1
    for file in opened:
        file.close()


def test_a_file_that_another_process_evicted_is_made_again_when_opened(directory: Path) -> None:
    rig = Rig(directory)
    rig.get("k", b"hello")
    rig.path("k").unlink()
    opened = rig.open("k", b"again")
    assert opened.read_at(0, 9) == b"again"
    opened.close()
    assert rig.made == ["k", "k"]


def test_an_opening_that_is_cancelled_closes_the_file(directory: Path) -> None:
    rig = Rig(directory)
    rig.get("k")
    rig.pool.held = True
    opening = open_file(rig.path("k"), rig.pool)
    opening.cancel()
    with pytest.raises(CancelledError):
        result_of(opening)
    rig.pool.turn()
    assert [work.__name__ for _, work, _ in rig.pool.work] == ["close"]
    rig.pool.finish()


def test_what_other_processes_wrote_counts_after_the_next_look(directory: Path) -> None:
    one, other = Rig(directory, limit=100), Rig(directory, limit=100)
    for key in "ab":
        one.get(key, bytes(40))
    other.get("c", bytes(5))
    assert other.cache.files == 1
    other.clock.advance(300)
    assert (other.cache.files, other.cache.total_bytes) == (3, 85)
    one.path("a").unlink()
    other.clock.advance(300)
    assert other.cache.total_bytes == 45


def test_who_writes_much_looks_at_once_what_the_others_wrote(directory: Path) -> None:
    one, other = Rig(directory, limit=100), Rig(directory, limit=100)
    for key in "ab":
        one.get(key, bytes(40))
    other.get("c", bytes(30))
    assert existing(other, "abc") == {"b", "c"}


def test_what_changes_during_a_look_is_not_overruled_by_it(directory: Path) -> None:
    rig = Rig(directory, limit=100)
    rig.get("k", bytes(60))
    rig.pool.held = True
    rig.clock.advance(300)
    done, scan, args = rig.pool.work.pop()
    seen = scan(*args)
    rig.pool.held = False
    rig.path("k").unlink()
    rig.open("k", bytes(5)).close()
    rig.get("new", bytes(7))
    done.callback(seen)
    assert (rig.cache.files, rig.cache.total_bytes) == (2, 12)


def test_a_look_does_not_find_what_is_being_removed(directory: Path) -> None:
    Rig(directory, limit=1000).get("old", bytes(950))
    rig = Rig(directory, limit=1000)
    rig.pool.held = True
    made = start(rig.cache.get("new", rig.maker("new", bytes(100)), kind="view"))
    while not made.called:
        rig.pool.turn()
    rig.clock.advance(300)
    removal, look = rig.pool.work
    rig.pool.work = [look, removal]
    rig.pool.finish()
    assert existing(rig, ["old", "new"]) == {"new"}
    assert (rig.cache.files, rig.cache.total_bytes) == (1, 100)


def test_a_file_found_missing_when_its_use_is_noted_is_made_again(directory: Path) -> None:
    rig = Rig(directory)
    rig.get("k")
    rig.path("k").unlink()
    rig.clock.advance(60)
    rig.get("k")
    assert rig.get("k").path.exists()
    assert rig.made == ["k", "k"]


def test_a_stopped_cache_looks_no_more(directory: Path) -> None:
    rig = Rig(directory)
    rig.cache.stop()
    assert rig.clock.getDelayedCalls() == []
    rig.cache.stop()


def left_behind(directory: Path, name: str, *, age: float = 0.0) -> Path:
    """A temporary file that somebody left `age` seconds before now."""
    path = directory / "ab" / name
    path.parent.mkdir(mode=0o700, exist_ok=True, parents=True)
    path.write_bytes(b"half")
    os.utime(path, (DAY - age, DAY - age))
    return path


def temporary_of(rig: Rig) -> str:
    """The name of a temporary of this process."""
    seen: list[str] = []

    async def make(path: Path) -> None:
        seen.append(path.name)

    result_of(rig.cache.get("name", make, kind="raw"))
    return seen[0]


def gone_process() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_temporaries_of_processes_that_are_gone_are_removed(directory: Path) -> None:
    own = temporary_of(Rig(directory))
    host, pid, token, rest = own.split("-")
    gone = gone_process()
    kept = {
        left_behind(directory, own),
        left_behind(directory, f"{host}-{os.getppid()}-00000000-{rest}"),
        left_behind(directory, f"00000000-{gone}-{token}-{rest}"),
        left_behind(directory, f".{own}.k3x.part"),
        left_behind(directory, "somebody's", age=DAY),
    }
    removed = {
        left_behind(directory, f"{host}-{gone}-{token}-{rest}"),
        left_behind(directory, f"{host}-{pid}-00000000-{rest}"),
        left_behind(directory, f".{host}-{gone}-{token}-{rest}.k3x.part"),
        left_behind(directory, f"{host}-{os.getppid()}-00000001-{rest}", age=3601),
        left_behind(directory, f"00000000-{gone}-00000001-{rest}", age=3601),
    }
    Rig(directory)
    assert {path for path in kept | removed if path.exists()} == kept


@ensureDeferred
async def test_it_works_in_real_threads(directory: Path) -> None:
    counts = Counts()
    cache = DiskCache(
        directory,
        limit_bytes=2500,
        defer_to_pool=deferToThread,
        clock=reactor,
        observer=counts,
    )
    await cache.start()

    def make(key: str) -> Callable[[Path], Awaitable[object]]:
        return lambda path: deferToThread(path.write_bytes, key.encode() * 100)

    waiting = [start(cache.open(f"{n:03}", make(f"{n:03}"), kind="raw")) for n in [*range(20), *range(20)]]
    for n, waiter in zip([*range(20), *range(20)], waiting, strict=True):
        opened = await waiter
        assert opened.read_at(0, 1000) == f"{n:03}".encode() * 100
        opened.close()
    cache.stop()


def test_bytes_in_memory_are_found_again() -> None:
    cache = MemoryCache(10_000)
    cache.put("k", b"one")
    cache.put("k", b"other")
    assert (cache.get("k"), cache.get("x"), len(cache)) == (b"other", None, 1)
    cache.discard("k")
    assert (cache.get("k"), cache.total_bytes) == (None, 0)


def test_large_bytes_stay_out_of_memory() -> None:
    cache = MemoryCache(10_000_000)
    cache.put("k", b"small")
    cache.put("k", bytes(1024 * 1024 + 1))
    assert cache.get("k") is None
    cache.put("k", bytes(1024 * 1024))
    assert cache.get("k") is not None


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 900), st.booleans())))
def test_memory_stays_within_its_bound_and_keeps_the_latest(uses: list[tuple[str, int, bool]]) -> None:
    cache = MemoryCache(2000)
    order: list[str] = []
    for key, size, read in uses:
        if read and cache.get(key) is None:
            continue
        if not read:
            cache.put(key, bytes(size))
        order = [*(other for other in order if other != key), key]
        assert cache.total_bytes <= 2000
        assert cache.get(key) is not None
    held = [key for key in order if cache.get(key) is not None]
    assert order[len(order) - len(held) :] == held


def test_the_least_recently_used_bytes_go_first() -> None:
    cache = MemoryCache(2000)
    for key in "ab":
        cache.put(key, bytes(600))
    cache.get("a")
    cache.put("c", bytes(600))
    assert [cache.get(key) is not None for key in "abc"] == [True, False, True]
