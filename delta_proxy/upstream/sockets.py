"""What goes past Twisted's transports, straight to their sockets."""

# mypy: allow-untyped-calls
from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any, Final

from twisted.internet.abstract import FileDescriptor
from twisted.internet.tcp import Connection as TCPConnection

_READ: Final = FileDescriptor.bufferSize
_READS: Final = 8


def plain_socket(transport: object) -> socket.socket | None:
    """The socket of a transport whose bytes go over the wire as they are; None for TLS and all else."""
    if isinstance(transport, TCPConnection) and not transport.TLS and transport.connected:
        return transport.getHandle()
    return None


def reads_of_a_turn(transport: Any, data: bytes) -> Iterator[bytes]:
    """What a read has brought, and while reads are full what more of them bring, up to half a MiB.

    Whoever takes them stops when it has paused the transport. What ends the connection is left to it.
    """
    yield data
    for _ in range(_READS - 1):
        plain = plain_socket(transport)
        if len(data) < _READ or plain is None or transport.disconnecting:
            return
        try:
            data = plain.recv(_READ)
        except OSError:
            return
        if not data:
            return
        yield data


def send_at_once(transport: Any, data: bytes | memoryview) -> None:
    """Write, to the socket itself where nothing waits before it: a call of the system instead of four.

    What the socket does not take waits in the transport, which pauses its producer as ever. The bytes of a
    view are not needed any more when this returns.
    """
    plain = plain_socket(transport)
    if plain is not None and _holds_nothing(transport):
        try:
            sent = plain.send(data)
        except OSError:
            # Whatever it is, the transport will find it too.
            sent = 0
        if sent == len(data):
            return
        data = data[sent:]
    transport.write(bytes(data))


def _holds_nothing(transport: Any) -> bool:
    """Whether what was written to a TCP transport has gone to its socket, and more may."""
    return not (transport.dataBuffer or transport._tempDataBuffer or transport.disconnecting)
