"""Object bytes from the store to a consumer: back-pressure, resumption of cut bodies, abortion without delay.

The bytes go from the connection straight to the consumer; nothing is kept between. A consumer that pauses
stops the reading from the store's socket, so at most what one read has brought (some 64 KiB) is on its way.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Protocol, cast

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IConsumer, IDelayedCall, IPushProducer, ITransport
from twisted.internet.protocol import Protocol as NetworkProtocol
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.iweb import UNKNOWN_LENGTH, IResponse
from zope.interface import implementer

from delta_proxy.s3.errors import S3Error
from delta_proxy.s3.headers import Headers
from delta_proxy.upstream.http1 import Connection, Reply
from delta_proxy.upstream.retry import Pacing, TookTooLong
from delta_proxy.upstream.splice import Pump, SpliceConsumer, Splicing

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")
_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]*"')
_NO_BODY = frozenset({204, 304})
_OK, _PARTIAL = 200, 206

_log = Logger()


class BodyCut(Exception):
    """A body ended early and could not be resumed; whoever passed it on must abort, never end as if
    complete.
    """


class ConsumerGone(Exception):
    """The consumer asked for no more; the connection to the store has been aborted."""


class UpstreamObserver(Protocol):
    """What the metrics want to know of the traffic with the stores."""

    def request_finished(self, operation: str, outcome: str, seconds: float) -> None:
        """A request got its header or failed. `outcome` is the status as text, or the name of the failure."""

    def bytes_received(self, count: int) -> None:
        """That many bytes of a body came."""


class Silence:
    """An observer that does not care."""

    def request_finished(self, operation: str, outcome: str, seconds: float) -> None:
        """Nothing."""

    def bytes_received(self, count: int) -> None:
        """Nothing."""


@frozen
class Span:
    """The bytes of an object that a response carries, inclusive at both ends, and the version they belong
    to.
    """

    first: int
    last: int
    etag: str

    @property
    def length(self) -> int:
        """How many bytes these are."""
        return self.last - self.first + 1

    def after(self, sent: int) -> Span:
        """What remains when that many bytes have been sent."""
        return Span(self.first + sent, self.last, self.etag)


# Asks for a span again and gives the store's answer, whatever its range; raises S3Error when there is none.
Reopen = Callable[[Span], Awaitable[IResponse]]


def response_headers(response: IResponse) -> Headers:
    """The header of a response. Twisted keeps Content-Length apart for bodies; here it stands among the
    others.
    """
    if isinstance(response, Reply):
        return response.fields
    pairs = [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, values in response.headers.getAllRawHeaders()
        for value in values
    ]
    headers = Headers.of(pairs)
    if response.length is UNKNOWN_LENGTH or "content-length" in headers or response.code in _NO_BODY:
        return headers
    return Headers((*headers.items, ("content-length", str(response.length))))


def span_of(status: int, headers: Headers, length: int | None) -> Span | None:
    """The span of an answer that could be taken up again after a cut, else None.

    That needs a known length, a strong ETag (RFC 9110 section 13.1.1: If-Match compares strongly) and, for
    206, a single range that agrees with the length.
    """
    etag = headers.get("etag") or ""
    if length is None or length <= 0 or not _STRONG_ETAG.fullmatch(etag):
        return None
    if status == _OK:
        return Span(0, length - 1, etag)
    found = _CONTENT_RANGE.fullmatch(headers.get("content-range") or "")
    if status != _PARTIAL or found is None:
        return None
    span = Span(int(found[1]), int(found[2]), etag)
    return span if span.length == length else None


@implementer(IPushProducer)
class UpstreamResponse:
    """An answer of the store whose body has not been read yet.

    Exactly one of `send_body` and `discard` must be called: until then it occupies a connection. `status`
    is the store's, `headers` are all of its headers, Content-Length included where it is known.
    """

    def __init__(
        self,
        response: IResponse,
        *,
        pacing: Pacing,
        observer: UpstreamObserver,
        release: Callable[[], None],
        reopen: Reopen | None = None,
        bodiless: bool = False,
        splicing: Splicing | None = None,
    ) -> None:
        self.status: int = response.code
        self.headers = response_headers(response)
        self.length: int | None = None if response.length is UNKNOWN_LENGTH else response.length
        self.bodiless = bodiless or self.status in _NO_BODY
        self._response = response
        self._pacing = pacing
        self._observer = observer
        self._release = release
        self._reopen = reopen
        self._splicing = splicing
        self._consumer: IConsumer | None = None
        self._started = False
        self._stopped = False
        self._paused = False
        self._body: _Body | None = None
        self._idle: IDelayedCall | None = None
        self._sent = 0

    @property
    def sent(self) -> int:
        """How many bytes the consumer has been given so far."""
        return self._sent

    async def send_body(self, consumer: IConsumer) -> int:
        """Write the whole body to the consumer, as its push producer, and return the number of bytes.

        The consumer is not finished, only unregistered from. Raises BodyCut when the store stops early for
        good, and ConsumerGone when the consumer stops its producer or `abort` is called. Cancelling aborts
        the connection to the store at once. `consumer` may be paused for as long as it likes.
        """
        if self._started:
            raise RuntimeError("the body has been taken already")
        self._started = True
        try:
            whole = getattr(self._response, "whole", None)
            if whole is not None and not self.bodiless:
                self._write_whole(consumer, whole)
            elif not self.bodiless:
                await self._relay(consumer)
            return self._sent
        finally:
            self._finish()

    def take_whole(self) -> bytes | None:
        """The body, when all of it is here: it counts as sent, and `send_body` must not be called then."""
        whole: bytes | None = getattr(self._response, "whole", None)
        if self._started or self.bodiless or not whole:
            return None
        self._started = True
        self.received(len(whole))
        self._finish()
        return whole

    def discard(self) -> None:
        """Give up a body nobody wants: a connection with bytes on it is aborted, an idle one stays in the
        pool.
        """
        if not self._started:
            self._started = True
            drop(self._response)
            self._finish()

    def abort(self) -> None:
        """End it now, wherever it is; `send_body` raises ConsumerGone."""
        self.discard()
        self.stopProducing()

    def pauseProducing(self) -> None:  # noqa: N802
        self._paused = True
        self._stop_waiting()
        if self._body is not None:
            self._body.pause()

    def resumeProducing(self) -> None:  # noqa: N802
        self._paused = False
        if self._body is not None:
            self._wait_for_more()
            self._body.resume()
            self._splice()

    def stopProducing(self) -> None:  # noqa: N802
        self._stopped = True
        if self._body is not None:
            self._end(ConsumerGone())

    def _write_whole(self, consumer: IConsumer, body: bytes) -> None:
        """A small body that is here already needs no producer to wait for."""
        if body:
            self.received(len(body))
            consumer.write(body)

    async def _relay(self, consumer: IConsumer) -> None:
        self._consumer = consumer
        consumer.registerProducer(self, True)
        try:
            await self._deliver_whole(consumer)
        except CancelledError:
            # A twisted.web request whose client is gone has lost the channel it would unregister from.
            raise
        except BaseException:
            self._unregister(consumer)
            raise
        self._unregister(consumer)

    def _unregister(self, consumer: IConsumer) -> None:
        if not self._stopped:
            consumer.unregisterProducer()

    async def _deliver_whole(self, consumer: IConsumer) -> None:
        # How many resumptions in a row have brought next to nothing; the first delivery is none.
        response, stalls = self._response, -1
        while True:
            before = self._sent
            try:
                return await self._deliver(response, consumer)
            except _Cut as cut:
                stalls = 0 if self._sent - before >= self._pacing.policy.progress else stalls + 1
                response = await self._resume(cut, stalls)

    def _deliver(self, response: IResponse, consumer: IConsumer) -> Deferred[None]:
        if self._stopped:
            drop(response)
            raise ConsumerGone()
        done: Deferred[None] = Deferred()
        body = self._body = _Body(self, consumer, done)
        if not self._paused:
            self._wait_for_more()
        response.deliverBody(body)  # type: ignore[no-untyped-call]
        if self._paused:
            # deliverBody resumes the transport as its last act.
            body.pause()
        self._splice()
        return done

    def _splice(self) -> None:
        """Let the kernel move the rest of the body, where that pays and both ends are plain sockets."""
        body, splicing = self._body, self._splicing
        if body is None or splicing is None or self._paused or body.spliced:
            return
        source = body.transport
        if not isinstance(source, Connection) or (source.remaining or 0) < splicing.least:
            return
        # One that had to go back to the ordinary way stays there.
        body.spliced = True
        consumer = self._consumer
        sink = consumer.splice_sink() if isinstance(consumer, SpliceConsumer) and source.plain else None
        if sink is not None:
            try:
                pump = Pump(splicing, source, sink, self.received)
            except OSError:
                # No descriptor is left, and the ordinary way needs none.
                return
            body.transport = cast(ITransport, pump)
            pump.start()

    def received(self, count: int) -> None:
        """For the body protocol: that many bytes have come; they are about to be written."""
        self._sent += count
        self._observer.bytes_received(count)
        if self._idle is not None:
            self._idle.reset(self._pacing.timeouts.idle)

    def ended(self, reason: Failure) -> None:
        """For the body protocol: the body is over, as the reason says."""
        if isinstance(reason.value, ResponseDone) and self.length in {None, self._sent}:
            self._end(None)
        else:
            self._end(_Cut(f"{self._sent} of {self.length} bytes: {reason.getErrorMessage()}"))

    def failed(self, error: Exception) -> None:
        """For the body protocol: the consumer did not take what it was given."""
        self._end(error)

    def _end(self, error: Exception | None) -> None:
        body = self._abandon()
        if body is not None and error is None:
            body.done.callback(None)
        elif body is not None:
            body.done.errback(error)

    def _abandon(self) -> _Body | None:
        self._stop_waiting()
        body, self._body = self._body, None
        if body is not None:
            body.stop()
        return body

    def _wait_for_more(self) -> None:
        self._stop_waiting()
        seconds = self._pacing.timeouts.idle
        self._idle = self._pacing.clock.callLater(seconds, self._idled, seconds)

    def _idled(self, seconds: float) -> None:
        self._idle = None
        self._end(_Cut(f"{self._sent} of {self.length} bytes: nothing within {seconds} s"))

    def _stop_waiting(self) -> None:
        idle, self._idle = self._idle, None
        if idle is not None:
            idle.cancel()

    def _finish(self) -> None:
        self._abandon()
        self._consumer = None
        self._release()

    async def _resume(self, cut: _Cut, stalls: int) -> IResponse:
        _log.warn("a body from the store was cut: {cut}", cut=str(cut))
        whole = span_of(self.status, self.headers, self.length)
        if whole is None or self._reopen is None:
            raise BodyCut(f"{cut}; it cannot be resumed")
        if stalls >= self._pacing.policy.resumes:
            raise BodyCut(f"{cut}; given up after {stalls} resumptions")
        span = whole.after(self._sent)
        if span.length <= 0:
            raise BodyCut(f"{cut}; the store sent more than it announced")
        await self._pacing.sleep(self._pacing.jitter(stalls))
        try:
            response = await self._reopen(span)
        except (S3Error, TookTooLong) as error:
            raise BodyCut(f"{cut}; resuming failed: {error}") from error
        return self._checked(response, span)

    def _checked(self, response: IResponse, span: Span) -> IResponse:
        headers = response_headers(response)
        length = None if response.length is UNKNOWN_LENGTH else response.length
        if response.code != _PARTIAL or span_of(_PARTIAL, headers, length) != span:
            drop(response)
            raise BodyCut("the store answered the resumption with other bytes than asked")
        return response


class _Cut(Exception):
    """A body ended early; it may be resumed."""


class _Body(NetworkProtocol):
    """One delivery of a body: from a connection to the consumer, until it is stopped."""

    def __init__(self, relay: UpstreamResponse, consumer: IConsumer, done: Deferred[None]) -> None:
        self._relay: UpstreamResponse | None = relay
        self._write = consumer.write
        self.done = done
        self.spliced = False

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        relay = self._relay
        if relay is not None:
            relay.received(len(data))
            try:
                self._write(data)
            except Exception as error:  # noqa: BLE001 - a fault of the consumer must not pass for a cut and be resumed
                relay.failed(error)

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: N802
        relay = self._relay
        if relay is not None:
            # The connection serves others by now, or is gone: nothing to abort.
            self.transport = None
            relay.ended(reason)

    def pause(self) -> None:
        """Stop reading from the connection."""
        if self._relay is not None and self.transport is not None:
            _push(self.transport).pauseProducing()

    def resume(self) -> None:
        """Read on."""
        if self._relay is not None and self.transport is not None:
            _push(self.transport).resumeProducing()

    def stop(self) -> None:
        """Write no more. The connection is aborted; one whose body is over is back in the pool and
        unharmed.
        """
        relay, self._relay = self._relay, None
        if relay is not None and self.transport is not None:
            _push(self.transport).stopProducing()


def _push(transport: ITransport) -> IPushProducer:
    """The connection of a body as what it is: something to pause, resume and stop."""
    return cast(IPushProducer, transport)


class _Sink(NetworkProtocol):
    """Takes the place of a consumer for a body nobody wants."""

    def connectionMade(self) -> None:  # noqa: N802
        assert self.transport is not None
        _push(self.transport).stopProducing()


def drop(response: IResponse) -> None:
    """Give up a response whose body nobody has taken: a connection with bytes on it is aborted."""
    response.deliverBody(_Sink())  # type: ignore[no-untyped-call]
