"""How long to wait, and how often."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from delta_proxy.upstream.retry import RetryBudget, RetryPolicy, TookTooLong, bounded, parse_retry_after
from tests.helpers import result_of


@given(
    retry=st.integers(0, 60),
    random=st.floats(0, 1, exclude_max=True),
    retry_after=st.none() | st.floats(0, 1e9),
)
def test_a_wait_is_jittered_within_its_bounds(retry: int, random: float, retry_after: float | None) -> None:
    policy = RetryPolicy(base=0.1, cap=5.0, retry_after_bound=10.0)
    delay = policy.delay(retry, random, retry_after)

    assert 0 <= delay <= 10.0
    if retry_after is None:
        assert delay == random * min(5.0, 0.1 * 2**retry)
    else:
        assert delay >= min(retry_after, 10.0)


def test_a_budget_is_spent_by_retries_and_earned_by_successes() -> None:
    budget = RetryBudget(tokens=10, cost=5)
    assert [budget.take(), budget.take(), budget.take()] == [True, True, False]
    for _ in range(5):
        budget.give_back()
    assert budget.take()
    for _ in range(99):
        budget.give_back()
    assert budget.tokens == 10


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        (" 0 ", 0.0),
        (None, None),
        ("", None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
        ("-1", None),
    ],
)
def test_retry_after_is_a_number_of_seconds_or_nothing(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value) == seconds


def test_bounded_work_ends_in_its_time_or_not_at_all() -> None:
    clock = Clock()
    late: list[str] = []
    in_time: Deferred[str] = Deferred()
    bounded_in_time = bounded(in_time, clock, 5, late.append)
    in_time.callback("done")
    assert result_of(bounded_in_time) == "done"
    assert clock.getDelayedCalls() == []

    # Work that cannot be cancelled delivers all the same.
    slow: Deferred[str] = Deferred(lambda _: slow.callback("too late"))
    bounded_slow = bounded(slow, clock, 5, late.append)
    clock.advance(5)
    with pytest.raises(TookTooLong):
        result_of(bounded_slow)
    assert late == ["too late"]


def test_cancelled_work_ends_at_once_whatever_it_says_itself() -> None:
    clock = Clock()
    work: Deferred[str] = Deferred(lambda _: work.errback(OSError("odd")))
    outcome = bounded(work, clock, 5, lambda _: None)
    outcome.cancel()

    with pytest.raises(CancelledError):
        result_of(outcome)
    assert clock.getDelayedCalls() == []
