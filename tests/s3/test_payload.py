"""Bodies held against what was announced, and framed anew; ten thousand that were altered are all refused."""

from __future__ import annotations

import base64
import hashlib
import os
import random

import attrs
import pytest
from awscrt.checksums import crc32, crc32c, crc64nvme
from hypothesis import given
from hypothesis import strategies as st

from delta_proxy.s3.chunk_writing import (
    CHUNK,
    ResignedChunks,
    SignedChunks,
    TrailedChunks,
    signed_length,
    trailed_length,
)
from delta_proxy.s3.chunked import Chunk, ChunkSigning, Framing
from delta_proxy.s3.errors import (
    BadDigest,
    IncompleteBody,
    InvalidArgument,
    InvalidRequest,
    MissingContentLength,
    S3Error,
    XAmzContentSHA256Mismatch,
)
from delta_proxy.s3.payload import Payload, announces_checksum, payload_hash, payload_of
from delta_proxy.s3.request import S3Request
from delta_proxy.s3.verify import STREAMING_SIGNED, STREAMING_UNSIGNED_TRAILER

from .test_chunked import SIGNING as EXAMPLE_SIGNING
from .test_chunked import encode
from .wire import Pairs, presigned, signed

SIGNING = ChunkSigning(b"k" * 32, "20260301T120000Z", "20260301/us-east-1/s3/aws4_request", "5" * 64)
WAYS = (STREAMING_SIGNED, STREAMING_UNSIGNED_TRAILER)
CRC32C = "x-amz-checksum-crc32c"
BODY = bytes(range(256)) * 5


def b64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


CHECKSUMS = {
    "x-amz-checksum-crc32": lambda body: b64(crc32(body).to_bytes(4, "big")),
    "x-amz-checksum-crc32c": lambda body: b64(crc32c(body).to_bytes(4, "big")),
    "x-amz-checksum-crc64nvme": lambda body: b64(crc64nvme(body).to_bytes(8, "big")),
    "x-amz-checksum-sha1": lambda body: b64(hashlib.sha1(body).digest()),
    "x-amz-checksum-sha256": lambda body: b64(hashlib.sha256(body).digest()),
    "x-amz-checksum-sha512": lambda body: b64(hashlib.sha512(body).digest()),
    "x-amz-checksum-md5": lambda body: b64(hashlib.md5(body).digest()),
}


def request(headers: Pairs = (), content_sha256: str = "UNSIGNED-PAYLOAD") -> S3Request:
    return signed("PUT", headers=headers, payload_hash=content_sha256).parse()


def read(payload: Payload, body: bytes, step: int = 100) -> bytes:
    cuts = (body[start : start + step] for start in range(0, len(body), step))
    pieces = [piece for cut in cuts for piece in payload.feed(cut)]
    payload.finish()
    return b"".join(pieces)


@pytest.mark.parametrize("name", CHECKSUMS)
def test_a_checksum_in_a_header_must_be_that_of_the_body(name: str) -> None:
    right = request(((name, CHECKSUMS[name](BODY)),))
    assert read(payload_of(right, len(BODY), None), BODY) == BODY
    wrong = request(((name, CHECKSUMS[name](b"other")),))
    with pytest.raises(BadDigest):
        read(payload_of(wrong, len(BODY), None), BODY)


def test_the_hash_that_was_signed_must_be_that_of_the_body() -> None:
    right = payload_of(request(content_sha256=hashlib.sha256(BODY).hexdigest()), len(BODY), None)
    assert payload_hash(right) == hashlib.sha256(BODY).hexdigest()
    assert read(right, BODY) == BODY
    with pytest.raises(XAmzContentSHA256Mismatch):
        read(payload_of(request(content_sha256="0" * 64), len(BODY), None), BODY)


def hoisting(*values: str, headers: Pairs = ()) -> S3Request:
    query = tuple(("X-Amz-Content-Sha256", value) for value in values)
    return presigned(query=query, headers=headers, method="PUT").parse()


def test_a_body_is_read_by_the_framing_that_a_presigned_query_announces() -> None:
    headers = (("x-amz-decoded-content-length", str(len(BODY))), ("x-amz-trailer", CRC32C))
    payload = payload_of(hoisting(STREAMING_UNSIGNED_TRAILER, headers=headers), None, None)
    assert read(payload, framed(STREAMING_UNSIGNED_TRAILER, BODY)) == BODY


def test_a_hash_in_a_presigned_query_must_be_that_of_the_body() -> None:
    assert read(payload_of(hoisting(hashlib.sha256(BODY).hexdigest()), len(BODY), None), BODY) == BODY
    with pytest.raises(XAmzContentSHA256Mismatch):
        read(payload_of(hoisting("0" * 64), len(BODY), None), BODY)


@pytest.mark.parametrize(
    "value", ["", "0" * 63, "A" * 64, "unsigned-payload", "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD"]
)
def test_what_is_announced_in_an_unknown_way_is_refused(value: str) -> None:
    for asked in (request(content_sha256=value), hoisting(value)):
        with pytest.raises(InvalidArgument, match="x-amz-content-sha256"):
            payload_of(asked, len(BODY), None)


def test_a_header_and_a_query_that_contradict_each_other_are_refused() -> None:
    header = (("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),)
    with pytest.raises(InvalidArgument):
        payload_of(hoisting(STREAMING_UNSIGNED_TRAILER, headers=header), len(BODY), None)


@pytest.mark.parametrize("encoding", ["aws-chunked", "AWS-Chunked", "gzip, aws-chunked"])
def test_a_framed_body_that_does_not_say_how_is_refused(encoding: str) -> None:
    with pytest.raises(InvalidRequest):
        payload_of(request((("content-encoding", encoding),)), len(BODY), None)


@pytest.mark.parametrize("length", [len(BODY) - 1, len(BODY) + 1])
def test_a_body_has_the_length_that_was_announced(length: int) -> None:
    with pytest.raises(IncompleteBody):
        read(payload_of(request(), length, None), BODY)


def test_a_body_needs_a_length() -> None:
    with pytest.raises(MissingContentLength):
        payload_of(request(), None, None)


@pytest.mark.parametrize(
    "trailer",
    ["x-amz-checksum-nonsense", "x-amz-meta-a", "x-amz-checksum-crc32,x-amz-checksum-sha1"],
)
def test_trailers_that_cannot_be_passed_on_are_refused(trailer: str) -> None:
    headers = (("x-amz-trailer", trailer), ("x-amz-decoded-content-length", "5"))
    with pytest.raises(InvalidRequest):
        payload_of(request(headers, STREAMING_UNSIGNED_TRAILER), 100, None)


def test_checksums_of_an_object_are_none_of_the_document_that_completes_it() -> None:
    asked = request((("x-amz-checksum-crc32", "AAAAAA=="),))
    assert read(payload_of(asked, len(BODY), None, checksums=False), BODY) == BODY


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (("content-md5", "x"), True),
        (("x-amz-checksum-crc32", "x"), True),
        (("x-amz-trailer", "x"), True),
        (("x-amz-checksum-mode", "ENABLED"), False),
        (("x-amz-checksum-algorithm", "CRC32"), False),
    ],
)
def test_what_announces_a_checksum(header: tuple[str, str], told: bool) -> None:
    assert announces_checksum(request((header,))) is told


def framed(way: str, body: bytes) -> bytes:
    if way == STREAMING_SIGNED:
        chunks: SignedChunks | TrailedChunks = SignedChunks(SIGNING)
        trailers: Pairs = ()
    else:
        chunks, trailers = TrailedChunks(len(body)), ((CRC32C, CHECKSUMS[CRC32C](body)),)
    cuts = (body[start : start + 1000] for start in range(0, len(body), 1000))
    pieces = [piece for cut in cuts for piece in chunks.feed(cut)]
    return b"".join((*pieces, *chunks.finish(trailers)))


def decoding(way: str, length: int, signing: ChunkSigning | None = None) -> Payload:
    headers: Pairs = (("x-amz-decoded-content-length", str(length)),)
    if way != STREAMING_SIGNED:
        headers = (*headers, ("x-amz-trailer", "x-amz-checksum-crc32c"))
    return payload_of(request(headers, way), None, signing or SIGNING)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("length", [0, 1, 999, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
def test_what_is_framed_is_as_long_as_was_foretold_and_can_be_read(way: str, length: int) -> None:
    body = os.urandom(length)
    wire = framed(way, body)
    foretold = signed_length(length) if way == STREAMING_SIGNED else trailed_length(length, CRC32C)
    assert len(wire) == foretold
    assert read(decoding(way, length), wire, 7001) == body


@given(st.binary(max_size=3000), st.integers(1, 500), st.sampled_from(WAYS))
def test_however_a_framed_body_is_cut_the_payload_is_the_same(body: bytes, step: int, way: str) -> None:
    assert read(decoding(way, len(body)), framed(way, body), step) == body


def signed_as_cut(chunks: list[bytes], signing: ChunkSigning) -> bytes:
    framer = ResignedChunks(signing)
    whole = [Chunk((data,), hashlib.sha256(data).hexdigest()) for data in chunks]
    return b"".join((*(part for chunk in whole for part in framer.feed_chunk(chunk)), *framer.finish(())))


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=8), st.integers(1, 400))
def test_signed_chunks_go_on_as_they_were_cut_under_another_signature(chunks: list[bytes], step: int) -> None:
    body, wire = b"".join(chunks), signed_as_cut(chunks, SIGNING)
    ours = attrs.evolve(SIGNING, key=b"the store's", seed="0" * 64)
    payload, framer, sent = decoding(STREAMING_SIGNED, len(body)), ResignedChunks(ours), b""
    for start in range(0, len(wire), step):
        for chunk in payload.feed_chunks(wire[start : start + step]):
            sent += b"".join(framer.feed_chunk(chunk))
    sent += b"".join(framer.finish(payload.finish()))
    assert sent == signed_as_cut(chunks, ours)
    # What is sent on has the length that the client announced.
    assert len(sent) == len(wire)
    assert read(decoding(STREAMING_SIGNED, len(body), ours), sent, step) == body


def test_nothing_is_signed_that_was_not_hashed() -> None:
    with pytest.raises(ValueError, match="without the digest"):
        ResignedChunks(SIGNING).feed_chunk(Chunk((b"x",)))


def mutated(wire: bytes, chance: random.Random) -> bytes:
    """The bytes with one change that is none of letter case or of spaces."""
    place = chance.randrange(len(wire))
    match chance.randrange(6):
        case 0:
            flipped = wire[place] ^ (1 << chance.randrange(8))
            return wire[:place] + bytes([flipped]) + wire[place + 1 :]
        case 1:
            return wire[:place] + wire[place + 1 :]
        case 2:
            return wire[:place] + chance.randbytes(1) + wire[place:]
        case 3:
            return wire[:place]
        case 4:
            other = chance.randrange(len(wire))
            first, last = sorted((place, other))
            return wire[:first] + wire[last:]
        case _:
            return wire + chance.randbytes(1 + chance.randrange(5))


def says_the_same(one: bytes, other: bytes) -> bool:
    """Whether two bodies differ only in the case of letters and in spaces."""

    def bare(wire: bytes) -> bytes:
        return wire.lower().replace(b" ", b"").replace(b"\t", b"")

    return bare(one) == bare(other)


@pytest.mark.slow
@pytest.mark.parametrize("framing", list(Framing))
def test_of_ten_thousand_altered_bodies_none_is_accepted(framing: Framing) -> None:
    chance = random.Random(20261122)
    body = chance.randbytes(700)
    trailers = ((CRC32C, CHECKSUMS[CRC32C](body)),) if framing.trailing else ()
    wire = encode(framing, (body[:300], body[300:]), trailers).encoded
    accepted = []
    for _ in range(3_400):
        altered = mutated(wire, chance)
        try:
            got = read(decoding(framing.value, len(body), EXAMPLE_SIGNING), altered, 97)
        except S3Error:
            continue
        if got != body or not says_the_same(altered, wire):
            accepted.append(altered)
    assert accepted == []
