"""When a request is sent again, how long to wait before, and how long to wait for anything at all.

Sources: "Exponential Backoff And Jitter" (AWS Architecture Blog) for full jitter; "Retry behavior" in the
AWS SDKs and Tools Reference Guide for the retry quota; RFC 9110 section 10.2.3 for Retry-After.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from attrs import field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

T = TypeVar("T")

RETRYABLE_STATUSES = frozenset({429, 500, 502, 503, 504})


class TookTooLong(Exception):
    """What was waited for did not come in its time."""


@frozen
class Timeouts:
    """Bounds in seconds: to connect, until the response's header, between body chunks while they are
    wanted, and for a free place among the requests to a host.
    """

    connect: float = 5.0
    first_byte: float = 30.0
    idle: float = 30.0
    queue: float = 10.0


@frozen
class RetryPolicy:
    """How often and how soon an idempotent request is repeated.

    `tries` counts the first one. Before retry n (from 0) the wait is evenly spread between 0 and `base` *
    2**n seconds, at most `cap`. A Retry-After of the store is the least wait, but counts as at most
    `retry_after_bound`. No try starts later than `give_up_after` seconds after the first. `resumes` bounds
    how often in a row a cut body is taken up again without `progress` bytes in between.
    """

    tries: int = 4
    base: float = 0.1
    cap: float = 5.0
    retry_after_bound: float = 10.0
    give_up_after: float = 60.0
    resumes: int = 3
    progress: int = 1024 * 1024

    def delay(self, retry: int, random: float, retry_after: float | None = None) -> float:
        """Seconds to wait before retry number `retry` (from 0); `random` is in [0, 1)."""
        jittered = random * min(self.cap, self.base * 2.0**retry)
        if retry_after is None:
            return jittered
        return max(jittered, min(retry_after, self.retry_after_bound))


class RetryBudget:
    """The retries one store may be asked for: when it fails as a whole, retries would only add to its load.

    A retry takes `cost` of the tokens, a request that succeeds gives one back. Without tokens nothing is
    retried.
    """

    def __init__(self, tokens: int = 500, cost: int = 5) -> None:
        self._most = tokens
        self._cost = cost
        self.tokens = tokens

    def take(self) -> bool:
        """Whether one more retry is affordable; it is paid for then."""
        if self.tokens < self._cost:
            return False
        self.tokens -= self._cost
        return True

    def give_back(self) -> None:
        """A request has succeeded."""
        self.tokens = min(self._most, self.tokens + 1)


@frozen
class Pacing:
    """The clock, the chance and the bounds that requests to stores share. `random` gives numbers in [0,
    1).
    """

    clock: IReactorTime
    random: Callable[[], float]
    timeouts: Timeouts = Timeouts()
    policy: RetryPolicy = field(factory=RetryPolicy)

    def sleep(self, seconds: float) -> Deferred[None]:
        """Fires after that many seconds; cancelling it leaves no delayed call behind."""
        done: Deferred[None] = Deferred(lambda _: call.cancel())
        call = self.clock.callLater(seconds, done.callback, None)
        return done

    def jitter(self, retry: int, retry_after: float | None = None) -> float:
        """Seconds to wait before retry number `retry` (from 0)."""
        return self.policy.delay(retry, self.random(), retry_after)


def parse_retry_after(value: str | None) -> float | None:
    """The seconds of a Retry-After header; None when absent, or a date, which no S3 store sends."""
    text = (value or "").strip()
    return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def bounded(
    work: Deferred[T], clock: IReactorTime, seconds: float, discard: Callable[[T], object]
) -> Deferred[T]:
    """The outcome of `work`, or TookTooLong after that many seconds, or CancelledError when it is cancelled.

    In the latter two cases `work` is cancelled, and a result that comes nevertheless goes to `discard`.
    Agent reports a cancelled request with several exceptions, by how far it had come; here there is one for
    each reason.
    """
    outcome: Deferred[T] = Deferred(lambda _: finish(CancelledError()))
    timer = clock.callLater(seconds, lambda: finish(TookTooLong(f"nothing within {seconds} s")))

    def finish(error: Exception) -> None:
        if timer.active():
            timer.cancel()
        outcome.errback(error)
        work.cancel()

    def settle(result: T | Failure) -> None:
        if timer.active():
            timer.cancel()
        if not outcome.called:
            outcome.callback(result)
        elif not isinstance(result, Failure):
            discard(result)

    work.addBoth(settle)
    return outcome
