"""A request of S3, parsed once from what was on the wire."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote_to_bytes

from attrs import frozen

from delta_proxy.s3.errors import (
    InvalidArgument,
    InvalidRequest,
    InvalidURI,
    KeyTooLongError,
    MethodNotAllowed,
    RequestHeaderSectionTooLarge,
    S3Error,
)
from delta_proxy.s3.headers import Headers
from delta_proxy.s3.operation import Operation, classify

MAX_KEY_BYTES = 1024
MAX_QUERY_BYTES = 64 * 1024
MAX_HEADER_BYTES = 64 * 1024
# A key of the greatest length with every byte escaped, and room for a bucket name.
MAX_PATH_BYTES = 3 * MAX_KEY_BYTES + 1024

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})|%00")
# Bytes that no request target holds: controls, space, DEL, and the fragment mark.
_BAD_TARGET = re.compile(rb"[\x00-\x20\x7f#]")
_ABSOLUTE = re.compile(rb"https?://([^/?]*)(.*)", re.IGNORECASE | re.DOTALL)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~-]+)(:[0-9]{0,5})?")
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


@frozen
class Addressing:
    """What clients call the bucket: its name, and the domains below which a bucket's name is a host."""

    bucket: str
    domains: tuple[str, ...] = ()


@frozen
class S3Request:
    """A request as S3 understands it.

    `raw_path` and `raw_query` are the bytes on the wire, in origin form: signatures are computed over the
    raw path. `query` is decoded, in its order; a parameter without "=" has the value "". `host` is the
    authority of an absolute-form target, else the Host header, with its port. `key` is decoded exactly once
    and never normalised.
    """

    method: str
    raw_path: bytes
    raw_query: bytes
    query: tuple[tuple[str, str], ...]
    headers: Headers
    host: str
    absolute: bool
    bucket: str
    key: str
    virtual_host: bool
    operation: Operation

    def param(self, name: str) -> str | None:
        """The value of a query parameter, or None."""
        return next((value for field, value in self.query if field == name), None)


def parse_request(
    method: bytes, target: bytes, headers: Headers | Iterable[tuple[bytes, bytes]], addressing: Addressing
) -> S3Request:
    """The request behind a request line and its header fields, which are checked unless they are `Headers`.

    `target` is in origin form (`/b/k?q`) or absolute form (`http://host:port/b/k?q`); header names may have
    any case. Raises S3Error: InvalidURI for a target that is no URI of S3, KeyTooLongError, InvalidRequest
    for header fields that HTTP does not allow, RequestHeaderSectionTooLarge, InvalidArgument for a
    parameter given twice, and what `classify` raises.
    """
    verb = _verb(method)
    fields = headers if isinstance(headers, Headers) else _parse_headers(headers)
    authority, rest = _split_target(target)
    host = _host(authority, fields)
    raw_path, _, raw_query = rest.partition(b"?")
    query = parse_query(raw_query)
    virtual = _virtual_bucket(host, addressing.domains)
    bucket, key = _split_path(raw_path, virtual)
    operation = classify(verb, bucket, key, query, fields)
    if query:
        _refuse_duplicates(query)
    return S3Request(
        method=verb,
        raw_path=raw_path,
        raw_query=raw_query,
        query=query,
        headers=fields,
        host=host,
        absolute=authority is not None,
        bucket=bucket,
        key=key,
        virtual_host=virtual is not None,
        operation=operation,
    )


def split_key(key: str) -> tuple[str, str | None]:
    """A key as alias and path below it; the path is None when the key has no slash."""
    alias, slash, path = key.partition("/")
    return alias, path if slash else None


def parse_query(raw: bytes) -> tuple[tuple[str, str], ...]:
    """The decoded parameters of a raw query, in order; "+" is a space, as form encoding has it.

    Raises InvalidURI for bad escapes, NUL and text that is not UTF-8, and for more than 64 KiB.
    """
    if len(raw) > MAX_QUERY_BYTES:
        raise InvalidURI("The query string is too long.")
    if not raw:
        return ()
    pairs = []
    for piece in raw.split(b"&"):
        if piece:
            name, _, value = piece.replace(b"+", b" ").partition(b"=")
            pairs.append((decode(name), decode(value)))
    return tuple(pairs)


def decode(raw: bytes) -> str:
    """Percent-encoded bytes as text, decoded once.

    Raises InvalidURI for bad escapes, NUL and what is not UTF-8.
    """
    try:
        if b"%" in raw:
            # Most keys have no other escapes. What this leaves is malformed exactly if all of it was.
            raw = raw.replace(b"%3D", b"=").replace(b"%3d", b"=")
        if b"%" not in raw:
            return raw.decode("utf-8")
        if _BAD_ESCAPE.search(raw):
            raise InvalidURI()
        return unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidURI() from None


def _verb(method: bytes) -> str:
    if not method.isalpha() or not method.isascii() or len(method) > 32:
        raise MethodNotAllowed()
    return method.decode("ascii")


def _parse_headers(pairs: Iterable[tuple[bytes, bytes]]) -> Headers:
    parsed = []
    size = 0
    for name, value in pairs:
        size += len(name) + len(value) + 4
        if size > MAX_HEADER_BYTES:
            raise RequestHeaderSectionTooLarge()
        stripped = value.strip(b" \t")
        if not _TOKEN.fullmatch(name) or _BAD_VALUE.search(stripped):
            raise InvalidRequest("A header of the request is malformed.")
        parsed.append((name.decode("ascii").lower(), stripped.decode("latin-1")))
    return Headers(tuple(parsed))


def _split_target(target: bytes) -> tuple[str | None, bytes]:
    """The authority (None in origin form) and the target in origin form."""
    if _BAD_TARGET.search(target):
        raise InvalidURI()
    if target.startswith(b"/"):
        return None, target
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise InvalidURI()
    authority, rest = match.groups()
    return authority.decode("latin-1"), rest if rest.startswith(b"/") else b"/" + rest


def _host(authority: str | None, headers: Headers) -> str:
    """The host the request is for.

    The authority of an absolute form wins over the header (RFC 9112, 3.2.2).
    """
    named = headers.all("host")
    if len(named) > 1:
        raise InvalidRequest("The request has more than one Host header.")
    host = authority if authority is not None else (named[0] if named else "")
    if (host or authority is not None) and not _HOST.fullmatch(host):
        raise InvalidURI() if authority is not None else InvalidRequest("The Host header is malformed.")
    return host


def _virtual_bucket(host: str, domains: tuple[str, ...]) -> str | None:
    """The bucket that a host names, or None for path style."""
    if not domains:
        return None
    name = re.sub(r":[0-9]*$", "", host).lower()
    matching = [domain for domain in domains if name.endswith("." + domain.lower())]
    if not matching or name in {domain.lower() for domain in domains}:
        return None
    return name[: -len(max(matching, key=len)) - 1] or None


def _split_path(raw_path: bytes, virtual: str | None) -> tuple[str, str]:
    if len(raw_path) > MAX_PATH_BYTES:
        raise KeyTooLongError(fields={"MaxSizeAllowed": str(MAX_KEY_BYTES)})
    if virtual is not None:
        return virtual, _key(raw_path[1:])
    raw_bucket, slash, raw_key = raw_path[1:].partition(b"/")
    bucket = decode(raw_bucket)
    if "/" in bucket or (slash and not bucket):
        raise InvalidURI()
    return bucket, _key(raw_key)


def _key(raw: bytes) -> str:
    key = decode(raw)
    size = len(key) if key.isascii() else len(key.encode())
    if size > MAX_KEY_BYTES:
        raise KeyTooLongError(fields={"Size": str(size), "MaxSizeAllowed": str(MAX_KEY_BYTES)})
    return key


def _refuse_duplicates(query: tuple[tuple[str, str], ...]) -> None:
    seen = set()
    for name, _ in query:
        if name in seen:
            raise InvalidArgument(
                "A query parameter was given more than once.", fields={"ArgumentName": name[:100]}
            )
        seen.add(name)


__all__ = [
    "MAX_HEADER_BYTES",
    "MAX_KEY_BYTES",
    "MAX_QUERY_BYTES",
    "Addressing",
    "Headers",
    "S3Error",
    "S3Request",
    "decode",
    "parse_query",
    "parse_request",
    "split_key",
]
