"""Bodies that end in memory or in a file."""
# ruff: noqa: N802

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from delta_proxy.s3.errors import InternalError, ServiceUnavailable
from delta_proxy.upstream.spool import FileSpool, MemorySpool, TooLarge
from tests.helpers import result_of

from .conftest import MakeStore
from .parts import Rig, answer, cuts, in_reactor, names, part, sends, soon

BODY = bytes(range(256)) * 4000


class HandCrankedPool:
    """A thread pool whose work is done when the test says so."""

    def __init__(self) -> None:
        self.work: list[tuple[Deferred[Any], Callable[[], Any]]] = []

    def __call__(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Deferred[Any]:
        """Queue the work."""
        done: Deferred[Any] = Deferred()
        self.work.append((done, lambda: work(*args, **kwargs)))
        return done

    def turn(self) -> None:
        """Do the oldest piece of work."""
        done, work = self.work.pop(0)
        done.callback(work())

    def fail(self, error: OSError) -> None:
        """Let the oldest piece of work fail."""
        self.work.pop(0)[0].errback(error)


@implementer(IPushProducer)
class Producer:
    """Notes what its consumer asks of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def pauseProducing(self) -> None:
        """Noted."""
        self.asked.append("pause")

    def resumeProducing(self) -> None:
        """Noted."""
        self.asked.append("resume")

    def stopProducing(self) -> None:
        """Noted."""
        self.asked.append("stop")


def opened(pool: HandCrankedPool, target: pathlib.Path, high_water: int) -> tuple[FileSpool, Producer]:
    """An open spool with a producer."""
    spool, producer = FileSpool(target, pool, high_water=high_water), Producer()
    opening = Deferred.fromCoroutine(spool.open())
    pool.turn()
    result_of(opening)
    spool.registerProducer(producer, True)
    return spool, producer


def roll_back(spool: FileSpool, pool: HandCrankedPool) -> None:
    """Have the spool remove what it wrote."""
    rolling = Deferred.fromCoroutine(spool.rollback())
    pool.turn()
    result_of(rolling)


def test_a_slow_disk_pauses_the_producer_until_it_has_caught_up(tmp_path: pathlib.Path) -> None:
    pool = HandCrankedPool()
    spool, producer = opened(pool, tmp_path / "file", high_water=10)
    spool.write(b"a" * 100)
    spool.write(b"b" * 9)
    assert producer.asked == []
    spool.write(b"c")
    assert producer.asked == ["pause"]
    pool.turn()
    assert producer.asked == ["pause", "resume"]
    pool.turn()
    roll_back(spool, pool)


def test_what_comes_during_a_write_is_written_together(tmp_path: pathlib.Path) -> None:
    pool = HandCrankedPool()
    spool, _ = opened(pool, tmp_path / "file", high_water=1000)
    for byte in b"abcdef":
        spool.write(bytes([byte]))
    pool.turn()
    pool.turn()
    assert pool.work == []
    committing = Deferred.fromCoroutine(spool.commit())
    pool.turn()
    result_of(committing)

    assert (tmp_path / "file").read_bytes() == b"abcdef"


def test_a_full_disk_is_told_to_the_next_write_and_to_commit(tmp_path: pathlib.Path) -> None:
    pool = HandCrankedPool()
    spool, producer = opened(pool, tmp_path / "file", high_water=2)
    spool.write(b"a")
    spool.write(b"bc")
    pool.fail(OSError("no space left"))

    assert producer.asked == ["pause", "resume"]
    with pytest.raises(OSError, match="no space"):
        spool.write(b"d")
    with pytest.raises(OSError, match="no space"):
        result_of(spool.commit())
    roll_back(spool, pool)
    assert names(tmp_path) == []


def test_a_file_opened_after_the_download_was_cancelled_is_removed(tmp_path: pathlib.Path) -> None:
    pool = HandCrankedPool()
    spool = FileSpool(tmp_path / "file", pool)
    opening = Deferred.fromCoroutine(spool.open())
    opening.cancel()
    with pytest.raises(CancelledError):
        result_of(opening)
    pool.turn()
    pool.turn()

    assert names(tmp_path) == []


def test_memory_takes_no_more_than_its_limit() -> None:
    spool = MemorySpool(4)
    spool.write(b"1234")
    assert spool.body == b"1234"
    with pytest.raises(TooLarge):
        spool.write(b"5")


@in_reactor
async def test_a_cut_download_is_resumed_into_the_same_file(
    rig: Rig, make_store: MakeStore, tmp_path: pathlib.Path
) -> None:
    store = make_store(cuts(answer(BODY[:70_000], length=len(BODY))), sends(part(BODY, 70_000)))
    found = await rig.table(store.endpoint).download("x", tmp_path / "file")

    assert found.size == len(BODY)
    assert (tmp_path / "file").read_bytes() == BODY


@in_reactor
async def test_a_failed_download_leaves_nothing(
    rig: Rig, make_store: MakeStore, tmp_path: pathlib.Path
) -> None:
    store = make_store(cuts(answer(BODY[:70_000], length=len(BODY), etag=None)))

    with pytest.raises(ServiceUnavailable):
        await rig.table(store.endpoint).download("x", tmp_path / "file")
    assert names(tmp_path) == []


@in_reactor
async def test_a_failed_download_keeps_the_file_that_was_there(
    rig: Rig, make_store: MakeStore, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "file").write_bytes(b"before")
    store = make_store(cuts(answer(BODY[:10], length=len(BODY), etag=None)))

    with pytest.raises(ServiceUnavailable):
        await rig.table(store.endpoint).download("x", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"before"


@in_reactor
async def test_a_cancelled_download_leaves_nothing_and_aborts_the_connection(
    rig: Rig, make_store: MakeStore, tmp_path: pathlib.Path
) -> None:
    store = make_store(sends(answer(BODY[:10], length=len(BODY))))
    downloading = Deferred.fromCoroutine(rig.table(store.endpoint).download("x", tmp_path / "file"))
    await store.call(1)
    while rig.notes.bytes < 10:
        await soon(0.001)
    downloading.cancel()

    with pytest.raises(CancelledError):
        await downloading
    await store.lines[0].lost
    assert names(tmp_path) == []


@in_reactor
async def test_a_download_into_a_folder_that_is_not_there_is_an_internal_error(
    rig: Rig, make_store: MakeStore, tmp_path: pathlib.Path
) -> None:
    store = make_store(sends(answer(BODY)))

    with pytest.raises(InternalError):
        await rig.table(store.endpoint).download("x", tmp_path / "missing" / "file")
    await store.lines[0].lost
