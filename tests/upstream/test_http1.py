"""The lean client: when a connection is used again, when a request is sent twice, and what a body is."""

# mypy: allow-untyped-calls
from __future__ import annotations

import fcntl
import itertools
import termios
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone, ResponseFailed

from delta_proxy.upstream.http1 import KEEP_SECONDS, Connection, ReadClient, head_of
from delta_proxy.upstream.retry import TookTooLong
from tests.waiting import wait_until

from .conftest import MakeStore
from .parts import Call, Rig, answer, cuts, in_reactor, sends, soon

ORIGIN = ("http", "store")
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nmine\r\n0\r\n\r\n"


class Wire(StringTransport):
    """A transport that notes when it is aborted or closed."""

    aborted = False

    def abortConnection(self) -> None:  # noqa: N802
        """Noted."""
        self.aborted = True


class Endpoints:
    """Where the client connects to: transports in memory."""

    def __init__(self) -> None:
        self.lines: list[tuple[Connection, Wire]] = []

    def endpointForURI(self, uri: object) -> Any:  # noqa: N802
        """This."""
        return self

    def connect(self, factory: Any) -> Deferred[Any]:
        """A connection at once."""
        protocol, wire = factory.buildProtocol(None), Wire()
        self.lines.append((protocol, wire))
        protocol.makeConnection(wire)
        return succeed(protocol)


class Body(Protocol):
    """Gathers a body and how it ended."""

    def __init__(self) -> None:
        self.data = b""
        self.end: BaseException | None = None

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        """Kept."""
        self.data += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: N802
        """Noted."""
        assert self.end is None
        self.end = reason.value


class Lab:
    """A client over transports in memory."""

    def __init__(self, whole: int = 0) -> None:
        self.clock = Clock()
        self.endpoints = Endpoints()
        self.client = ReadClient(self.clock, self.endpoints, connections=2, whole=whole)  # type: ignore[arg-type]

    def ask(self, method: str = "GET", *, at_once: bool = True) -> Asked:
        """Send a request."""
        answered = self.client.request(method, ORIGIN, "/b/k", (("host", "store"),), 30)
        return Asked(answered, at_once=at_once)

    @property
    def lines(self) -> list[tuple[Connection, Wire]]:
        """The connections made so far."""
        return self.endpoints.lines


class Asked:
    """A request and what became of it; its body is taken at once, or when `take` is called."""

    def __init__(self, answered: Deferred[Any], *, at_once: bool = True) -> None:
        self._at_once = at_once
        self._reply: Any = None
        self.status: int | None = None
        self.failure: BaseException | None = None
        self.body = Body()
        answered.addCallbacks(self._answered, self._failed)

    def _answered(self, reply: Any) -> None:
        self.status, self._reply = reply.code, reply
        if self._at_once:
            self.take()

    def take(self) -> None:
        """Take the body."""
        self._reply.deliverBody(self.body)

    def _failed(self, failure: Failure) -> None:
        self.failure = failure.value

    @property
    def whole(self) -> bool:
        """Whether the body is told to be complete."""
        return isinstance(self.body.end, ResponseDone)


def pieces(data: bytes, cuts_at: list[int]) -> list[bytes]:
    """The data, cut at these places."""
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in cuts_at)})
    return [data[first:last] for first, last in itertools.pairwise(places)]


def test_a_request_is_one_write() -> None:
    lab = Lab()
    lab.ask()

    assert lab.lines[0][1].value() == b"GET /b/k HTTP/1.1\r\nhost: store\r\n\r\n"


@pytest.mark.parametrize(
    ("target", "value"),
    [("/a b", "x"), ("/a\r\nx", "x"), ("/a", "x\r\ny: z"), ("/a", "x\ny"), ("/a", "x\r"), ("/a", "\0")],
)
def test_what_would_end_a_line_is_never_sent(target: str, value: str) -> None:
    with pytest.raises(ValueError, match="control characters"):
        head_of("GET", target, (("range", value),))


@given(st.binary(max_size=40), st.lists(st.integers(0, 500), max_size=6), st.booleans())
def test_a_body_is_what_its_framing_says_however_it_is_cut(
    body: bytes, cuts_at: list[int], chunked: bool
) -> None:
    lab = Lab()
    asked = lab.ask()
    if chunked:
        framed = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        framed += b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    else:
        framed = answer(body)
    connection, wire = lab.lines[0]
    for piece in pieces(b"HTTP/1.1 100 Continue\r\n\r\n" + framed, cuts_at):
        assert not asked.whole
        connection.dataReceived(piece)

    assert (asked.status, asked.body.data, asked.whole) == (200, body, True)
    lab.ask()
    assert len(lab.lines) == 1
    assert not wire.aborted


@given(
    st.binary(min_size=1, max_size=40),
    st.lists(st.integers(0, 500), max_size=6),
    st.sampled_from(["length", "chunked", "cut"]),
    st.booleans(),
)
def test_a_body_that_comes_before_anybody_takes_it_is_kept_for_who_does(
    body: bytes, cuts_at: list[int], framing: str, lost: bool
) -> None:
    """As TLS has it: every record of one read is handed on, also to a connection that is paused."""
    lab = Lab()
    asked = lab.ask(at_once=False)
    connection, _ = lab.lines[0]
    if framing == "chunked":
        sent = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (
            len(body),
            body,
        )
    else:
        sent = answer(body)[: -1 if framing == "cut" else None]
    for piece in pieces(sent, cuts_at):
        connection.dataReceived(piece)
    if lost or framing == "cut":
        connection.connectionLost(Failure(ConnectionDone()))
    other = lab.ask()
    lab.lines[-1][0].dataReceived(answer(b"of another") if lab.lines[-1][0] is not connection else b"")
    asked.take()

    expected = body[:-1] if framing == "cut" else body
    assert (asked.status, asked.body.data, asked.whole) == (200, expected, framing != "cut")
    assert other.body.data in {b"", b"of another"}


@pytest.mark.parametrize("framed", [answer(b"mine"), CHUNKED], ids=["length", "chunked"])
def test_a_body_taken_late_leaves_the_connection_to_the_next_answer(framed: bytes) -> None:
    lab = Lab()
    late = lab.ask(at_once=False)
    connection, wire = lab.lines[0]
    for piece in pieces(framed, list(range(len(framed)))):
        connection.dataReceived(piece)
    late.take()
    following = lab.ask()
    connection.dataReceived(answer(b"the next one's"))

    assert (late.body.data, late.whole) == (b"mine", True)
    assert (following.body.data, following.whole) == (b"the next one's", True)
    assert len(lab.lines) == 1
    assert wire.producerState == "producing"


@given(st.binary(min_size=1, max_size=40), st.lists(st.integers(0, 500), max_size=4), st.data())
def test_a_body_that_ends_early_is_never_whole(body: bytes, cuts_at: list[int], data: st.DataObject) -> None:
    lab = Lab()
    asked = lab.ask()
    sent = answer(body)
    short = sent[: data.draw(st.integers(0, len(sent) - 1))]
    connection, _ = lab.lines[0]
    for piece in pieces(short, cuts_at):
        connection.dataReceived(piece)
    connection.connectionLost(Failure(ConnectionDone()))

    assert not asked.whole
    assert asked.failure is not None or asked.body.end is not None
    assert body.startswith(asked.body.data)


@given(st.binary(max_size=200), st.lists(st.integers(0, 500), max_size=4))
def test_any_bytes_end_in_an_answer_or_a_failure_once_the_store_closes(
    sent: bytes, cuts_at: list[int]
) -> None:
    lab = Lab()
    asked = lab.ask()
    connection, wire = lab.lines[0]
    for piece in pieces(b"HTTP/1.1 " + sent, cuts_at):
        if not wire.aborted:
            connection.dataReceived(piece)
    connection.connectionLost(Failure(ConnectionDone()))

    assert asked.failure is not None or asked.body.end is not None


@pytest.mark.parametrize("extra", [b"x", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"])
@pytest.mark.parametrize("split", [True, False], ids=["later", "at-once"])
def test_bytes_behind_a_body_are_never_taken_for_the_next_answer(extra: bytes, split: bool) -> None:
    lab = Lab()
    first = lab.ask()
    connection, wire = lab.lines[0]
    for piece in (answer(b"body"), extra) if split else (answer(b"body") + extra,):
        connection.dataReceived(piece)
    second = lab.ask()

    assert (first.body.data, first.whole) == (b"body", True)
    assert wire.aborted
    assert len(lab.lines) == 2
    assert (second.status, second.body.data) == (None, b"")


@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 204 No Content\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    ],
    ids=["bytes-behind-204", "bytes-behind-chunks", "close", "http-1.0"],
)
def test_a_connection_that_did_not_end_cleanly_serves_nobody_else(sent: bytes) -> None:
    lab = Lab()
    asked = lab.ask()
    lab.lines[0][0].dataReceived(sent)
    lab.ask()

    assert asked.whole
    assert lab.lines[0][1].aborted
    assert len(lab.lines) == 2


def test_the_answer_to_a_head_has_no_body_whatever_its_length_says() -> None:
    lab = Lab()
    asked = lab.ask("HEAD")
    lab.lines[0][0].dataReceived(answer(length=77))
    lab.ask()

    assert asked.whole
    assert len(lab.lines) == 1


@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 40,
        b"SSH-2.0-x\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20000,
    ],
    ids=["switch", "interim-without-end", "no-http", "two-lengths", "head-without-end"],
)
def test_what_is_no_answer_fails_and_ends_the_connection(sent: bytes) -> None:
    lab = Lab()
    asked = lab.ask()
    lab.lines[0][0].dataReceived(sent)

    assert isinstance(asked.failure, ResponseFailed)
    assert lab.lines[0][1].aborted


def test_a_malformed_chunk_cuts_the_body() -> None:
    lab = Lab()
    asked = lab.ask()
    lab.lines[0][0].dataReceived(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\nzz\r\n")

    assert asked.body.end is not None
    assert not asked.whole
    assert lab.lines[0][1].aborted


@pytest.mark.parametrize("reason", [ConnectionDone(), ConnectionLost()])
def test_a_kept_connection_that_was_closed_is_replaced_once(reason: Exception) -> None:
    lab = Lab()
    lab.ask()
    lab.lines[0][0].dataReceived(answer(b""))
    asked = lab.ask()
    lab.lines[0][0].connectionLost(Failure(reason))
    assert asked.failure is None
    assert lab.lines[1][1].value() == lab.lines[0][1].value()[: len(lab.lines[1][1].value())]
    lab.lines[1][0].connectionLost(Failure(reason))

    assert isinstance(asked.failure, ResponseFailed)
    assert len(lab.lines) == 2


def test_an_answer_that_has_begun_is_not_asked_for_again() -> None:
    lab = Lab()
    lab.ask()
    lab.lines[0][0].dataReceived(answer(b""))
    asked = lab.ask()
    lab.lines[0][0].dataReceived(b"HTTP/1.1 2")
    lab.lines[0][0].connectionLost(Failure(ConnectionDone()))

    assert isinstance(asked.failure, ResponseFailed)
    assert len(lab.lines) == 1


def test_idle_connections_are_bounded_in_number_and_in_time() -> None:
    lab = Lab()
    for _ in range(3):
        lab.ask()
    for connection, _ in lab.lines:
        connection.dataReceived(answer(b""))
    assert [wire.aborted for _, wire in lab.lines] == [False, False, True]
    lab.clock.pump([1.0] * int(KEEP_SECONDS + 6))

    assert all(wire.aborted for _, wire in lab.lines)
    assert lab.clock.getDelayedCalls() == []


def test_a_cancelled_request_ends_its_connection() -> None:
    lab = Lab()
    answered = lab.client.request("GET", ORIGIN, "/", (), 30)
    answered.addErrback(lambda _: None)
    answered.cancel()

    assert lab.lines[0][1].aborted


def test_an_answer_that_does_not_come_is_waited_for_only_so_long() -> None:
    lab = Lab()
    asked = lab.ask()
    lab.clock.advance(29)
    assert asked.failure is None
    lab.clock.advance(1)

    assert isinstance(asked.failure, TookTooLong)
    assert lab.lines[0][1].aborted


@given(st.binary(min_size=1, max_size=40), st.lists(st.integers(0, 200), max_size=6))
def test_a_small_body_is_waited_for_and_comes_with_its_head(body: bytes, cuts_at: list[int]) -> None:
    lab = Lab(whole=40)
    asked = lab.ask(at_once=False)
    connection, wire = lab.lines[0]
    for piece in pieces(answer(body)[:-1], cuts_at):
        connection.dataReceived(piece)
    assert asked.status is None
    connection.dataReceived(answer(body)[-1:])
    other = lab.ask()
    connection.dataReceived(answer(b"of another"))
    asked.take()

    assert (asked.body.data, asked.whole) == (body, True)
    assert (other.body.data, len(lab.lines), wire.aborted) == (b"of another", 1, False)


def test_bytes_behind_a_body_that_was_waited_for_end_the_connection() -> None:
    lab = Lab(whole=40)
    asked = lab.ask()
    connection, wire = lab.lines[0]
    connection.dataReceived(answer(b"mine")[:-1])
    connection.dataReceived(b"e" + answer(b"not asked for"))

    assert (asked.body.data, asked.whole, wire.aborted) == (b"mine", True, True)


def test_a_small_body_that_is_cut_while_it_is_waited_for_is_left_to_who_takes_it() -> None:
    lab = Lab(whole=40)
    asked = lab.ask()
    connection, _ = lab.lines[0]
    connection.dataReceived(answer(b"mine")[:-1])
    connection.connectionLost(Failure(ConnectionDone()))

    assert (asked.status, asked.body.data, asked.whole) == (200, b"min", False)
    assert asked.body.end is not None
    assert len(lab.lines) == 1


def test_a_small_body_is_waited_for_only_so_long() -> None:
    lab = Lab(whole=40)
    asked = lab.ask()
    connection, wire = lab.lines[0]
    connection.dataReceived(answer(b"mine")[:-1])
    lab.clock.advance(30)
    assert (asked.status, asked.body.data, asked.body.end) == (200, b"min", None)
    connection.dataReceived(b"e")

    assert (asked.body.data, asked.whole, wire.aborted) == (b"mine", True, False)


def test_a_request_that_is_cancelled_while_its_body_is_waited_for_ends_its_connection() -> None:
    lab = Lab(whole=40)
    answered = lab.client.request("GET", ORIGIN, "/", (), 30)
    answered.addErrback(lambda _: None)
    lab.lines[0][0].dataReceived(answer(b"mine")[:-1])
    answered.cancel()

    assert lab.lines[0][1].aborted
    assert lab.clock.getDelayedCalls() == []


def test_a_larger_body_is_not_waited_for() -> None:
    lab = Lab(whole=3)
    asked = lab.ask(at_once=False)
    lab.lines[0][0].dataReceived(answer(b"mine")[:-1])

    assert asked.status == 200


def test_a_closed_client_keeps_nothing() -> None:
    lab = Lab()
    lab.ask()
    lab.lines[0][0].dataReceived(answer(b""))
    lab.ask()
    lab.ask()
    closed = lab.client.close()
    assert all(wire.aborted for _, wire in lab.lines)
    assert not closed.called
    for connection, _ in lab.lines:
        connection.connectionLost(Failure(ConnectionLost()))

    assert closed.called
    assert lab.clock.getDelayedCalls() == []


@in_reactor
async def test_a_connection_on_which_something_came_meanwhile_is_not_used(
    rig: Rig, make_store: MakeStore
) -> None:
    """The reactor may not have read it yet when the next request is due."""
    store = make_store(sends(answer(b"body")), sends(answer(b"other")))
    table = rig.table(store.endpoint)
    await table.read("x", limit=9)
    sent = store.lines[0].wire.getHandle()
    sent.send(answer(b"evil"))
    # It has arrived when it is acknowledged (tcp(7), SIOCOUTQ); the reactor does not turn meanwhile.
    wait_until(lambda: fcntl.ioctl(sent, termios.TIOCOUTQ, bytes(4)) == bytes(4))

    assert (await table.read("x", limit=9)).body == b"other"
    assert len(store.lines) == 2


@in_reactor
async def test_a_store_that_closes_each_connection_is_read_without_a_retry(
    rig: Rig, make_store: MakeStore
) -> None:
    store = make_store(cuts(answer(b"body")))
    table = rig.table(store.endpoint)
    for _ in range(5):
        assert (await table.read("x", limit=9)).body == b"body"

    assert len(store.calls) == 5
    assert [outcome for _, outcome in rig.notes.requests] == ["200"] * 5


@in_reactor
async def test_a_body_that_waits_when_its_connection_ends_is_cut(rig: Rig, make_store: MakeStore) -> None:
    def halves(call: Call) -> None:
        call.send_and_cut(answer(b"half", length=9, etag=None))

    store = make_store(halves)
    reply = await rig.upstream.reads.request(
        "GET", ("http", store.endpoint.removeprefix("http://")), "/", (("host", "x"),), 30
    )
    await soon()
    body = Body()
    reply.deliverBody(body)
    while body.end is None:
        await soon(0.001)

    assert body.data == b"half"
    assert not isinstance(body.end, ResponseDone)
