"""Locks between processes: another process is one that really runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock

from delta_proxy.delta.build_locks import PATIENCE_SECONDS, BuildLocks
from delta_proxy.delta.disk_cache import CachedFile, DiskCache

_HOLD = """
import sys
from pathlib import Path
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from delta_proxy.delta.build_locks import BuildLocks

async def hold():
    async with BuildLocks(Path(sys.argv[1]), maybeDeferred, Clock()).held(sys.argv[2]) as locked:
        print(locked, flush=True)
        sys.stdin.readline()

Deferred.fromCoroutine(hold())
print("let go", flush=True)
sys.stdin.readline()
"""


def at_once(function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
    return maybeDeferred(function, *arguments)


@contextmanager
def another_process_holds(directory: Path, name: str) -> Iterator[Callable[[], None]]:
    """A process that has the lock of a name; calling what is yielded makes it let go."""
    command = [sys.executable, "-c", _HOLD, str(directory), name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout
        assert stdout.readline() == "True\n"

        def let_go() -> None:
            stdin.write("\n")
            stdin.flush()
            assert stdout.readline() == "let go\n"

        try:
            yield let_go
        finally:
            process.kill()


def take(directory: Path, name: str, clock: Clock) -> list[bool]:
    """Empty until the lock is had or given up."""
    taken: list[bool] = []

    async def work() -> None:
        async with BuildLocks(directory, at_once, clock).held(name) as locked:
            taken.append(locked)

    Deferred.fromCoroutine(work())
    return taken


def test_a_lock_that_nobody_has_is_had_at_once_and_again(tmp_path: Path) -> None:
    assert take(tmp_path, "a", Clock()) == [True]
    assert take(tmp_path, "a", Clock()) == [True]


def test_a_lock_of_another_process_is_waited_for(tmp_path: Path) -> None:
    clock = Clock()
    with another_process_holds(tmp_path, "a") as let_go:
        taken = take(tmp_path, "a", clock)
        clock.pump([0.1] * 20)
        assert taken == []
        assert take(tmp_path, "b", clock) == [True]
        let_go()
        clock.advance(1)
        assert taken == [True]


def test_the_lock_of_a_process_that_died_is_free(tmp_path: Path) -> None:
    with another_process_holds(tmp_path, "a"):
        pass
    assert take(tmp_path, "a", Clock()) == [True]


def test_who_has_waited_too_long_goes_on_without(tmp_path: Path) -> None:
    clock = Clock()
    with another_process_holds(tmp_path, "a"):
        taken = take(tmp_path, "a", clock)
        clock.pump([1.0] * int(PATIENCE_SECONDS + 1))
        assert taken == [False]


def test_where_there_can_be_no_locks_everybody_goes_on_without(tmp_path: Path) -> None:
    assert take(tmp_path / "not there", "a", Clock()) == [False]


def test_what_another_process_made_meanwhile_is_not_made_again(tmp_path: Path) -> None:
    clock = Clock()
    tmp_path.chmod(0o700)

    def cache() -> DiskCache:
        return DiskCache(tmp_path, limit_bytes=1 << 20, defer_to_pool=at_once, clock=clock)

    made: list[str] = []

    def make(who: str) -> Callable[[Path], Any]:
        async def write(path: Path) -> None:
            made.append(who)
            await at_once(path.write_text, who)

        return write

    first = cache()
    Deferred.fromCoroutine(first.get("other", make("-"), kind="test"))
    name = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"  # of "foo"
    with another_process_holds(tmp_path, name) as let_go:
        got: list[CachedFile] = []
        Deferred.fromCoroutine(cache().get("foo", make("second"), kind="test")).addCallback(got.append)
        clock.pump([0.1] * 10)
        assert got == []
        (tmp_path / name[:2]).mkdir(mode=0o700, exist_ok=True)
        (tmp_path / name[:2] / name).write_text("first")
        let_go()
        clock.advance(1)
    assert [file.path.read_text() for file in got] == ["first"]
    assert made == ["-"]
