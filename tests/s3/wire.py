"""Requests as bytes on the wire, signed as a client signs them."""

from __future__ import annotations

from datetime import UTC, datetime

from attrs import frozen

from delta_proxy.s3.request import Addressing, S3Request, parse_request
from delta_proxy.s3.sigv4 import EMPTY_SHA256, Credentials, SigningKeys, canonical_query, presign, sign
from delta_proxy.s3.verify import Presented, presented

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
HOST = "proxy.example.com:18080"
ADDRESSING = Addressing("datalake", ("s3.example.com",))
CREDENTIALS = Credentials("AKIDALICE", "alice-secret")
REGION = "us-east-1"

Pairs = tuple[tuple[str, str], ...]


@frozen
class Wire:
    """A request line and its header lines."""

    method: bytes
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]

    def parse(self) -> S3Request:
        return parse_request(self.method, self.target, self.headers, ADDRESSING)

    def with_headers(self, *pairs: tuple[str, str]) -> Wire:
        return Wire(self.method, self.target, self.headers + encoded(pairs))

    def without(self, name: str) -> Wire:
        kept = tuple(pair for pair in self.headers if pair[0] != name.encode())
        return Wire(self.method, self.target, kept)

    def replacing(self, name: str, value: str) -> Wire:
        return self.without(name).with_headers((name, value))


def encoded(pairs: tuple[tuple[str, str], ...]) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((name.encode(), value.encode("latin-1")) for name, value in pairs)


def signed(
    method: str = "GET",
    path: str = "/datalake/trades/part-0.parquet",
    query: Pairs = (),
    headers: Pairs = (("range", "bytes=0-9"),),
    *,
    payload_hash: str = EMPTY_SHA256,
    credentials: Credentials = CREDENTIALS,
    at: datetime = NOW,
    service: str = "s3",
    region: str = REGION,
) -> Wire:
    """A request signed in its Authorization header."""
    added = sign(
        method,
        HOST,
        path,
        query,
        headers,
        payload_hash,
        credentials,
        region,
        at,
        SigningKeys(),
        service,
    )
    target = path + ("?" + canonical_query(query) if query else "")
    return Wire(method.encode(), target.encode(), encoded((("host", HOST), *headers, *added)))


def presigned(
    path: str = "/datalake/trades/part-0.parquet",
    query: Pairs = (),
    headers: Pairs = (),
    *,
    method: str = "GET",
    credentials: Credentials = CREDENTIALS,
    at: datetime = NOW,
    expires: int = 300,
) -> Wire:
    """A presigned URL as a request."""
    text = presign(method, HOST, path, query, headers, credentials, REGION, at, expires, SigningKeys())
    return Wire(method.encode(), f"{path}?{text}".encode(), encoded((("host", HOST), *headers)))


def shown(request: S3Request) -> Presented:
    """What the request presents, which must be something."""
    found = presented(request)
    assert found is not None
    return found
