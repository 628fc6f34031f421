"""GET and HEAD over kept connections, with as little between socket and consumer as HTTP/1.1 allows.

Twisted's Agent costs a small read most of its time: a dozen objects, a state machine of three layers and two
passes over every header field. Here a request is one write, a head is parsed in one piece, and body bytes go
from the connection to whoever takes them. What comes out is an `IResponse` as Agent's is one, so that both
are held to the same tests (`tests/upstream/test_contract.py`, `test_relay.py`, `test_client.py`).

A connection serves another request only after a body that ended where its framing says, with nothing behind
it, and it is looked at before it does. One that the store closed meanwhile is replaced by a new one, once:
these are reads.
"""

# The names are those of Twisted's interfaces.
# ruff: noqa: N802, N815
# mypy: allow-untyped-calls
from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterable
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionAborted, ConnectionClosed
from twisted.internet.interfaces import (
    IDelayedCall,
    IProtocol,
    IPushProducer,
    IReactorTime,
    ITransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import URI, ResponseDone, ResponseFailed
from twisted.web.http import PotentialDataLoss, _ChunkedTransferDecoder, _MalformedChunkedDataError
from twisted.web.http_headers import Headers as WireHeaders
from twisted.web.iweb import UNKNOWN_LENGTH, IAgentEndpointFactory, IResponse
from zope.interface import implementer

from delta_proxy.upstream.reply_head import END, BadReply, ReplyHead, check_incomplete, parse_reply_head
from delta_proxy.upstream.retry import TookTooLong
from delta_proxy.upstream.sockets import plain_socket, reads_of_a_turn

Pairs = tuple[tuple[str, str], ...]
Origin = tuple[str, str]
"""The scheme, and the host with a port that is not the scheme's own."""

# Below the 60 s after which stores and load balancers drop an idle connection.
KEEP_SECONDS = 55.0
_SWEEP_SECONDS = 5.0
_MOST_INTERIM = 16
# What a store's head mostly takes less than.
_HEAD_ROOM = 4 * 1024
_DONE = Failure(ResponseDone())
_UNFRAMED = Failure(PotentialDataLoss())


def head_of(method: str, target: str, fields: Iterable[tuple[str, str]]) -> bytes:
    """A request without a body, as it goes over the wire. Raises ValueError for text that is none of HTTP's.

    A line break within a field or the target would end it there, and begin what the proxy never meant to ask.
    """
    rows = [f"{method} {target} HTTP/1.1", *[f"{name}: {value}" for name, value in fields], "", ""]
    head = "\r\n".join(rows).encode("latin-1")
    breaks = len(rows) - 1
    if head.count(b"\n") != breaks or head.count(b"\r") != breaks or b"\0" in head or " " in target:
        raise ValueError("a request's target or fields hold control characters")
    return head


@implementer(IResponse)
class Reply:
    """The answer to a read. `fields` are its header fields, without those of the connection.

    `whole` is the body when all of it came with the head: then the connection serves others already.
    """

    version = (b"HTTP", 1, 1)
    phrase = b""
    request: Any = None
    previousResponse: Any = None

    def __init__(self, head: ReplyHead, connection: Connection | None, whole: bytes | None) -> None:
        self.code = head.status
        self.fields = head.headers
        self.length: Any = UNKNOWN_LENGTH if head.length is None else head.length
        self.whole = whole
        self.connection = connection

    @property
    def headers(self) -> WireHeaders:
        """The header fields as Twisted has them."""
        wire = WireHeaders()
        for name, value in self.fields.items:
            wire.addRawHeader(name.encode("ascii"), value.encode("latin-1"))
        return wire

    def deliverBody(self, protocol: IProtocol) -> None:
        """Give the body to the protocol, whose transport can be paused, resumed and stopped."""
        if self.connection is not None:
            self.connection.deliver(protocol)
            return
        protocol.makeConnection(cast(ITransport, _NOTHING_LEFT))
        if self.whole:
            protocol.dataReceived(self.whole)
        protocol.connectionLost(_DONE)

    def setPreviousResponse(self, response: Any) -> None:
        """There is none: redirects are not followed."""


@implementer(IPushProducer)
class _NothingLeft:
    """The transport of a body that is in memory: there is no connection to pause or abort any more."""

    def pauseProducing(self) -> None:
        """Nothing comes."""

    def resumeProducing(self) -> None:
        """Nothing comes."""

    def stopProducing(self) -> None:
        """Nothing comes."""


_NOTHING_LEFT = _NothingLeft()


class _Exchange:
    """One request on its way to its answer; on a second connection when the first one was dead."""

    def __init__(
        self, origin: Origin, data: bytes, clock: IReactorTime, seconds: float, *, bodiless: bool
    ) -> None:
        self.origin = origin
        self._seconds = seconds
        self._timer: IDelayedCall | None = clock.callLater(seconds, self._expired)
        self.data = data
        self.bodiless = bodiless
        self.connecting: Deferred[Any] | None = None
        self.connection: Connection | None = None
        self.answered: Deferred[IResponse] = Deferred(self._cancel)

    def answer(self, reply: Reply) -> None:
        """The head has come."""
        self.connection = None
        self._stop_waiting()
        self.answered.callback(cast(IResponse, reply))

    def fail(self, reason: Failure) -> None:
        """There will be no answer."""
        self.connection = None
        self._stop_waiting()
        if not self.answered.called:
            self.answered.errback(reason)

    def _stop_waiting(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _expired(self) -> None:
        self._timer = None
        if self.connection is not None and self.connection.hand_over():
            return
        self._give_up(TookTooLong(f"nothing within {self._seconds} s"))

    def _cancel(self, _: Deferred[IResponse]) -> None:
        self._give_up(CancelledError())

    def _give_up(self, error: Exception) -> None:
        connecting, self.connecting = self.connecting, None
        connection, self.connection = self.connection, None
        self.fail(Failure(error))
        if connecting is not None:
            connecting.cancel()
        if connection is not None:
            connection.abort()


class ReadClient:
    """Sends reads over at most `connections` kept connections an origin; how many are in use is the caller's
    to bound. An idle one is closed after 55 seconds. A body of at most `whole` bytes is waited for with its
    head; what of it has not come when the time is over is left to whoever takes the body.
    """

    def __init__(
        self,
        clock: IReactorTime,
        endpoints: IAgentEndpointFactory,
        *,
        connections: int = 256,
        whole: int = 0,
    ) -> None:
        self.whole = whole
        self._clock = clock
        self._endpoints = endpoints
        self._most = connections
        self._idle: dict[Origin, deque[Connection]] = {}
        self._all: set[Connection] = set()
        self._sweeping: IDelayedCall | None = None
        self._closing: Deferred[None] | None = None

    def request(
        self, method: str, origin: Origin, target: str, fields: Pairs, seconds: float
    ) -> Deferred[IResponse]:
        """The answer's head; cancelling it aborts the connection. `fields` go as they are, Host among them.

        Fails with TookTooLong after so many seconds, with a ConnectError when there is no connection, with
        ResponseFailed when no answer comes over it, or none of HTTP's (then BadReply is among its reasons).
        Raises ValueError for a target or a field that HTTP cannot carry.
        """
        data = head_of(method, target, fields)
        exchange = _Exchange(origin, data, self._clock, seconds, bodiless=method == "HEAD")
        connection = self._kept(origin)
        if connection is None:
            self.connect(exchange)
        else:
            connection.ask(exchange)
        return exchange.answered

    def close(self) -> Deferred[None]:
        """Close every connection; fires when the last one is gone."""
        closed: Deferred[None] = Deferred()
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        self._closing = closed
        for idle in self._idle.values():
            for connection in idle:
                connection.retire()
        self._idle.clear()
        for connection in list(self._all):
            connection.abort()
        self._tell_closed()
        return closed

    @property
    def closing(self) -> bool:
        """Whether no more connections are wanted."""
        return self._closing is not None

    def connect(self, exchange: _Exchange) -> None:
        """Send the request over a new connection."""
        scheme, netloc = exchange.origin
        uri = URI.fromBytes(f"{scheme}://{netloc}/".encode("ascii"))
        factory = _Connections(self, exchange)
        exchange.connecting = self._endpoints.endpointForURI(uri).connect(factory)
        exchange.connecting.addCallbacks(lambda _: None, exchange.fail)

    def connected(self, connection: Connection) -> None:
        """For a connection: it is there."""
        self._all.add(connection)

    def release(self, connection: Connection) -> bool:
        """For a connection: it may serve another request. Whether it is kept for that."""
        idle = self._idle.setdefault(connection.origin, deque())
        if len(idle) >= self._most or self._closing is not None:
            return False
        connection.idle_since = self._clock.seconds()
        idle.append(connection)
        if self._sweeping is None:
            self._sweeping = self._clock.callLater(_SWEEP_SECONDS, self._sweep)
        return True

    def lost(self, connection: Connection) -> None:
        """For a connection: it is gone."""
        self._all.discard(connection)
        idle = self._idle.get(connection.origin)
        if idle is not None and connection in idle:
            idle.remove(connection)
        self._tell_closed()

    def _kept(self, origin: Origin) -> Connection | None:
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            if connection.is_quiet():
                return connection
            connection.abort()
        return None

    def _sweep(self) -> None:
        """Close what has been idle for too long; one timer for all costs no request anything."""
        self._sweeping = None
        oldest = self._clock.seconds() - KEEP_SECONDS
        for idle in self._idle.values():
            while idle and idle[0].idle_since <= oldest:
                idle.popleft().retire()
        self._idle = {origin: idle for origin, idle in self._idle.items() if idle}
        if self._idle:
            self._sweeping = self._clock.callLater(_SWEEP_SECONDS, self._sweep)

    def _tell_closed(self) -> None:
        if self._closing is not None and not self._all and not self._closing.called:
            self._closing.callback(None)


class _Connections(Factory):
    """Makes the one connection that an exchange asked for."""

    noisy = False

    def __init__(self, client: ReadClient, exchange: _Exchange) -> None:
        self._client = client
        self._exchange = exchange

    def buildProtocol(self, addr: object) -> Connection:
        return Connection(self._client, self._exchange)


@implementer(IPushProducer)
class Connection(Protocol):
    """A connection to a store: idle, waiting for a head, or bringing a body.

    To the receiver of a body it is the transport: pausing stops the reading from the socket, stopping aborts.
    """

    transport: Any

    def __init__(self, client: ReadClient, first: _Exchange) -> None:
        self.origin = first.origin
        self.idle_since = 0.0
        self._client = client
        self._first: _Exchange | None = first
        self._exchange: _Exchange | None = None
        self._socket: socket.socket | None = None
        self._reused = False
        self._keep = True
        self._gone = False
        self._paused = False
        self._interim = 0
        self._buffer = b""
        self._in_body = False
        self._gathered: tuple[_Exchange, ReplyHead] | None = None
        self._receiver: IProtocol | None = None
        self._lost: Failure | None = None
        self._held = b""
        self._remaining: int | None = None
        self._decoder: _ChunkedTransferDecoder | None = None

    def connectionMade(self) -> None:
        """Send the request that the connection was made for, unless nobody waits for it any more."""
        first, self._first = self._first, None
        self._client.connected(self)
        self._socket = plain_socket(self.transport)
        if self._socket is not None:
            # What is waited for with its head comes in one read with it: a turn of the reactor less.
            self.transport.bufferSize = max(self.transport.bufferSize, self._client.whole + _HEAD_ROOM)
        if first is None or first.answered.called:
            self.abort()
            return
        first.connecting = None
        self.ask(first)
        if self._client.closing:
            self.abort()

    def ask(self, exchange: _Exchange) -> None:
        """Send a request."""
        exchange.connection = self
        self._exchange = exchange
        data, sent = exchange.data, 0
        if self._socket is not None:
            try:
                # Nothing waits before it, so it need not wait for the reactor to say that it may be sent.
                sent = self._socket.send(data)
            except OSError:
                # Whatever it is, the transport will say so.
                sent = 0
            # An answer that comes before the request has gone leaves no connection that can be used again.
            self._keep = sent == len(data)
        if sent != len(data):
            self.transport.write(data[sent:])

    def is_quiet(self) -> bool:
        """Whether nothing has come on an idle connection: neither its end nor bytes that nobody asked for."""
        if self._gone or self._socket is None:
            return not self._gone
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def dataReceived(self, data: bytes) -> None:
        """Bytes from the store."""
        if self._in_body and self._receiver is None:
            # TLS hands on every record of one read, paused or not: they are kept for whoever takes the body.
            self._held += data
            self._gather()
        elif self._in_body:
            for piece in reads_of_a_turn(self.transport, data):
                self._take(piece)
                if self._paused or not self._in_body:
                    break
        elif (exchange := self._exchange) is not None:
            self._buffer = self._buffer + data if self._buffer else data
            try:
                self._read_head(exchange)
            except BadReply as error:
                self._refuse(exchange, error)
        elif not self._gone:
            # Nobody asked for anything: whoever came next would take it for the answer.
            self.abort()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone; a request that it never answered goes to a new one, if it was kept."""
        self._gone = True
        self._client.lost(self)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            untouched = self._reused and not self._buffer and not self._interim
            if untouched and not exchange.answered.called and reason.check(ConnectionClosed):
                exchange.connection = None
                self._client.connect(exchange)
            else:
                exchange.fail(Failure(ResponseFailed([reason])))
        elif self._in_body:
            if self._remaining is None and self._decoder is None:
                # Only the end of the connection ends it: nobody can tell whether it is whole.
                reason = _UNFRAMED
            self._lost = reason
            if self._receiver is not None:
                # Without one, what is held goes first to whoever takes the body.
                self._end_lost()
            self.hand_over()

    def abort(self) -> None:
        """Reset the connection. Who waits for a head is told, who takes a body is not."""
        if self._gone:
            return
        self._gone = True
        exchange, self._exchange = self._exchange, None
        gathered, self._gathered = self._gathered, None
        if gathered is not None:
            exchange = gathered[0]
        if exchange is not None:
            exchange.fail(Failure(ConnectionAborted()))
        self._in_body = False
        self._receiver = None
        self._held = b""
        self.transport.abortConnection()

    def retire(self) -> None:
        """Close an idle connection; TLS would wait for the peer's goodbye, so it is aborted."""
        if self._socket is None:
            self.abort()
        elif not self._gone:
            self._gone = True
            self.transport.loseConnection()

    def deliver(self, receiver: IProtocol) -> None:
        """Give the body to the receiver: what is here at once, the rest as it comes."""
        self._receiver = receiver
        receiver.makeConnection(cast(ITransport, self))
        held, self._held = self._held, b""
        if held and self._in_body:
            self._take(held)
        if self._lost is not None:
            self._end_lost()
        elif self._in_body and self._receiver is receiver:
            self.resumeProducing()

    def pauseProducing(self) -> None:
        """Read no more for now."""
        if not self._paused and not self._gone:
            self._paused = True
            self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Read on."""
        if self._paused and not self._gone:
            self._paused = False
            self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """Nobody wants the rest of the body. TLS would wait for the peer's goodbye, so it is aborted."""
        if self._in_body:
            self.abort()

    @property
    def remaining(self) -> int | None:
        """How many bytes of the body have not come yet; None when that is unknown, or there is no body."""
        return self._remaining if self._in_body and not self._held and not self._gone else None

    @property
    def plain(self) -> socket.socket | None:
        """The socket, when body bytes can be taken from it past this protocol."""
        return self._socket

    def took(self, count: int) -> None:
        """That many bytes of the body were taken from the socket past this protocol."""
        assert self._remaining is not None
        self._remaining -= count
        if not self._remaining:
            self._body_over(b"")

    def broken(self, reason: Failure) -> None:
        """The socket was found to end, or to be broken, before the body did."""
        self._fail_body(reason)

    def take_back(self) -> None:
        """The rest of the body comes by this protocol again, whose reading is still paused."""
        if self._receiver is not None:
            self._receiver.makeConnection(cast(ITransport, self))

    def resume_with(self, data: bytes) -> None:
        """Read on, after these bytes of the body that were taken already."""
        self.resumeProducing()
        if data and self._in_body:
            self._take(data)

    def _read_head(self, exchange: _Exchange) -> None:
        while True:
            end = self._buffer.find(END)
            if end < 0:
                check_incomplete(self._buffer)
                return
            head = parse_reply_head(self._buffer[:end], bodiless=exchange.bodiless)
            rest, self._buffer = self._buffer[end + len(END) :], b""
            if head.status >= 200:
                self._exchange = None
                self._begin(exchange, head, rest)
                return
            self._interim += 1
            if head.status == 101 or self._interim > _MOST_INTERIM:
                raise BadReply(f"the store answered with status {head.status}")
            self._buffer = rest

    def _begin(self, exchange: _Exchange, head: ReplyHead, rest: bytes) -> None:
        self._interim = 0
        self._keep = self._keep and head.persistent
        length = head.length
        if length is not None and length <= len(rest):
            # Kept for others before anybody is told: whoever asks next finds it free.
            self._release(rest[length:])
            exchange.answer(Reply(head, None, rest[:length]))
            return
        self._in_body = True
        self._receiver = None
        self._lost = None
        self._held = rest
        self._remaining = length
        self._decoder = _ChunkedTransferDecoder(self._pass_on, self._body_over) if head.chunked else None
        self._gathered = exchange, head
        if length is None or length > self._client.whole:
            self.hand_over()

    def hand_over(self) -> bool:
        """Answer the request whose body was waited for with what there is of it; whether there is one."""
        gathered, self._gathered = self._gathered, None
        if gathered is None:
            return False
        exchange, head = gathered
        exchange.answer(Reply(head, self, None))
        if self._in_body and self._receiver is None:
            self.pauseProducing()
        return True

    def _gather(self) -> None:
        """A body that is waited for with its head is answered as one that came with it."""
        length = self._remaining
        if self._gathered is None or length is None or len(self._held) < length:
            return
        (exchange, head), self._gathered = self._gathered, None
        body, extra = self._held[:length], self._held[length:]
        self._held, self._in_body = b"", False
        self._release(extra)
        exchange.answer(Reply(head, None, body))

    def _take(self, data: bytes) -> None:
        if self._decoder is not None:
            try:
                self._decoder.dataReceived(data)
            except _MalformedChunkedDataError as error:
                self._fail_body(Failure(error))
        elif self._remaining is None:
            self._pass_on(data)
        elif len(data) < self._remaining:
            self._remaining -= len(data)
            self._pass_on(data)
        else:
            body, extra = data[: self._remaining], data[self._remaining :]
            self._remaining = 0
            self._pass_on(body)
            self._body_over(extra)

    def _pass_on(self, data: bytes) -> None:
        if self._receiver is not None:
            self._receiver.dataReceived(data)

    def _body_over(self, extra: bytes) -> None:
        if not self._in_body:
            # The receiver stopped within the chunk that was the last.
            return
        receiver, self._receiver = self._receiver, None
        self._in_body = False
        self._decoder = None
        self._release(extra)
        if receiver is not None:
            receiver.connectionLost(_DONE)

    def _release(self, extra: bytes) -> None:
        """The body ended; the connection is kept unless the store closes it or sent more than a body."""
        self._reused = True
        if extra or self._gone or not self._keep or not self._client.release(self):
            self.abort()
        else:
            self.resumeProducing()

    def _refuse(self, exchange: _Exchange, error: BadReply) -> None:
        self._exchange = None
        self.abort()
        exchange.fail(Failure(ResponseFailed([Failure(error)])))

    def _fail_body(self, reason: Failure) -> None:
        receiver = self._receiver
        self.abort()
        if receiver is not None:
            receiver.connectionLost(reason)

    def _end_lost(self) -> None:
        """The connection went before the body was over, unless what was held of it was the rest."""
        receiver, self._receiver = self._receiver, None
        self._in_body = False
        if receiver is not None and self._lost is not None:
            receiver.connectionLost(self._lost)
