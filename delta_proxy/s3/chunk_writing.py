"""Writing aws-chunked bodies: what the proxy sends to a store when it cannot know a hash of the body before.

The framing is that of the client, so a store that takes the client's takes this. Source: as `chunked`.
"""

from __future__ import annotations

import hashlib

from delta_proxy.s3.checksums import encoded_size
from delta_proxy.s3.chunked import ChunkSigning
from delta_proxy.s3.sigv4 import EMPTY_SHA256, signature

CHUNK = 128 * 1024
_SIGNATURE_LENGTH = 64


class Unframed:
    """A body as it is."""

    def feed(self, data: bytes) -> list[bytes]:
        """The bytes themselves."""
        return [data]

    def finish(self, trailers: tuple[tuple[str, str], ...]) -> list[bytes]:
        """Nothing follows."""
        return []


class SignedChunks:
    """Chunks that are signed, each over the signature before it (STREAMING-AWS4-HMAC-SHA256-PAYLOAD)."""

    def __init__(self, signing: ChunkSigning) -> None:
        self._signing = signing
        self._previous = signing.seed
        self._held: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The chunks that these bytes complete."""
        framed: list[bytes] = []
        while self._size + len(data) >= CHUNK:
            taken = CHUNK - self._size
            self._held.append(data[:taken])
            data = data[taken:]
            framed += self._chunk()
        self._held.append(data)
        self._size += len(data)
        return framed

    def finish(self, trailers: tuple[tuple[str, str], ...]) -> list[bytes]:
        """The last chunks."""
        framed = self._chunk() if self._size else []
        return [*framed, b"0;chunk-signature=%b\r\n\r\n" % self._sign(EMPTY_SHA256)]

    def _chunk(self) -> list[bytes]:
        data = b"".join(self._held)
        self._held, self._size = [], 0
        signed = self._sign(hashlib.sha256(data).hexdigest())
        return [b"%x;chunk-signature=%b\r\n" % (len(data), signed), data, b"\r\n"]

    def _sign(self, digest: str) -> bytes:
        signing = self._signing
        text = "\n".join(
            (
                "AWS4-HMAC-SHA256-PAYLOAD",
                signing.timestamp,
                signing.scope,
                self._previous,
                EMPTY_SHA256,
                digest,
            )
        )
        self._previous = signature(signing.key, text)
        return self._previous.encode("ascii")


class TrailedChunks:
    """Unsigned chunks with a checksum after them (STREAMING-UNSIGNED-PAYLOAD-TRAILER); `length` is the
    payload's.
    """

    def __init__(self, length: int) -> None:
        self._left = length
        self._open = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The bytes, with the heads of chunks between them."""
        framed: list[bytes] = []
        while data:
            if not self._open:
                self._open = min(CHUNK, self._left)
                framed.append(b"%x\r\n" % self._open)
            piece, data = data[: self._open], data[self._open :]
            framed.append(piece)
            self._open -= len(piece)
            self._left -= len(piece)
            if not self._open:
                framed.append(b"\r\n")
        return framed

    def finish(self, trailers: tuple[tuple[str, str], ...]) -> list[bytes]:
        """The last chunk and the trailers."""
        lines = "".join(f"{name}:{value}\r\n" for name, value in trailers)
        return [f"0\r\n{lines}\r\n".encode("ascii")]


def signed_length(length: int) -> int:
    """How long the framed body of SignedChunks is for a payload of this length, in bytes."""
    extension = len(";chunk-signature=") + _SIGNATURE_LENGTH
    return _chunks(length, extension) + len("0\r\n\r\n") + extension


def trailed_length(length: int, trailer: str) -> int:
    """That of TrailedChunks with one checksum of this name."""
    return _chunks(length, 0) + len(f"0\r\n{trailer}:\r\n\r\n") + encoded_size(trailer)


def _chunks(length: int, extension: int) -> int:
    whole, rest = divmod(length, CHUNK)
    framing = len("\r\n\r\n") + extension
    framed = whole * (len(f"{CHUNK:x}") + framing + CHUNK)
    return framed + (len(f"{rest:x}") + framing + rest if rest else 0)
