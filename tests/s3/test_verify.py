"""Who signed a request: the rules of Signature Version 4 as S3 enforces them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from delta_proxy.s3.errors import (
    AccessDenied,
    AuthorizationHeaderMalformed,
    AuthorizationQueryParametersError,
    InvalidArgument,
    InvalidRequest,
    MissingSecurityHeader,
    RequestTimeTooSkewed,
    S3Error,
    SignatureDoesNotMatch,
    XAmzContentSHA256Mismatch,
)
from delta_proxy.s3.request import Addressing, S3Request, parse_request
from delta_proxy.s3.sigv4 import (
    EMPTY_SHA256,
    UNSIGNED_PAYLOAD,
    Credentials,
    SigningKeys,
    canonical_query,
    object_path,
)
from delta_proxy.s3.verify import presented, verify
from tests.s3.wire import CREDENTIALS, HOST, NOW, Pairs, Wire, encoded, presigned, shown, signed

EXAMPLES = json.loads((Path(__file__).parent / "vectors" / "s3_examples.json").read_text())
KEYS = SigningKeys()


def check(wire: Wire, *, secret: str = CREDENTIALS.secret_key, now: datetime = NOW, **options: Any) -> None:
    request = wire.parse()
    verify(request, shown(request), secret, now=now, keys=KEYS, **options)


def example(case: dict[str, Any]) -> S3Request:
    """A request of the S3 reference, but for operations that the proxy does not have."""
    target = case["path"] + ("?" + canonical_query(case["query"]) if case["query"] else "")
    headers: Pairs = (
        ("host", case["host"]),
        ("x-amz-date", EXAMPLES["timestamp"]),
        ("x-amz-content-sha256", case["payload_hash"]),
        (
            "authorization",
            f"AWS4-HMAC-SHA256 Credential={EXAMPLES['access_key']}/20130524/us-east-1/s3/aws4_request,"
            f"SignedHeaders={case['signed_headers']},Signature={case['signature']}",
        ),
        *((name, value) for name, value in case["headers"]),
    )
    addressing = Addressing("examplebucket", ("s3.amazonaws.com",))
    return parse_request(case["method"].encode(), target.encode(), encoded(headers), addressing)


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case["name"]) for case in EXAMPLES["requests"] if "Lifecycle" not in case["name"]],
)
def test_the_signed_examples_of_the_s3_reference_are_accepted(case: dict[str, Any]) -> None:
    request = example(case)
    found = shown(request)
    assert found.access_key == EXAMPLES["access_key"]
    verify(request, found, EXAMPLES["secret_key"], now=datetime(2013, 5, 24, 0, 10, tzinfo=UTC), keys=KEYS)


def test_the_presigned_example_of_the_s3_reference_is_accepted() -> None:
    case = EXAMPLES["presigned"]
    target = f"{case['path']}?{case['query']}".encode()
    addressing = Addressing("examplebucket", ("s3.amazonaws.com",))
    request = parse_request(b"GET", target, encoded((("host", case["host"]),)), addressing)
    now = datetime(2013, 5, 24, 23, 59, tzinfo=UTC)
    verify(request, shown(request), EXAMPLES["secret_key"], now=now, keys=KEYS)


@pytest.mark.parametrize("wire", [signed(), presigned()], ids=["header", "presigned"])
def test_a_request_is_accepted_with_its_own_secret_and_with_no_other(wire: Wire) -> None:
    check(wire)
    with pytest.raises(SignatureDoesNotMatch):
        check(wire, secret="another-secret")


def test_a_request_without_a_signature_presents_nothing() -> None:
    assert presented(Wire(b"GET", b"/datalake/k", encoded((("host", HOST),))).parse()) is None


@settings(max_examples=200, deadline=None)
@given(
    key=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=40),
    prefix=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20),
)
def test_any_key_and_any_query_value_verify(key: str, prefix: str) -> None:
    check(signed(path=object_path("datalake", key)))
    check(signed(path="/datalake", query=(("list-type", "2"), ("prefix", prefix))))


def test_a_query_sent_as_form_encoding_verifies_though_the_strict_one_was_signed() -> None:
    query = (("list-type", "2"), ("prefix", "a b/ü~"))
    wire = signed(path="/datalake/", query=query)
    check(Wire(wire.method, b"/datalake/?prefix=a+b%2f%C3%BC%7E&list-type=2", wire.headers))


def test_a_header_value_of_other_bytes_than_ascii_is_signed_by_its_bytes() -> None:
    utf8 = signed(headers=(("x-amz-meta-name", "Grüße"),))
    sent = utf8.replacing("x-amz-meta-name", "Grüße".encode().decode("latin-1"))
    check(sent)


def test_repeated_headers_are_joined_and_inner_spaces_collapsed() -> None:
    wire = signed(headers=(("x-amz-meta-a", "1   2"), ("x-amz-meta-a", " 3 ")))
    check(wire.without("x-amz-meta-a").with_headers(("x-amz-meta-a", "1 2"), ("x-amz-meta-a", "3")))
    check(wire.without("x-amz-meta-a").with_headers(("x-amz-meta-a", "1 2,3")))


def test_an_absolute_form_request_verifies_against_its_own_authority() -> None:
    wire = signed()
    absolute = Wire(wire.method, f"http://{HOST}".encode() + wire.target, wire.headers)
    check(absolute)
    with pytest.raises(SignatureDoesNotMatch):
        check(Wire(wire.method, b"http://other.example.com" + wire.target, wire.headers))


def test_a_wrong_signature_is_answered_with_the_strings_that_were_computed() -> None:
    with pytest.raises(SignatureDoesNotMatch) as caught:
        check(signed(), secret="another-secret")
    fields = caught.value.fields
    assert list(fields) == [
        "AWSAccessKeyId",
        "StringToSign",
        "SignatureProvided",
        "StringToSignBytes",
        "CanonicalRequest",
        "CanonicalRequestBytes",
    ]
    digest = hashlib.sha256(fields["CanonicalRequest"].encode()).hexdigest()
    assert fields["StringToSign"] == (
        f"AWS4-HMAC-SHA256\n20260301T120000Z\n20260301/us-east-1/s3/aws4_request\n{digest}"
    )
    assert bytes.fromhex(fields["CanonicalRequestBytes"]).decode() == fields["CanonicalRequest"]


@pytest.mark.parametrize("seconds", [-901, 901])
def test_a_request_signed_more_than_15_minutes_away_is_refused(seconds: int) -> None:
    check(signed(at=NOW + timedelta(seconds=seconds - (1 if seconds > 0 else -1))))
    with pytest.raises(RequestTimeTooSkewed) as caught:
        check(signed(at=NOW + timedelta(seconds=seconds)))
    assert caught.value.fields["MaxAllowedSkewMilliseconds"] == "900000"
    assert caught.value.fields["ServerTime"] == "2026-03-01T12:00:00Z"


def test_a_presigned_url_is_refused_after_its_time_and_long_before_it() -> None:
    check(presigned(expires=60), now=NOW + timedelta(seconds=60))
    with pytest.raises(AccessDenied, match="Request has expired") as caught:
        check(presigned(expires=60), now=NOW + timedelta(seconds=61))
    assert caught.value.fields["Expires"] == "2026-03-01T12:01:00Z"
    with pytest.raises(AccessDenied, match="not yet valid"):
        check(presigned(), now=NOW - timedelta(seconds=901))


def test_any_region_is_accepted_unless_the_regions_are_named() -> None:
    check(signed(region="eu-west-1"))
    check(signed(region="eu-west-1"), regions={"eu-west-1"})
    with pytest.raises(AuthorizationHeaderMalformed) as caught:
        check(signed(region="eu-west-1"), regions={"us-east-1"})
    assert caught.value.fields == {"Region": "us-east-1"}


def test_a_signature_for_another_service_is_refused() -> None:
    with pytest.raises(AuthorizationHeaderMalformed, match="service"):
        check(signed(service="sts", headers=(("x-amz-content-sha256", EMPTY_SHA256),)))
    with pytest.raises(AuthorizationHeaderMalformed, match="service"):
        check(signed(), service="sts")


def test_a_credential_of_another_day_than_the_request_is_refused() -> None:
    wire = signed()
    authorization = dict(wire.headers)[b"authorization"].decode()
    moved = wire.replacing("authorization", authorization.replace("/20260301/", "/20260228/"))
    with pytest.raises(AuthorizationHeaderMalformed, match="date"):
        check(moved)


def test_an_sts_request_is_verified_by_the_hash_of_its_body() -> None:
    digest = hashlib.sha256(b"Action=GetCallerIdentity").hexdigest()
    wire = signed("POST", "/", headers=(), payload_hash=digest, service="sts")
    check(wire, service="sts", payload_hash=digest)
    with pytest.raises(SignatureDoesNotMatch):
        check(wire, service="sts", payload_hash=EMPTY_SHA256)
    with pytest.raises(MissingSecurityHeader):
        check(wire, service="sts")


def test_a_body_that_differs_from_the_announced_hash_is_refused() -> None:
    check(signed(), payload_hash=EMPTY_SHA256)
    check(signed(payload_hash=UNSIGNED_PAYLOAD), payload_hash=EMPTY_SHA256)
    with pytest.raises(XAmzContentSHA256Mismatch):
        check(signed(), payload_hash="0" * 64)


def test_a_header_signature_for_s3_needs_the_payload_hash() -> None:
    with pytest.raises(MissingSecurityHeader):
        check(signed().without("x-amz-content-sha256"))
    with pytest.raises(InvalidArgument):
        check(signed().replacing("x-amz-content-sha256", "STREAMING-SOMETHING"))


@pytest.mark.parametrize("wire", [signed(), presigned()], ids=["header", "presigned"])
def test_an_x_amz_header_that_was_not_signed_is_refused(wire: Wire) -> None:
    with pytest.raises(AccessDenied, match="not signed") as caught:
        check(wire.with_headers(("X-Amz-Meta-Added", "1")))
    assert caught.value.fields == {"HeadersNotSigned": "x-amz-meta-added"}


def test_other_headers_need_not_be_signed() -> None:
    check(signed().with_headers(("user-agent", "x"), ("content-type", "a/b"), ("if-match", "e")))


def test_the_host_must_be_signed() -> None:
    wire = signed()
    authorization = dict(wire.headers)[b"authorization"].decode()
    with pytest.raises(AccessDenied, match="not signed"):
        check(wire.replacing("authorization", authorization.replace("=host;", "=")))


def test_a_session_token_is_read_from_where_the_signature_is() -> None:
    credentials = Credentials("AKIDALICE", "alice-secret", "token/+=")
    for wire in (signed(credentials=credentials), presigned(credentials=credentials)):
        assert shown(wire.parse()).session_token == "token/+="
        check(wire)
    assert "token/" not in repr(shown(signed(credentials=credentials).parse()))


def test_a_presigned_url_may_carry_signed_amz_headers_beside_an_unsigned_payload() -> None:
    check(presigned(headers=(("x-amz-date", "20260301T120000Z"), ("x-amz-content-sha256", EMPTY_SHA256))))


def test_a_presigner_may_move_the_payload_hash_into_the_query() -> None:
    assert (
        shown(presigned(query=(("X-Amz-Content-Sha256", UNSIGNED_PAYLOAD),)).parse()).payload_hash
        == UNSIGNED_PAYLOAD
    )
    check(presigned(query=(("X-Amz-Content-Sha256", UNSIGNED_PAYLOAD),)))


def test_a_header_and_a_query_signature_at_once_are_refused() -> None:
    authorization = dict(signed().headers)[b"authorization"].decode()
    with pytest.raises(InvalidRequest, match="Only one auth mechanism"):
        check(presigned().with_headers(("authorization", authorization)))


@pytest.mark.parametrize(
    "name", ["authorization", "x-amz-date", "x-amz-content-sha256", "x-amz-security-token"]
)
def test_a_security_header_sent_twice_is_refused(name: str) -> None:
    credentials = Credentials("AKIDALICE", "alice-secret", "token")
    wire = signed(credentials=credentials)
    value = dict(wire.headers)[name.encode()].decode()
    with pytest.raises(InvalidRequest, match="more than once"):
        check(wire.with_headers((name, value)))


@pytest.mark.parametrize(
    "wire",
    [
        Wire(
            b"GET",
            b"/datalake/k?AWSAccessKeyId=AKID&Signature=x%3D&Expires=1790000000",
            encoded((("host", HOST),)),
        ),
        Wire(b"GET", b"/datalake/k", encoded((("host", HOST), ("authorization", "AWS AKID:c2lnbmF0dXJl")))),
    ],
    ids=["query", "header"],
)
def test_signature_version_2_is_answered_with_the_way_out(wire: Wire) -> None:
    with pytest.raises(InvalidRequest, match="signature_version='s3v4'"):
        presented(wire.parse())


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("AWS4-HMAC-SHA256 ", "AWS4-ECDSA-P256-SHA256 ", InvalidArgument),
        ("AWS4-HMAC-SHA256 ", "Bearer ", InvalidArgument),
        ("Credential=", "Credentials=", AuthorizationHeaderMalformed),
        (", Signature=", ", Signature=x, Signature=", AuthorizationHeaderMalformed),
        ("Signature=", "Signature=, X=", AuthorizationHeaderMalformed),
        ("/us-east-1/", "/", AuthorizationHeaderMalformed),
        ("/us-east-1/", "//", AuthorizationHeaderMalformed),
        ("/aws4_request", "/aws4_reques", AuthorizationHeaderMalformed),
        ("/20260301/", "/2026-3-1/", AuthorizationHeaderMalformed),
        ("AKIDALICE/", "/", AuthorizationHeaderMalformed),
        ("host;range", "range;host", AuthorizationHeaderMalformed),
        ("host;range", "host;host;range", AuthorizationHeaderMalformed),
        ("host;range", "Host;range", AuthorizationHeaderMalformed),
        ("host;range", "host;;range", AuthorizationHeaderMalformed),
    ],
)
def test_a_malformed_authorization_header_is_named_as_such(old: str, new: str, error: type[S3Error]) -> None:
    wire = signed()
    authorization = dict(wire.headers)[b"authorization"].decode()
    assert old in authorization
    with pytest.raises(error):
        check(wire.replacing("authorization", authorization.replace(old, new)))


@pytest.mark.parametrize(
    "date", [None, "2026-03-01", "20261301T120000Z", "20260301T120000", "٢٠٢٦0301T120000Z"]
)
def test_a_signature_without_a_valid_date_is_refused(date: str | None) -> None:
    wire = signed().without("x-amz-date")
    sent = wire if date is None else wire.with_headers(("x-amz-date", date.encode().decode("latin-1")))
    with pytest.raises(AccessDenied, match="valid Date"):
        check(sent)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("X-Amz-Expires=300", "X-Amz-Expires=604801"),
        ("X-Amz-Expires=300", "X-Amz-Expires=-1"),
        ("X-Amz-Expires=300", "X-Amz-Expires=1e3"),
        ("&X-Amz-Expires=300", ""),
        ("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA1"),
        ("20260301T120000Z", "2026"),
        ("aws4_request", "aws5_request"),
        ("X-Amz-SignedHeaders=host", "X-Amz-SignedHeaders=Host"),
        ("X-Amz-Signature=", "x-id="),
    ],
)
def test_malformed_presign_parameters_are_named_as_such(old: str, new: str) -> None:
    wire = presigned()
    assert old.encode() in wire.target
    with pytest.raises(AuthorizationQueryParametersError):
        check(Wire(wire.method, wire.target.replace(old.encode(), new.encode()), wire.headers))


# Mutations of a whole request as text, so that every part of it is reached.
BASES = (
    signed(),
    signed(
        path="/datalake/", query=(("list-type", "2"), ("prefix", "trades/_delta_log/"), ("max-keys", "9"))
    ),
    signed(
        credentials=Credentials("AKIDALICE", "alice-secret", "FwoGZXIvYXdzEBY"), payload_hash=UNSIGNED_PAYLOAD
    ),
    signed("PUT", headers=(("x-amz-meta-a", "b c"), ("content-type", "a/b")), payload_hash="0" * 64),
    presigned(),
    presigned(
        query=(("response-content-type", "text/plain"),),
        headers=(("x-amz-checksum-mode", "ENABLED"),),
        credentials=Credentials("AKIDALICE", "alice-secret", "FwoGZXIvYXdzEBY"),
    ),
)


def to_bytes(wire: Wire) -> bytes:
    lines = [wire.method, wire.target, *(name + b":" + value for name, value in wire.headers)]
    return b"\n".join(lines)


def from_bytes(raw: bytes) -> Wire:
    method, target, *lines = [*raw.split(b"\n"), b"", b""][: max(2, raw.count(b"\n") + 1)]
    pairs = (line.partition(b":") for line in lines if line)
    return Wire(method, target, tuple((name, value) for name, _, value in pairs))


def edit_bytes(raw: bytes, place: int, byte: int, edit: int) -> bytes:
    at = place % len(raw)
    return (
        raw[:at] + bytes([byte]) + raw[at + 1 :],
        raw[:at] + raw[at + 1 :],
        raw[:at] + bytes([byte]) + raw[at:],
        raw[:at] + raw[at : at + 1] + raw[at:],
        raw[:at] + raw[at : at + 2][::-1] + raw[at + 2 :],
    )[edit % 5]


def edit_lines(raw: bytes, place: int, other: int, edit: int) -> bytes:
    lines = raw.split(b"\n")
    at, to = place % len(lines), other % len(lines)
    swapped = list(lines)
    swapped[at], swapped[to] = swapped[to], swapped[at]
    return b"\n".join((lines[:at] + lines[at + 1 :], [*lines, lines[at]], swapped)[edit % 3])


def meaning(request: S3Request, signed_names: frozenset[str]) -> object:
    """What a request says, apart from spellings that the rules of signing make equal.

    A header that was not signed and is none of Amazon's may come, go and change: S3 has it so.
    """
    headers: dict[str, list[str]] = {}
    for name, value in request.headers.items:
        headers.setdefault(name, []).append(" ".join(piece for piece in value.split(" ") if piece))
    authorization = sorted(",".join(headers.pop("authorization", [])).replace(",", " ").split())
    joined = {
        name: ",".join(values)
        for name, values in headers.items()
        if name in signed_names or name.startswith("x-amz-")
    }
    return request.method, request.raw_path, sorted(request.query), request.host, joined, authorization


def accepted(wire: Wire) -> S3Request | None:
    """The request, when it is signed by the secret of the access key that it names."""
    secrets = {CREDENTIALS.access_key: CREDENTIALS.secret_key}
    try:
        request = wire.parse()
        found = presented(request)
        if found is None or found.access_key not in secrets:
            return None
        verify(request, found, secrets[found.access_key], now=NOW, keys=KEYS)
    except S3Error:
        return None
    return request


edits: st.SearchStrategy[tuple[Callable[[bytes, int, int, int], bytes], int, int, int]] = st.tuples(
    st.sampled_from([edit_bytes, edit_bytes, edit_bytes, edit_bytes, edit_lines]),
    st.integers(0, 2000),
    st.integers(0, 255),
    st.integers(0, 14),
)


@pytest.mark.parametrize("base", BASES)
def test_the_requests_that_are_mutated_are_accepted_as_they_are(base: Wire) -> None:
    assert accepted(from_bytes(to_bytes(base))) is not None


@settings(max_examples=400, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(base=st.sampled_from(BASES), mutations=st.lists(edits, min_size=25, max_size=25))
def test_no_mutant_of_a_valid_request_is_accepted(
    base: Wire, mutations: list[tuple[Callable[[bytes, int, int, int], bytes], int, int, int]]
) -> None:
    """10,000 mutants: one byte or one line of a request changed, anywhere in it."""
    names = frozenset(shown(base.parse()).signed_headers)
    original = meaning(base.parse(), names)
    for edit, place, byte, kind in mutations:
        request = accepted(from_bytes(edit(to_bytes(base), place, byte, kind)))
        assert request is None or meaning(request, names) == original
