"""A body from the client to the store, verified on its way.

A small body is held until it is known to be what was announced. Of a large one the end is held back until
then, the last piece or the last chunk: before it has the last byte, no store has an object.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol

from attrs import frozen

from delta_proxy.resources.server import EdgeRequest
from delta_proxy.s3.chunk_writing import (
    ResignedChunks,
    SignedChunks,
    TrailedChunks,
    Unframed,
    signed_length,
    trailed_length,
)
from delta_proxy.s3.chunked import Chunk, ChunkSigning
from delta_proxy.s3.errors import EntityTooLarge
from delta_proxy.s3.payload import Payload, Trailers, payload_hash
from delta_proxy.s3.verify import STREAMING_SIGNED, STREAMING_UNSIGNED_TRAILER
from delta_proxy.upstream.upload import Outgoing
from delta_proxy.upstream.writer import Streamed

HELD: Final = 256 * 1024
"""The payloads up to this size in bytes are held until they are verified."""
_PIECE: Final = 128 * 1024

Fields = tuple[tuple[str, str], ...]


class Framer(Protocol):
    """Writes a payload as it goes to the store."""

    def feed_chunk(self, chunk: Chunk) -> list[bytes]:
        """What may go to the store now; never the end of the body."""
        ...

    def finish(self, trailers: Trailers) -> list[bytes]:
        """What ends the body, all of it verified."""
        ...


@frozen
class StoreBody:
    """A body as the store gets it, and the fields that belong to it."""

    body: bytes | Streamed
    fields: Fields = ()


async def whole(
    request: EdgeRequest, payload: Payload, limit: int, wire: list[bytes] | None = None
) -> tuple[bytes, Trailers]:
    """A payload of at most `limit` bytes, verified, and its trailers; `wire` gets the body as it came.

    Raises S3Error.
    """
    if payload.length > limit:
        raise EntityTooLarge
    pieces: list[bytes] = []
    while data := await request.read_some(_PIECE):
        pieces += payload.feed(data)
        if wire is not None:
            wire.append(data)
    return b"".join(pieces), payload.finish()


async def for_store(
    request: EdgeRequest, payload: Payload, fields: Fields, *, store_verifies: bool = False
) -> StoreBody:
    """The body of a request as the store gets it, with the fields that go with it. Raises S3Error.

    `store_verifies` says that the store holds a body against the SHA-256 its request is signed with.
    """
    if payload.length <= HELD:
        body, trailers = await whole(request, payload, HELD)
        return StoreBody(body, (*fields, *trailers))
    if payload.decoder is None:
        if store_verifies:
            payload.leave_hash_to_store()
        return _streamed(request, payload, fields, payload.length, payload_hash(payload), _unframed)
    chunked = (*_chunked(fields), ("x-amz-decoded-content-length", str(payload.length)))
    if payload.trailer is None and payload.decoder.signed and request.body_length is not None:
        size = request.body_length
        return _streamed(request, payload, chunked, size, STREAMING_SIGNED, ResignedChunks)
    if payload.trailer is None:
        size = signed_length(payload.length)
        return _streamed(request, payload, chunked, size, STREAMING_SIGNED, SignedChunks)
    size = trailed_length(payload.length, payload.trailer)
    trailed = (*chunked, ("x-amz-trailer", payload.trailer))
    framer = partial(_trailed, payload.length)
    return _streamed(request, payload, trailed, size, STREAMING_UNSIGNED_TRAILER, framer)


def _streamed(  # noqa: PLR0917 - what makes a streamed body, in the order of its making
    request: EdgeRequest,
    payload: Payload,
    fields: Fields,
    size: int,
    signed_as: str,
    framer: Callable[[ChunkSigning], Framer],
) -> StoreBody:
    def feed(signing: ChunkSigning, outgoing: Outgoing) -> Any:
        return _relayed(request, payload, framer(signing), outgoing)

    return StoreBody(Streamed(size, signed_as, feed), fields)


async def _relayed(request: EdgeRequest, payload: Payload, framer: Framer, outgoing: Outgoing) -> None:
    """Pass the payload on, its end only when all of it is verified. Raises S3Error, StoreGone."""
    while data := await request.read_some(_PIECE):
        framed = [part for chunk in payload.feed_chunks(data) for part in framer.feed_chunk(chunk)]
        if framed:
            await outgoing.write(*framed)
    await outgoing.write(*framer.finish(payload.finish()))


def _unframed(signing: ChunkSigning) -> Framer:
    return Unframed()


def _trailed(length: int, signing: ChunkSigning) -> Framer:
    return TrailedChunks(length)


def _chunked(fields: Fields) -> Fields:
    """With aws-chunked before what the content is encoded with; an MD5 is of the body without chunks."""
    encodings = ["aws-chunked", *(value for name, value in fields if name == "content-encoding")]
    kept = tuple(pair for pair in fields if pair[0] not in {"content-encoding", "content-md5"})
    return (*kept, ("content-encoding", ",".join(encodings)))
