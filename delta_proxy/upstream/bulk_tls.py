"""TLS for bodies: Twisted's, with less work between a socket and OpenSSL.

Twisted hands on each record by itself, copies what is written into pieces of a record's size, and lets it
wait for the reactor to say that the socket takes it. Here the records of one read are handed on together,
and what is written goes to the socket at once where nothing waits before it. Bytes pass OpenSSL through two
buffers that are used again and again: pyOpenSSL's own calls make and copy new ones. Who is trusted, the
handshake, the shutdown and the back-pressure are Twisted's.

Source: RFC 8446 section 5.1 for the size of a record.
"""

# The names are those of Twisted's interfaces.
# ruff: noqa: N802, N815
# mypy: allow-untyped-calls
from __future__ import annotations

from typing import Any, Final

from OpenSSL._util import ffi, lib
from OpenSSL.SSL import Error, WantReadError, ZeroReturnError
from twisted.protocols.policies import ProtocolWrapper
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure

from delta_proxy.upstream.sockets import reads_of_a_turn, send_at_once

_RECORD: Final = 16 * 1024
_AT_ONCE: Final = 64 * 1024
"""Bytes encrypted before they are sent; more would not stay in the processor's cache."""
_ROOM: Final = _AT_ONCE + _RECORD
"""More than the payload of a read and of the record whose beginning came before it."""
_OVERHEAD: Final = 4 * 1024
"""More than the frames of so many bytes take, and the tickets and alerts that may go before them."""

_NOTHING_YET: Final = WantReadError()

# Of all connections: nothing stays in them when a method returns or calls another protocol.
_PLAIN: Final = ffi.new("char[]", _ROOM)
_ENCRYPTED: Final = ffi.new("char[]", _AT_ONCE + _OVERHEAD)


class BulkTLS(TLSMemoryBIOProtocol):
    """A TLS connection over a TCP transport."""

    _tlsConnection: Any
    transport: Any
    _paused = False

    def dataReceived(self, data: bytes) -> None:
        """Bytes from the wire; what more of them is there is taken along."""
        for piece in reads_of_a_turn(self.transport, data):
            if self._handshakeDone and not self._appSendBuffer:
                lib.BIO_write(self._tlsConnection._into_ssl, ffi.from_buffer(piece), len(piece))
                self._flushReceiveBIO()
            else:
                super().dataReceived(piece)
            if self._paused or self._aborted:
                break

    def pauseProducing(self) -> None:
        """Read no more for now."""
        self._paused = True
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Read on."""
        self._paused = False
        self.transport.resumeProducing()

    def _flushReceiveBIO(self) -> None:
        """Hand on what the last read brought, in one piece; then see whether it was the end."""
        while not self._lostTLSConnection:
            data, end = self._records()
            if data and not self._aborted:
                ProtocolWrapper.dataReceived(self, data)
            if self._lostTLSConnection:
                break
            if end is _NOTHING_YET:
                break
            if isinstance(end, ZeroReturnError):
                self._shutdownTLS()
                self._tlsShutdownFinished(None)
            elif end is not None:
                self._tlsShutdownFinished(Failure(end))
        if self._tlsConnection is not None:
            self._send_encrypted()

    def _records(self) -> tuple[bytes, Error | None]:
        """The payload of the records that are whole, up to the size of a read, and what stopped it."""
        connection, size, end = self._tlsConnection, 0, None
        while size < _ROOM and end is None:
            more = lib.SSL_read(connection._ssl, _PLAIN + size, _ROOM - size)
            if more > 0:
                size += more
            else:
                end = self._what_stopped(more)
        return ffi.buffer(_PLAIN, size)[:], end

    def _what_stopped(self, result: int) -> Error:
        """Why OpenSSL gave nothing: no record is whole, the other end said goodbye, or a fault."""
        connection = self._tlsConnection
        # Every read ends so, and to raise it each time costs a quarter of what receiving costs.
        if lib.SSL_get_error(connection._ssl, result) == lib.SSL_ERROR_WANT_READ:
            return _NOTHING_YET
        try:
            connection._raise_ssl_error(connection._ssl, result)
        except Error as error:
            return error
        return Error([])

    def _write(self, data: bytes) -> None:
        """Encrypt and send; what the handshake does not let through yet is kept."""
        connection, plain, done = self._tlsConnection, ffi.from_buffer(data), 0
        while done < len(data) and not self._lostTLSConnection:
            most = min(done + _AT_ONCE, len(data))
            try:
                while done < most:
                    written = lib.SSL_write(connection._ssl, plain + done, most - done)
                    if written <= 0:
                        connection._raise_ssl_error(connection._ssl, written)
                    done += written
            except WantReadError:
                self._bufferedWrite(data[done:])
                return
            except Error:
                self._tlsShutdownFinished(Failure())
                return
            finally:
                self._send_encrypted()

    def _send_encrypted(self) -> None:
        """Send what OpenSSL has for the other end."""
        outgoing = self._tlsConnection._from_ssl
        size = full = len(_ENCRYPTED)
        while size == full and (size := lib.BIO_read(outgoing, _ENCRYPTED, full)) > 0:
            send_at_once(self.transport, memoryview(ffi.buffer(_ENCRYPTED, size)))


class BulkTLSFactory(TLSMemoryBIOFactory):
    """Adds TLS to the connections of another factory, as `TLSMemoryBIOFactory` does."""

    protocol = BulkTLS
