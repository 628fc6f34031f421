"""A bound on the requests that are in flight to one host, and on those that wait for a place."""

from __future__ import annotations

from twisted.internet.defer import DeferredSemaphore, TimeoutError
from twisted.internet.interfaces import IReactorTime

from delta_proxy.s3.errors import SlowDown

_STREAMED_SHARE = 3 / 4
"""Of the places; slow readers can keep no more of them from everybody else."""


class Slot:
    """Places among the requests in flight; giving them back twice is harmless."""

    def __init__(self, *places: DeferredSemaphore) -> None:
        self._places = places

    def release(self) -> None:
        """Give the places to the next in the queue."""
        places, self._places = self._places, ()
        for semaphore in places:
            semaphore.release()


class Slots:
    """At most `limit` requests in flight and `queue` waiting, each for at most `seconds`."""

    def __init__(self, clock: IReactorTime, *, limit: int, queue: int, seconds: float) -> None:
        self._clock = clock
        self._semaphore = DeferredSemaphore(limit)
        self._streams = DeferredSemaphore(max(1, int(limit * _STREAMED_SHARE)))
        self._queue = queue
        self._seconds = seconds

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return len(self._semaphore.waiting) + len(self._streams.waiting)

    @property
    def in_flight(self) -> int:
        """How many places are taken."""
        return self._semaphore.limit - self._semaphore.tokens

    async def acquire(self, *, streamed: bool = False) -> Slot:
        """A place; `streamed` says that a client decides how long it is kept.

        Raises SlowDown when too many wait already, or when none came free in time.
        """
        if not streamed:
            return Slot(await self._place(self._semaphore))
        stream = Slot(await self._place(self._streams))
        try:
            return Slot(await self._place(self._semaphore), self._streams)
        except BaseException:
            stream.release()
            raise

    async def _place(self, semaphore: DeferredSemaphore) -> DeferredSemaphore:
        if semaphore.tokens:
            # As acquire does it, without a Deferred for what need not wait.
            semaphore.tokens -= 1
            return semaphore
        if len(semaphore.waiting) >= self._queue:
            raise SlowDown()
        place = semaphore.acquire()
        place.addTimeout(self._seconds, self._clock)
        try:
            await place
        except TimeoutError:
            raise SlowDown() from None
        return semaphore
