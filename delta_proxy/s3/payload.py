"""The body of an upload: how long it is, and whether it is what its sender announced.

A body may be announced by a length, x-amz-content-sha256, Content-MD5, an x-amz-checksum-* header or trailer,
and the signatures of its chunks; whatever is announced must hold. Sources: "PutObject" and "Checking object
integrity" in the Amazon S3 documentation.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable

from attrs import frozen

from delta_proxy.s3.checksums import CHECKSUMS, Checksum, encoded
from delta_proxy.s3.chunked import Chunk, ChunkedDecoder, ChunkSigning, decoder_for
from delta_proxy.s3.errors import (
    BadDigest,
    IncompleteBody,
    InvalidDigest,
    InvalidRequest,
    MissingContentLength,
    S3Error,
    XAmzContentSHA256Mismatch,
)
from delta_proxy.s3.request import S3Request
from delta_proxy.s3.sigv4 import UNSIGNED_PAYLOAD
from delta_proxy.s3.verify import announced_payload

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NO_CHECKSUMS = frozenset({"x-amz-checksum-algorithm", "x-amz-checksum-mode", "x-amz-checksum-type"})

_HASH_MISMATCH = XAmzContentSHA256Mismatch.code

Trailers = tuple[tuple[str, str], ...]


@frozen
class _Expected:
    """A digest that the body must have, and what is told when it has another."""

    checksum: Checksum
    digest: bytes
    error: S3Error


class Payload:
    """Reads one body and verifies it. `length` is that of the payload in bytes, without any framing.

    `sha256` is the payload's SHA-256 as announced, None where it was not. `trailer` is the name of the
    checksum that comes after the payload, None without one.
    """

    def __init__(self, length: int, expected: Iterable[_Expected], decoder: ChunkedDecoder | None) -> None:
        self.length = length
        self.sha256: str | None = None
        self._expected = tuple(expected)
        self._decoder = decoder
        self._received = 0

    @property
    def decoder(self) -> ChunkedDecoder | None:
        """What reads the framing of an aws-chunked body."""
        return self._decoder

    @property
    def trailer(self) -> str | None:
        """The checksum that comes after the payload."""
        return None if self._decoder is None else next(iter(self._decoder.declared), None)

    def leave_hash_to_store(self) -> None:
        """Do not compute the SHA-256: the store has it in the request's signature, and verifies it."""
        self._expected = tuple(each for each in self._expected if each.error.code != _HASH_MISMATCH)

    def feed(self, data: bytes) -> list[bytes]:
        """The pieces of payload in these bytes of the body. Raises as `feed_chunks`."""
        return [piece for chunk in self.feed_chunks(data) for piece in chunk.pieces]

    def feed_chunks(self, data: bytes) -> list[Chunk]:
        """The payload in these bytes of the body. Raises S3Error as `ChunkedDecoder.feed_chunks` does."""
        chunks = [Chunk((data,))] if self._decoder is None else self._decoder.feed_chunks(data)
        for chunk in chunks:
            for piece in chunk.pieces:
                self._received += len(piece)
                for each in self._expected:
                    each.checksum.update(piece)
        if self._received > self.length:
            raise IncompleteBody
        return chunks

    def finish(self) -> Trailers:
        """The trailers of a body that has come to its end, all of it verified.

        Raises IncompleteBody, XAmzContentSHA256Mismatch and BadDigest.
        """
        trailers = () if self._decoder is None else self._decoder.finish()
        if self._received != self.length:
            raise IncompleteBody
        for each in self._expected:
            if each.checksum.digest() != each.digest:
                raise each.error
        return trailers


def payload_of(
    request: S3Request, content_length: int | None, signing: ChunkSigning | None, *, checksums: bool = True
) -> Payload:
    """What reads the body of a request.

    `content_length` is the body's on the wire, None when it is not known before. `signing` is what signed
    chunks are verified with; without it they are only read. `checksums` says whether x-amz-checksum-* headers
    are about the body: those of CompleteMultipartUpload are about the object.

    Raises MissingContentLength, InvalidDigest, InvalidRequest and what `decoder_for` raises: InvalidArgument
    for an x-amz-content-sha256 that is not known, with or without a signature.
    """
    decoder = decoder_for(request, signing)
    if decoder is not None and not decoder.declared <= CHECKSUMS.keys():
        raise InvalidRequest("The value specified in the x-amz-trailer header is not supported")
    if decoder is not None and len(decoder.declared) > 1:
        raise InvalidRequest("Expecting a single x-amz-checksum- header")
    length = content_length if decoder is None else decoder.decoded_length
    if length is None:
        raise MissingContentLength
    sha256 = _announced_sha256(request)
    payload = Payload(length, _expected(request, sha256, checksums=checksums), decoder)
    payload.sha256 = sha256
    return payload


def payload_hash(payload: Payload) -> str:
    """What signs a plain body for the store: the hash its sender announced, or that there is none."""
    return payload.sha256 or UNSIGNED_PAYLOAD


def announces_checksum(request: S3Request) -> bool:
    """Whether the body has a Content-MD5 or a checksum, in a header or a trailer."""
    headers = request.headers
    return "content-md5" in headers or "x-amz-trailer" in headers or bool(_checksum_headers(request))


def _announced_sha256(request: S3Request) -> str | None:
    announced = announced_payload(request)
    return announced if announced is not None and _SHA256.fullmatch(announced) else None


def _checksum_headers(request: S3Request) -> list[tuple[str, str]]:
    return [
        (name, value)
        for name, value in request.headers.items
        if name.startswith("x-amz-checksum-") and name not in _NO_CHECKSUMS
    ]


def _expected(request: S3Request, sha256: str | None, *, checksums: bool) -> list[_Expected]:
    expected = []
    if sha256 is not None:
        expected.append(_Expected(hashlib.sha256(), bytes.fromhex(sha256), XAmzContentSHA256Mismatch()))
    for value in request.headers.all("content-md5"):
        md5 = hashlib.md5(usedforsecurity=False)
        expected.append(_Expected(md5, _digest(value, 16, InvalidDigest()), BadDigest()))
    named = _checksum_headers(request) if checksums else []
    if len(named) > 1:
        raise InvalidRequest(
            "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed."
        )
    for name, value in named:
        expected.append(_expected_checksum(name, value))
    return expected


def _expected_checksum(name: str, value: str) -> _Expected:
    if name not in CHECKSUMS:
        raise InvalidRequest("The algorithm of an x-amz-checksum- header is not supported.")
    checksum = CHECKSUMS[name]()
    invalid = InvalidRequest(f"Value for {name} header is invalid.")
    wrong = BadDigest(f"The {name} you specified did not match the calculated checksum.")
    return _Expected(checksum, _digest(value, len(checksum.digest()), invalid), wrong)


def _digest(value: str, size: int, error: S3Error) -> bytes:
    try:
        digest = base64.b64decode(value.encode("ascii"), validate=True)
    except (UnicodeError, binascii.Error):
        raise error from None
    if len(digest) != size or encoded(digest) != value:
        raise error
    return digest
