"""A CONNECT tunnel: bytes both ways with back-pressure, ended by either side or by silence.

A connection that was reset on one side is reset on the other, so that nobody takes what it has for the whole.
"""

# The names are those of Twisted's interfaces.
# ruff: noqa: N802
# mypy: allow-untyped-calls
from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IDelayedCall, IHalfCloseableProtocol, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from delta_proxy.resources.channel import output_marker


@implementer(IHalfCloseableProtocol)
class Tunnel(Protocol):
    """The far end of a tunnel. `near` is the client's transport, whose events the caller hands over."""

    transport: Any

    def __init__(self, near: Any, clock: IReactorTime, idle_seconds: float) -> None:
        self._near = near
        self._clock = clock
        self._idle_seconds = idle_seconds
        self._moved = True
        self._marker: object = None
        self._timer: IDelayedCall | None = None
        self._near_open = self._far_open = True
        self._near_ended = self._far_ended = False
        self.bytes_to_client = 0

    def connectionMade(self) -> None:
        """The far end is there."""
        # What the far end cannot take is not read from the client.
        self.transport.registerProducer(self._near, True)
        self._watch()

    def dataReceived(self, data: bytes) -> None:
        """Bytes from the far end."""
        self._moved = True
        self.bytes_to_client += len(data)
        self._near.write(data)

    def readConnectionLost(self) -> None:
        """The far end sends no more."""
        self._far_ended = True
        self._near.loseWriteConnection()
        self._close_when_both_ended()

    def writeConnectionLost(self) -> None:
        """The far end has been told that the client sends no more."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The far end is gone."""
        self._far_open = False
        self._stop_watching()
        if self._near_open:
            _end(self._near, reason)

    def from_client(self, data: bytes) -> None:
        """Bytes from the client."""
        self._moved = True
        self.transport.write(data)

    def client_ended(self) -> None:
        """The client sends no more."""
        self._near_ended = True
        self.transport.loseWriteConnection()
        self._close_when_both_ended()

    def client_lost(self, reason: Failure) -> None:
        """The client is gone."""
        self._near_open = False
        self._stop_watching()
        if self._far_open:
            self.transport.unregisterProducer()
            _end(self.transport, reason)

    def pause(self) -> None:
        """The client takes nothing more for now."""
        if self._far_open:
            self.transport.pauseProducing()

    def resume(self) -> None:
        """The client takes more."""
        if self._far_open and not self._far_ended:
            self.transport.resumeProducing()

    def _close_when_both_ended(self) -> None:
        if self._near_ended and self._far_ended:
            self._near.loseConnection()

    def _watch(self) -> None:
        self._moved = False
        self._marker = self._markers()
        self._timer = self._clock.callLater(self._idle_seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._moved or self._markers() != self._marker:
            self._watch()
        else:
            self._near.abortConnection()

    def _markers(self) -> tuple[object, object]:
        return output_marker(self._near), output_marker(self.transport)

    def _stop_watching(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()


def _end(transport: Any, reason: Failure) -> None:
    """Close as the other side was closed: in order, or by a reset."""
    if reason.check(ConnectionDone) is None:
        transport.abortConnection()
    else:
        transport.loseConnection()
