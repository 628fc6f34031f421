"""`--sign`: which requests are signed, and that the proxy's own verification takes the signature."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from delta_proxy.local_helper.signing import Signer
from delta_proxy.local_helper.targets import Fields, first, parse_absolute, parse_endpoint
from delta_proxy.s3.request import Addressing, parse_request
from delta_proxy.s3.sigv4 import Credentials, SigningKeys
from delta_proxy.s3.verify import presented, verify
from delta_proxy.upstream.credentials import StaticCredentials
from tests.helpers import result_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ENDPOINT = "http://localhost:18080"
SECRET = "secret"
HOST = b"localhost:18080"


def signed(
    url: str, fields: Fields = (), *, method: bytes = b"GET", token: str | None = "token", host: bytes = HOST
) -> Fields:
    """The fields of a request after the signer has seen it."""
    source = StaticCredentials(Credentials("key", SECRET, token), "eu-west-1")
    signer = Signer(frozenset({parse_endpoint(ENDPOINT)}), source, lambda: NOW)
    return result_of(signer.sign(method, parse_absolute(url.encode()), host, ((b"host", host), *fields)))


@pytest.mark.parametrize(
    "path",
    [
        "/datalake/t/a%20b/c~%C3%BC=1",
        "/datalake?list-type=2&prefix=a/b c+d&delimiter=%2F".replace(" ", "%20"),
        "/",
    ],
)
@pytest.mark.parametrize("token", [None, "token"])
def test_the_proxy_takes_the_signature(path: str, token: str | None) -> None:
    fields = signed(
        ENDPOINT + path, ((b"x-amz-checksum-mode", b"ENABLED"), (b"range", b"bytes=0-1")), token=token
    )
    request = parse_request(b"GET", path.encode(), fields, Addressing("datalake"))
    signature = presented(request)
    assert signature is not None
    assert (signature.access_key, signature.region, signature.session_token) == ("key", "eu-west-1", token)
    verify(request, signature, SECRET, now=NOW, keys=SigningKeys())


def test_leftovers_of_another_signature_are_replaced() -> None:
    fields = signed(f"{ENDPOINT}/datalake/t", ((b"X-Amz-Date", b"20200101T000000Z"),))
    assert [value for name, value in fields if name.lower() == b"x-amz-date"] == [b"20260101T000000Z"]


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:18081/datalake/t",
        "http://localhost/datalake/t",
        "https://localhost:18080/datalake/t",
        "http://elsewhere.example:18080/datalake/t",
        "http://localhost.elsewhere.example:18080/datalake/t",
    ],
)
def test_no_other_endpoint_gets_a_signature_or_a_token(url: str) -> None:
    assert signed(url) == ((b"host", HOST),)


@pytest.mark.parametrize("method", [b"PUT", b"POST", b"DELETE"])
def test_only_reads_are_signed(method: bytes) -> None:
    assert signed(f"{ENDPOINT}/datalake/t", method=method) == ((b"host", HOST),)


def test_what_the_client_signed_stays_as_it_is() -> None:
    assert len(signed(f"{ENDPOINT}/datalake/t", ((b"Authorization", b"AWS4-HMAC-SHA256 x"),))) == 2
    assert len(signed(f"{ENDPOINT}/datalake/t?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature=x")) == 1
    assert len(signed(f"{ENDPOINT}/datalake/t?AWSAccessKeyId=x&Signature=y")) == 1


@pytest.mark.parametrize(
    ("name", "value", "due"),
    [
        (b"Sec-Fetch-Site", b"none", True),
        (b"Sec-Fetch-Site", b"same-origin", True),
        (b"Sec-Fetch-Site", b"same-site", False),
        (b"Sec-Fetch-Site", b"cross-site", False),
        (b"Origin", b"http://localhost:18080", True),
        (b"Origin", b"http://localhost:3000", False),
        (b"Origin", b"null", False),
    ],
)
def test_a_page_of_another_site_gets_no_signature(name: bytes, value: bytes, *, due: bool) -> None:
    fields = signed(f"{ENDPOINT}/datalake/t", ((name, value),))
    assert (first(fields, b"authorization") is not None) is due
