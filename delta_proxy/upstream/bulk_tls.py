"""TLS for bodies: Twisted's, with less work between a socket and OpenSSL.

Twisted hands on each record by itself, copies what is written into pieces of a record's size, and lets it
wait for the reactor to say that the socket takes it. Here the records of one read are handed on together,
and what is written goes to the socket at once where nothing waits before it. Who is trusted, the handshake,
the shutdown and the back-pressure are Twisted's.

Source: RFC 8446 section 5.1 for the size of a record.
"""

# The names are those of Twisted's interfaces.
# ruff: noqa: N802, N815
# mypy: allow-untyped-calls
from __future__ import annotations

from typing import Any, Final

from OpenSSL.SSL import Error, WantReadError, ZeroReturnError
from twisted.protocols.policies import ProtocolWrapper
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure

from delta_proxy.upstream.sockets import send_at_once

_RECORD: Final = 16 * 1024
_AT_ONCE: Final = 64 * 1024
"""Bytes encrypted before they are sent; more would not stay in the processor's cache."""
_OVERHEAD: Final = 4 * 1024
"""More than the frames of so many bytes take, and the tickets and alerts that may go before them."""


class BulkTLS(TLSMemoryBIOProtocol):
    """A TLS connection over a TCP transport."""

    _tlsConnection: Any
    transport: Any

    def _flushReceiveBIO(self) -> None:
        """Hand on what the last read brought, in one piece; then see whether it was the end."""
        while not self._lostTLSConnection:
            pieces, end = self._records()
            if pieces and not self._aborted:
                ProtocolWrapper.dataReceived(self, pieces[0] if len(pieces) == 1 else b"".join(pieces))
            if self._lostTLSConnection:
                break
            if isinstance(end, WantReadError):
                break
            if isinstance(end, ZeroReturnError):
                self._shutdownTLS()
                self._tlsShutdownFinished(None)
            elif end is not None:
                self._tlsShutdownFinished(Failure(end))
        if self._tlsConnection is not None:
            self._flushSendBIO()

    def _records(self) -> tuple[list[bytes], Error | None]:
        """The payload of the records that are whole, up to the size of a read, and what stopped it."""
        pieces: list[bytes] = []
        room = _AT_ONCE
        try:
            while room > 0:
                pieces.append(self._tlsConnection.recv(_RECORD))
                room -= len(pieces[-1])
        except Error as end:
            return pieces, end
        return pieces, None

    def _write(self, data: bytes) -> None:
        """Encrypt and send; what the handshake does not let through yet is kept."""
        view = memoryview(data)
        done = 0
        while done < len(view) and not self._lostTLSConnection:
            most = min(done + _AT_ONCE, len(view))
            try:
                while done < most:
                    done += self._tlsConnection.send(view[done:most])
            except WantReadError:
                self._bufferedWrite(bytes(view[done:]))
                return
            except Error:
                self._tlsShutdownFinished(Failure())
                return
            finally:
                self._send_encrypted()

    def _send_encrypted(self) -> None:
        size = _AT_ONCE + _OVERHEAD
        while True:
            try:
                encrypted = self._tlsConnection.bio_read(size)
            except WantReadError:
                return
            send_at_once(self.transport, encrypted)
            if len(encrypted) < size:
                return


class BulkTLSFactory(TLSMemoryBIOFactory):
    """Adds TLS to the connections of another factory, as `TLSMemoryBIOFactory` does."""

    protocol = BulkTLS
