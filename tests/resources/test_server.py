# mypy: allow-untyped-calls, allow-untyped-decorators
from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from xml.etree import ElementTree

import pytest
from attrs import evolve, field, frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from pytest_twisted import ensureDeferred
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPushProducer
from twisted.internet.ssl import PrivateCertificate
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread
from twisted.logger import ILogObserver, LogEvent, Logger, globalLogPublisher
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from delta_proxy.resources.head import HeadLimits
from delta_proxy.resources.server import (
    EdgeLimits,
    EdgeRequest,
    RequestNote,
    RequestRecord,
    S3Site,
    new_request_id,
)
from delta_proxy.s3.errors import AccessDenied, NotModified, S3Error
from tests.helpers import result_of

reactor = cast(Any, global_reactor)
GET = b"GET /datalake/t/a%20b HTTP/1.1\r\nHost: proxy\r\n\r\n"
LIMITS = EdgeLimits(
    connections=3,
    refusals=2,
    head=HeadLimits(size=4096, target=1024, fields=20),
    body=1000,
    head_seconds=10,
    idle_seconds=60,
    body_seconds=20,
    write_seconds=30,
    linger_seconds=5,
    linger_bytes=100_000_000,
)


class Page(Resource):
    """Answers with a function, and remembers the requests."""

    isLeaf = True  # noqa: N815 - Twisted's name

    def __init__(self, answer: Callable[[EdgeRequest], bytes | int]) -> None:
        super().__init__()
        self.requests: list[EdgeRequest] = []
        self._answer = answer

    def render(self, request: EdgeRequest) -> bytes | int:
        self.requests.append(request)
        return self._answer(request)


def hello(request: EdgeRequest) -> bytes:
    return b"hello"


def later(request: EdgeRequest) -> int:
    return NOT_DONE_YET


class Bench:
    """A site on a test clock, with what it reported."""

    def __init__(
        self, answer: Callable[[EdgeRequest], bytes | int] = hello, limits: EdgeLimits = LIMITS
    ) -> None:
        self.clock = Clock()
        self.page = Page(answer)
        self.records: list[RequestRecord] = []
        self.events: list[LogEvent] = []
        self.site = S3Site(
            self.page,
            reactor=self.clock,
            limits=limits,
            on_finished=self.records.append,
            log=Logger("access", observer=cast(Any, self.events.append)),
        )

    def connect(self) -> Client:
        return Client(self.site)

    def ask(self, data: bytes) -> bytes:
        client = self.connect()
        client.send(data)
        return client.received


class Client:
    """The far end of a connection in memory."""

    def __init__(self, site: S3Site) -> None:
        self.transport = StringTransport()
        self.channel = site.buildProtocol(None)
        self.channel.makeConnection(self.transport)

    def send(self, data: bytes) -> None:
        self.channel.dataReceived(data)

    def leave(self) -> None:
        self.channel.connectionLost(Failure(ConnectionDone()))

    @property
    def received(self) -> bytes:
        return bytes(self.transport.value())

    @property
    def closed(self) -> bool:
        return bool(self.transport.disconnecting)

    @property
    def was_reset(self) -> bool:
        return bool(self.transport.disconnected)


@frozen
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    rest: bytes = b""

    @property
    def code(self) -> str:
        return ElementTree.fromstring(self.body).findtext("Code") or ""


def parse(data: bytes, *, bodiless: bool = False) -> Answer:
    head, _, rest = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    length = 0 if bodiless else int(headers.get("content-length", len(rest)))
    return Answer(int(lines[0].split()[1]), headers, rest[:length], rest[length:])


def test_a_request_is_answered_with_an_id_a_date_and_the_name_of_the_server() -> None:
    bench = Bench()
    bench.clock.advance(1_767_225_600)
    answer = parse(bench.ask(GET))
    assert (answer.status, answer.body) == (200, b"hello")
    assert answer.headers["server"] == "deltas3proxy"
    assert answer.headers["date"] == "thu, 01 jan 2026 00:00:00 gmt"
    assert answer.headers["x-amz-request-id"] == bench.records[0].request_id.lower()
    assert "content-type" not in answer.headers


def test_request_ids_are_sixteen_upper_case_digits_and_differ() -> None:
    ids = {new_request_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(one) == 16 and one == one.upper() and one.isalnum() for one in ids)


def test_the_resource_sees_the_raw_target_and_the_fields_as_they_were_sent() -> None:
    bench = Bench()
    bench.ask(b"GET /b/a%2Fb/..//c?x=%20&y HTTP/1.1\r\nHost: h\r\nx-AMZ-a: 1\r\nZ: 2\r\nX-Amz-A: 3\r\n\r\n")
    request = bench.page.requests[0]
    assert request.uri == b"/b/a%2Fb/..//c?x=%20&y"
    assert request.raw_headers == ((b"Host", b"h"), (b"x-AMZ-a", b"1"), (b"Z", b"2"), (b"X-Amz-A", b"3"))
    assert list(request.requestHeaders.getAllRawHeaders()) == [
        (b"Host", [b"h"]),
        (b"X-Amz-A", [b"1", b"3"]),
        (b"Z", [b"2"]),
    ]


MALFORMED = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\x00" * 40,
    b"hello\r\n",
    b"GET / HTTP/1.1\nHost: x\n\n",
    b"GET / HTTP/2.0\r\nHost: x\r\n\r\n",
    b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\na: b\r\n folded\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\na: \x00\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\nabc",
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\nabc",
    b"GET /" + b"a" * 5000,
    b"GET /" + b"a" * 2000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\na: " + b"b" * 5000,
    b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 100 + b"\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
]


@pytest.mark.parametrize("data", MALFORMED)
def test_what_is_malformed_or_too_large_gets_a_4xx_in_xml_and_the_connection_is_closed(data: bytes) -> None:
    bench = Bench()
    client = bench.connect()
    client.send(data)
    answer = parse(client.received)
    assert 400 <= answer.status < 500
    assert answer.code in {"InvalidRequest", "InvalidURI", "RequestHeaderSectionTooLarge", "EntityTooLarge"}
    assert answer.headers["connection"] == "close"
    assert answer.headers["server"] == "deltas3proxy"
    assert len(answer.headers["x-amz-request-id"]) == 16
    assert client.closed
    assert bench.page.requests == []
    assert [record.status for record in bench.records] == [answer.status]


@pytest.mark.parametrize("data", MALFORMED)
def test_nothing_malformed_looks_like_a_failure_in_the_log(data: bytes) -> None:
    bench = Bench()
    bench.ask(data)
    assert all("log_failure" not in event for event in bench.events)


@given(st.binary(max_size=400), st.integers(min_value=1, max_value=50))
def test_no_bytes_make_the_edge_fail_however_they_are_cut(data: bytes, size: int) -> None:
    bench = Bench()
    client = bench.connect()
    for start in range(0, len(data), size):
        client.send(data[start : start + size])
    bench.clock.advance(LIMITS.head_seconds)
    assert all("log_failure" not in event for event in bench.events)
    if data and client.received:
        assert 200 <= parse(client.received).status < 500


def test_an_oversized_target_is_not_buffered() -> None:
    bench = Bench()
    client = bench.connect()
    for _ in range(1000):
        client.send(b"a" * 10_000 if client.received else b"GET /" + b"a" * 5000)
    assert len(client.channel._buffer) == 0
    assert parse(client.received).status == 414


def test_a_head_request_gets_an_error_without_a_body() -> None:
    data = Bench().ask(b"HEAD / HTTP/1.1\r\nHost: x\r\nbad\r\n\r\n")
    assert parse(data).status == 400
    assert data.endswith(b"\r\n\r\n")


def test_a_head_request_gets_the_length_and_no_body() -> None:
    data = Bench().ask(GET.replace(b"GET", b"HEAD"))
    assert parse(data, bodiless=True).headers["content-length"] == "5"
    assert data.endswith(b"\r\n\r\n")


def test_requests_that_come_in_one_piece_are_answered_in_order() -> None:
    bench = Bench(lambda request: request.uri)
    client = bench.connect()
    client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(50)))
    data = client.received
    for number in range(50):
        answer = parse(data)
        assert answer.body == b"/%d" % number
        data = answer.rest
    assert not client.closed


def test_a_request_waits_until_the_one_before_it_is_answered() -> None:
    bench = Bench(later)
    client = bench.connect()
    client.send(GET + GET.replace(b"/t/", b"/u/"))
    assert len(bench.page.requests) == 1
    bench.page.requests[0].answer(b"first")
    assert len(bench.page.requests) == 2
    bench.page.requests[1].answer(b"second")
    first = parse(client.received)
    assert (first.body, parse(first.rest).body) == (b"first", b"second")


def test_what_follows_an_unanswered_request_is_held_only_so_far() -> None:
    bench = Bench(later)
    client = bench.connect()
    client.send(GET)
    client.send(GET * 1000)
    assert client.transport.producerState == "paused"


def test_what_follows_byte_by_byte_is_held_in_one_piece() -> None:
    bench = Bench(later)
    client = bench.connect()
    client.send(GET)
    for byte in GET:
        client.send(bytes((byte,)))
    # Many pieces would be counted anew with each byte.
    assert len(client.channel._dataBuffer) == 1
    bench.page.requests[0].answer(b"first")
    assert len(bench.page.requests) == 2


def test_a_client_that_does_not_read_its_answers_gets_no_more_of_them() -> None:
    bench = Bench(later)
    client = bench.connect()
    client.send(GET + GET)
    client.channel.pauseProducing()
    bench.page.requests[0].answer(b"first")
    assert len(bench.page.requests) == 1
    client.channel.resumeProducing()
    assert len(bench.page.requests) == 2


@pytest.mark.parametrize(
    "head", [b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"]
)
def test_a_connection_is_closed_after_http_1_0_and_when_asked(head: bytes) -> None:
    bench = Bench()
    client = bench.connect()
    client.send(head)
    answer = parse(client.received)
    assert answer.body == b"hello"
    assert answer.headers["connection"] == "close"
    assert client.closed


def test_an_http_1_0_client_gets_an_answer_of_unknown_length_unchunked() -> None:
    bench = Bench(later)
    client = bench.connect()
    client.send(b"GET / HTTP/1.0\r\n\r\n")
    bench.page.requests[0].write(b"abc")
    bench.page.requests[0].finish()
    assert client.received.endswith(b"\r\n\r\nabc")
    assert client.closed


def test_an_s3_error_that_a_resource_raises_becomes_its_answer() -> None:
    def denied(request: EdgeRequest) -> bytes:
        raise AccessDenied(headers=(("x-why", "because"),))

    bench = Bench(denied)
    answer = parse(bench.ask(GET))
    assert (answer.status, answer.code) == (403, "AccessDenied")
    assert answer.headers["x-why"] == "because"
    assert ElementTree.fromstring(answer.body).findtext("RequestId") == bench.records[0].request_id
    assert ElementTree.fromstring(answer.body).findtext("Resource") == "/datalake/t/a%20b"


def test_not_modified_has_no_body_and_keeps_the_connection() -> None:
    def unchanged(request: EdgeRequest) -> bytes:
        raise NotModified

    bench = Bench(unchanged)
    client = bench.connect()
    client.send(GET)
    assert parse(client.received, bodiless=True).status == 304
    assert client.received.endswith(b"\r\n\r\n")
    assert not client.closed


def test_a_fault_of_a_resource_is_an_internal_error_that_tells_the_client_nothing() -> None:
    def broken(request: EdgeRequest) -> bytes:
        raise RuntimeError("s3cret")

    bench = Bench(broken)
    answer = parse(bench.ask(GET))
    assert (answer.status, answer.code) == (500, "InternalError")
    assert b"s3cret" not in answer.body
    assert sum("log_failure" in event for event in bench.events) == 1


def test_a_method_that_a_resource_lacks_is_not_allowed() -> None:
    class Reading(Resource):
        isLeaf = True  # noqa: N815 - Twisted's name

        def render_GET(self, request: EdgeRequest) -> bytes:  # noqa: N802 - Twisted's name
            return b""

    transport = StringTransport()
    channel = S3Site(Reading(), reactor=Clock()).buildProtocol(None)
    channel.makeConnection(transport)
    channel.dataReceived(GET.replace(b"GET", b"BREW"))
    answer = parse(transport.value())
    assert (answer.status, answer.code) == (405, "MethodNotAllowed")
    assert answer.headers["allow"] == "get, head"


def test_an_answer_shorter_than_it_said_resets_the_connection() -> None:
    bench = Bench(later)
    client = bench.connect()
    client.send(GET)
    request = bench.page.requests[0]
    request.setHeader(b"Content-Length", b"10")
    request.write(b"abc")
    request.finish()
    assert client.was_reset
    client.leave()
    assert [(record.aborted, record.bytes_sent) for record in bench.records] == [(True, 3)]


def test_an_error_after_the_answer_has_begun_resets_the_connection() -> None:
    bench = Bench(later)
    client = bench.connect()
    client.send(GET)
    bench.page.requests[0].setHeader(b"Content-Length", b"10")
    bench.page.requests[0].write(b"abc")
    bench.page.requests[0].fail(AccessDenied())
    assert client.was_reset
    assert b"AccessDenied" not in client.received


def test_too_many_requests_at_once_are_told_to_slow_down_and_keep_their_connection() -> None:
    bench = Bench(later, evolve(LIMITS, requests=1))
    bench.connect().send(GET)
    second = bench.connect()
    second.send(GET)
    assert (parse(second.received).status, parse(second.received).code) == (503, "SlowDown")
    assert not second.closed


def test_a_connection_above_the_cap_is_told_to_slow_down_and_closed() -> None:
    bench = Bench()
    clients = [bench.connect() for _ in range(LIMITS.connections)]
    beyond = bench.connect()
    beyond.send(GET)
    assert (parse(beyond.received).status, parse(beyond.received).code) == (503, "SlowDown")
    assert len(parse(beyond.received).headers["x-amz-request-id"]) == 16
    assert beyond.closed
    beyond.leave()
    clients[0].leave()
    assert parse(bench.ask(GET)).status == 200


def test_refusals_are_bounded_too_and_do_not_wait_for_ever() -> None:
    bench = Bench()
    for _ in range(LIMITS.connections):
        bench.connect()
    silent = [bench.connect() for _ in range(LIMITS.refusals)]
    assert bench.site.buildProtocol(None) is None
    bench.clock.advance(LIMITS.linger_seconds)
    assert all(client.was_reset for client in silent)


def test_an_idle_connection_is_closed_in_time() -> None:
    bench = Bench()
    client = bench.connect()
    bench.clock.advance(LIMITS.idle_seconds - 1)
    client.send(GET)
    bench.clock.advance(LIMITS.idle_seconds - 1)
    assert not client.closed
    bench.clock.advance(1)
    assert client.closed
    assert len(bench.records) == 1


def test_a_head_that_drips_in_is_cut_off_in_time() -> None:
    bench = Bench()
    client = bench.connect()
    for byte in b"GET / HTTP/1.1\r\n":
        client.send(bytes([byte]))
        bench.clock.advance(LIMITS.head_seconds / 16)
    assert (parse(client.received).status, parse(client.received).code) == (400, "RequestTimeout")
    assert client.closed


def test_an_answer_that_takes_long_is_not_timed_out() -> None:
    bench = Bench(later)
    client = bench.connect()
    client.send(GET)
    bench.clock.advance(3600)
    bench.page.requests[0].answer(b"at last")
    assert parse(client.received).body == b"at last"


def test_a_client_that_reads_nothing_is_reset_in_time() -> None:
    bench = Bench(later)
    client = bench.connect()
    client.send(GET)
    client.channel.pauseProducing()
    bench.clock.advance(LIMITS.write_seconds)
    assert client.was_reset


def test_a_client_that_reads_a_little_is_not_reset() -> None:
    class Draining(StringTransport):
        offset = 0

    bench = Bench(later)
    client = bench.connect()
    client.send(GET)
    client.channel.transport = draining = Draining()
    client.channel.pauseProducing()
    for _ in range(10):
        draining.offset += 1
        bench.clock.advance(LIMITS.write_seconds)
    assert not draining.disconnected
    bench.clock.advance(LIMITS.write_seconds)
    assert draining.disconnected


def test_a_client_that_reads_again_may_take_its_time_between_answers() -> None:
    bench = Bench(later)
    client = bench.connect()
    client.send(GET)
    client.channel.pauseProducing()
    client.channel.resumeProducing()
    bench.clock.advance(10 * LIMITS.write_seconds)
    assert not client.was_reset


def reading(bodies: list[Any]) -> Callable[[EdgeRequest], int]:
    def read(request: EdgeRequest) -> int:
        request.read_body().addBoth(bodies.append)
        return NOT_DONE_YET

    return read


def post(*fields: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join((b"POST / HTTP/1.1", b"Host: x", *fields, b"", body))


@pytest.mark.parametrize(
    "data",
    [
        post(b"Content-Length: 5", body=b"abcde"),
        post(b"Transfer-Encoding: chunked", body=b"2\r\nab\r\n3;x=y\r\ncde\r\n0\r\nTrailer: x\r\n\r\n"),
    ],
)
def test_a_body_is_read_whole_however_it_arrives(data: bytes) -> None:
    for size in (1, 7, len(data)):
        bodies: list[Any] = []
        bench = Bench(reading(bodies))
        client = bench.connect()
        for start in range(0, len(data), size):
            client.send(data[start : start + size])
        assert bodies == [b"abcde"]
        bench.page.requests[0].answer(b"ok")
        client.send(GET)
        assert len(bench.page.requests) == 2
        assert bench.records[0].bytes_received == 5


def test_a_request_is_processed_before_its_body_has_come() -> None:
    bench = Bench(later)
    bench.connect().send(post(b"Content-Length: 5"))
    assert len(bench.page.requests) == 1


def test_a_body_that_was_not_announced_too_large_but_is_fails_its_reader() -> None:
    bodies: list[Any] = []
    bench = Bench(reading(bodies))
    client = bench.connect()
    client.send(post(b"Transfer-Encoding: chunked", body=b"400\r\n" + b"x" * 1024))
    assert isinstance(bodies[0], Failure)
    bench.page.requests[0].fail(cast(S3Error, bodies[0].value))
    assert (parse(client.received).status, parse(client.received).code) == (400, "EntityTooLarge")
    assert client.closed


def test_a_large_put_is_answered_by_its_resource_without_being_held() -> None:
    bench = Bench(later)
    client = bench.connect()
    client.send(b"PUT /b/k HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000000\r\n\r\n")
    for _ in range(3):
        client.send(b"x" * 65_536)
    assert client.transport.producerState == "paused"
    bench.page.requests[0].fail(AccessDenied())
    assert parse(client.received).status == 403
    assert parse(client.received).headers["connection"] == "close"
    assert client.closed


@pytest.mark.parametrize("body", [b"zz\r\n", b"-1\r\n", b"3\r\nabcd\r\n", b" 3\r\nabc\r\n", b"1" * 2000])
def test_a_bad_chunk_is_refused_and_its_reader_told(body: bytes) -> None:
    bodies: list[Any] = []
    bench = Bench(reading(bodies))
    client = bench.connect()
    client.send(post(b"Transfer-Encoding: chunked", body=body))
    assert (parse(client.received).status, parse(client.received).code) == (400, "InvalidRequest")
    assert isinstance(bodies[0], Failure)
    assert [record.status for record in bench.records] == [400]
    assert bench.site.in_flight == 0


def test_a_body_that_does_not_come_is_given_up_in_time() -> None:
    bodies: list[Any] = []
    bench = Bench(reading(bodies))
    client = bench.connect()
    client.send(post(b"Content-Length: 5"))
    client.send(b"ab")
    bench.clock.advance(LIMITS.body_seconds)
    assert parse(client.received).code == "RequestTimeout"
    assert isinstance(bodies[0], Failure)


def test_continue_is_sent_only_when_somebody_wants_the_body() -> None:
    expecting = post(b"Content-Length: 5", b"Expect: 100-continue")
    bench = Bench(later)
    client = bench.connect()
    client.send(expecting)
    assert client.received == b""
    bench.page.requests[0].fail(AccessDenied())
    assert parse(client.received).status == 403
    assert client.closed
    bodies: list[Any] = []
    client = Bench(reading(bodies)).connect()
    client.send(expecting)
    assert client.received == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"abcde")
    assert bodies == [b"abcde"]


def test_a_resource_learns_that_its_client_has_gone() -> None:
    bench = Bench(later)
    client = bench.connect()
    client.send(GET)
    gone: list[Failure] = []
    bench.page.requests[0].notifyFinish().addErrback(gone.append)
    client.leave()
    assert len(gone) == 1
    assert [(record.status, record.aborted) for record in bench.records] == [(499, True)]
    assert bench.site.in_flight == 0
    assert bench.clock.getDelayedCalls() == []


@implementer(IPushProducer)
class Source:
    """A producer that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pauseProducing(self) -> None:  # noqa: N802 - Twisted's name
        self.told.append("pause")

    def resumeProducing(self) -> None:  # noqa: N802 - Twisted's name
        self.told.append("resume")

    def stopProducing(self) -> None:  # noqa: N802 - Twisted's name
        self.told.append("stop")


def test_a_producer_is_paused_while_the_client_does_not_read() -> None:
    bench = Bench(later)
    client = bench.connect()
    client.send(GET)
    early, late = Source(), Source()
    request = bench.page.requests[0]
    request.registerProducer(early, True)
    client.channel.pauseProducing()
    client.channel.resumeProducing()
    assert early.told == ["pause", "resume"]
    request.unregisterProducer()
    client.channel.pauseProducing()
    request.registerProducer(late, True)
    assert late.told == ["pause"]
    request.unregisterProducer()


def test_a_finished_request_is_recorded_with_what_the_resource_noted() -> None:
    note = RequestNote("GetObject", "t", "allowed", "ann", proxied=True)

    def noting(request: EdgeRequest) -> bytes:
        request.note = note
        return b"12345"

    bench = Bench(noting)
    bench.ask(GET)
    (record,) = bench.records
    assert (record.method, record.uri, record.status, record.bytes_sent) == (
        "GET",
        b"/datalake/t/a%20b",
        200,
        5,
    )
    assert record.note is note
    assert not record.aborted


def test_one_line_is_logged_for_a_request_and_no_secret_is_in_it() -> None:
    bench = Bench()
    bench.ask(
        b"GET /d/k%0d?X-Amz-Credential=AKID&X-Amz-Signature=abc&x=\x80 HTTP/1.1\r\nHost: x\r\n"
        b"Authorization: hush\r\n\r\n"
    )
    (event,) = bench.events
    assert event["target"] == "/d/k%0d?X-Amz-Credential=***&X-Amz-Signature=***&x=%80"
    assert (event["method"], event["status"], event["bytes_sent"]) == ("GET", 200, 5)
    assert event["principal"] == "-"
    assert event["request_id"] == bench.records[0].request_id
    assert "hush" not in str(event)
    assert event["log_level"].name == "info"


def test_draining_closes_idle_connections_at_once_and_busy_ones_after_their_answer() -> None:
    bench = Bench(later)
    idle, busy = bench.connect(), bench.connect()
    busy.send(GET)
    bench.site.stop_accepting()
    done: list[bool] = []
    bench.site.drained(30).addCallback(done.append)
    assert idle.closed
    assert not busy.closed
    assert bench.site.buildProtocol(None) is None
    bench.page.requests[0].answer(b"last")
    assert parse(busy.received).headers["connection"] == "close"
    assert busy.closed
    idle.leave()
    assert done == []
    busy.leave()
    assert done == [True]
    assert bench.clock.getDelayedCalls() == []


def test_draining_ends_in_time_by_resetting_what_is_left() -> None:
    bench = Bench(later)
    busy = bench.connect()
    busy.send(GET)
    bench.site.stop_accepting()
    done: list[bool] = []
    bench.site.drained(30).addCallback(done.append)
    bench.clock.advance(30)
    assert busy.was_reset
    assert done == [False]


def test_a_site_without_connections_is_drained_at_once() -> None:
    assert result_of(Bench().site.drained(30)) is True


def test_tls_may_not_negotiate_http_2() -> None:
    assert Bench().site.acceptableProtocols() == [b"http/1.1"]


@frozen
class Server:
    """A site on a loopback socket."""

    page: Page
    site: S3Site
    port: int
    records: list[RequestRecord] = field(factory=list)


@asynccontextmanager
async def serving(
    answer: Callable[[EdgeRequest], bytes | int],
    limits: EdgeLimits = LIMITS,
    certificate: PrivateCertificate | None = None,
) -> AsyncIterator[Server]:
    page = Page(answer)
    records: list[RequestRecord] = []
    site = S3Site(page, reactor=reactor, limits=limits, on_finished=records.append)
    if certificate is None:
        port = reactor.listenTCP(0, site, interface="127.0.0.1")
    else:
        port = reactor.listenSSL(0, site, certificate.options(), interface="127.0.0.1")
    try:
        yield Server(page, site, port.getHost().port, records)
    finally:
        await port.stopListening()
        site.stop_accepting()
        await site.drained(0.2)
        await turn()


def turn() -> Deferred[None]:
    return deferLater(reactor, 0.02, lambda: None)


def exchange(port: int, data: bytes, *, half_close: bool = False) -> bytes:
    """Send everything, then read to the end."""
    with socket.create_connection(("127.0.0.1", port), timeout=240) as client:
        client.sendall(data)
        if half_close:
            client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65_536), b""))


@ensureDeferred
async def test_a_client_reads_its_refusal_even_while_it_sends_ten_megabytes() -> None:
    async with serving(hello) as server:
        for data in (
            b"GET /?" + b"a" * 10_000_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\na: " + b"b" * 10_000_000,
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n" + b"x" * 10_000_000,
        ):
            answer = parse(await deferToThread(exchange, server.port, data))
            assert 400 <= answer.status < 500
            assert answer.code
        last = parse(
            await deferToThread(
                exchange, server.port, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
            )
        )
        assert last.body == b"hello"


def self_signed() -> PrivateCertificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(1)
    builder = builder.public_key(key.public_key())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    encoding = serialization.Encoding.PEM
    pem = builder.sign(key, hashes.SHA256()).public_bytes(encoding) + key.private_bytes(
        encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return cast(PrivateCertificate, PrivateCertificate.loadPEM(pem))


def exchange_tls(port: int, data: bytes) -> tuple[str | None, bytes]:
    """Send everything, then read to the end; also the protocol that TLS negotiated."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    plain = socket.create_connection(("127.0.0.1", port), timeout=240)
    with context.wrap_socket(plain) as client:
        client.sendall(data)
        return client.selected_alpn_protocol(), b"".join(iter(lambda: client.recv(65_536), b""))


@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL .* objects:DeprecationWarning")
@ensureDeferred
async def test_over_tls_requests_are_answered_and_refused_alike() -> None:
    async with serving(hello, certificate=self_signed()) as server:
        for data, status in (
            (GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), 200),
            (b"\x00" * 100, 400),
            (b"GET /" + b"a" * 1_000_000, 414),
        ):
            protocol, received = await deferToThread(exchange_tls, server.port, data)
            assert protocol == "http/1.1"
            assert parse(received).status == status


@ensureDeferred
async def test_a_client_reads_the_refusal_of_a_put_that_it_has_sent_in_whole() -> None:
    def refuse(request: EdgeRequest) -> bytes:
        raise AccessDenied

    async with serving(refuse) as server:
        data = b"PUT /b/k HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n\r\n" + b"x" * 20_000_000
        assert parse(await deferToThread(exchange, server.port, data)).code == "AccessDenied"


@ensureDeferred
async def test_half_a_head_and_the_end_of_input_get_a_400() -> None:
    async with serving(hello) as server:
        answer = parse(await deferToThread(exchange, server.port, b"GET / HTT", half_close=True))
        assert (answer.status, answer.code) == (400, "InvalidRequest")


@ensureDeferred
async def test_a_client_that_closes_ends_its_request() -> None:
    async with serving(later) as server:
        client = socket.create_connection(("127.0.0.1", server.port))
        client.sendall(GET)
        while not server.page.requests:
            await turn()
        gone: Deferred[None] = server.page.requests[0].notifyFinish()
        client.close()
        with pytest.raises(Exception, match=r"(?i)connection"):
            await gone
        await turn()
        assert server.site.in_flight == 0


@ensureDeferred
async def test_an_aborted_answer_ends_in_a_reset_not_in_an_end() -> None:
    def cut(request: EdgeRequest) -> int:
        request.setHeader(b"Content-Length", b"1000")
        request.write(b"x" * 10)
        reactor.callLater(0.05, request.abort)
        return NOT_DONE_YET

    async with serving(cut) as server:
        with pytest.raises(ConnectionResetError):
            await deferToThread(exchange, server.port, GET)


@ensureDeferred
async def test_a_client_that_never_reads_is_reset_and_holds_little_memory() -> None:
    chunk = b"x" * 65_536

    @implementer(IPushProducer)
    class Endless:
        """Writes as long as it may."""

        def __init__(self, request: EdgeRequest) -> None:
            self.request, self.running = request, True

        def go_on(self) -> None:
            if self.running and not self.request._disconnected:
                self.request.write(chunk)
                reactor.callLater(0, self.go_on)

        def pauseProducing(self) -> None:  # noqa: N802 - Twisted's name
            self.running = False

        def resumeProducing(self) -> None:  # noqa: N802 - Twisted's name
            self.running = True
            self.go_on()

        def stopProducing(self) -> None:  # noqa: N802 - Twisted's name
            self.running = False

    def endless(request: EdgeRequest) -> int:
        source = Endless(request)
        request.registerProducer(source, True)
        source.go_on()
        return NOT_DONE_YET

    async with serving(endless, evolve(LIMITS, write_seconds=0.2)) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(GET)
            while not server.page.requests:
                await turn()
            with pytest.raises(Exception, match=r"(?i)connection"):
                await server.page.requests[0].notifyFinish()
        await turn()
        assert server.records[0].aborted
        assert server.records[0].bytes_sent < 32 * 1024 * 1024


@pytest.fixture(autouse=True)
def _no_failure_in_the_global_log() -> Iterator[None]:
    failures: list[LogEvent] = []

    @implementer(ILogObserver)
    def watch(event: LogEvent) -> None:
        if "log_failure" in event and event.get("log_namespace") != "access":
            failures.append(event)

    globalLogPublisher.addObserver(watch)
    yield
    globalLogPublisher.removeObserver(watch)
    assert failures == []


PUT = b"PUT /b/k HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n%b\r\n"


def test_a_body_is_handed_on_piece_by_piece_and_the_client_is_held_back_between() -> None:
    bench = Bench(later)
    client = bench.connect()
    client.send(PUT % (300_000, b"") + b"a" * 10)
    request = bench.page.requests[0]
    assert (request.body_length, result_of(request.read_some())) == (300_000, b"a" * 10)
    waiting = request.read_some(100)
    client.send(b"b" * 60)
    assert not waiting.called
    client.send(b"c" * 60)
    assert result_of(waiting) == b"b" * 60 + b"c" * 60
    client.send(b"d" * 65_537)
    assert client.transport.producerState == "paused"
    waiting = request.read_some(100_000)
    assert client.transport.producerState == "producing"
    client.send(b"d" * (300_000 - 130 - 65_537))
    assert len(result_of(waiting)) == 300_000 - 130
    assert result_of(request.read_some()) == b""


def test_what_nobody_asks_for_is_not_read_on() -> None:
    bench = Bench(later)
    client = bench.connect()
    client.send(PUT % (10_000_000, b"") + b"a" * 65_536)
    assert client.transport.producerState == "producing"
    client.send(b"a")
    assert client.transport.producerState == "paused"
    assert len(result_of(bench.page.requests[0].read_some())) == 65_537


def test_a_client_that_waits_is_told_to_go_on_once_when_the_body_is_asked_for() -> None:
    bench = Bench(later)
    client = bench.connect()
    client.send(PUT % (20, b"Expect: 100-continue\r\n"))
    assert client.received == b""
    waiting = bench.page.requests[0].read_some()
    assert client.received == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"a" * 10)
    assert result_of(waiting) == b"a" * 10
    waiting = bench.page.requests[0].read_some()
    client.send(b"a" * 10)
    assert result_of(waiting) == b"a" * 10
    assert client.received == b"HTTP/1.1 100 Continue\r\n\r\n"


def test_a_client_that_stops_in_the_middle_of_a_body_is_answered_with_a_time_out() -> None:
    bench = Bench(later)
    client = bench.connect()
    client.send(PUT % (20, b""))
    first = bench.page.requests[0].read_some()
    bench.clock.advance(LIMITS.body_seconds - 1)
    client.send(b"a" * 10)
    assert result_of(first) == b"a" * 10
    # While nobody asks, it is not the client that is slow.
    bench.clock.advance(10 * LIMITS.body_seconds)
    assert client.received == b""
    waiting = bench.page.requests[0].read_some()
    bench.clock.advance(LIMITS.body_seconds + 1)
    assert parse(client.received).code == "RequestTimeout"
    with pytest.raises(Exception, match="RequestTimeout"):
        result_of(waiting)


def test_a_client_that_leaves_in_the_middle_of_a_body_ends_the_reading() -> None:
    bench = Bench(later)
    client = bench.connect()
    client.send(PUT % (20, b"") + b"a")
    request = bench.page.requests[0]
    assert result_of(request.read_some()) == b"a"
    waiting = request.read_some()
    client.leave()
    with pytest.raises(ConnectionDone):
        result_of(waiting)


def test_a_chunked_body_is_handed_on_too_and_breaks_off_where_it_is_malformed() -> None:
    bench = Bench(later)
    client = bench.connect()
    client.send(b"PUT /b/k HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    request = bench.page.requests[0]
    assert (request.body_length, result_of(request.read_some())) == (None, b"abc")
    waiting = request.read_some()
    client.send(b"nonsense\r\n")
    assert parse(client.received).status == 400
    with pytest.raises(Exception, match="malformed"):
        result_of(waiting)


def test_a_body_without_a_length_and_no_body_are_told_apart() -> None:
    bench = Bench(later)
    for fields, length in ((b"", None), (b"Content-Length: 0\r\n", 0)):
        bench.connect().send(b"PUT /b/k HTTP/1.1\r\nHost: h\r\n%b\r\n" % fields)
        assert bench.page.requests[-1].body_length == length
