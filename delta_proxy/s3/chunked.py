"""aws-chunked bodies: signed and unsigned chunks, with and without trailers.

Sources: "Transferring Payload in Multiple Chunks" and "Including Trailing Headers" in the Amazon S3 API
reference. Each signed chunk is signed over the signature before it, the first over the seed signature of
the request; a chunk is given out only once its signature has been verified. Checksums in trailers are
verified, but for algorithms that `checksums` does not know, which are only handed on.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from enum import Enum, auto

from attrs import field, frozen

from delta_proxy.s3.checksums import CHECKSUMS, encoded
from delta_proxy.s3.errors import (
    BadDigest,
    IncompleteBody,
    InvalidArgument,
    InvalidRequest,
    MalformedTrailerError,
    MissingContentLength,
    S3Error,
    SignatureDoesNotMatch,
)
from delta_proxy.s3.request import S3Request
from delta_proxy.s3.sigv4 import EMPTY_SHA256, SigningKeys, signature
from delta_proxy.s3.verify import (
    STREAMING_SIGNED,
    STREAMING_SIGNED_TRAILER,
    STREAMING_UNSIGNED_TRAILER,
    Presented,
    announced_payload,
)

# A signed chunk is held in memory until its signature is known. SDKs send 64 KiB to 1 MiB.
MAX_SIGNED_CHUNK = 16 * 1024 * 1024
MAX_LINE = 4096
MAX_TRAILERS = 16
_MAX_LENGTH = 5 * 1024**4
_AWS_CHUNKED = "aws-chunked"
TRAILER_SIGNATURE = "x-amz-trailer-signature"

_HEADER = re.compile(rb"(0|[1-9A-Fa-f][0-9A-Fa-f]{0,15})(?:;chunk-signature=([0-9a-f]{64}))?")
_LENGTH = re.compile(r"[0-9]{1,13}", re.ASCII)
_TRAILER = re.compile(rb"([a-z0-9-]{1,128}):[ \t]*([!-~]{1,1024})[ \t]*")
_TRAILER_NAME = re.compile(r"x-amz-(?:checksum-[a-z0-9]+|meta-[a-z0-9_.-]+)")


class Framing(Enum):
    """How a body is cut into chunks, by the value of x-amz-content-sha256."""

    SIGNED = STREAMING_SIGNED
    SIGNED_TRAILER = STREAMING_SIGNED_TRAILER
    UNSIGNED_TRAILER = STREAMING_UNSIGNED_TRAILER

    @property
    def signed(self) -> bool:
        """Whether each chunk carries a signature."""
        return self is not Framing.UNSIGNED_TRAILER

    @property
    def trailing(self) -> bool:
        """Whether trailing headers follow the last chunk."""
        return self is not Framing.SIGNED


@frozen
class ChunkSigning:
    """What chunk signatures are computed from: the signing key, x-amz-date, the scope and the seed
    signature.
    """

    key: bytes = field(repr=False)
    timestamp: str
    scope: str
    seed: str = field(repr=False)

    @classmethod
    def of(cls, presented: Presented, secret_key: str, keys: SigningKeys) -> ChunkSigning:
        """The chunk signing that follows a request whose own signature has been verified."""
        key = keys.get(secret_key, presented.date, presented.region, presented.service)
        return cls(key, presented.timestamp, presented.scope, presented.signature)


@frozen
class Chunk:
    """Payload that was given out together: a whole chunk with the hex SHA-256 that its signature covers,
    or one piece without.
    """

    pieces: tuple[bytes, ...]
    sha256: str | None = None


class _State(Enum):
    HEADER = auto()
    DATA = auto()
    DATA_END = auto()
    TRAILERS = auto()
    END = auto()
    FAILED = auto()


class ChunkedDecoder:
    """Decodes one aws-chunked body, however it is cut on its way.

    `decoded_length` is x-amz-decoded-content-length, `declared` the names in x-amz-trailer. Without
    `signing` a signed framing is read but its signatures are not verified: for callers that know nobody's
    secret, where the store or an announced hash is what protects the body. After an error the decoder stays
    failed.
    """

    def __init__(
        self,
        framing: Framing,
        *,
        decoded_length: int,
        declared: Iterable[str] = (),
        signing: ChunkSigning | None = None,
    ) -> None:
        self.framing = framing
        self.decoded_length = decoded_length
        self.declared = frozenset(declared)
        self.trailers: tuple[tuple[str, str], ...] = ()
        self._signing = signing if framing.signed else None
        self._previous = "" if signing is None else signing.seed
        self._checksums = {name: CHECKSUMS[name]() for name in self.declared if name in CHECKSUMS}
        self._state = _State.HEADER
        self._buffer = bytearray()
        self._released = 0
        self._start_chunk(0, None)

    @property
    def signed(self) -> bool:
        """Whether chunks are given out whole, with the digest that their verified signature covers."""
        return self._signing is not None

    @property
    def verified_checksums(self) -> frozenset[str]:
        """The declared trailers whose value is verified here; the others are for the store to verify."""
        return frozenset(self._checksums)

    def feed(self, data: bytes) -> list[bytes]:
        """The pieces of payload that these bytes of the body complete. Raises as `feed_chunks`."""
        return [piece for chunk in self.feed_chunks(data) for piece in chunk.pieces]

    def feed_chunks(self, data: bytes) -> list[Chunk]:
        """What these bytes of the body complete, verified where chunks are signed.

        Raises SignatureDoesNotMatch, IncompleteBody when the payload outgrows its announced length,
        InvalidRequest for a malformed chunk or one beyond 16 MiB, MalformedTrailerError, BadDigest for a
        wrong checksum.
        """
        if self._state is _State.FAILED:
            raise InvalidRequest("The body was refused before.")
        released: list[Chunk] = []
        try:
            self._buffer += self._straight(data, released)
            while self._step(released):
                pass
        except S3Error:
            self._state = _State.FAILED
            self._buffer.clear()
            self._held.clear()
            raise
        return released

    def _straight(self, data: bytes, released: list[Chunk]) -> bytes:
        """What is left when the beginning went to an open chunk: payload need not pass the buffer."""
        if self._state is not _State.DATA or self._buffer or not data:
            return data
        piece, rest = data[: self._missing], data[self._missing :]
        self._take(piece, released)
        return rest

    def finish(self) -> tuple[tuple[str, str], ...]:
        """The trailers of a body that has ended. Raises IncompleteBody when it has not come to its end."""
        if self._state is not _State.END:
            self._state = _State.FAILED
            raise IncompleteBody("The body ended before its last chunk.")
        return self.trailers

    def _step(self, released: list[Chunk]) -> bool:
        """One step of the decoding; False when more bytes are needed."""
        if self._state is _State.DATA:
            return self._read_data(released)
        if self._state is _State.END:
            if self._buffer:
                raise InvalidRequest("The body goes on after its last chunk.")
            return False
        line = self._line()
        if line is None:
            return False
        if self._state is _State.HEADER:
            self._read_header(line)
        elif self._state is _State.DATA_END:
            self._end_chunk(line, released)
        else:
            self._read_trailer(line)
        return True

    def _line(self) -> bytes | None:
        end = self._buffer.find(b"\r\n", 0, MAX_LINE + 2)
        if end < 0:
            if len(self._buffer) > MAX_LINE:
                raise InvalidRequest("A line of the chunked body is too long.")
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _read_header(self, line: bytes) -> None:
        match = _HEADER.fullmatch(line)
        if match is None or (match[2] is not None) != self.framing.signed:
            raise InvalidRequest("A chunk of the body is malformed.")
        size = int(match[1], 16)
        if self.framing.signed and size > MAX_SIGNED_CHUNK:
            raise InvalidRequest(f"A signed chunk is larger than {MAX_SIGNED_CHUNK} bytes.")
        if self._released + size > self.decoded_length:
            raise IncompleteBody("The body is longer than its x-amz-decoded-content-length.")
        self._start_chunk(size, match[2].decode("ascii") if match[2] else None)
        if size:
            self._state = _State.DATA
        else:
            self._last_chunk()

    def _start_chunk(self, size: int, provided: str | None) -> None:
        self._missing = size
        self._provided = provided
        self._held: list[bytes] = []
        self._digest = hashlib.sha256()

    def _read_data(self, released: list[Chunk]) -> bool:
        if not self._buffer:
            return False
        piece = bytes(memoryview(self._buffer)[: self._missing])
        del self._buffer[: len(piece)]
        self._take(piece, released)
        return True

    def _take(self, piece: bytes, released: list[Chunk]) -> None:
        self._missing -= len(piece)
        if self._signing is None:
            self._release((piece,), None, released)
        else:
            self._digest.update(piece)
            self._held.append(piece)
        if not self._missing:
            self._state = _State.DATA_END

    def _end_chunk(self, line: bytes, released: list[Chunk]) -> None:
        if line:
            raise InvalidRequest("A chunk of the body is longer than its size.")
        if self._held:
            digest = self._digest.hexdigest()
            self._verify_chunk(digest)
            self._release(tuple(self._held), digest, released)
            self._held = []
        self._state = _State.HEADER

    def _release(self, pieces: tuple[bytes, ...], digest: str | None, released: list[Chunk]) -> None:
        for piece in pieces:
            self._released += len(piece)
            for checksum in self._checksums.values():
                checksum.update(piece)
        released.append(Chunk(pieces, digest))

    def _last_chunk(self) -> None:
        if self._released != self.decoded_length:
            raise IncompleteBody("The body is shorter than its x-amz-decoded-content-length.")
        self._verify_chunk(EMPTY_SHA256)
        self._state = _State.TRAILERS

    def _verify_chunk(self, digest: str) -> None:
        if self._signing is None or self._provided is None:
            return
        self._verify("AWS4-HMAC-SHA256-PAYLOAD", f"{EMPTY_SHA256}\n{digest}", self._provided)

    def _verify(self, algorithm: str, digests: str, provided: str) -> None:
        """Hold a signature against the chain and make it the next link."""
        if self._signing is None:
            return
        text = f"{algorithm}\n{self._signing.timestamp}\n{self._signing.scope}\n{self._previous}\n{digests}"
        if not hmac.compare_digest(signature(self._signing.key, text), provided):
            raise SignatureDoesNotMatch("The signature of a chunk of the body does not match.")
        self._previous = provided

    def _read_trailer(self, line: bytes) -> None:
        if not line:
            self._end_trailers()
            return
        match = _TRAILER.fullmatch(line)
        if match is None or not self.framing.trailing or len(self.trailers) >= MAX_TRAILERS:
            raise MalformedTrailerError()
        name, value = match[1].decode("ascii"), match[2].decode("ascii")
        if self.trailers and self.trailers[-1][0] == TRAILER_SIGNATURE:
            raise MalformedTrailerError("A trailer follows the signature of the trailers.")
        if name != TRAILER_SIGNATURE and name not in self.declared:
            raise MalformedTrailerError("A trailer was not declared in x-amz-trailer.")
        if any(name == earlier for earlier, _ in self.trailers):
            raise MalformedTrailerError("A trailer was sent twice.")
        self.trailers += ((name, value),)

    def _end_trailers(self) -> None:
        provided = dict(self.trailers).get(TRAILER_SIGNATURE)
        self.trailers = tuple(pair for pair in self.trailers if pair[0] != TRAILER_SIGNATURE)
        if self.declared != {name for name, _ in self.trailers}:
            raise MalformedTrailerError("A trailer that x-amz-trailer declared is missing.")
        self._verify_trailers(provided)
        for name, value in self.trailers:
            checksum = self._checksums.get(name)
            if checksum is not None and encoded(checksum.digest()) != value:
                raise BadDigest(f"The {name} you specified did not match the calculated checksum.")
        self._state = _State.END

    def _verify_trailers(self, provided: str | None) -> None:
        if (provided is not None) != (self.framing is Framing.SIGNED_TRAILER):
            raise MalformedTrailerError("The signature of the trailers is missing, or must not be there.")
        if provided is None:
            return
        block = "".join(f"{name}:{value}\n" for name, value in sorted(self.trailers))
        digest = hashlib.sha256(block.encode("ascii")).hexdigest()
        self._verify("AWS4-HMAC-SHA256-TRAILER", digest, provided)


def framing_of(request: S3Request) -> Framing | None:
    """The aws-chunked framing of a request's body, None for a plain body.

    Raises InvalidArgument as `announced_payload`, and InvalidRequest for a body that is said to be framed
    without saying how: the framing would be stored with it.
    """
    announced = announced_payload(request)
    framing = next((framing for framing in Framing if framing.value == announced), None)
    if framing is None and _is_said_to_be_framed(request):
        raise InvalidRequest("An aws-chunked body needs a STREAMING- value in x-amz-content-sha256.")
    return framing


def decoder_for(request: S3Request, signing: ChunkSigning | None) -> ChunkedDecoder | None:
    """The decoder of a request's body, None for a plain body; `signing` as for ChunkedDecoder.

    Raises as `framing_of`, MissingContentLength without x-amz-decoded-content-length, InvalidArgument when
    that is no length, and InvalidRequest for trailers that are declared and cannot be, or must be declared
    and are not.
    """
    framing = framing_of(request)
    if framing is None:
        return None
    return ChunkedDecoder(
        framing,
        decoded_length=_decoded_length(request),
        declared=_declared(request, framing),
        signing=signing,
    )


def plain_encoding(value: str | None) -> str | None:
    """A Content-Encoding without aws-chunked, which is how a body travels and not how it is stored."""
    kept = [part for part in _encodings(value or "") if part.lower() != _AWS_CHUNKED]
    return ",".join(kept) or None


def _is_said_to_be_framed(request: S3Request) -> bool:
    values = request.headers.all("content-encoding")
    return any(part.lower() == _AWS_CHUNKED for value in values for part in _encodings(value))


def _encodings(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def _decoded_length(request: S3Request) -> int:
    values = request.headers.all("x-amz-decoded-content-length")
    if not values:
        raise MissingContentLength("You must provide the x-amz-decoded-content-length HTTP header.")
    if len(values) > 1 or not _LENGTH.fullmatch(values[0]) or int(values[0]) > _MAX_LENGTH:
        raise InvalidArgument(
            "x-amz-decoded-content-length is not a length.",
            fields={"ArgumentName": "x-amz-decoded-content-length"},
        )
    return int(values[0])


def _declared(request: S3Request, framing: Framing) -> tuple[str, ...]:
    names = [
        name.strip().lower() for value in request.headers.all("x-amz-trailer") for name in value.split(",")
    ]
    if bool(names) != framing.trailing:
        raise InvalidRequest("x-amz-trailer and x-amz-content-sha256 contradict each other.")
    if len(names) > MAX_TRAILERS or not all(_TRAILER_NAME.fullmatch(name) for name in names):
        raise InvalidRequest("The value specified in the x-amz-trailer header is not supported")
    return tuple(names)
