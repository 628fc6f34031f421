"""A request whose head has arrived, its body as somebody reads it, and its answer."""

# The names are those of Twisted's interfaces.
# ruff: noqa: N802, N815
# mypy: allow-untyped-calls
from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted
from twisted.internet.interfaces import IAddress
from twisted.python.components import Componentized
from twisted.python.failure import Failure
from twisted.web import http, server
from twisted.web.error import UnsupportedMethod
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource

from delta_proxy.logs import redact_target
from delta_proxy.resources.answer_head import SERVER, answer_head
from delta_proxy.resources.edge_notes import REFUSED, RequestNote, RequestRecord, new_request_id
from delta_proxy.resources.head import RequestHead
from delta_proxy.s3 import headers as s3_headers
from delta_proxy.s3.errors import (
    EntityTooLarge,
    InternalError,
    MethodNotAllowed,
    S3Error,
    SlowDown,
)
from delta_proxy.s3.xml import error_document
from delta_proxy.upstream.sockets import plain_socket

if TYPE_CHECKING:
    from delta_proxy.resources.channel import S3Channel
    from delta_proxy.resources.server import S3Site

CLIENT_CLOSED = 499
# Bound once: twisted.web.http is a module of deprecated attributes, slow to look things up in.
_NO_BODY_CODES = http.NO_BODY_CODES
_write = http.Request.write
_HELD_BODY_BYTES = 64 * 1024
_NO_HEADERS = s3_headers.Headers()
_CLOSING = (("connection", "close"),)


def peer_host(transport: Any) -> str:
    """The address of who is at the other end, "" where it has none."""
    return str(getattr(transport.getPeer(), "host", ""))


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
    # What most requests never set stands here: an instance of few attributes is made and read faster.
    headers = _NO_HEADERS
    started_at = 0.0
    bytes_received = 0
    _request_headers: Headers | None = None
    _response_headers: Headers | None = None
    _head: RequestHead | None = None
    _expects_continue = False
    _length: int | None = 0
    _body_complete = False
    _body_limit = 0
    _reader: Deferred[bytes] | None = None
    _streamer: Deferred[bytes] | None = None
    _least = 0
    _held = 0
    _refusal: S3Error | None = None

    def __init__(self, channel: S3Channel, *args: object, **keywords: object) -> None:
        # Not twisted.web's own: most of what that makes is not used.
        Componentized.__init__(self)
        self.channel = channel
        self.transport = channel.transport
        self.client = channel.peer
        self.notifications = []
        self.cookies = []
        self.request_id = new_request_id()
        self.note = RequestNote()
        self._chunks: list[bytes] = []

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
        self.started_at = now
        if head.expects_continue:
            self._expects_continue = True

    def process(self) -> None:
        """Let the resource answer. A fault of the resource is logged and answered with InternalError."""
        site = self.site = self.channel.site
        self.prepath = []
        self.postpath = [] if site.resource.isLeaf else self.path[1:].split(b"/")
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
        named = redact_target(self.path) if resource is None else resource
        self.answer(error_document(error, resource=named, request_id=self.request_id))

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
        self.channel.body_handed_on()
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
