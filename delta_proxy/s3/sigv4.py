"""AWS Signature Version 4 as S3 has it: canonical requests, signing and presigning.

Sources: "Authenticating Requests (AWS Signature Version 4)" in the Amazon S3 API reference. S3 differs from
other services in that the path is percent-encoded once and never normalised; the canonical path is
therefore the raw path on the wire.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections import OrderedDict
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache

from attrs import field, frozen

ALGORITHM = "AWS4-HMAC-SHA256"
TERMINATOR = "aws4_request"
UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
MAX_PRESIGN_SECONDS = 7 * 24 * 3600

Pairs = Iterable[tuple[str, str]]

_RESERVED = re.compile(r"[^A-Za-z0-9._~-]")
# All that is reserved in a path but "=", which every partition has.
_RARE_IN_PATH = re.compile(r"[^A-Za-z0-9._~/=-]")
_UNHASHED = hashlib.sha256()
_BLOCK = 64
_INNER_PAD = bytes(byte ^ 0x36 for byte in range(256))
_OUTER_PAD = bytes(byte ^ 0x5C for byte in range(256))
_SCOPES = 64
_ESCAPES = {chr(code): f"%{code:02X}" for code in range(128)}
# Hop-by-hop and telemetry headers: intermediaries change them, so no SDK signs them.
_NEVER_SIGNED = frozenset(
    {"authorization", "connection", "expect", "te", "transfer-encoding", "user-agent", "x-amzn-trace-id"}
)


@frozen
class Credentials:
    """Credentials of a store or a client. Secrets stay out of the repr."""

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


class Signer:
    """Signs with one key of at most 64 bytes: HMAC-SHA256 (RFC 2104) whose work on the key is done once."""

    __slots__ = ("_inner", "_outer")

    def __init__(self, key: bytes) -> None:
        if len(key) > _BLOCK:
            raise ValueError("the key is longer than a block of SHA-256")
        padded = key.ljust(_BLOCK, b"\0")
        self._inner = hashlib.sha256(padded.translate(_INNER_PAD))
        self._outer = hashlib.sha256(padded.translate(_OUTER_PAD))

    def __call__(self, text: str) -> str:
        """The signature of a string to sign, in hexadecimal."""
        # Copies of plain hashes: the methods of Python's own HMAC are several calls each.
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(text.encode("utf-8"))
        outer.update(inner.digest())
        return outer.hexdigest()


class SigningKeys:
    """Derived signing keys by scope and secret; beyond `size` the least recently used is dropped."""

    def __init__(self, size: int = 1024) -> None:
        self._size = size
        self._keys: OrderedDict[tuple[str, ...], tuple[bytes, Signer]] = OrderedDict()

    def __repr__(self) -> str:
        return f"SigningKeys({len(self._keys)} of {self._size})"

    def get(self, secret_key: str, date: str, region: str, service: str) -> bytes:
        """The signing key of a scope; `date` is YYYYMMDD."""
        return self._get(secret_key, date, region, service)[0]

    def signer(self, secret_key: str, date: str, region: str, service: str) -> Signer:
        """What signs with the key of a scope."""
        return self._get(secret_key, date, region, service)[1]

    def _get(self, *scope: str) -> tuple[bytes, Signer]:
        known = self._keys.get(scope)
        if known is None:
            key = signing_key(*scope)
            known = self._keys[scope] = (key, Signer(key))
            if len(self._keys) > self._size:
                self._keys.popitem(last=False)
        else:
            self._keys.move_to_end(scope)
        return known


def signing_key(secret_key: str, date: str, region: str, service: str) -> bytes:
    """The key derived for a scope, as "Task 3: Calculate Signature" gives it."""
    key = _hmac(b"AWS4" + secret_key.encode(), date)
    return _hmac(_hmac(_hmac(key, region), service), TERMINATOR)


def quote(text: str) -> str:
    """Strict RFC 3986 percent-encoding of UTF-8: letters, digits and `-._~` stay as they are."""
    return _RESERVED.sub(_escape, text)


def quote_path(text: str) -> str:
    """`quote` that leaves slashes as they are."""
    return _RARE_IN_PATH.sub(_escape, text).replace("=", "%3D")


def object_path(bucket: str | None, key: str) -> str:
    """The raw path of a key, in path style or, without a bucket, as the path below a bucket's own host."""
    path = "/" + quote_path(key)
    return path if bucket is None else f"/{quote(bucket)}{path}"


def canonical_query(pairs: Pairs) -> str:
    """Decoded parameters, encoded strictly and sorted by encoded name, then value."""
    encoded = sorted([(quote(name), quote(value)) for name, value in pairs])
    return "&".join([f"{name}={value}" for name, value in encoded])


def canonical_value(value: str) -> str:
    """A header value without outer spaces, inner runs of spaces made one."""
    value = value.strip(" \t")
    return " ".join(filter(None, value.split(" "))) if "  " in value else value


def canonical_headers(headers: Pairs) -> tuple[str, str]:
    """The canonical block of these headers (each line ended by a newline) and their SignedHeaders list."""
    values: dict[str, str] = {}
    for name, value in headers:
        lower, text = name.lower(), canonical_value(value)
        values[lower] = f"{values[lower]},{text}" if lower in values else text
    ordered = sorted(values.items())
    return "".join([f"{name}:{value}\n" for name, value in ordered]), ";".join([name for name, _ in ordered])


def canonical_request(  # noqa: PLR0917
    method: str, raw_path: str, query: str, headers: str, signed_headers: str, payload_hash: str
) -> str:
    """The canonical request; `query` and `headers` are canonical already, `raw_path` is taken as it is."""
    return f"{method}\n{raw_path}\n{query}\n{headers}\n{signed_headers}\n{payload_hash}"


def string_to_sign(canonical: str, timestamp: str, scope: str) -> str:
    """The string to sign; `timestamp` is that of x-amz-date, `scope` is date/region/service/aws4_request."""
    # A copy is cheaper than a new one, which has OpenSSL look for the algorithm.
    digest = _UNHASHED.copy()
    digest.update(canonical.encode("utf-8", "surrogateescape"))
    return f"{ALGORITHM}\n{timestamp}\n{scope}\n{digest.hexdigest()}"


def signature(key: bytes, text: str) -> str:
    """The signature of a string to sign, in hexadecimal."""
    return hmac.digest(key, text.encode("utf-8"), "sha256").hex()


def timestamp_of(moment: datetime) -> str:
    """An aware datetime as x-amz-date writes it."""
    return _timestamp(moment if moment.tzinfo is UTC else moment.astimezone(UTC))


@lru_cache(maxsize=_SCOPES)
def _timestamp(at: datetime) -> str:
    return f"{at.year:04}{at.month:02}{at.day:02}T{at.hour:02}{at.minute:02}{at.second:02}Z"


def sign(  # noqa: PLR0917 - the parts of a request, in the order of the canonical form
    method: str,
    host: str,
    raw_path: str,
    query: Pairs,
    headers: Pairs,
    payload_hash: str,
    credentials: Credentials,
    region: str,
    now: datetime,
    keys: SigningKeys,
    service: str = "s3",
) -> tuple[tuple[str, str], ...]:
    """The headers that sign a request: x-amz-date, what goes with it, and authorization.

    `query` is decoded; `raw_path` is encoded as it will be sent; `host` carries a non-default port. Every
    header given is signed, hop-by-hop headers aside. `payload_hash` is a SHA-256 in hexadecimal,
    UNSIGNED-PAYLOAD, or one of the STREAMING- names; it is sent for S3 only, as other services do not ask
    for it.
    """
    timestamp = timestamp_of(now)
    hashed = payload_hash if service == "s3" else None
    added, block, names = _own_fields(host, timestamp, hashed, credentials.session_token)
    more = _signable(headers)
    if more:
        block, names = canonical_headers([("host", host), *added, *more])
    canonical = canonical_request(method, raw_path, canonical_query(query), block, names, payload_hash)
    scope = f"{timestamp[:8]}/{region}/{service}/{TERMINATOR}"
    signer = keys.signer(credentials.secret_key, timestamp[:8], region, service)
    signed = signer(string_to_sign(canonical, timestamp, scope))
    authorization = (
        f"{ALGORITHM} Credential={credentials.access_key}/{scope}, SignedHeaders={names}, Signature={signed}"
    )
    return (*added, ("authorization", authorization))


@lru_cache(maxsize=_SCOPES)
def _own_fields(
    host: str, timestamp: str, payload_hash: str | None, session_token: str | None
) -> tuple[tuple[tuple[str, str], ...], str, str]:
    """The fields that sign a request, and their canonical form with the host: one for all of a second."""
    own = (("x-amz-date", timestamp), ("x-amz-content-sha256", payload_hash))
    told = (*own, ("x-amz-security-token", session_token))
    added = tuple([(name, value) for name, value in told if value is not None])
    return added, *canonical_headers([("host", host), *added])


def presign(  # noqa: PLR0917
    method: str,
    host: str,
    raw_path: str,
    query: Pairs,
    headers: Pairs,
    credentials: Credentials,
    region: str,
    now: datetime,
    expires: int,
    keys: SigningKeys,
) -> str:
    """The whole query string of a presigned URL, without its "?"; the payload is UNSIGNED-PAYLOAD.

    `headers` are those the client will send and that are signed besides host; `expires` is in seconds,
    1..604800. Raises ValueError for another expiry.
    """
    if not 1 <= expires <= MAX_PRESIGN_SECONDS:
        raise ValueError("a presigned URL lives 1 to 604800 seconds")
    timestamp = timestamp_of(now)
    scope = f"{timestamp[:8]}/{region}/s3/{TERMINATOR}"
    block, names = canonical_headers([("host", host), *_signable(headers)])
    encoded = _presigned_query(credentials.access_key, credentials.session_token, scope, timestamp, expires)
    encoded = f"{encoded}&X-Amz-SignedHeaders={_quoted_names(names)}"
    more = canonical_query(query) if query else ""
    if more:
        # "X-Amz-" parameters are sorted among the others, which may have any name.
        encoded = "&".join(sorted([*encoded.split("&"), *more.split("&")], key=_parameter))
    canonical = canonical_request(method, raw_path, encoded, block, names, UNSIGNED_PAYLOAD)
    signer = keys.signer(credentials.secret_key, timestamp[:8], region, "s3")
    return f"{encoded}&X-Amz-Signature={signer(string_to_sign(canonical, timestamp, scope))}"


@lru_cache(maxsize=_SCOPES)
def _presigned_query(
    access_key: str, session_token: str | None, scope: str, timestamp: str, expires: int
) -> str:
    """The parameters that all URLs presigned in the same second have in common, encoded and sorted."""
    pairs = [
        ("X-Amz-Algorithm", ALGORITHM),
        ("X-Amz-Credential", f"{access_key}/{scope}"),
        ("X-Amz-Date", timestamp),
        ("X-Amz-Expires", str(expires)),
    ]
    if session_token is not None:
        pairs.append(("X-Amz-Security-Token", session_token))
    return canonical_query(pairs)


@lru_cache(maxsize=_SCOPES)
def _quoted_names(names: str) -> str:
    return quote(names)


def _parameter(encoded: str) -> tuple[str, str]:
    name, _, value = encoded.partition("=")
    return name, value


def _escape(match: re.Match[str]) -> str:
    character = match.group()
    return _ESCAPES.get(character) or "".join([f"%{byte:02X}" for byte in character.encode("utf-8")])


def _signable(headers: Pairs) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers if name.lower() not in _NEVER_SIGNED]


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode("utf-8"), "sha256")
