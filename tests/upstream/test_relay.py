"""Bodies on their way from a store to a consumer, over real sockets."""
# ruff: noqa: N802, N815

from __future__ import annotations

from typing import Any, ClassVar, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogPublisher
from twisted.python.failure import Failure
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from delta_proxy.s3.errors import ServiceUnavailable, SlowDown
from delta_proxy.s3.headers import Headers
from delta_proxy.upstream.agent import make_agent, make_pool
from delta_proxy.upstream.client import TableClient
from delta_proxy.upstream.relay import BodyCut, ConsumerGone, Span, drop, span_of
from delta_proxy.upstream.retry import RetryPolicy, Timeouts

from .conftest import MakeRig, MakeStore, both_clients
from .parts import (
    ETAG,
    Call,
    Collector,
    Rig,
    answer,
    cuts,
    in_reactor,
    part,
    reactor,
    sends,
    silent,
    soon,
)

pytest_generate_tests = both_clients

BODY = bytes(range(256)) * 40
LARGE = 8 * 1024 * 1024


async def fetched(table: TableClient, consumer: Any) -> int:
    """The number of bytes that the consumer was sent of an object."""
    return await (await table.open("GET", "x")).send_body(consumer)


@in_reactor
async def test_a_body_cut_in_the_middle_is_resumed_where_it_ended(rig: Rig, make_store: MakeStore) -> None:
    store = make_store(cuts(answer(BODY[:1000], length=len(BODY))), sends(part(BODY, 1000)))
    consumer = Collector()

    assert await fetched(rig.table(store.endpoint), consumer) == len(BODY)
    assert consumer.body == BODY
    assert store.calls[1].header("range") == f"bytes=1000-{len(BODY) - 1}"
    assert store.calls[1].header("if-match") == ETAG
    assert consumer.unregistered


@in_reactor
async def test_a_resumption_is_signed_anew_and_drops_the_client_s_conditions(
    rig: Rig, make_store: MakeStore
) -> None:
    store = make_store(cuts(answer(BODY[:9], length=len(BODY))), sends(part(BODY, 9)))
    response = await rig.table(store.endpoint).open("GET", "x", headers=(("If-None-Match", '"other"'),))
    await response.send_body(Collector())

    assert store.calls[0].header("if-none-match") == '"other"'
    assert store.calls[1].header("if-none-match") is None
    assert "Signature=" in str(store.calls[1].header("authorization"))


@in_reactor
async def test_a_cut_part_is_resumed_within_the_range_that_was_asked(rig: Rig, make_store: MakeStore) -> None:
    first = part(BODY, 100, last=299)[:-150]
    store = make_store(cuts(first), sends(part(BODY, 150, last=299)))
    response = await rig.table(store.endpoint).open("GET", "x", headers=(("range", "bytes=100-299"),))
    consumer = Collector()
    await response.send_body(consumer)

    assert consumer.body == BODY[100:300]
    assert store.calls[1].header("range") == "bytes=150-299"


@in_reactor
async def test_a_cut_part_of_an_upload_is_resumed_by_its_range_alone(rig: Rig, make_store: MakeStore) -> None:
    store = make_store(cuts(part(BODY, 100, last=299)[:-150]), sends(part(BODY, 150, last=299)))
    query = (("partNumber", "2"), ("response-content-type", "a/b"))
    response = await rig.table(store.endpoint).open("GET", "x", query=query)
    consumer = Collector()
    await response.send_body(consumer)

    assert consumer.body == BODY[100:300]
    assert b"partNumber=2" in store.calls[0].target
    assert b"partNumber" not in store.calls[1].target
    assert b"response-content-type=a%2Fb" in store.calls[1].target
    assert store.calls[1].header("range") == "bytes=150-299"


@pytest.mark.parametrize(
    "resumed",
    [
        part(BODY, 1000, etag='"another"'),
        answer(BODY),
        part(BODY, 0),
        part(BODY, 1000, last=2000),
        answer(status="412 Precondition Failed"),
        answer(status="404 Not Found"),
    ],
    ids=["another-etag", "whole", "other-start", "other-end", "changed", "deleted"],
)
@in_reactor
async def test_other_bytes_than_those_missing_never_reach_the_consumer(
    rig: Rig, make_store: MakeStore, resumed: bytes
) -> None:
    store = make_store(cuts(answer(BODY[:1000], length=len(BODY))), sends(resumed))
    consumer = Collector()

    with pytest.raises(BodyCut):
        await fetched(rig.table(store.endpoint), consumer)
    assert consumer.body == BODY[:1000]


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
@in_reactor
async def test_without_a_strong_etag_nothing_is_resumed(
    rig: Rig, make_store: MakeStore, etag: str | None
) -> None:
    store = make_store(cuts(answer(BODY[:10], length=len(BODY), etag=etag)))

    with pytest.raises(BodyCut):
        await fetched(rig.table(store.endpoint), Collector())
    assert len(store.calls) == 1


@in_reactor
async def test_a_body_that_only_ends_with_its_connection_is_never_taken_for_whole(
    rig: Rig, make_store: MakeStore
) -> None:
    store = make_store(cuts(b"HTTP/1.1 200 OK\r\nETag: " + ETAG.encode() + b"\r\n\r\nsome bytes"))

    with pytest.raises(BodyCut):
        await fetched(rig.table(store.endpoint), Collector())


@in_reactor
async def test_a_chunked_body_is_whole_when_its_last_chunk_came(rig: Rig, make_store: MakeStore) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    store = make_store(sends(head + b"5\r\nhello\r\n0\r\n\r\n"), cuts(head + b"5\r\nhello\r\n"))
    table, consumer = rig.table(store.endpoint), Collector()

    assert await fetched(table, consumer) == 5
    with pytest.raises(BodyCut):
        await fetched(table, Collector())


@in_reactor
async def test_resumption_is_given_up_after_three_without_progress(rig: Rig, make_store: MakeStore) -> None:
    nothing = part(BODY, 10)[: -len(BODY[10:])]
    store = make_store(cuts(answer(BODY[:10], length=len(BODY))), cuts(nothing))

    with pytest.raises(BodyCut):
        await fetched(rig.table(store.endpoint), Collector())
    assert len(store.calls) == 1 + 3


@in_reactor
async def test_resumption_goes_on_while_there_is_progress(rig: Rig, make_store: MakeStore) -> None:
    step = 1000

    def some(call: Call) -> None:
        first = int(str(call.header("range")).removeprefix("bytes=").split("-")[0])
        whole = part(BODY, first)
        call.send_and_cut(whole[: len(whole) - max(0, len(BODY) - first - step)])

    store = make_store(cuts(answer(BODY[:step], length=len(BODY))), some)
    consumer = Collector()

    assert await fetched(rig.table(store.endpoint), consumer) == len(BODY)
    assert consumer.body == BODY


@in_reactor
async def test_a_store_that_falls_silent_in_mid_body_is_left_for_a_new_connection(
    make_rig: MakeRig, make_store: MakeStore
) -> None:
    clock = Clock()
    store = make_store(sends(answer(BODY[:1000], length=len(BODY))), sends(part(BODY, 1000)))
    table = make_rig(clock=clock, timeouts=Timeouts(idle=30)).table(store.endpoint)
    consumer = Collector()
    response = await table.open("GET", "x")
    done = Deferred.fromCoroutine(response.send_body(consumer))
    while len(consumer.body) < 1000:
        await soon(0.001)
    clock.advance(30)
    await store.lines[0].lost
    clock.advance(0)
    await store.call(2)

    assert await done == len(BODY)
    assert consumer.body == BODY


@in_reactor
async def test_a_paused_consumer_is_waited_for_without_end(make_rig: MakeRig, make_store: MakeStore) -> None:
    clock = Clock()
    store = make_store(sends(answer(BODY[:1000], length=len(BODY))))
    table = make_rig(clock=clock, timeouts=Timeouts(idle=30)).table(store.endpoint)
    consumer = Collector(pause_at=1)
    response = await table.open("GET", "x")
    done = Deferred.fromCoroutine(response.send_body(consumer))
    await consumer.paused
    clock.advance(3600)
    consumer.producer.resumeProducing()
    store.calls[0].send(BODY[len(consumer.body) :])

    assert await done == len(BODY)
    assert len(store.calls) == 1


@in_reactor
async def test_a_slow_consumer_bounds_what_is_read_from_the_store(rig: Rig, make_store: MakeStore) -> None:
    store = make_store(sends(answer(b"x" * LARGE)))
    consumer = Collector(pause_at=1)
    response = await rig.table(store.endpoint).open("GET", "x")
    done = Deferred.fromCoroutine(response.send_body(consumer))
    await consumer.paused
    await soon(0.2)

    assert rig.notes.bytes <= 2 * 65536
    consumer.producer.resumeProducing()
    assert await done == LARGE
    assert rig.notes.bytes == LARGE


@in_reactor
async def test_a_body_nobody_takes_is_not_read_ahead(rig: Rig, make_store: MakeStore) -> None:
    store = make_store(sends(answer(b"x" * LARGE)))
    response = await rig.table(store.endpoint).open("GET", "x")
    await soon(0.1)

    assert rig.notes.bytes == 0
    response.discard()
    await store.lines[0].lost


@in_reactor
async def test_a_pause_during_the_first_bytes_holds(rig: Rig, make_store: MakeStore) -> None:
    """The bytes that came with the header are delivered at once, before the transport is resumed."""
    store = make_store(sends(answer(b"a" * 100, length=200)))
    response = await rig.table(store.endpoint).open("GET", "x")
    await soon()
    consumer = Collector(pause_at=1)
    done = Deferred.fromCoroutine(response.send_body(consumer))
    store.calls[0].send(b"b" * 100)
    await soon()

    assert consumer.body == b"a" * 100
    consumer.producer.resumeProducing()
    assert await done == 200


@in_reactor
async def test_when_the_client_goes_the_connection_to_the_store_is_aborted(
    rig: Rig, make_store: MakeStore
) -> None:
    store = make_store(sends(answer(b"x", length=LARGE)))
    consumer = Collector(pause_at=1)
    response = await rig.table(store.endpoint).open("GET", "x")
    done = Deferred.fromCoroutine(response.send_body(consumer))
    await consumer.paused
    done.cancel()

    with pytest.raises(CancelledError):
        await done
    await store.lines[0].lost
    assert len(store.calls) == 1


class Passing(Resource):
    """A web resource that passes an object on, as the proxy does."""

    isLeaf: ClassVar[bool] = True  # type: ignore[misc]

    def __init__(self, table: TableClient) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._table = table
        self.ended: Deferred[BaseException] = Deferred()

    def render(self, request: Request) -> int:
        """The object's bytes."""
        sending = Deferred.fromCoroutine(fetched(self._table, request))
        request.notifyFinish().addErrback(lambda _: sending.cancel())
        sending.addErrback(self._note)
        return NOT_DONE_YET

    def _note(self, failure: Failure) -> int:
        self.ended.callback(cast(BaseException, failure.value))
        return 0


@in_reactor
async def test_a_web_client_that_goes_away_ends_the_transfer_without_a_fault(
    rig: Rig, make_store: MakeStore
) -> None:
    store = make_store(sends(answer(b"x" * 1000, length=LARGE)))
    passing = Passing(rig.table(store.endpoint))
    site = Site(passing, timeout=None)  # type: ignore[no-untyped-call]
    port = reactor.listenTCP(0, site, interface="127.0.0.1")
    faults: list[LogEvent] = []
    observer = cast(ILogObserver, faults.append)
    globalLogPublisher.addObserver(observer)
    pool = make_pool(reactor)
    response = await make_agent(reactor, pool).request(b"GET", b"http://127.0.0.1:%d/" % port.getHost().port)
    drop(response)

    assert isinstance(await passing.ended, CancelledError | ConsumerGone)
    await store.lines[0].lost
    await port.stopListening()
    globalLogPublisher.removeObserver(observer)
    assert [event for event in faults if event["log_level"] is LogLevel.critical] == []


@in_reactor
async def test_a_consumer_that_stops_its_producer_ends_the_transfer(rig: Rig, make_store: MakeStore) -> None:
    store = make_store(sends(answer(b"x", length=LARGE)))
    consumer = Collector(pause_at=1)
    response = await rig.table(store.endpoint).open("GET", "x")
    done = Deferred.fromCoroutine(response.send_body(consumer))
    await consumer.paused
    consumer.producer.stopProducing()

    with pytest.raises(ConsumerGone):
        await done
    await store.lines[0].lost


@in_reactor
async def test_a_consumer_that_is_gone_at_its_registration_gets_nothing(
    rig: Rig, make_store: MakeStore
) -> None:
    class Gone(Collector):
        def registerProducer(self, producer: Any, streaming: bool) -> None:
            producer.stopProducing()

    store = make_store(sends(answer(b"x", length=LARGE)))
    consumer = Gone()

    with pytest.raises(ConsumerGone):
        await fetched(rig.table(store.endpoint), consumer)
    assert consumer.body == b""
    await store.lines[0].lost


@in_reactor
async def test_a_fault_of_the_consumer_is_not_taken_for_a_cut(rig: Rig, make_store: MakeStore) -> None:
    class Full(Collector):
        def write(self, data: bytes) -> None:
            raise OSError("no space left")

    store = make_store(sends(answer(BODY)))

    with pytest.raises(OSError, match="no space"):
        await fetched(rig.table(store.endpoint), Full())
    assert len(store.calls) == 1


@in_reactor
async def test_a_finished_body_leaves_its_connection_for_the_next_request(
    rig: Rig, make_store: MakeStore
) -> None:
    store = make_store(sends(answer(BODY)))
    table = rig.table(store.endpoint)
    for _ in range(3):
        await fetched(table, Collector())

    assert (len(store.calls), len(store.lines)) == (3, 1)


@in_reactor
async def test_a_discarded_answer_without_a_body_leaves_its_connection_too(
    rig: Rig, make_store: MakeStore
) -> None:
    store = make_store(sends(answer(length=77)), sends(answer(BODY)))
    table = rig.table(store.endpoint)
    (await table.open("HEAD", "x")).discard()
    assert await fetched(table, Collector()) == len(BODY)

    assert len(store.lines) == 1


@in_reactor
async def test_a_small_body_that_is_here_is_taken_once_and_gives_its_place_back(
    make_rig: MakeRig, make_store: MakeStore
) -> None:
    small = b"s" * 4096
    rig = make_rig(lean=True, whole=len(small))
    table = rig.table(make_store(sends(answer(small))).endpoint)
    response = await table.open("GET", "x")
    assert table.slots.in_flight == 1

    assert response.take_whole() == small
    assert (response.sent, response.take_whole(), table.slots.in_flight) == (len(small), None, 0)


@in_reactor
async def test_abort_after_the_end_does_not_touch_a_connection_that_serves_others(
    rig: Rig, make_store: MakeStore
) -> None:
    store = make_store(sends(answer(BODY)))
    table = rig.table(store.endpoint)
    response = await table.open("GET", "x")
    await response.send_body(Collector())
    response.abort()

    assert await fetched(table, Collector()) == len(BODY)
    assert len(store.lines) == 1


@in_reactor
async def test_requests_beyond_the_bound_wait_and_beyond_the_queue_are_told_to_slow_down(
    make_rig: MakeRig, make_store: MakeStore
) -> None:
    store = make_store(sends(answer(BODY)))
    table = make_rig(in_flight=1, queue=1).table(store.endpoint)
    first = await table.open("GET", "x")
    second = Deferred.fromCoroutine(table.open("GET", "x"))

    with pytest.raises(SlowDown):
        await table.open("GET", "x")
    assert not second.called
    await first.send_body(Collector())
    (await second).discard()
    assert await fetched(table, Collector()) == len(BODY)


@in_reactor
async def test_a_place_is_waited_for_only_so_long(make_rig: MakeRig, make_store: MakeStore) -> None:
    clock = Clock()
    store = make_store(sends(answer(BODY)))
    table = make_rig(in_flight=1, clock=clock, timeouts=Timeouts(queue=10)).table(store.endpoint)
    first = await table.open("GET", "x")
    second = Deferred.fromCoroutine(table.open("GET", "x"))
    clock.advance(10)

    with pytest.raises(SlowDown):
        await second
    first.discard()
    (await table.open("GET", "x")).discard()


@in_reactor
async def test_every_way_an_answer_ends_gives_its_place_back(
    make_rig: MakeRig, make_store: MakeStore
) -> None:
    whole, cut = sends(answer(BODY)), cuts(answer(b"x", length=9, etag=None))
    store = make_store(whole, whole, cut, sends(answer(status="404 Not Found")), whole, silent, whole)
    table = make_rig(in_flight=1, queue=1, policy=RetryPolicy(tries=1)).table(store.endpoint)
    await fetched(table, Collector())
    (await table.open("GET", "x")).discard()
    with pytest.raises(BodyCut):
        await fetched(table, Collector())
    with pytest.raises(Exception, match="NoSuchKey"):
        await table.open("GET", "x")
    (await table.open("GET", "x")).abort()
    waiting = Deferred.fromCoroutine(table.open("GET", "x"))
    await store.call(6)
    waiting.cancel()
    with pytest.raises(CancelledError):
        await waiting

    assert await fetched(table, Collector()) == len(BODY)


@in_reactor
async def test_small_objects_are_whole_or_unavailable(rig: Rig, make_store: MakeStore) -> None:
    store = make_store(
        cuts(answer(BODY[:9], length=len(BODY))),
        sends(part(BODY, 9)),
        cuts(answer(BODY[:9], length=len(BODY), etag=None)),
    )
    table = rig.table(store.endpoint)

    assert (await table.read("x", limit=len(BODY))).body == BODY
    with pytest.raises(ServiceUnavailable):
        await table.read("x", limit=len(BODY))


@given(first=st.integers(0, 2**40), length=st.integers(1, 2**40), sent=st.integers(0, 2**40))
def test_what_remains_of_a_span_ends_where_the_span_ends(first: int, length: int, sent: int) -> None:
    headers = Headers.of(
        (("ETag", ETAG), ("Content-Range", f"bytes {first}-{first + length - 1}/{first + length}"))
    )
    span = span_of(206, headers, length)

    assert span == Span(first, first + length - 1, ETAG)
    assert span.after(sent).length == length - sent
    assert span_of(206, headers, length + 1) is None
