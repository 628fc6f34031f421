"""A worker's port: a socket that the parent opened and that all workers accept from."""

# mypy: allow-untyped-calls
from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Final, Self

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ServerFactory
from twisted.internet.tcp import Port

_PART: Final = 16


class SharedPort(Port):
    """Accepts no more at a time than a sixteenth of what its process has, but at least one.

    A Port takes all that wait, up to a hundred: of many that come at once, as after a start, one worker had
    all for as long as they lived, and its brothers none. `connections` tells how many the process has.
    """

    connections: Callable[[], int]

    @classmethod
    def adopt(
        cls,
        reactor: Any,
        descriptor: int,
        family: int,
        factory: ServerFactory,
        connections: Callable[[], int],
    ) -> Self:
        """Accept on a socket that listens; the descriptor stays the caller's, as with adoptStreamPort."""
        port: Self = cls._fromListeningDescriptor(reactor, descriptor, family, factory)
        port.connections = connections
        port.startListening()
        return port

    def doRead(self) -> None:  # noqa: N802 - Twisted's name
        """Some connections wait."""
        self.numberAccepts = 1 + self.connections() // _PART
        super().doRead()


class AdoptedPort(Service):
    """Listens on the socket of this descriptor as long as the service runs, which it then closes.

    `connections` tells how many connections the process has.
    """

    def __init__(
        self, reactor: Any, descriptor: int, factory: ServerFactory, connections: Callable[[], int]
    ) -> None:
        self._reactor, self._descriptor, self._factory = reactor, descriptor, factory
        self._connections = connections
        self._port: SharedPort | None = None

    def startService(self) -> None:  # noqa: N802 - Twisted's name
        """Take connections from now on."""
        super().startService()
        with socket.socket(fileno=self._descriptor) as own:
            own.setblocking(False)
            self._port = SharedPort.adopt(
                self._reactor, own.fileno(), own.family, self._factory, self._connections
            )

    async def _stop(self) -> None:
        stopped = None if self._port is None else self._port.stopListening()
        if stopped is not None:
            await stopped

    def stopService(self) -> Deferred[None]:  # noqa: N802 - Twisted's name
        """Take no more."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())
