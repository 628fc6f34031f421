"""A bound on the requests that are in flight to one host, and on those that wait for a place."""

from __future__ import annotations

from twisted.internet.defer import DeferredSemaphore, TimeoutError
from twisted.internet.interfaces import IReactorTime

from delta_proxy.s3.errors import SlowDown


class Slot:
    """A place among the requests in flight; giving it back twice is harmless."""

    def __init__(self, semaphore: DeferredSemaphore) -> None:
        self._semaphore: DeferredSemaphore | None = semaphore

    def release(self) -> None:
        """Give the place to the next in the queue."""
        semaphore, self._semaphore = self._semaphore, None
        if semaphore is not None:
            semaphore.release()


class Slots:
    """At most `limit` requests in flight and `queue` waiting, each for at most `seconds`."""

    def __init__(self, clock: IReactorTime, *, limit: int, queue: int, seconds: float) -> None:
        self._clock = clock
        self._semaphore = DeferredSemaphore(limit)
        self._queue = queue
        self._seconds = seconds

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return len(self._semaphore.waiting)

    @property
    def in_flight(self) -> int:
        """How many places are taken."""
        return self._semaphore.limit - self._semaphore.tokens

    async def acquire(self) -> Slot:
        """A place. Raises SlowDown when too many wait already, or when none came free in time."""
        if not self._semaphore.tokens and self.waiting >= self._queue:
            raise SlowDown()
        place = self._semaphore.acquire()
        if not place.called:
            place.addTimeout(self._seconds, self._clock)
        try:
            await place
        except TimeoutError:
            raise SlowDown() from None
        return Slot(self._semaphore)
