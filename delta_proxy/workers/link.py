"""What parent and worker say to each other: JSON objects in frames, over a pair of sockets."""

# mypy: allow-untyped-calls
from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

import cattrs
import orjson
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import ITransport
from twisted.protocols.basic import Int32StringReceiver
from twisted.python.failure import Failure

from delta_proxy.metrics import Moment
from delta_proxy.resources.health import Checks, Degraded
from delta_proxy.resources.status import Status

Message = Mapping[str, Any]
LONGEST: Final = 64 << 20
"""The most bytes of a message: the users of a minute are the longest there is."""
_LENGTH: Final = struct.Struct("!I")


class Link(Int32StringReceiver):
    """One end. `received` gets each message; a peer that says something else is cut off.

    `closed` fires when the other end is gone.
    """

    MAX_LENGTH = LONGEST
    transport: ITransport

    def __init__(self, received: Callable[[Message], None]) -> None:
        self._received = received
        self.closed: Deferred[None] = Deferred()

    @property
    def open(self) -> bool:
        """Whether the other end is there."""
        return bool(self.connected) and not self.closed.called

    def send(self, message: Message) -> None:
        """Send a message; nothing happens when the other end is gone."""
        if self.open:
            self.sendString(orjson.dumps(message))

    def close(self) -> None:
        """Send what is waiting, and end it."""
        if self.open:
            self.transport.loseConnection()

    def stringReceived(self, string: bytes) -> None:  # noqa: N802 - Twisted's name
        """A frame came."""
        try:
            message = orjson.loads(string)
        except orjson.JSONDecodeError:
            self.transport.loseConnection()
            return
        self._received(message)

    def connectionLost(self, reason: Failure | None = None) -> None:  # noqa: N802 - Twisted's name
        """The other end is gone."""
        self.closed.callback(None)


def send_now(end: socket.socket, message: Message) -> None:
    """Send a message on a socket that blocks."""
    data = orjson.dumps(message)
    end.sendall(_LENGTH.pack(len(data)) + data)


def read_now(end: socket.socket) -> Message:
    """Read one message, and no byte of the next, from a socket that blocks. Raises EOFError."""
    (size,) = _LENGTH.unpack(_exactly(end, _LENGTH.size))
    message: Message = orjson.loads(_exactly(end, size))
    return message


def _exactly(end: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = end.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def pack_checks(checks: Checks) -> Message:
    """Checks as JSON has them."""
    return {
        name: {"degraded": value.text} if isinstance(value, Degraded) else value
        for name, value in checks.items()
    }


def unpack_checks(message: Message) -> Checks:
    """The checks of `pack_checks`."""
    return {
        name: Degraded(value["degraded"]) if isinstance(value, dict) else value
        for name, value in message.items()
    }


def pack(value: Moment | Status) -> Message:
    """Figures or a status as JSON has them."""
    message: Message = cattrs.unstructure(value)
    return message


def unpack_moment(message: Message) -> Moment:
    """The figures of `pack`."""
    return cattrs.structure(message, Moment)


def unpack_status(message: Message) -> Status:
    """The status of `pack`."""
    return cattrs.structure(message, Status)
