"""Writing aws-chunked bodies: what the proxy sends to a store when it cannot know a hash of the body before.

The framing is that of the client, so a store that takes the client's takes this. Source: as `chunked`.
"""

from __future__ import annotations

import hashlib

from delta_proxy.s3.checksums import encoded_size
from delta_proxy.s3.chunked import Chunk, ChunkSigning
from delta_proxy.s3.sigv4 import EMPTY_SHA256, signature

CHUNK = 128 * 1024
_SIGNATURE_LENGTH = 64


class Unframed:
    """A body as it is. Nothing of a frame tells its end, so its last piece waits until all is verified."""

    def __init__(self) -> None:
        self._held: tuple[bytes, ...] = ()

    def feed_chunk(self, chunk: Chunk) -> list[bytes]:
        """The bytes before these."""
        before, self._held = self._held, chunk.pieces
        return list(before)

    def finish(self, trailers: tuple[tuple[str, str], ...]) -> list[bytes]:
        """The last bytes."""
        return list(self._held)


class _Signatures:
    """The signatures of chunks, each over the one before it."""

    def __init__(self, signing: ChunkSigning) -> None:
        self._signing = signing
        self._previous = signing.seed

    def line(self, size: int, digest: str) -> bytes:
        """The line before a chunk of so many bytes with this hex SHA-256."""
        signing = self._signing
        text = (
            f"AWS4-HMAC-SHA256-PAYLOAD\n{signing.timestamp}\n{signing.scope}\n{self._previous}\n"
            f"{EMPTY_SHA256}\n{digest}"
        )
        self._previous = signature(signing.key, text)
        return f"{size:x};chunk-signature={self._previous}\r\n".encode("ascii")


class ResignedChunks:
    """The chunks that a client signed, signed anew: both signatures cover the same digest, so a chunk is
    hashed once. The framed body is as long as the client's.
    """

    def __init__(self, signing: ChunkSigning) -> None:
        self._signatures = _Signatures(signing)

    def feed_chunk(self, chunk: Chunk) -> list[bytes]:
        """The chunk in its frame. Raises ValueError for one without a digest."""
        if chunk.sha256 is None:
            raise ValueError("a chunk without the digest of its signature")
        return [self._signatures.line(sum(map(len, chunk.pieces)), chunk.sha256), *chunk.pieces, b"\r\n"]

    def finish(self, trailers: tuple[tuple[str, str], ...]) -> list[bytes]:
        """The last chunk, which is empty."""
        return [self._signatures.line(0, EMPTY_SHA256) + b"\r\n"]


class SignedChunks:
    """Chunks that are signed, each over the signature before it (STREAMING-AWS4-HMAC-SHA256-PAYLOAD)."""

    def __init__(self, signing: ChunkSigning) -> None:
        self._signatures = _Signatures(signing)
        self._held: list[bytes] = []
        self._size = 0

    def feed_chunk(self, chunk: Chunk) -> list[bytes]:
        """The chunks that this payload completes, cut anew."""
        return [line for piece in chunk.pieces for line in self.feed(piece)]

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
        return [*framed, self._signatures.line(0, EMPTY_SHA256) + b"\r\n"]

    def _chunk(self) -> list[bytes]:
        data = b"".join(self._held)
        self._held, self._size = [], 0
        return [self._signatures.line(len(data), hashlib.sha256(data).hexdigest()), data, b"\r\n"]


class TrailedChunks:
    """Unsigned chunks with a checksum after them (STREAMING-UNSIGNED-PAYLOAD-TRAILER); `length` is the
    payload's.
    """

    def __init__(self, length: int) -> None:
        self._left = length
        self._open = 0

    def feed_chunk(self, chunk: Chunk) -> list[bytes]:
        """The payload, cut anew."""
        return [line for piece in chunk.pieces for line in self.feed(piece)]

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
