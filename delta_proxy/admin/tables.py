"""The configured tables as the proxy reads them: the same client of the store, index and gate."""

# mypy: allow-untyped-calls
from __future__ import annotations

import pathlib
import random
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from typing import Any, TypeVar

import attrs
import numpy as np
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.python.threadpool import ThreadPool
from zope.interface import implementer

from delta_proxy.access.policy import Grant
from delta_proxy.admin.errors import one_line, words
from delta_proxy.config import Config
from delta_proxy.delta.cache import MetadataCache
from delta_proxy.delta.disk_cache import DiskCache
from delta_proxy.delta.index import FileKind, TableIndex
from delta_proxy.delta.masks import GrantMasks
from delta_proxy.delta.segment import Bits
from delta_proxy.delta.source import TableSource
from delta_proxy.upstream.agent import make_agent, make_pool
from delta_proxy.upstream.client import TableClient, Upstream
from delta_proxy.upstream.credentials import BotocoreCredentials
from delta_proxy.wiring import make_gate, make_tables, make_timeouts

T = TypeVar("T")
_THREADS = 4


class Unreadable(Exception):
    """A table that cannot be read; the text is one line that says why, for the operator."""


@attrs.frozen
class Coverage:
    """How much of a table's newest version a grant covers: live data files, and partitions that have any."""

    files: int
    of_files: int
    partitions: int
    of_partitions: int

    @classmethod
    def of(cls, index: TableIndex, grant: Grant, now: datetime) -> Coverage:
        """The coverage of a grant at `now`."""
        bits = GrantMasks().of(index, grant, now).bits
        everything = np.ones(len(index.partitions), np.bool_)
        live = live_tuples(index)
        return cls(index.count(bits), index.count(everything), int((live & bits).sum()), int(live.sum()))


def live_tuples(index: TableIndex) -> Bits:
    """For each partition tuple, whether the newest version has a data file with it."""
    found = np.zeros(len(index.partitions), np.bool_)
    start = 0
    for batch in index.base.row_batches(0, live=True):
        kinds, live = np.asarray(batch.column("kind")), np.asarray(batch.column("live"))
        hits = (kinds == FileKind.DATA) & (live != 0)
        shadowed = index.overlay.shadowed - start
        hits[shadowed[(shadowed >= 0) & (shadowed < len(batch))]] = False
        found[np.asarray(batch.column("tuple"))[hits]] = True
        start += len(batch)
    for entries in index.overlay.entries.values():
        for entry in entries:
            if entry.live and entry.kind is FileKind.DATA:
                found[entry.tuple_id] = True
    return found


class Tables:
    """The tables while a command runs. What is built of them goes to a directory that is removed after it:
    the proxy's own cache belongs to the proxy's account.
    """

    def __init__(
        self,
        config: Config,
        reactor: Any,
        *,
        defer_to_pool: Callable[..., Deferred[Any]],
        upstream: Upstream,
        directory: pathlib.Path,
        now: Callable[[], datetime],
    ) -> None:
        chains = {
            location.store.profile: BotocoreCredentials(location.store.profile, defer_to_pool, reactor)
            for location in config.table_mapping.values()
        }
        views = make_tables(config, upstream, chains.__getitem__, reactor, lambda _: 0)
        self.clients: dict[str, TableClient] = {alias: view.store for alias, view in views.items()}
        sources = {alias: TableSource(view.identity, view.root, view.store) for alias, view in views.items()}
        self.cache = MetadataCache(sources, clock=reactor, defer_to_pool=defer_to_pool, directory=directory)
        self.gate = make_gate(
            config,
            views,
            cache=self.cache,
            disk=DiskCache(directory, limit_bytes=0, defer_to_pool=defer_to_pool, clock=reactor),
            memory_bytes=0,
            defer_to_pool=defer_to_pool,
            now=now,
        )

    async def index(self, alias: str) -> TableIndex:
        """The index of a table, its history read too. Raises Unreadable."""
        return await explained(self.cache.complete(alias))


@asynccontextmanager
async def opened(config: Config, reactor: Any, now: Callable[[], datetime]) -> AsyncIterator[Tables]:
    """The tables of a configuration, for as long as the block runs."""
    pool = ThreadPool(1, _THREADS, name="admin")
    pool.start()
    # At Ctrl-C the reactor stops in the middle of the block: the threads must not outlive it.
    at_the_end = reactor.addSystemEventTrigger("during", "shutdown", pool.stop)
    connections = make_pool(reactor)

    def defer_to_pool(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Deferred[Any]:
        return deferToThreadPool(reactor, pool, function, *args, **kwargs)

    timeouts = make_timeouts(config)
    upstream = Upstream(
        make_agent(reactor, connections, timeouts=timeouts),
        reactor,
        defer_to_pool,
        random.random,
        _Unobserved(),
        timeouts=timeouts,
    )
    with tempfile.TemporaryDirectory(prefix="delta-proxy-admin-") as directory:
        try:
            yield Tables(
                config,
                reactor,
                defer_to_pool=defer_to_pool,
                upstream=upstream,
                directory=pathlib.Path(directory),
                now=now,
            )
        finally:
            await connections.closeCachedConnections()
            reactor.removeSystemEventTrigger(at_the_end)
            pool.stop()


async def explained(work: Coroutine[Deferred[Any], Any, T]) -> T:
    """The result of work on a table; every failure as Unreadable, with what the log says of it."""
    with _overheard() as heard:
        try:
            return await work
        except Exception as error:  # noqa: BLE001 - whatever it is, this table cannot be read
            said = words(error)
            details = [line for line in heard if line and not line.endswith(said)]
            raise Unreadable(f"{details[-1]} ({said})" if details else said) from None


@contextmanager
def _overheard() -> Iterator[list[str]]:
    """What is logged meanwhile as a warning or worse: the store's own words stand only there."""
    lines: list[str] = []

    @implementer(ILogObserver)
    def hear(event: LogEvent) -> None:
        if event.get("log_level") in {LogLevel.warn, LogLevel.error}:
            lines.append(one_line(formatEvent(event)))

    globalLogPublisher.addObserver(hear)
    try:
        yield lines
    finally:
        globalLogPublisher.removeObserver(hear)


class _Unobserved:
    def request_finished(self, operation: str, outcome: str, seconds: float) -> None:
        """Nobody counts."""

    def bytes_received(self, count: int) -> None:
        """Nobody counts."""
