"""One client connection: strict heads in, answers out, and a bound for every wait."""

# The names are those of Twisted's interfaces.
# ruff: noqa: N802, N815
# mypy: allow-untyped-calls
from __future__ import annotations

import fcntl
import struct
import termios
from enum import Enum
from typing import TYPE_CHECKING, Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHalfCloseableDescriptor,
    IHalfCloseableProtocol,
    ITCPTransport,
)
from twisted.internet.protocol import connectionDone
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from twisted.web import http
from zope.interface import implementer

from delta_proxy.resources.answer_head import SERVER
from delta_proxy.resources.edge_notes import new_request_id
from delta_proxy.resources.edge_request import peer_host
from delta_proxy.resources.head import check_beginning, method_of, parse_head, too_long
from delta_proxy.s3.errors import EntityTooLarge, InvalidRequest, RequestTimeout, S3Error
from delta_proxy.s3.xml import error_document
from delta_proxy.upstream.sockets import plain_socket, send_at_once

if TYPE_CHECKING:
    from delta_proxy.resources.edge_request import EdgeRequest
    from delta_proxy.resources.server import S3Site


_BODY_READ = 256 * 1024


class _Phase(Enum):
    """What a connection waits for."""

    IDLE = "the first byte of a request"
    HEAD = "the rest of a head"
    BUSY = "the end of an answer"
    CLOSING = "the client, to take the last bytes"


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
        if ITCPTransport.providedBy(self.transport):
            # A head goes out by itself: the kernel would hold its body back until the client acknowledged it.
            self.transport.setTcpNoDelay(True)
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
        if not (self._busyReceiving or self._buffer) and self.line_mode and self._is_one_head(data):
            self._busyReceiving = True
            try:
                self.lineReceived(data[: -len(self.delimiter)])
            finally:
                self._busyReceiving = False
            if not self._buffer or self.transport.disconnecting:
                return
            # Bytes that came while the head was being answered.
            data = b""
        LineReceiver.dataReceived(self, data)
        if self.line_mode and self._buffer and not self._busyReceiving:
            self._head_incomplete()

    def _is_one_head(self, data: bytes) -> bool:
        """Whether these bytes are one head from its beginning to its end, as they mostly are."""
        end = data.find(self.delimiter)
        return 0 <= end <= self.MAX_LENGTH and end + len(self.delimiter) == len(data)

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
        """Write, to the socket itself where nothing waits before it."""
        if self._waitingForTransport:
            self.transport.write(data)
        else:
            send_at_once(self.transport, data)

    def write(self, data: bytes) -> None:
        """Body bytes of an answer."""
        self.send_at_once(data)

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
        self._read_at_once(_BODY_READ)
        self._resume_reading()

    def body_handed_on(self) -> None:
        """Who waited for a part of the body has it. What comes meanwhile is held, up to a bound."""
        self._body_awaited = False
        self._deadline = None

    def body_ended(self) -> None:
        """Nobody waits for the body any more."""
        self.body_handed_on()
        if self._body_open:
            self.pause_reading()

    def _read_at_once(self, size: int) -> None:
        """How many bytes one read of a plain socket takes: a body costs less in large ones."""
        if plain_socket(self.transport) is not None:
            self.transport.bufferSize = size

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
        self._read_at_once(FileDescriptor.bufferSize)
        if rest:
            self._hold(rest)
        self.requests[0].body_received()

    def _hold(self, data: bytes) -> None:
        # One piece, however many come: a client that sends byte by byte must not make each cost more.
        held = b"".join((*self._dataBuffer, data))
        self._dataBuffer = [held]
        if len(held) > self._optimisticEagerReadSize:
            self.pause_reading()

    def _await_request(self) -> None:
        self._phase = _Phase.IDLE
        self._arm(self.site.limits.idle_seconds)
        self._resume_reading()
        if not self._dataBuffer:
            self.line_mode = 1
            return
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


def error_answer(error: S3Error, request_id: str, date: bytes, *, bodiless: bool = False) -> bytes:
    """A whole answer, head and body, for a request of which there is too little to make an EdgeRequest."""
    document = error_document(error, resource="", request_id=request_id)
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
