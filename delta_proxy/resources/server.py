"""The HTTP edge: what stands between a socket and the resources.

twisted.web's channel, request and site, made strict. A request's head is parsed in one piece by
`delta_proxy.resources.head`; what is malformed is answered in S3's XML and the connection is closed after the
client had the chance to read the answer. A request is processed as soon as its head is there, before its
body, so that a refusal costs no upload; a resource that wants the body asks for it with
`EdgeRequest.read_body`. Every wait for a client is bounded.
"""

# The names are those of Twisted's interfaces.
# ruff: noqa: N802, N815
# mypy: allow-untyped-calls
from __future__ import annotations

import fcntl
import os
import socket
import struct
import termios
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any, Final, cast

from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHalfCloseableDescriptor,
    IHalfCloseableProtocol,
    IReactorTime,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.protocols.basic import LineReceiver
from twisted.python.components import Componentized
from twisted.python.failure import Failure
from twisted.web import http, server
from twisted.web.error import UnsupportedMethod
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource
from zope.interface import implementer

from delta_proxy.access.audit import Place
from delta_proxy.logs import READY, redact_target
from delta_proxy.resources.answer_head import answer_head
from delta_proxy.resources.head import (
    HeadLimits,
    RequestHead,
    check_beginning,
    method_of,
    parse_head,
    too_long,
)
from delta_proxy.s3 import headers as s3_headers
from delta_proxy.s3.errors import (
    EntityTooLarge,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    RequestTimeout,
    S3Error,
    SlowDown,
)
from delta_proxy.s3.xml import error_document
from delta_proxy.upstream.http1 import plain_socket

SERVER = b"DeltaS3Proxy"
CLIENT_CLOSED = 499
# Bound once: twisted.web.http is a module of deprecated attributes, slow to look things up in.
_NO_BODY_CODES = http.NO_BODY_CODES
_write = http.Request.write
_HELD_BODY_BYTES = 64 * 1024
_NO_HEADERS = s3_headers.Headers()
_CLOSING = (("connection", "close"),)


@frozen
class EdgeLimits:
    """Bounds of what clients may take. Times in seconds, sizes in bytes.

    `refusals` is how many connections above `connections` are answered with 503 at a time; those above are
    just closed. `body` bounds the body of every request but PUT, whose body is never held. `write_seconds` is
    how long a client may read nothing of an answer that waits for it; `linger_*` is how much is read and
    dropped after a refusal, so that the client gets to read it.
    """

    connections: int = 4096
    refusals: int = 128
    requests: int = 4096
    head: HeadLimits = field(factory=HeadLimits)
    body: int = 2 * 1024 * 1024
    head_seconds: float = 20.0
    idle_seconds: float = 75.0
    body_seconds: float = 60.0
    write_seconds: float = 60.0
    linger_seconds: float = 10.0
    linger_bytes: int = 64 * 1024 * 1024


REFUSED: Final = "refused"
"""The decision on a request that was answered by an error before the policy was asked."""


@define
class RequestNote:
    """What a resource found out about a request, for the access log, the metrics and the audit log.

    It is filled in while the request is answered: several times a request, so it is no frozen value.
    `decision` is "allowed", or a word for why not; `reason` says more. `place` is the request's place in the
    audit log, None without one.
    """

    operation: str = ""
    table: str = ""
    decision: str = ""
    principal: str = ""
    proxied: bool = False
    reason: str = ""
    auth: str = ""
    access_key: str | None = None
    source: str = ""
    path: str | None = None
    partitions: tuple[Mapping[str, str | None], ...] = ()
    grant: str | None = None
    place: Place | None = None


@frozen
class RequestRecord:
    """A request that is over.

    `status` is 499 when the client left before there was an answer; `aborted` says that the answer did not
    reach its end. `uri` is the raw request target, with its secrets. `seconds` run from the end of the head
    to the end of the answer.
    """

    method: str
    uri: bytes
    status: int
    bytes_sent: int
    bytes_received: int
    seconds: float
    request_id: str
    aborted: bool = False
    note: RequestNote = field(factory=RequestNote)


def peer_host(transport: Any) -> str:
    """The address of who is at the other end, "" where it has none."""
    return str(getattr(transport.getPeer(), "host", ""))


class _Phase(Enum):
    """What a connection waits for."""

    IDLE = "the first byte of a request"
    HEAD = "the rest of a head"
    BUSY = "the end of an answer"
    CLOSING = "the client, to take the last bytes"


def new_request_id() -> str:
    """16 upper-case hexadecimal digits, as S3's own, from 64 random bits."""
    return os.urandom(8).hex().upper()


class EdgeRequest(server.Request):
    """A request whose head has arrived, and its answer.

    `headers` are the header fields as S3 reads them; `uri` is the raw target. `note` is for the resource to
    set.
    """

    defaultContentType = None
    channel: S3Channel
    site: S3Site
    code: int
    queued = False

    def __init__(self, channel: S3Channel, *args: object, **keywords: object) -> None:
        # Not twisted.web's own: most of what that makes is not used.
        Componentized.__init__(self)
        self.channel = channel
        self.transport = channel.transport
        self.client = channel.peer
        self.notifications = []
        self.cookies = []
        self._request_headers: Headers | None = None
        self._response_headers: Headers | None = None
        self.headers = _NO_HEADERS
        self._head: RequestHead | None = None
        self.request_id = new_request_id()
        self.note = RequestNote()
        self.started_at = 0.0
        self.bytes_received = 0
        self._expects_continue = False
        self._length: int | None = 0
        self._body_complete = False
        self._body_limit = 0
        self._chunks: list[bytes] = []
        self._reader: Deferred[bytes] | None = None
        self._streamer: Deferred[bytes] | None = None
        self._least = 0
        self._held = 0
        self._refusal: S3Error | None = None

    @property
    def raw_headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """The header fields as on the wire, in order."""
        return () if self._head is None else self._head.fields

    @property
    def requestHeaders(self) -> Headers:
        """The header fields by name for twisted.web, built when first asked for: most use `headers`."""
        if self._request_headers is None:
            self._request_headers = Headers()
            for name, value in self.raw_headers:
                self._request_headers.addRawHeader(name, value)
        return self._request_headers

    @requestHeaders.setter
    def requestHeaders(self, headers: Headers) -> None:
        self._request_headers = headers

    @property
    def responseHeaders(self) -> Headers:
        """The header fields of the answer, with those that all answers have; built when first asked for."""
        if self._response_headers is None:
            headers = self._response_headers = Headers()
            headers.setRawHeaders(b"x-amz-request-id", [self.request_id.encode("ascii")])
            headers.setRawHeaders(b"Server", [SERVER])
            headers.setRawHeaders(b"Date", [self.channel.site.date()])
        return self._response_headers

    @responseHeaders.setter
    def responseHeaders(self, headers: Headers) -> None:
        self._response_headers = headers

    @property
    def host(self) -> IAddress:
        """Where the client's connection arrived."""
        return cast(IAddress, self.channel.getHost())

    def begin(self, head: RequestHead, now: float) -> None:
        """Take over the head; called by the channel before anything else."""
        self.method, self.uri, self.clientproto = head.method, head.target, head.version
        self.path = head.target.partition(b"?")[0]
        self.args = {}
        self.headers = head.headers
        self._head = head
        self._request_headers = None
        self.started_at = now
        self._expects_continue = head.expects_continue

    def process(self) -> None:
        """Let the resource answer. A fault of the resource is logged and answered with InternalError."""
        site = self.site = self.channel.site
        self.prepath = []
        self.postpath = [] if getattr(site.resource, "isLeaf", False) else self.path[1:].split(b"/")
        if site.prepare is not None:
            site.prepare(self)
        try:
            if site.in_flight > site.limits.requests:
                raise SlowDown
            self.render(site.getResourceFor(self))
        except S3Error as error:
            self.fail(error)
        except Exception:  # noqa: BLE001 - whatever it is, the client gets an answer and the log the cause
            self.processingFailed(Failure())

    def render(self, resource: IResource) -> None:
        """Answer with what a resource renders, unless it said that it will answer later."""
        try:
            body = resource.render(self)
        except UnsupportedMethod as unsupported:
            methods: Iterable[bytes] = unsupported.allowedMethods
            allowed = ", ".join(sorted(name.decode("latin-1") for name in methods))
            raise MethodNotAllowed(headers=(("Allow", allowed),)) from None
        if body is not server.NOT_DONE_YET:
            self.answer(cast(bytes, body))

    def processingFailed(self, reason: Failure) -> Failure:
        """Log a fault and answer InternalError, or abort when the answer has already begun."""
        self.site.log_failure(reason, self.request_id)
        if not self._disconnected and not self.finished:
            self.fail(InternalError())
        return reason

    def answer(self, body: bytes) -> None:
        """Write a whole body with its length, and finish."""
        self.setHeader(b"Content-Length", b"%d" % len(body))
        self.write(body)
        self.finish()

    def answer_whole(self, status: int, fields: Iterable[tuple[str, str]], body: bytes) -> None:
        """Answer with everything at once; `fields` must hold the Content-Length. HEAD gets no body."""
        if self._disconnected or self.startedWriting:
            return
        if self._response_headers is not None or status in _NO_BODY_CODES:
            self.setResponseCode(status)
            for name, value in fields:
                self.responseHeaders.addRawHeader(name.encode("ascii"), value.encode("latin-1"))
            self.write(body)
            self.finish()
            return
        channel, bodiless = self.channel, self.method == b"HEAD"
        closing = _CLOSING if channel.closes_after_answer() else ()
        standing = f"X-Amz-Request-Id: {self.request_id}\r\n{self.site.standing_fields()}"
        head = answer_head(self.clientproto, status, standing, (*closing, *fields))
        self.code, self.startedWriting, self.finished = status, 1, 1
        self.sentLength = 0 if bodiless else len(body)
        channel.send_at_once(head if bodiless else head + body)
        self.site.finished(self.record(aborted=False))
        self._cleanup()

    def fail(self, error: S3Error, *, resource: str | None = None) -> None:
        """Answer with an error in S3's XML.

        An answer that has begun cannot be taken back: then the connection is aborted.
        `resource` is the Resource element, the path of the request unless given.
        """
        if self.startedWriting:
            self.abort()
            return
        self.setResponseCode(error.status)
        for name, value in error.headers:
            self.setHeader(name, value)
        if error.status in _NO_BODY_CODES:
            self.finish()
            return
        self.setHeader(b"Content-Type", b"application/xml")
        self.answer(
            _document(error, redact_target(self.path) if resource is None else resource, self.request_id)
        )

    def abort(self) -> None:
        """Reset the connection, so that no client takes what it has for the whole answer."""
        if not self._disconnected:
            self.channel.abort()

    def write(self, data: bytes) -> None:
        """Send body bytes; the first call sends the head before them."""
        if not self.startedWriting and not self._disconnected and self.channel.closes_after_answer():
            self.responseHeaders.setRawHeaders(b"Connection", [b"close"])
        # Past server.Request.write, which looks for a content type to guess at every call.
        _write(self, data)

    def finish(self) -> None:
        """End the answer. One that is not as long as its Content-Length said is aborted instead."""
        if not self.startedWriting and not self._disconnected:
            self.write(b"")
        if not self._disconnected and not self.finished and not self._is_whole():
            self.abort()
            return
        super().finish()

    def splice_sink(self) -> PlainSink | None:
        """The client's socket, for the rest of a body to go to past `write`; begins the answer.

        None over TLS, without a Content-Length, or when no body is to be sent.
        """
        if self._disconnected or self.finished or plain_socket(self.channel.transport) is None:
            return None
        if not self.startedWriting:
            self.write(b"")
        if self.chunked or self.method == b"HEAD" or self.code in _NO_BODY_CODES:
            return None
        return PlainSink(self)

    def _is_whole(self) -> bool:
        declared = self.responseHeaders.getRawHeaders(b"Content-Length")
        bodiless = self.method == b"HEAD" or self.code in _NO_BODY_CODES
        return declared is None or bodiless or int(declared[0]) == self.sentLength

    def refuse(self, error: S3Error) -> None:
        """The channel has given up the request with this error: tell who waits for it."""
        self._refusal = error
        if not self.note.decision:
            self.note.decision, self.note.reason = REFUSED, error.code
            self.note.source = self.note.source or peer_host(self.channel.transport)
        self.connectionLost(Failure(ConnectionAborted(str(error))))

    def connectionLost(self, reason: Failure) -> None:
        """The client is gone, or is about to be."""
        reader, self._reader = self._reader or self._streamer, None
        self._streamer = None
        super().connectionLost(reason)
        if reader is not None:
            reader.errback(reason)
        self.site.finished(self.record(aborted=True))

    def record(self, *, aborted: bool) -> RequestRecord:
        """What to tell the log and the metrics."""
        status = self.code if self.startedWriting else CLIENT_CLOSED
        return RequestRecord(
            self.method.decode("latin-1"),
            self.uri,
            status if self._refusal is None else self._refusal.status,
            self.sentLength,
            self.bytes_received,
            self.site.seconds() - self.started_at,
            self.request_id,
            aborted,
            self.note,
        )

    def gotLength(self, length: int | None) -> None:
        """The body's length: bytes, or None when it is chunked. Called before `process`."""
        self._length = length
        self._body_complete = length == 0

    def handleContentChunk(self, data: bytes) -> None:
        """Body bytes have come. They are held until somebody reads them; too many stop the client."""
        if self.finished or self._disconnected:
            return
        self.bytes_received += len(data)
        self._held += len(data)
        self._chunks.append(data)
        if self._streamer is not None:
            self._hand_on()
        elif self._reader is None:
            if self._held > _HELD_BODY_BYTES:
                self.channel.pause_reading()
        elif self.bytes_received > self._body_limit:
            self._end_body(EntityTooLarge())

    def body_received(self) -> None:
        """The channel received the last byte of the body."""
        self._body_complete = True
        if self._streamer is not None:
            self._hand_on()
        elif self._reader is not None:
            self._end_body(None)

    def read_body(self, limit: int | None = None) -> Deferred[bytes]:
        """The whole body, at most `limit` bytes, the edge's bound unless given. May be called once.

        Only now is a client that asked `Expect: 100-continue` told to send it. Fails with EntityTooLarge, or
        with the reason of the lost connection when the client goes, stops sending or breaks the chunked
        coding.
        """
        reader: Deferred[bytes] = Deferred()
        self._reader = reader
        self._body_limit = self.site.limits.body if limit is None else limit
        if max(self._length or 0, self.bytes_received) > self._body_limit:
            self._end_body(EntityTooLarge())
        elif self._body_complete:
            self._end_body(None)
        else:
            if self._expects_continue and not self.bytes_received:
                self.channel.send_continue()
            self.channel.await_body()
        return reader

    @property
    def length(self) -> int | None:
        """The body's size in bytes, 0 where the head announces none, None for a chunked one."""
        return self._length

    @property
    def body_length(self) -> int | None:
        """The body's size in bytes as the head announces it; None when it is not known before its end."""
        announced = self._length != 0 or any(
            name.lower() == b"content-length" for name, _ in self.raw_headers
        )
        return self._length if announced else None

    def read_some(self, least: int = 1) -> Deferred[bytes]:
        """The next bytes of the body, at least that many unless it ends; b"" at its end.

        Until it is called, the client is told nothing and not much is read, so whoever reads piece by piece
        holds next to nothing. The client has `body_seconds` for each call. Fails as `read_body` does, which
        must not be called beside it.
        """
        streamer: Deferred[bytes] = Deferred()
        self._streamer, self._least = streamer, least
        if self._expects_continue and not self.bytes_received and not self._body_complete:
            self._expects_continue = False
            self.channel.send_continue()
        if not self._hand_on():
            self.channel.await_body()
        return streamer

    def _hand_on(self) -> bool:
        """Give what is there to whoever reads piece by piece, if it is enough."""
        if not self._body_complete and self._held < self._least:
            return False
        streamer, self._streamer = self._streamer, None
        data = b"".join(self._chunks)
        self._chunks.clear()
        self._held = 0
        self.channel.body_ended()
        if streamer is not None:
            streamer.callback(data)
        return True

    def _end_body(self, error: S3Error | None) -> None:
        reader, self._reader = self._reader, None
        body = b"".join(self._chunks)
        self._chunks.clear()
        if not self._disconnected:
            self.channel.body_ended()
        if reader is not None and error is None:
            reader.callback(body)
        elif reader is not None:
            reader.errback(error)


class PlainSink:
    """The client's end of a body that the kernel moves: it stands for what `write` and the transport do.

    See `delta_proxy.upstream.splice.Sink`.
    """

    def __init__(self, request: EdgeRequest) -> None:
        self._request = request
        self._channel = request.channel
        self._transport = request.channel.transport
        self.socket: socket.socket = self._transport.getHandle()
        self._flushed = False

    def flush(self) -> bool:
        """Send what was written before; whether nothing of it is left in the process."""
        if not self._flushed and self._transport.connected:
            if isinstance(self._transport.doWrite(), Exception):
                self.abort()
            self._flushed = not self._transport.dataBuffer
        return self._flushed

    def moved(self, count: int) -> None:
        """Count body bytes that have gone to the socket."""
        self._request.sentLength += count
        self._channel.has_moved()

    def full(self) -> None:
        """The client has to read before there can be more."""
        self._channel.pauseProducing()

    def free(self) -> None:
        """The client has taken all there was."""
        self._channel.resumeProducing()

    def abort(self) -> None:
        """Reset the connection."""
        self._transport.abortConnection()


@implementer(IHalfCloseableProtocol)
class S3Channel(http.HTTPChannel):
    """One client connection: heads in, answers out, one at a time and in order."""

    # A head is taken as one "line": it ends with an empty line.
    delimiter = b"\r\n\r\n"
    site: S3Site
    requests: list[EdgeRequest]
    transport: Any
    _networkProducer: Any
    _requestProducer: Any
    _transferDecoder: Any

    def __init__(self) -> None:
        super().__init__()
        self.peer: IAddress | None = None
        self._phase = _Phase.IDLE
        self._deadline: float | None = None
        self._timer: IDelayedCall | None = None
        self._marker: object = None
        self._line_checked = False
        self._body_open = False
        self._body_awaited = False
        self._parked = False
        self._reading_paused = False
        self._let_go = False
        self._dropped = 0

    def connectionMade(self) -> None:
        """A client has connected."""
        self.MAX_LENGTH = self.site.limits.head.size
        super().connectionMade()
        self.peer = self.transport.getPeer()
        self.site.channels.add(self)
        self._arm(self.site.limits.idle_seconds)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone; so is the request that was being answered."""
        self._deadline = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        super().connectionLost(reason)
        self.requests.clear()
        self.site.channels.discard(self)
        self.site.connection_lost()

    def dataReceived(self, data: bytes) -> None:
        """Bytes from the client."""
        if self._phase is _Phase.CLOSING:
            self._drop(len(data))
            return
        LineReceiver.dataReceived(self, data)
        if self.line_mode and self._buffer and not self._busyReceiving:
            self._head_incomplete()

    def lineReceived(self, line: bytes) -> None:
        """A whole head has arrived: start the request."""
        limits = self.site.limits
        self._line_checked = False
        try:
            head = parse_head(line, limits.head)
            if head.method != b"PUT" and (head.length or 0) > limits.body:
                raise EntityTooLarge
        except S3Error as error:
            self._refuse(error, line)
            return
        self._phase = _Phase.BUSY
        self._deadline = None
        self.persistent = head.persistent and not self.site.draining
        request = self.site.requestFactory(self)
        self.requests.append(request)
        request.begin(head, self.site.seconds())
        self._expect_body(request, head.length)
        self.setRawMode()
        self.site.in_flight += 1
        request.gotLength(head.length)
        request.process()

    def lineLengthExceeded(self, line: bytes) -> None:
        """A head that does not end."""
        self._refuse(too_long(line, self.site.limits.head), line)

    def rawDataReceived(self, data: bytes) -> None:
        """Bytes that are no head: of the body, or of requests that wait for their turn."""
        if not self._body_open:
            self._hold(data)
            return
        try:
            self._transferDecoder.dataReceived(data)
        except http._MalformedChunkedDataError:
            self._refuse(InvalidRequest("The chunked body is malformed."), b"")

    def requestDone(self, request: EdgeRequest) -> None:
        """The answer is written: go on with the next request, or close."""
        self.requests.remove(request)
        if self.closes_after_answer():
            self._close(linger=self._body_open)
        elif self._waitingForTransport:
            # The client does not read its answers: the next request waits until it does.
            self._parked = True
        else:
            self._await_request()

    def closes_after_answer(self) -> bool:
        """Whether the connection ends with this answer: asked for, draining, or a body not read."""
        return not self.persistent or self._body_open or self.site.draining

    def pauseProducing(self) -> None:
        """The transport holds as much output as it should."""
        self._waitingForTransport = True
        if self._requestProducer is not None:
            self._requestProducer.pauseProducing()
        if self._phase is _Phase.BUSY:
            self._arm(self.site.limits.write_seconds)

    def resumeProducing(self) -> None:
        """The transport has sent what it held."""
        self._waitingForTransport = False
        if self._phase is _Phase.BUSY and not self._body_awaited:
            self._deadline = None
        if self._requestProducer is not None:
            self._requestProducer.resumeProducing()
        if self._parked:
            self._parked = False
            if self.site.draining:
                self._close(linger=False)
            else:
                self._await_request()

    def has_moved(self) -> None:
        """Bytes went to the client past the transport; one who takes them is no client that has stalled."""
        if self._waitingForTransport and self._phase is _Phase.BUSY:
            self._arm(self.site.limits.write_seconds)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Let a request's producer feed the transport; it starts paused when the transport is full."""
        super().registerProducer(producer, streaming)
        if self._waitingForTransport:
            self._requestProducer.pauseProducing()

    def loseConnection(self) -> None:
        """Close when what is written has been sent."""
        self._close(linger=False)

    def abort(self) -> None:
        """Reset the connection at once."""
        self._phase = _Phase.CLOSING
        self.transport.abortConnection()

    def close_if_idle(self) -> None:
        """Close unless a request is under way."""
        if self._phase is _Phase.IDLE:
            self._close(linger=False)

    def readConnectionLost(self) -> None:
        """The client will send nothing more; if it waits for an answer, it is taken to be gone."""
        if self._phase is _Phase.HEAD:
            self._refuse(InvalidRequest("The request is incomplete."), self._buffer)
        elif self.requests:
            self.transport.abortConnection()
        elif self._phase is _Phase.CLOSING:
            self._let_go_now()
        else:
            self._close(linger=False)

    def writeConnectionLost(self) -> None:
        """The last byte of a lingering connection has been sent."""

    def send_at_once(self, data: bytes) -> None:
        """Write, to the socket itself where nothing waits before it: a call of the system instead of four."""
        plain = plain_socket(self.transport)
        if plain is not None and not self._waitingForTransport and _holds_nothing(self.transport):
            try:
                sent = plain.send(data)
            except OSError:
                # Whatever it is, the transport will find it too.
                sent = 0
            if sent == len(data):
                return
            data = data[sent:]
        self.transport.write(data)

    def pause_reading(self) -> None:
        """Take nothing more from the client for now."""
        if not self._reading_paused:
            self._reading_paused = True
            self._networkProducer.pauseProducing()

    def send_continue(self) -> None:
        """Tell the client to send the body it announced."""
        self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def await_body(self) -> None:
        """Somebody waits for the body: the client has `body_seconds` to send it."""
        self._body_awaited = True
        self._arm(self.site.limits.body_seconds)
        self._resume_reading()

    def body_ended(self) -> None:
        """Nobody waits for the body any more."""
        self._body_awaited = False
        self._deadline = None
        if self._body_open:
            self.pause_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            self._networkProducer.resumeProducing()

    def _expect_body(self, request: EdgeRequest, length: int | None) -> None:
        self._body_open = length != 0
        if length is None:
            self._transferDecoder = http._ChunkedTransferDecoder(
                request.handleContentChunk, self._body_finished
            )
        elif length:
            self._transferDecoder = http._IdentityTransferDecoder(
                length, request.handleContentChunk, self._body_finished
            )

    def _body_finished(self, rest: bytes) -> None:
        self._transferDecoder = None
        if self._phase is _Phase.CLOSING:
            return
        self._body_open = False
        if rest:
            self._hold(rest)
        self.requests[0].body_received()

    def _hold(self, data: bytes) -> None:
        self._dataBuffer.append(data)
        if sum(map(len, self._dataBuffer)) > self._optimisticEagerReadSize:
            self.pause_reading()

    def _await_request(self) -> None:
        self._phase = _Phase.IDLE
        self._arm(self.site.limits.idle_seconds)
        self._resume_reading()
        held = b"".join(self._dataBuffer)
        self._dataBuffer = []
        self.setLineMode(held)

    def _head_incomplete(self) -> None:
        if self._phase is _Phase.IDLE:
            self._phase = _Phase.HEAD
            self._arm(self.site.limits.head_seconds)
        if self._line_checked:
            return
        try:
            check_beginning(self._buffer)
        except S3Error as error:
            self._refuse(error, self._buffer)
        else:
            self._line_checked = b"\r\n" in self._buffer[2:]

    def _refuse(self, error: S3Error, sent: bytes) -> None:
        """Answer what cannot be served and close. `sent`: what there is of the head, b"" for a bad body."""
        if self.requests and self.requests[0].startedWriting:
            self.abort()
            return
        if self.requests:
            request = self.requests.pop(0)
            method, request_id = request.method, request.request_id
            request.refuse(error)
        else:
            method, request_id = method_of(sent), new_request_id()
            self.site.refused(error, method, request_id, peer_host(self.transport))
        self.transport.write(error_answer(error, request_id, self.site.date(), bodiless=method == b"HEAD"))
        self._close(linger=True)

    def _close(self, *, linger: bool) -> None:
        """Close after the last byte is sent; lingering, after the client had time to read while it sends.

        A socket that is closed with unread input is reset, and the reset destroys an answer on its way.
        """
        if self._phase is _Phase.CLOSING:
            return
        self._phase = _Phase.CLOSING
        self._buffer = b""
        self._dataBuffer = []
        self._networkProducer.unregisterProducer()
        # A TLS transport passes for half-closeable, but would close the socket below the TLS session.
        can_half_close = linger and not self.isSecure()
        halves: Any = IHalfCloseableDescriptor(self.transport, None) if can_half_close else None
        if halves is None:
            self._let_go_now()
        else:
            halves.loseWriteConnection()
            self._resume_reading()
            self._arm(self.site.limits.linger_seconds)

    def _let_go_now(self) -> None:
        self._let_go = True
        # First the timer: a connection that is half closed already is lost within loseConnection.
        self._arm(self.site.limits.write_seconds)
        self.transport.loseConnection()

    def _drop(self, size: int) -> None:
        self._dropped += size
        if self._dropped > self.site.limits.linger_bytes and not self._let_go:
            self._let_go_now()

    def _arm(self, seconds: float) -> None:
        """Let `_expired` be called in `seconds`. A timer of a sooner deadline is left to find that out."""
        self._deadline = self.site.seconds() + seconds
        if self._phase is not _Phase.IDLE:
            self._marker = output_marker(self.transport)
        if self._timer is None:
            self._timer = self.callLater(seconds, self._tick)
        elif self._timer.getTime() > self._deadline:
            self._timer.reset(seconds)

    def _tick(self) -> None:
        self._timer = None
        if self._deadline is None:
            return
        remaining = self._deadline - self.site.seconds()
        if remaining > 0:
            self._timer = self.callLater(remaining, self._tick)
        else:
            self._deadline = None
            self._expired()

    def _expired(self) -> None:
        limits = self.site.limits
        if self._phase is _Phase.IDLE:
            self._close(linger=False)
        elif self._phase is _Phase.HEAD:
            self._refuse(RequestTimeout(), self._buffer)
        elif self._phase is _Phase.BUSY and self._body_awaited:
            self._refuse(RequestTimeout(), b"")
        elif output_marker(self.transport) != self._marker:
            self._arm(limits.write_seconds)
        elif self._phase is _Phase.CLOSING and not self._let_go:
            self._let_go_now()
        else:
            self.abort()


class _Refusal(Protocol):
    """A connection beyond the cap: the first bytes are answered with 503 SlowDown, then it is closed."""

    transport: Any

    def __init__(self, site: S3Site) -> None:
        self._site = site
        self._timer: IDelayedCall | None = None

    def connectionMade(self) -> None:
        self._timer = self._site.reactor.callLater(self._site.limits.linger_seconds, self._give_up)

    def dataReceived(self, data: bytes) -> None:
        if not self.transport.disconnecting:
            request_id = new_request_id()
            self._site.refused(SlowDown(), method_of(data), request_id, peer_host(self.transport))
            self.transport.write(error_answer(SlowDown(), request_id, self._site.date()))
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._site.refusals.discard(self)
        self._site.connection_lost()

    def abort(self) -> None:
        """Reset the connection at once."""
        self.transport.abortConnection()

    def _give_up(self) -> None:
        self._timer = None
        self.abort()


class S3Site(server.Site):
    """The factory of client connections, and the count of what is under way.

    `prepare` is called with each request before it is answered; it may set header fields, which the answer
    keeps whatever it is. `on_finished` is called with a RequestRecord after each request, also after one that
    could not be understood. One line a request goes to `log` at info. Nothing is started by making one;
    listening is up to the caller.
    """

    protocol: Any = S3Channel
    requestFactory: type[EdgeRequest] = EdgeRequest
    _log = Logger(namespace="delta_proxy.access")

    def __init__(
        self,
        resource: IResource,
        *,
        reactor: IReactorTime,
        limits: EdgeLimits | None = None,
        on_finished: Callable[[RequestRecord], None] | None = None,
        log: Logger | None = None,
        prepare: Callable[[EdgeRequest], None] | None = None,
    ) -> None:
        super().__init__(resource, reactor=reactor, parsePOSTFormSubmission=False)
        # The channel keeps its own time; TimeoutMixin's would be reset by every byte of a slow client.
        self.timeOut = None
        self.limits = EdgeLimits() if limits is None else limits
        self.channels: set[S3Channel] = set()
        self.refusals: set[_Refusal] = set()
        self.in_flight = 0
        self.draining = False
        self.prepare = prepare
        self._on_finished = on_finished
        self._log = self._log if log is None else log
        self._waiting: list[Deferred[bool]] = []
        self._date = (-1, b"")
        self._standing = (-1, "")

    def seconds(self) -> float:
        """The time by the injected reactor."""
        return self.reactor.seconds()

    def date(self) -> bytes:
        """The Date header of this second."""
        second = int(self.reactor.seconds())
        if self._date[0] != second:
            self._date = (second, http.datetimeToString(second))
        return self._date[1]

    def standing_fields(self) -> str:
        """The lines of the fields that every answer of this second has."""
        second = int(self.reactor.seconds())
        if self._standing[0] != second:
            text = f"Server: {SERVER.decode('ascii')}\r\nDate: {self.date().decode('ascii')}\r\n"
            self._standing = (second, text)
        return self._standing[1]

    def acceptableProtocols(self) -> list[bytes]:
        """What TLS may negotiate: the strict channel speaks HTTP/1 alone."""
        return [b"http/1.1"]

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """A channel; beyond the cap one that refuses; none while draining or when too many are refused."""
        if self.draining or len(self.refusals) >= self.limits.refusals:
            return None
        if len(self.channels) < self.limits.connections:
            return super().buildProtocol(addr)
        refusal = _Refusal(self)
        self.refusals.add(refusal)
        return refusal

    def startFactory(self) -> None:
        """Nothing: twisted.web would start its own access log and its clock."""

    def stopFactory(self) -> None:
        """Nothing: there is no log file to close."""

    def log(self, request: http.Request) -> None:
        """twisted.web calls this when an answer is finished."""
        self.finished(cast(EdgeRequest, request).record(aborted=False))

    def finished(self, record: RequestRecord) -> None:
        """A request is over."""
        self.in_flight -= 1
        self._tell(record)

    def refused(self, error: S3Error, method: bytes, request_id: str, source: str) -> None:
        """A request was refused before there was one; `source` is the address it came from."""
        note = RequestNote(decision=REFUSED, reason=error.code, source=source)
        name = method.decode("latin-1") or "-"
        self._tell(RequestRecord(name, b"-", error.status, 0, 0, 0.0, request_id, note=note))

    def _tell(self, record: RequestRecord) -> None:
        target, principal = redact_target(record.uri), record.note.principal or "-"
        self._log.info(
            READY,
            line=f"{record.method} {target} {record.status} {record.bytes_sent}B "
            f"{record.seconds * 1000:.1f}ms principal={principal} request={record.request_id}",
            method=record.method,
            target=target,
            status=record.status,
            bytes_sent=record.bytes_sent,
            bytes_received=record.bytes_received,
            milliseconds=record.seconds * 1000,
            principal=principal,
            operation=record.note.operation,
            table=record.note.table,
            decision=record.note.decision,
            aborted=record.aborted,
            request_id=record.request_id,
        )
        if self._on_finished is not None:
            self._on_finished(record)

    def log_failure(self, reason: Failure, request_id: str) -> None:
        """Log a fault of the proxy."""
        self._log.failure("a request failed, request={request_id}", failure=reason, request_id=request_id)

    def stop_accepting(self) -> None:
        """Take no more connections, close the idle ones, the others when their request is answered."""
        self.draining = True
        for channel in list(self.channels):
            channel.close_if_idle()

    def drained(self, timeout_seconds: float) -> Deferred[bool]:
        """True when the last connection is closed; False when that took too long and the rest were reset."""
        waiting: Deferred[bool] = Deferred()
        if not self.channels and not self.refusals:
            waiting.callback(True)
            return waiting
        self._waiting.append(waiting)
        timer = self.reactor.callLater(timeout_seconds, self._give_up, waiting)
        waiting.addBoth(_cancelling, timer)
        return waiting

    def connection_lost(self) -> None:
        """A connection is gone; the last one ends the waiting."""
        if not self.channels and not self.refusals:
            waiting, self._waiting = self._waiting, []
            for one in waiting:
                one.callback(True)

    def _give_up(self, waiting: Deferred[bool]) -> None:
        self._waiting.remove(waiting)
        for channel in list(self.channels):
            channel.abort()
        for refusal in list(self.refusals):
            refusal.abort()
        waiting.callback(False)


def error_answer(error: S3Error, request_id: str, date: bytes, *, bodiless: bool = False) -> bytes:
    """A whole answer, head and body, for a request of which there is too little to make an EdgeRequest."""
    document = _document(error, "", request_id)
    return b"".join(
        (
            b"HTTP/1.1 %d %b\r\n" % (error.status, http.RESPONSES.get(error.status, b"Error")),
            b"X-Amz-Request-Id: %b\r\nServer: %b\r\nDate: %b\r\n"
            % (request_id.encode("ascii"), SERVER, date),
            b"Content-Type: application/xml\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
            % len(document),
            b"" if bodiless else document,
        )
    )


def output_marker(transport: Any) -> object:
    """A value that changes whenever the client takes bytes: what the process and the kernel hold for it.

    The kernel's part counts because a socket becomes writable only when a third of its buffer is free, which
    for a slow reader can be minutes apart.
    """
    plain = getattr(transport, "transport", transport)
    held = (len(getattr(plain, "dataBuffer", b"")), getattr(plain, "offset", 0))
    try:
        queued = fcntl.ioctl(plain.getHandle().fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
    except (OSError, AttributeError):
        return held
    return (*held, struct.unpack("i", queued)[0])


def _holds_nothing(transport: Any) -> bool:
    """Whether what was written to a TCP transport has gone to its socket, and more may."""
    return not (transport.dataBuffer or transport._tempDataBuffer or transport.disconnecting)


def _document(error: S3Error, resource: str, request_id: str) -> bytes:
    return error_document(error, resource=resource, request_id=request_id)


def _cancelling(result: bool, timer: IDelayedCall) -> bool:
    if timer.active():
        timer.cancel()
    return result
