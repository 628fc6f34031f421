"""Signing and presigning, held to AWS's published vectors and to botocore."""

from __future__ import annotations

import hmac
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote_plus
from urllib.parse import quote as library_quote

import pytest
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotoCredentials
from hypothesis import given, settings
from hypothesis import strategies as st

from delta_proxy.s3.sigv4 import (
    EMPTY_SHA256,
    UNSIGNED_PAYLOAD,
    Credentials,
    Signer,
    SigningKeys,
    canonical_query,
    object_path,
    presign,
    quote,
    quote_path,
    sign,
    signing_key,
)

VECTORS = Path(__file__).parent / "vectors"
S3 = json.loads((VECTORS / "s3_examples.json").read_text())
SUITE = json.loads((VECTORS / "aws4_testsuite.json").read_text())
NOW = datetime(2013, 5, 24, tzinfo=UTC)
HOST = "store.example.com:9000"

keys = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=40)
names = st.text("abcdefghijklmnopqrstuvwxyzABC-._~ +%&=/", min_size=1, max_size=12)
values = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
queries = st.dictionaries(names, values, max_size=4).map(lambda pairs: tuple(pairs.items()))
header_values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20)
extra_headers = st.dictionaries(
    st.sampled_from(["range", "if-match", "x-amz-meta-a", "x-amz-storage-class", "content-type"]),
    header_values,
    max_size=4,
).map(lambda pairs: tuple(pairs.items()))
tokens = st.none() | st.text("abc+/=", min_size=1, max_size=20)


def by_name(cases: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(case, id=case["name"]) for case in cases]


def moment(timestamp: str) -> datetime:
    return datetime.strptime(timestamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)


@pytest.mark.parametrize("case", by_name(S3["requests"]))
def test_the_examples_of_the_s3_reference_are_signed_as_printed(case: dict[str, Any]) -> None:
    added = sign(
        case["method"],
        case["host"],
        case["path"],
        case["query"],
        case["headers"],
        case["payload_hash"],
        Credentials(S3["access_key"], S3["secret_key"]),
        S3["region"],
        moment(S3["timestamp"]),
        SigningKeys(),
    )
    assert dict(added) == {
        "x-amz-date": S3["timestamp"],
        "x-amz-content-sha256": case["payload_hash"],
        "authorization": (
            f"AWS4-HMAC-SHA256 Credential={S3['access_key']}/20130524/us-east-1/s3/aws4_request, "
            f"SignedHeaders={case['signed_headers']}, Signature={case['signature']}"
        ),
    }


def test_the_presigned_example_of_the_s3_reference_is_signed_as_printed() -> None:
    query = presign(
        "GET",
        S3["presigned"]["host"],
        S3["presigned"]["path"],
        (),
        (),
        Credentials(S3["access_key"], S3["secret_key"]),
        S3["region"],
        moment(S3["timestamp"]),
        S3["presigned"]["expires"],
        SigningKeys(),
    )
    assert query == S3["presigned"]["query"]


@pytest.mark.parametrize("case", by_name(SUITE["requests"]))
def test_the_sigv4_test_suite_is_signed_as_published(case: dict[str, Any]) -> None:
    added = sign(
        case["method"],
        SUITE["host"],
        case["path"],
        case["query"],
        case["headers"],
        EMPTY_SHA256,
        Credentials(SUITE["access_key"], SUITE["secret_key"]),
        SUITE["region"],
        moment(SUITE["timestamp"]),
        SigningKeys(),
        SUITE["service"],
    )
    assert dict(added)["authorization"].endswith(
        f"SignedHeaders={case['signed_headers']}, Signature={case['signature']}"
    )
    assert "x-amz-content-sha256" not in dict(added)


@settings(max_examples=200, deadline=None)
@given(key=keys, query=queries, headers=extra_headers, token=tokens)
def test_a_signed_request_carries_the_signature_that_botocore_gives(
    key: str, query: tuple[tuple[str, str], ...], headers: tuple[tuple[str, str], ...], token: str | None
) -> None:
    path = object_path("bucket", key)
    request = AWSRequest(
        "GET",
        f"http://{HOST}{path}?{canonical_query(query)}",
        headers={**dict(headers), "X-Amz-Content-SHA256": UNSIGNED_PAYLOAD},
    )
    request.context["payload_signing_enabled"] = False
    S3SigV4Auth(BotoCredentials("AKID", "secret", token), "s3", "eu-west-1").add_auth(request)
    added = sign(
        "GET",
        HOST,
        path,
        query,
        headers,
        request.headers["X-Amz-Content-SHA256"],
        Credentials("AKID", "secret", token),
        "eu-west-1",
        moment(request.headers["X-Amz-Date"]),
        SigningKeys(),
    )
    assert dict(added)["authorization"] == request.headers["Authorization"]
    assert dict(added).get("x-amz-security-token") == token


@settings(max_examples=200, deadline=None)
@given(key=keys, query=queries, headers=extra_headers, token=tokens, expires=st.integers(1, 604800))
def test_a_presigned_url_carries_the_signature_that_botocore_gives(
    key: str,
    query: tuple[tuple[str, str], ...],
    headers: tuple[tuple[str, str], ...],
    token: str | None,
    expires: int,
) -> None:
    path = object_path("bucket", key)
    encoded = "&".join(f"{quote_plus(name)}={quote_plus(value)}" for name, value in query)
    request = AWSRequest("GET", f"http://{HOST}{path}?{encoded}", headers=dict(headers))
    signer = S3SigV4QueryAuth(BotoCredentials("AKID", "secret", token), "s3", "eu-west-1", expires=expires)
    signer.add_auth(request)
    theirs = dict(parse_qsl(request.url.partition("?")[2], keep_blank_values=True))
    ours = presign(
        "GET",
        HOST,
        path,
        query,
        headers,
        Credentials("AKID", "secret", token),
        "eu-west-1",
        moment(theirs["X-Amz-Date"]),
        expires,
        SigningKeys(),
    )
    assert dict(parse_qsl(ours, keep_blank_values=True)) == theirs


def test_headers_that_intermediaries_change_are_left_unsigned() -> None:
    headers = (
        ("User-Agent", "x"),
        ("Connection", "close"),
        ("Expect", "100-continue"),
        ("Range", "bytes=0-1"),
    )
    added = sign(
        "GET", HOST, "/b/k", (), headers, EMPTY_SHA256, Credentials("A", "s"), "r", NOW, SigningKeys()
    )
    assert "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date" in dict(added)["authorization"]


@pytest.mark.parametrize("expires", [0, -1, 604801])
def test_a_presigned_url_lives_at_least_a_second_and_at_most_a_week(expires: int) -> None:
    with pytest.raises(ValueError, match="604800"):
        presign("GET", HOST, "/b/k", (), (), Credentials("A", "s"), "r", NOW, expires, SigningKeys())


def test_the_path_keeps_every_segment_of_a_key_and_encodes_the_rest_strictly() -> None:
    assert object_path("b", "a//../%41+= ü'(") == "/b/a//../%2541%2B%3D%20%C3%BC%27%28"
    assert object_path(None, "k") == "/k"
    assert quote("a/b~c_d-e.f") == "a%2Fb~c_d-e.f"


def test_signing_keys_are_kept_and_the_least_recently_used_are_dropped() -> None:
    kept = SigningKeys(2)
    first = kept.get("s", "20130524", "us-east-1", "s3")
    assert first == signing_key("s", "20130524", "us-east-1", "s3")
    kept.get("s", "20130525", "us-east-1", "s3")
    assert kept.get("s", "20130524", "us-east-1", "s3") is first
    kept.get("s", "20130526", "us-east-1", "s3")
    assert kept.get("s", "20130524", "us-east-1", "s3") is first
    assert repr(kept) == "SigningKeys(2 of 2)"


def test_no_secret_is_in_a_repr() -> None:
    assert "hidden" not in repr(Credentials("AKID", "hidden-secret", "hidden-token"))


@given(st.binary(max_size=64), st.text(max_size=300))
def test_a_signer_gives_what_hmac_of_the_library_gives(key: bytes, text: str) -> None:
    assert Signer(key)(text) == hmac.new(key, text.encode(), "sha256").hexdigest()


def test_a_signer_takes_no_key_that_would_have_to_be_hashed_first() -> None:
    with pytest.raises(ValueError, match="longer than a block"):
        Signer(b"k" * 65)


@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_a_path_is_quoted_as_the_library_quotes_it(path: str) -> None:
    assert quote_path(path) == library_quote(path, safe="/-._~")
