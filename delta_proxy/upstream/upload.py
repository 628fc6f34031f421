"""Bodies on their way to the store: written as fast as the store takes them, and given up as a whole.

A body that is given up is one whose last byte was never sent: the connection is reset before, so that no
store takes what it has for the object.
"""

# mypy: allow-untyped-calls
from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IConsumer, IDelayedCall, IReactorTime
from twisted.python.failure import Failure
from twisted.web._newclient import LengthEnforcingConsumer
from twisted.web.http_headers import Headers as WireHeaders
from twisted.web.iweb import UNKNOWN_LENGTH, IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from delta_proxy.upstream.relay import drop
from delta_proxy.upstream.retry import TookTooLong, bounded
from delta_proxy.upstream.sockets import plain_socket

Source = Callable[["Outgoing"], Coroutine[Deferred[Any], Any, None]]
"""Writes a body, of which each piece waits for the one before; returns after the last."""


# What one call of the system takes (IOV_MAX), by far.
_MOST_PIECES = 512


class StoreGone(Exception):
    """The store takes no more of a body; why, its answer tells."""


@implementer(IBodyProducer)
class Outgoing:
    """The body of one request to a store. `length` is in bytes, None when it is not known before.

    A store that takes nothing for `seconds` is given up: `write` raises TookTooLong.
    """

    def __init__(self, length: int | None, clock: IReactorTime, seconds: float) -> None:
        self.length: Any = UNKNOWN_LENGTH if length is None else length
        self._clock = clock
        self._seconds = seconds
        self._consumer: IConsumer | None = None
        self._done: Deferred[None] = Deferred()
        self._paused = True
        self._gone = False
        self._waiter: Deferred[None] | None = None

    async def write(self, *pieces: bytes) -> None:
        """Send the bytes when the store is ready for them. Raises StoreGone, TookTooLong."""
        while self._paused and not self._gone:
            self._waiter = Deferred()
            await bounded(self._waiter, self._clock, self._seconds, _nothing)
        if self._gone or self._consumer is None:
            raise StoreGone
        rest = self._send_at_once(pieces)
        if rest:
            self._consumer.write(rest)

    def _send_at_once(self, pieces: tuple[bytes, ...]) -> bytes:
        """Write to the socket itself where nothing waits before it; what it did not take."""
        consumer = self._consumer
        transport = getattr(consumer, "_consumer", None)
        plain = plain_socket(transport) if isinstance(consumer, LengthEnforcingConsumer) else None
        if plain is None or transport.dataBuffer or transport._tempDataBuffer or len(pieces) > _MOST_PIECES:
            return b"".join(pieces)
        size = sum(map(len, pieces))
        if not 0 < size <= consumer._length:
            # The consumer has its own way to tell that there is too much.
            return b"".join(pieces)
        try:
            sent = plain.sendmsg(pieces)
        except OSError:
            # Whatever it is, the transport will find it too.
            sent = 0
        consumer._length -= sent
        return _behind(pieces, sent)

    async def end(self) -> None:
        """The last byte has been written. Raises as `write` does."""
        await self.write(b"")
        self._done.callback(None)

    def abandon(self) -> None:
        """Reset the connection if the body has not come to its end, also where an answer came before."""
        if not self._done.called and not self._gone:
            reset(self._consumer)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:  # noqa: N802
        """The connection is there."""
        self._consumer = consumer
        self.resumeProducing()
        return self._done

    def pauseProducing(self) -> None:  # noqa: N802
        """The store has enough for now."""
        self._paused = True

    def resumeProducing(self) -> None:  # noqa: N802
        """The store takes more."""
        self._paused = False
        self._wake()

    def stopProducing(self) -> None:  # noqa: N802
        """The connection is gone."""
        self._gone = True
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.called:
            waiter.callback(None)


class Exchange:
    """One request with a body, from its first byte to the header of its answer.

    When the source fails, or nobody waits any more, the connection is reset. An answer that comes before the
    body's end is the outcome too. After the last byte the store has `patience` seconds to answer.
    """

    def __init__(self, clock: IReactorTime, *, idle: float, patience: float) -> None:
        self._clock = clock
        self._idle = idle
        self._patience = patience
        self._timer: IDelayedCall | None = None
        self._sending: Deferred[Any] | None = None
        self._outcome: Deferred[IResponse] = Deferred(lambda _: self._give_up(CancelledError()))

    async def run(  # noqa: PLR0917 - the parts of a request, as Agent has them
        self, agent: IAgent, method: str, url: bytes, headers: WireHeaders, length: int | None, source: Source
    ) -> IResponse:
        """The answer. Raises what the source raised, TookTooLong, and what Agent fails with."""
        outgoing = Outgoing(length, self._clock, self._idle)
        sending = agent.request(method.encode("ascii"), url, headers, outgoing)
        self._sending = sending.addBoth(self._answered)
        feeding = Deferred.fromCoroutine(self._feed(source, outgoing))
        feeding.addErrback(self._source_failed)
        try:
            return await self._outcome
        finally:
            if self._timer is not None and self._timer.active():
                self._timer.cancel()
            feeding.cancel()
            outgoing.abandon()

    async def _feed(self, source: Source, outgoing: Outgoing) -> None:
        await source(outgoing)
        await outgoing.end()
        self._expect_answer(self._patience)

    def _source_failed(self, failure: Failure) -> None:
        if isinstance(failure.value, StoreGone):
            # Its answer tells why, or the connection. Agent tells nothing of an answer that is no HTTP.
            self._expect_answer(self._idle)
        else:
            self._give_up(failure.value or StoreGone())

    def _expect_answer(self, seconds: float) -> None:
        if not self._outcome.called:
            error = TookTooLong(f"no answer within {seconds} s")
            self._timer = self._clock.callLater(seconds, self._give_up, error)

    def _give_up(self, error: BaseException) -> None:
        if not self._outcome.called:
            self._outcome.errback(Failure(error))
        if self._sending is not None:
            self._sending.cancel()

    def _answered(self, result: IResponse | Failure) -> None:
        if not self._outcome.called:
            self._outcome.callback(result)
        elif not isinstance(result, Failure):
            drop(result)


def _behind(pieces: tuple[bytes, ...], sent: int) -> bytes:
    """What follows the first `sent` bytes of the pieces."""
    left: list[bytes] = []
    for piece in pieces:
        if sent < len(piece):
            left.append(piece[sent:] if sent > 0 else piece)
        sent -= len(piece)
    return b"".join(left)


def reset(consumer: IConsumer | None) -> None:
    """Reset the connection that a body goes to; None is one that is not there yet."""
    # Agent wraps the connection to count; an answered request can be ended in no other way.
    connection = getattr(consumer, "_consumer", getattr(consumer, "transport", None))
    if connection is not None:
        connection.abortConnection()


def whole(body: bytes) -> Source:
    """The source of a body that is there already."""

    async def write(outgoing: Outgoing) -> None:
        if body:
            await outgoing.write(body)

    return write


def _nothing(_: object) -> None:
    """The outcome of a wait that nobody waits for."""
