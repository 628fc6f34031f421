"""Places among the requests to a host: what slow readers can take of them, and what not."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from delta_proxy.s3.errors import SlowDown
from delta_proxy.upstream.slots import Slots
from tests.helpers import result_of, start


def make(limit: int, queue: int = 10) -> tuple[Slots, Clock]:
    clock = Clock()
    return Slots(clock, limit=limit, queue=queue, seconds=10), clock


def test_streams_to_clients_leave_a_quarter_of_the_places_to_everybody_else() -> None:
    slots, clock = make(8)
    streams = [result_of(slots.acquire(streamed=True)) for _ in range(6)]
    late = start(slots.acquire(streamed=True))
    assert not late.called
    others = [result_of(slots.acquire()) for _ in range(2)]
    assert slots.in_flight == 8
    clock.advance(10)
    with pytest.raises(SlowDown):
        result_of(late)
    for slot in (*streams, *others, *streams):
        slot.release()
    assert (slots.in_flight, slots.waiting) == (0, 0)
    assert len([result_of(slots.acquire(streamed=True)) for _ in range(6)]) == 6


def test_a_stream_that_gets_no_place_in_time_gives_its_share_back() -> None:
    slots, clock = make(2)
    taken = [result_of(slots.acquire()) for _ in range(2)]
    late = start(slots.acquire(streamed=True))
    clock.advance(10)
    with pytest.raises(SlowDown):
        result_of(late)
    taken[0].release()
    assert result_of(slots.acquire(streamed=True))


def test_a_full_queue_refuses_at_once() -> None:
    slots, _ = make(1, queue=1)
    result_of(slots.acquire(streamed=True))
    assert not start(slots.acquire(streamed=True)).called
    with pytest.raises(SlowDown):
        result_of(slots.acquire(streamed=True))
