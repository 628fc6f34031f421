"""Work that many wait for and that runs once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, Generic, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

T = TypeVar("T")
U = TypeVar("U")


class Flight(Generic[T]):
    """One run of a coroutine. A waiter that is cancelled leaves; the work goes on for the others and for
    later.
    """

    def __init__(self, work: Coroutine[Deferred[Any], Any, T]) -> None:
        self._waiters: list[Deferred[T]] = []
        self._outcome: list[T | Failure] = []
        Deferred.fromCoroutine(work).addBoth(self._land)

    @property
    def landed(self) -> bool:
        """Whether the work has ended, well or not."""
        return bool(self._outcome)

    @property
    def failed(self) -> bool:
        """Whether the work has ended in a failure."""
        return self.landed and isinstance(self._outcome[0], Failure)

    def wait(self) -> Deferred[T]:
        """A Deferred of the result for one waiter."""
        waiter: Deferred[T] = Deferred(self._waiters_remove)
        if self._outcome:
            _fire(waiter, self._outcome[0])
        else:
            self._waiters.append(waiter)
        return waiter

    def _waiters_remove(self, waiter: Deferred[T]) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)

    def _land(self, outcome: T | Failure) -> None:
        self._outcome.append(outcome)
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            _fire(waiter, outcome)


class Successive(Generic[T]):
    """Runs of the same work, one at a time.

    Whoever asks gets the outcome of a run that began after it asked: the one under way may have looked too
    early, so all who come meanwhile share the next.
    """

    def __init__(self, work: Callable[[], Coroutine[Deferred[Any], Any, T]]) -> None:
        self._work = work
        self._running: Flight[T] | None = None
        self._next: Flight[T] | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing is under way or to come."""
        return self._next is None and (self._running is None or self._running.landed)

    def ask(self) -> Deferred[T]:
        """The outcome of a run that begins now or later."""
        if self._running is None or self.idle:
            flight = self._running = Flight(self._work())
        elif self._next is None:
            flight = self._next = Flight(self._after(self._running))
        else:
            flight = self._next
        return flight.wait()

    async def _after(self, before: Flight[T]) -> T:
        ended: Deferred[object] = Deferred()
        before.wait().addBoth(lambda _: ended.callback(None))
        await ended
        self._running, self._next = self._next, None
        return await self._work()


def _fire(waiter: Deferred[T], outcome: T | Failure) -> None:
    if isinstance(outcome, Failure):
        waiter.errback(outcome)
    else:
        waiter.callback(outcome)


async def in_parallel(limit: int, jobs: Iterable[Callable[[], Awaitable[T]]]) -> Sequence[T]:
    """The results of the jobs, in their order, with at most `limit` at work. The first failure ends the
    others.
    """
    numbered = list(enumerate(jobs))
    results: dict[int, T] = {}
    left = iter(numbered)

    async def work() -> None:
        for number, job in left:
            results[number] = await job()

    workers = [Deferred.fromCoroutine(work()) for _ in range(min(limit, len(numbered)))]
    try:
        for worker in workers:
            await worker
    except BaseException:
        for worker in workers:
            worker.addErrback(_expect_cancelled)
            worker.cancel()
        raise
    return [results[number] for number, _ in numbered]


async def both(
    first: Coroutine[Deferred[Any], Any, T], second: Coroutine[Deferred[Any], Any, U]
) -> tuple[T, U]:
    """The results of two coroutines that run at the same time. What fails first in this order ends both."""
    begun = Deferred.fromCoroutine(first), Deferred.fromCoroutine(second)
    try:
        return await begun[0], await begun[1]
    except BaseException:
        for each in begun:
            each.addErrback(_expect_cancelled)
            each.cancel()
        raise


def _expect_cancelled(failure: Failure) -> None:
    """The first failure is the one that counts; what its end does to the others is not news."""
    failure.trap(CancelledError, Exception)  # type: ignore[no-untyped-call]
