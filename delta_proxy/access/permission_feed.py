"""Keeps the latest snapshot of the permissions database at hand, without ever blocking the reactor.

The version is polled; where the database announces changes (LISTEN/NOTIFY on PostgreSQL) a poll follows at
once. The poll never depends on the announcements, so losing them costs at most one interval. While the
database cannot be asked, the last grants stay in force for `stale_seconds` and no longer: then every
question is refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import Enum
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorFDSet, IReactorTime, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from delta_proxy.access.snapshot import Listening, Problem, Snapshot, Version

DEFAULT_POLL_SECONDS = 2.0
MAX_POLL_SECONDS = 5.0
DEFAULT_STALE_SECONDS = 60.0


class Unavailable(Exception):
    """There are no grants that may still be used: the database was never, or too long not, reached."""


class SnapshotSource(Protocol):
    """What the feed asks, on the thread pool: a `PermissionStore`."""

    def current_version(self) -> Version:
        """The version of the state now."""

    def load_snapshot(self) -> Snapshot:
        """The state now."""

    def listen(self) -> Listening | None:
        """Where changes are announced, if the database does so."""


class FeedState(Enum):
    """Whether the grants at hand are in force."""

    CURRENT = "current"
    STALE = "stale"
    CLOSED = "closed"


@attrs.frozen
class FeedStatus:
    """For readiness, metrics and the log; `age_seconds` since the grants were last known to be right."""

    state: FeedState
    age_seconds: float
    version: Version | None
    problems: tuple[Problem, ...]
    error: str | None

    @property
    def ready(self) -> bool:
        """Whether requests can be answered."""
        return self.state is not FeedState.CLOSED


class PermissionFeed:
    """The latest `Snapshot`, at most `poll_seconds` (plus the time of a query) behind the database.

    `defer_to_pool(function)` runs a blocking function on the thread pool. With `descriptors` (the reactor)
    announced changes are listened for. ValueError when `poll_seconds` is above 5 or `stale_seconds` leaves
    no room for two polls.
    """

    _log = Logger()

    def __init__(
        self,
        source: SnapshotSource,
        *,
        clock: IReactorTime,
        defer_to_pool: Callable[[Callable[[], Any]], Deferred[Any]],
        descriptors: IReactorFDSet | None = None,
        poll_seconds: float = DEFAULT_POLL_SECONDS,
        stale_seconds: float = DEFAULT_STALE_SECONDS,
    ) -> None:
        if not 0 < poll_seconds <= MAX_POLL_SECONDS:
            raise ValueError(
                f"the permissions must be polled every {MAX_POLL_SECONDS:g} seconds or more often"
            )
        if stale_seconds < 2 * poll_seconds:
            raise ValueError(f"staleSeconds must be at least {2 * poll_seconds:g}")
        self._source, self._clock, self._pool = source, clock, defer_to_pool
        self._descriptors = descriptors
        self._poll_seconds, self._stale_seconds = poll_seconds, stale_seconds
        self._snapshot: Snapshot | None = None
        self._confirmed = float("-inf")
        self._error: str | None = None
        self._running = False
        self._again = False
        self._unannounced = False
        self._polling: Deferred[None] | None = None
        self._next: IDelayedCall | None = None
        self._announcements: _Announcements | None = None

    async def start(self) -> None:
        """Load the first snapshot and keep it up to date from then on.

        Does not raise when the database is down: the feed is then closed until it answers.
        """
        self._running = True
        self._poll()
        if self._polling is not None:
            waiter: Deferred[None] = Deferred()
            self._polling.addBoth(lambda _: waiter.callback(None))
            await waiter

    async def stop(self) -> None:
        """No more questions; a query that is under way is waited for."""
        self._running = False
        if self._next is not None and self._next.active():
            self._next.cancel()
        if self._polling is not None:
            waiter: Deferred[None] = Deferred()
            self._polling.addBoth(lambda _: waiter.callback(None))
            await waiter
        if self._announcements is not None:
            self._announcements.close()

    def snapshot(self) -> Snapshot:
        """The grants in force; Unavailable when none are."""
        now = self._clock.seconds()
        if now < self._confirmed:
            # The clock was set back: by it the next poll, and the end of these grants, may be hours away.
            self._confirmed = now
            self.poke()
        if self._snapshot is None or self._age() > self._stale_seconds:
            raise Unavailable
        return self._snapshot

    @property
    def status(self) -> FeedStatus:
        """How the feed stands now."""
        snapshot, age = self._snapshot, self._age()
        if snapshot is None or age > self._stale_seconds:
            state = FeedState.CLOSED
        else:
            late = self._error is not None or age > self._poll_seconds + MAX_POLL_SECONDS
            state = FeedState.STALE if late else FeedState.CURRENT
        problems = () if snapshot is None else snapshot.problems
        return FeedStatus(state, age, None if snapshot is None else snapshot.version, problems, self._error)

    def poke(self) -> None:
        """Ask now: something has changed. While a query is under way, ask once more after it."""
        if not self._running:
            return
        if self._polling is not None:
            self._again = True
            return
        if self._next is not None and self._next.active():
            self._next.cancel()
        self._poll()

    def _age(self) -> float:
        return self._clock.seconds() - self._confirmed

    def _poll(self) -> None:
        self._again = False
        polling = self._polling = Deferred.fromCoroutine(self._refresh())
        polling.addBoth(self._polled)

    def _polled(self, _: object) -> None:
        self._polling = None
        if self._running:
            self._next = self._clock.callLater(0 if self._again else self._poll_seconds, self._poll)

    async def _refresh(self) -> None:
        # The moment before the question: what the answer confirms cannot be younger.
        asked = self._clock.seconds()
        try:
            await self._ask()
        except Exception as error:  # noqa: BLE001 - any failure means that the grants could not be confirmed
            self._failed(error)
            return
        self._confirmed = asked
        if self._error is not None:
            self._log.info("the permissions database answers again")
        self._error = None
        await self._listen()

    async def _ask(self) -> None:
        known = self._snapshot
        if known is not None and await self._pool(self._source.current_version) == known.version:
            return
        self._snapshot = await self._pool(self._source.load_snapshot)
        for problem in self._snapshot.problems:
            self._log.warn("permissions: {problem}; it grants nothing", problem=str(problem))

    def _failed(self, error: Exception) -> None:
        # The first line of the driver's own words: SQLAlchemy's repeat the statement.
        words = str(getattr(error, "orig", None) or error).splitlines() or [type(error).__name__]
        if self._error is None:
            self._log.error("the permissions database does not answer: {error}", error=words[0])
        self._error = words[0]

    async def _listen(self) -> None:
        if self._descriptors is None or self._announcements is not None:
            return
        try:
            listening = await self._pool(self._source.listen)
        except Exception as error:  # noqa: BLE001 - without announcements the polling suffices
            if not self._unannounced:
                self._log.warn(
                    "changes are only polled for, not announced: {name}", name=type(error).__name__
                )
            self._unannounced = True
            return
        self._unannounced = False
        if listening is None:
            self._descriptors = None
            return
        if not self._running:
            listening.close()
            return
        self._announcements = _Announcements(listening, self._descriptors, self.poke, self._lost)
        # What changed between the last answer and LISTEN was announced to nobody.
        self._again = True

    def _lost(self) -> None:
        self._announcements = None


@implementer(IReadDescriptor)
class _Announcements:
    """Watches the socket on which the database announces changes."""

    def __init__(
        self,
        listening: Listening,
        reactor: IReactorFDSet,
        changed: Callable[[], None],
        lost: Callable[[], None],
    ) -> None:
        self._listening, self._reactor = listening, reactor
        self._changed, self._lost = changed, lost
        # The driver closes a lost socket by itself, and its number may soon be another's: watch a copy.
        self._descriptor = os.dup(listening.fileno())
        self._open = True
        reactor.addReader(self)

    def fileno(self) -> int:
        """The socket, by our own descriptor."""
        return self._descriptor

    def logPrefix(self) -> str:  # noqa: N802
        """The name in the log."""
        return "permissions"

    def doRead(self) -> None:  # noqa: N802
        """Something has arrived."""
        try:
            changed = self._listening.drain()
        except OSError:
            self.close()
            self._lost()
            return
        if changed:
            self._changed()

    def connectionLost(self, reason: Failure) -> None:  # noqa: N802
        """The reactor has given the socket up."""
        self.close()
        self._lost()

    def close(self) -> None:
        """Stop watching; a second call does nothing."""
        if not self._open:
            return
        self._open = False
        self._reactor.removeReader(self)
        os.close(self._descriptor)
        self._listening.close()
