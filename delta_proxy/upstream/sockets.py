"""What goes past Twisted's transports, straight to their sockets."""

# mypy: allow-untyped-calls
from __future__ import annotations

import socket
from typing import Any

from twisted.internet.tcp import Connection as TCPConnection


def plain_socket(transport: object) -> socket.socket | None:
    """The socket of a transport whose bytes go over the wire as they are; None for TLS and all else."""
    if isinstance(transport, TCPConnection) and not transport.TLS and transport.connected:
        return transport.getHandle()
    return None


def send_at_once(transport: Any, data: bytes) -> None:
    """Write, to the socket itself where nothing waits before it: a call of the system instead of four.

    What the socket does not take waits in the transport, which pauses its producer as ever.
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
    transport.write(data)


def _holds_nothing(transport: Any) -> bool:
    """Whether what was written to a TCP transport has gone to its socket, and more may."""
    return not (transport.dataBuffer or transport._tempDataBuffer or transport.disconnecting)
