"""Small helpers that the tests of several packages share."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

T = TypeVar("T")


def start(work: Coroutine[Deferred[Any], Any, T] | Deferred[T]) -> Deferred[T]:
    """The Deferred of a coroutine, started."""
    return work if isinstance(work, Deferred) else Deferred.fromCoroutine(work)


def result_of(work: Coroutine[Deferred[Any], Any, T] | Deferred[T]) -> T:
    """The result of work that needs no reactor: it has already finished, or raises what it raised."""
    outcome: list[Any] = []
    start(work).addBoth(outcome.append)
    if not outcome:
        raise AssertionError("the work has not finished")
    if isinstance(outcome[0], Failure):
        outcome[0].raiseException()
    return outcome[0]  # type: ignore[no-any-return]
