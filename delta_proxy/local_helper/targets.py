"""What a client of the helper asks for, and which of its header fields go where. Pure.

Sources: RFC 9112 section 3.2 for the forms of a request target, RFC 9110 section 7.6.1 for fields that end at
each hop, "Authenticating Requests: Using Query Parameters" in the Amazon S3 API reference for presigned URLs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from attrs import frozen

from delta_proxy.s3.errors import InvalidRequest, InvalidURI, S3Error
from delta_proxy.s3.request import parse_query
from delta_proxy.s3.user_agents import HELPER_HEADER

Fields = tuple[tuple[bytes, bytes], ...]

USER_AGENT = b"delta-s3-proxy-local"
_ABSOLUTE = re.compile(rb"(https?)://([^/?#]*)([^#]*)", re.IGNORECASE)
_AUTHORITY = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~-]+)(?::([0-9]{1,5}))?")
# What the HTTP client takes as a target; SigV4 clients escape everything else.
_TARGET = re.compile(rb"/[!-~]*")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_HOP_BY_HOP = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection"),
        *(b"te", b"trailer", b"transfer-encoding", b"upgrade"),
    }
)
# Framing and 100-continue are settled between the helper and each side.
_OWN = frozenset({b"content-length", b"expect", b"host", HELPER_HEADER.encode()})
_FOR_THE_STORE = frozenset(
    {b"range", b"if-range", b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since"}
)


@frozen
class Origin:
    """Where requests go: scheme, host in lower case without brackets, port."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """Host and port as a Host header has them; the scheme's own port is left out."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """As an endpoint is written."""
        return f"{self.scheme}://{self.authority}"


@frozen
class Target:
    """A resource at an origin; `raw` is path and query as they go on the wire."""

    origin: Origin
    raw: bytes

    @property
    def raw_path(self) -> bytes:
        """The path, as it is encoded."""
        return self.raw.partition(b"?")[0]

    @property
    def raw_query(self) -> bytes:
        """The query, as it is encoded, without its question mark."""
        return self.raw.partition(b"?")[2]


def parse_absolute(target: bytes) -> Target:
    """The target of a request to a proxy. Raises InvalidRequest for another form, InvalidURI if malformed."""
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise InvalidRequest("This is an HTTP proxy: set it as the client's proxy, not as its endpoint.")
    scheme, authority, rest = match.groups()
    origin = parse_authority(authority, scheme.decode("ascii").lower())
    return target_at(origin, rest if rest.startswith(b"/") else b"/" + rest)


def target_at(origin: Origin, raw: bytes) -> Target:
    """A path and query at an origin. Raises InvalidURI for what HTTP cannot carry."""
    if _TARGET.fullmatch(raw) is None or b"#" in raw:
        raise InvalidURI()
    return Target(origin, raw)


def parse_authority(authority: bytes, scheme: str) -> Origin:
    """`host` or `host:port`. Raises InvalidURI."""
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        raise InvalidURI()
    host, digits = match.groups()
    port = int(digits) if digits else _DEFAULT_PORTS[scheme]
    if not 0 < port < 65536:
        raise InvalidURI()
    return Origin(scheme, host.decode("ascii").lower().strip("[]"), port)


def parse_endpoint(url: str) -> Origin:
    """An endpoint as people write it. Raises ValueError that says what was expected."""
    match = _ABSOLUTE.fullmatch(url.encode("utf-8"))
    try:
        if match is not None and match[3] in {b"", b"/"}:
            return parse_authority(match[2], match[1].decode("ascii").lower())
    except S3Error:
        pass
    raise ValueError(f'"{url}" is no endpoint; expected "http://host:port" or "https://host"')


def first(fields: Fields, name: bytes) -> bytes | None:
    """The first value of a field, or None; `name` is in lower case."""
    return next((value for field, value in fields if field.lower() == name), None)


def host_field(target: Target, fields: Fields) -> bytes:
    """The Host to send: the client's own, which it signed, unless it names another origin than the target.

    RFC 9112 section 3.2.2: the target's authority wins.
    """
    sent = first(fields, b"host")
    try:
        if sent is not None and parse_authority(sent, target.origin.scheme) == target.origin:
            return sent
    except S3Error:
        pass
    return target.origin.authority.encode("ascii")


def to_the_proxy(target: Target, fields: Fields) -> Fields:
    """The fields for the proxy: the client's, but for those of the connection, and the announcement."""
    dropped = _HOP_BY_HOP | _OWN | (_named_by_connection(fields) - {b"authorization"})
    kept = tuple((name, value) for name, value in fields if name.lower() not in dropped)
    announcement = (HELPER_HEADER.encode("ascii"), b"1")
    return ((b"host", host_field(target, fields)), *kept, announcement)


def to_the_store(target: Target, fields: Fields) -> Fields:
    """The fields for the store: range and conditions, and nothing else that the client sent."""
    kept = tuple((name, value) for name, value in fields if name.lower() in _FOR_THE_STORE)
    host = target.origin.authority.encode("ascii")
    return ((b"host", host), (b"user-agent", USER_AGENT), (b"accept-encoding", b"identity"), *kept)


def to_the_client(fields: Iterable[tuple[str, str]]) -> Fields:
    """The fields of an answer that are not of the connection it came on."""
    encoded = tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in fields)
    dropped = _HOP_BY_HOP | _named_by_connection(encoded)
    return tuple((name, value) for name, value in encoded if name.lower() not in dropped)


def presigned(location: bytes | None) -> Target | None:
    """The target of a Location that is a presigned URL which needs no field but Host; else None.

    Whatever else a 307 names is the client's to judge: a region redirect of S3, say, wants a new signature.
    """
    try:
        target = parse_absolute(location or b"")
        query = dict(parse_query(target.raw_query))
    except S3Error:
        return None
    bare = query.get("X-Amz-SignedHeaders") == "host" and "X-Amz-Signature" in query
    return target if bare else None


def _named_by_connection(fields: Fields) -> frozenset[bytes]:
    values = (value for name, value in fields if name.lower() == b"connection")
    return frozenset(token.strip().lower() for value in values for token in value.split(b","))
