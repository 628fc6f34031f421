"""Bodies in aws-chunked framing: what is given out, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from attrs import frozen
from awscrt.checksums import crc64nvme
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from delta_proxy.s3.chunked import (
    MAX_SIGNED_CHUNK,
    ChunkedDecoder,
    ChunkSigning,
    Framing,
    decoder_for,
    framing_of,
    plain_encoding,
)
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
from delta_proxy.s3.sigv4 import SigningKeys, signature, signing_key
from tests.s3.wire import CREDENTIALS, shown, signed

EXAMPLES = json.loads((Path(__file__).parent / "vectors" / "s3_examples.json").read_text())
SCOPE = "20130524/us-east-1/s3/aws4_request"
KEY = signing_key(EXAMPLES["secret_key"], "20130524", "us-east-1", "s3")
SEED = "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e"
EMPTY = hashlib.sha256(b"").hexdigest()
SIGNING = ChunkSigning(KEY, EXAMPLES["timestamp"], SCOPE, SEED)
CRC32 = "x-amz-checksum-crc32"


@frozen
class Body:
    """An encoded body and the decoder arguments it was made for."""

    framing: Framing
    chunks: tuple[bytes, ...]
    trailers: tuple[tuple[str, str], ...] = ()
    encoded: bytes = b""

    @property
    def payload(self) -> bytes:
        return b"".join(self.chunks)

    def decoder(self) -> ChunkedDecoder:
        return ChunkedDecoder(
            self.framing,
            decoded_length=len(self.payload),
            declared=[name for name, _ in self.trailers],
            signing=SIGNING if self.framing.signed else None,
        )


def encode(
    framing: Framing,
    chunks: Sequence[bytes],
    trailers: Sequence[tuple[str, str]] = (),
    seed: str = SEED,
) -> Body:
    """A body as a client sends it; the empty last chunk is added."""
    out = []
    previous = seed

    def link(algorithm: str, digests: str) -> str:
        text = f"{algorithm}\n{EXAMPLES['timestamp']}\n{SCOPE}\n{previous}\n{digests}"
        return signature(KEY, text)

    for chunk in (*chunks, b""):
        extension = ""
        if framing.signed:
            previous = link("AWS4-HMAC-SHA256-PAYLOAD", f"{EMPTY}\n{hashlib.sha256(chunk).hexdigest()}")
            extension = f";chunk-signature={previous}"
        out.append(f"{len(chunk):x}{extension}\r\n".encode() + chunk + (b"\r\n" if chunk else b""))
    block = "".join(f"{name}:{value}\n" for name, value in trailers)
    lines = [f"{name}:{value}\r\n" for name, value in trailers]
    if framing is Framing.SIGNED_TRAILER:
        proof = link("AWS4-HMAC-SHA256-TRAILER", hashlib.sha256(block.encode()).hexdigest())
        lines.append(f"x-amz-trailer-signature:{proof}\r\n")
    encoded = b"".join(out) + "".join(lines).encode() + b"\r\n"
    return Body(framing, tuple(chunks), tuple(trailers), encoded)


def crc32(payload: bytes) -> tuple[str, str]:
    return CRC32, base64.b64encode(zlib.crc32(payload).to_bytes(4, "big")).decode()


def decode(decoder: ChunkedDecoder, encoded: bytes, step: int = 1 << 30) -> bytes:
    pieces = []
    for start in range(0, len(encoded), step):
        pieces += decoder.feed(encoded[start : start + step])
    decoder.finish()
    return b"".join(pieces)


PAYLOAD = (b"first chunk " * 20, b"second", b"\r\n0;chunk\r\n")
WHOLE = b"".join(PAYLOAD)
BODIES = (
    encode(Framing.SIGNED, PAYLOAD),
    encode(Framing.SIGNED_TRAILER, PAYLOAD, [crc32(WHOLE)]),
    encode(Framing.SIGNED_TRAILER, PAYLOAD, [("x-amz-checksum-crc32c", "342M6A==")]),
    encode(Framing.UNSIGNED_TRAILER, PAYLOAD, [crc32(WHOLE)]),
)
NAMES = ["signed", "signed-trailer", "signed-trailer-crc32c", "unsigned-trailer"]


@pytest.mark.parametrize("step", [1, 7, 4096, 1 << 20])
@pytest.mark.parametrize("name", ["chunks", "chunks_with_trailer"])
def test_the_chunked_examples_of_the_s3_reference_decode(name: str, step: int) -> None:
    case = EXAMPLES[name]
    seed = next(
        request["signature"]
        for request in EXAMPLES["requests"]
        if request["payload_hash"].endswith("-TRAILER" if "trailer" in case else "-PAYLOAD")
    )
    encoded = b"".join(
        f"{size:x};chunk-signature={proof}\r\n".encode() + b"a" * size + (b"\r\n" if size else b"")
        for size, proof in zip(case["sizes"], case["signatures"], strict=True)
    )
    declared = [case["trailer"][0]] if "trailer" in case else []
    if declared:
        encoded += f"{':'.join(case['trailer'])}\r\n".encode()
        encoded += f"x-amz-trailer-signature:{case['trailer_signature']}\r\n".encode()
    decoder = ChunkedDecoder(
        Framing.SIGNED_TRAILER if declared else Framing.SIGNED,
        decoded_length=66560,
        declared=declared,
        signing=ChunkSigning(KEY, EXAMPLES["timestamp"], SCOPE, seed),
    )
    assert decode(decoder, encoded + b"\r\n", step) == b"a" * 66560
    assert decoder.trailers == ((tuple(case["trailer"]),) if declared else ())


@pytest.mark.parametrize("body", BODIES, ids=NAMES)
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_a_body_decodes_however_it_is_cut(body: Body, step: int) -> None:
    decoder = body.decoder()
    assert decode(decoder, body.encoded, step) == body.payload
    assert decoder.finish() == body.trailers


@settings(max_examples=100, deadline=None)
@given(
    framing=st.sampled_from(Framing),
    chunks=st.lists(st.binary(min_size=1, max_size=300), max_size=5),
    step=st.integers(1, 400),
)
def test_decoding_undoes_encoding(framing: Framing, chunks: list[bytes], step: int) -> None:
    trailers = [crc32(b"".join(chunks))] if framing.trailing else []
    body = encode(framing, chunks, trailers)
    assert decode(body.decoder(), body.encoded, step) == b"".join(chunks)


def test_a_signed_chunk_is_given_out_only_when_its_signature_has_been_verified() -> None:
    body = encode(Framing.SIGNED, [b"x" * 100, b"y" * 100])
    decoder = body.decoder()
    end_of_first = body.encoded.index(b"y") - len("64;chunk-signature=") - 64 - 2
    assert decoder.feed(body.encoded[: end_of_first - 2]) == []
    assert b"".join(decoder.feed(body.encoded[end_of_first - 2 : end_of_first])) == b"x" * 100


def test_an_unsigned_chunk_flows_without_being_held() -> None:
    decoder = ChunkedDecoder(Framing.UNSIGNED_TRAILER, decoded_length=1 << 30, declared=[CRC32])
    assert decoder.feed(b"40000000\r\n" + b"a" * 10) == [b"a" * 10]


def test_a_signed_chunk_beyond_the_bound_is_refused_before_it_is_read() -> None:
    decoder = ChunkedDecoder(Framing.SIGNED, decoded_length=1 << 30, signing=SIGNING)
    with pytest.raises(InvalidRequest, match="larger"):
        decoder.feed(f"{MAX_SIGNED_CHUNK + 1:x};chunk-signature={'0' * 64}\r\n".encode())


def test_the_chunks_of_one_body_cannot_be_reordered_nor_moved_to_another() -> None:
    first, second = encode(Framing.SIGNED, [b"aaaa", b"bbbb"]), encode(Framing.SIGNED, [b"bbbb", b"aaaa"])
    line = len("4;chunk-signature=") + 64 + 2 + 4 + 2
    reordered = first.encoded[line : 2 * line] + first.encoded[:line] + first.encoded[2 * line :]
    for encoded in (reordered, second.encoded[:line] + first.encoded[line:]):
        with pytest.raises(SignatureDoesNotMatch):
            decode(first.decoder(), encoded)
    with pytest.raises(SignatureDoesNotMatch):
        decode(first.decoder(), encode(Framing.SIGNED, first.chunks, seed="0" * 64).encoded)


def test_a_body_of_another_length_than_announced_is_incomplete() -> None:
    body = encode(Framing.SIGNED, [b"abcd"])
    for length in (3, 5):
        decoder = ChunkedDecoder(Framing.SIGNED, decoded_length=length, signing=SIGNING)
        with pytest.raises(IncompleteBody):
            decode(decoder, body.encoded)


def test_a_chunk_beyond_the_announced_length_is_refused_before_its_bytes_are_given_out() -> None:
    decoder = ChunkedDecoder(Framing.UNSIGNED_TRAILER, decoded_length=4, declared=[CRC32])
    assert decoder.feed(b"4\r\nabcd\r\n") == [b"abcd"]
    with pytest.raises(IncompleteBody):
        decoder.feed(b"1\r\n")


@pytest.mark.parametrize("body", BODIES, ids=NAMES)
def test_a_body_cut_anywhere_is_refused(body: Body) -> None:
    for end in range(len(body.encoded)):
        with pytest.raises(S3Error):
            decode(body.decoder(), body.encoded[:end])


@pytest.mark.parametrize("body", BODIES, ids=NAMES)
def test_a_body_that_goes_on_after_its_end_is_refused(body: Body) -> None:
    with pytest.raises(InvalidRequest, match="goes on"):
        decode(body.decoder(), body.encoded + b"x")


def test_a_wrong_checksum_in_a_trailer_is_refused() -> None:
    for framing in (Framing.SIGNED_TRAILER, Framing.UNSIGNED_TRAILER):
        body = encode(framing, [b"payload"], [crc32(b"another")])
        with pytest.raises(BadDigest):
            decode(body.decoder(), body.encoded)


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("x-amz-checksum-sha1", hashlib.sha1(WHOLE).digest()),
        ("x-amz-checksum-sha256", hashlib.sha256(WHOLE).digest()),
        ("x-amz-checksum-crc64nvme", crc64nvme(WHOLE).to_bytes(8, "big")),
    ],
)
def test_the_checksums_of_trailers_are_verified(name: str, digest: bytes) -> None:
    for right in (digest, digest[::-1]):
        body = encode(Framing.UNSIGNED_TRAILER, PAYLOAD, [(name, base64.b64encode(right).decode())])
        decoder = body.decoder()
        assert decoder.verified_checksums == {name}
        if right == digest:
            assert decode(decoder, body.encoded) == WHOLE
        else:
            with pytest.raises(BadDigest):
                decode(decoder, body.encoded)


def test_checksums_of_unknown_algorithms_are_handed_on() -> None:
    body = encode(Framing.UNSIGNED_TRAILER, PAYLOAD, [("x-amz-checksum-xxhash64", "AAAAAAAAAAA=")])
    decoder = body.decoder()
    decode(decoder, body.encoded)
    assert decoder.verified_checksums == frozenset()
    assert decoder.trailers == body.trailers


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"x-amz-checksum-crc32:", b"x-amz-checksum-sha1:"),
        (b"x-amz-checksum-crc32:", b"X:"),
        (b"x-amz-checksum-crc32:", b"x-amz-meta-b:c\r\nx-amz-checksum-crc32:"),
        (b"x-amz-trailer-signature:", b"x-amz-trailer-signaturf:"),
    ],
)
def test_trailers_other_than_those_declared_are_refused(old: bytes, new: bytes) -> None:
    body = BODIES[1]
    with pytest.raises(MalformedTrailerError):
        decode(body.decoder(), body.encoded.replace(old, new))


def test_a_declared_trailer_that_is_missing_is_refused() -> None:
    body = encode(Framing.SIGNED_TRAILER, PAYLOAD)
    decoder = ChunkedDecoder(body.framing, decoded_length=len(WHOLE), declared=[CRC32], signing=SIGNING)
    with pytest.raises(MalformedTrailerError, match="missing"):
        decode(decoder, body.encoded)


def test_trailers_are_refused_where_none_are_framed() -> None:
    body = encode(Framing.SIGNED, PAYLOAD)
    with pytest.raises(MalformedTrailerError):
        decode(body.decoder(), body.encoded[:-2] + b"x-amz-checksum-crc32:AAAA\r\n\r\n")


def test_the_signature_of_the_trailers_covers_their_values() -> None:
    body = BODIES[2]
    with pytest.raises(SignatureDoesNotMatch):
        decode(body.decoder(), body.encoded.replace(b"342M6A==", b"sOO8/A=="))


def test_an_endless_line_is_refused() -> None:
    decoder = BODIES[0].decoder()
    with pytest.raises(InvalidRequest, match="too long"):
        decoder.feed(b"1" * 5000)


def test_a_decoder_stays_failed() -> None:
    decoder = BODIES[0].decoder()
    with pytest.raises(InvalidRequest):
        decoder.feed(b"nonsense\r\n")
    with pytest.raises(InvalidRequest):
        decoder.feed(BODIES[0].encoded)
    with pytest.raises(IncompleteBody):
        decoder.finish()


def test_without_a_secret_signed_chunks_are_read_but_lengths_and_checksums_still_hold() -> None:
    body = BODIES[1]
    decoder = ChunkedDecoder(body.framing, decoded_length=len(WHOLE), declared=[CRC32])
    assert decode(decoder, body.encoded) == WHOLE
    decoder = ChunkedDecoder(body.framing, decoded_length=len(WHOLE), declared=[CRC32])
    with pytest.raises(BadDigest):
        decode(decoder, body.encoded.replace(b"second", b"secund"))


def test_a_decoder_is_made_from_the_headers_of_a_request() -> None:
    headers = (
        ("content-encoding", "aws-chunked"),
        ("x-amz-decoded-content-length", "6"),
        ("x-amz-trailer", CRC32),
    )
    request = signed("PUT", headers=headers, payload_hash=Framing.SIGNED_TRAILER.value).parse()
    keys = SigningKeys()
    signing = ChunkSigning.of(shown(request), CREDENTIALS.secret_key, keys)
    decoder = decoder_for(request, signing)
    assert decoder is not None
    assert (decoder.framing, decoder.decoded_length, decoder.declared) == (
        Framing.SIGNED_TRAILER,
        6,
        frozenset({CRC32}),
    )
    assert signing.seed == shown(request).signature
    assert CREDENTIALS.secret_key not in repr(signing)


def test_a_plain_body_has_no_decoder() -> None:
    request = signed("PUT").parse()
    assert framing_of(request) is None
    assert decoder_for(request, None) is None


@pytest.mark.parametrize(
    ("framing", "headers", "error"),
    [
        (Framing.SIGNED, (), MissingContentLength),
        (Framing.SIGNED, (("x-amz-decoded-content-length", "-1"),), InvalidArgument),
        (Framing.SIGNED, (("x-amz-decoded-content-length", "9" * 30),), InvalidArgument),
        (Framing.SIGNED, (("x-amz-decoded-content-length", "1"), ("x-amz-trailer", CRC32)), InvalidRequest),
        (Framing.UNSIGNED_TRAILER, (("x-amz-decoded-content-length", "1"),), InvalidRequest),
        (
            Framing.UNSIGNED_TRAILER,
            (("x-amz-decoded-content-length", "1"), ("x-amz-trailer", "host")),
            InvalidRequest,
        ),
        (
            Framing.SIGNED,
            (("x-amz-decoded-content-length", "1"), ("x-amz-decoded-content-length", "1")),
            InvalidArgument,
        ),
    ],
)
def test_headers_that_contradict_the_framing_are_refused(
    framing: Framing, headers: tuple[tuple[str, str], ...], error: type[S3Error]
) -> None:
    request = signed("PUT", headers=headers, payload_hash=framing.value).parse()
    with pytest.raises(error):
        decoder_for(request, None)


def test_aws_chunked_is_how_a_body_travels_not_how_it_is_stored() -> None:
    assert plain_encoding("aws-chunked") is None
    assert plain_encoding("aws-chunked, gzip") == "gzip"
    assert plain_encoding("gzip,br") == "gzip,br"
    assert plain_encoding(None) is None


def canonical(encoded: bytes) -> bytes:
    """The body without what framing leaves free: the case of hexadecimal sizes, spaces around a trailer."""
    sizes = re.sub(rb"(?m)^[0-9a-fA-F]+(?=;chunk-signature=|\r$)", lambda match: match[0].lower(), encoded)
    return re.sub(rb"(?m)^(x-amz-[a-z0-9-]+:)[ \t]*([!-~]+)[ \t]*\r$", rb"\1\2\r", sizes)


def mutate(encoded: bytes, place: int, byte: int, edit: int) -> bytes:
    at, to = place % len(encoded), (place * 7 + byte) % len(encoded)
    low, high = min(at, to), max(at, to)
    return (
        encoded[:at] + bytes([byte]) + encoded[at + 1 :],
        encoded[:at] + encoded[at + 1 :],
        encoded[:at] + bytes([byte]) + encoded[at:],
        encoded[:at] + encoded[at : at + 2][::-1] + encoded[at + 2 :],
        encoded[:low] + encoded[high:],
        encoded[:high] + encoded[low:],
    )[edit]


mutations: st.SearchStrategy[tuple[int, int, int]] = st.tuples(
    st.integers(0, 5000), st.integers(0, 255), st.integers(0, 5)
)


def accepted(decoder: ChunkedDecoder, encoded: bytes) -> bytes | None:
    try:
        return decode(decoder, encoded, 50)
    except S3Error:
        return None


@settings(max_examples=400, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(body=st.sampled_from(BODIES), edits=st.lists(mutations, min_size=25, max_size=25))
def test_no_mutant_of_a_chunked_body_is_accepted(body: Body, edits: list[tuple[int, int, int]]) -> None:
    """10,000 mutants: bytes changed, lost, added, swapped, repeated, anywhere in the body."""
    for place, byte, edit in edits:
        mutant = mutate(body.encoded, place, byte, edit)
        decoder = body.decoder()
        payload = accepted(decoder, mutant)
        if payload is not None:
            assert (payload, decoder.trailers) == (body.payload, body.trailers)
            assert canonical(mutant) == canonical(body.encoded)
