"""Verification of Signature Version 4: what a request presents, and whether a secret gives that signature.

Sources: "Authenticating Requests (AWS Signature Version 4)" in the Amazon S3 API reference, in the header
and in the query. The canonical path is the raw path as sent; the query is decoded, encoded strictly and
sorted, because some clients send form encoding but sign the strict one.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from attrs import field, frozen

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
from delta_proxy.s3.headers import Headers, wire_text
from delta_proxy.s3.request import S3Request
from delta_proxy.s3.sigv4 import (
    ALGORITHM,
    MAX_PRESIGN_SECONDS,
    TERMINATOR,
    UNSIGNED_PAYLOAD,
    SigningKeys,
    canonical_query,
    canonical_request,
    canonical_value,
    string_to_sign,
)

MAX_SKEW = timedelta(minutes=15)
STREAMING_SIGNED = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
STREAMING_SIGNED_TRAILER = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
STREAMING_UNSIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"

_CONTENT_SHA256 = "x-amz-content-sha256"
_NAMED_PAYLOADS = frozenset(
    {UNSIGNED_PAYLOAD, STREAMING_SIGNED, STREAMING_SIGNED_TRAILER, STREAMING_UNSIGNED_TRAILER}
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TIMESTAMP = re.compile(r"[0-9]{8}T[0-9]{6}Z", re.ASCII)
_ACCESS_KEY = re.compile(r"[!-+\--~]{1,128}")
_DATE = re.compile(r"[0-9]{8}", re.ASCII)
_REGION = re.compile(r"[A-Za-z0-9_-]{1,64}")
_EXPIRES = re.compile(r"[0-9]{1,7}", re.ASCII)
_SINGLE = frozenset({"authorization", "x-amz-date", "x-amz-content-sha256", "x-amz-security-token"})
_PRESIGN_NAMES = (
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-SignedHeaders",
    "X-Amz-Signature",
)
_PRESIGNED = frozenset({"X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Signature"})
# Parsed scopes and lists of signed headers are remembered: clients repeat theirs with every request.
_SCOPES = 256
_SIGNATURE = "Signature="
_SIGV2_QUERY = frozenset({"AWSAccessKeyId", "Signature"})
_SIGV2_MESSAGE = (
    "The authorization mechanism you have provided is not supported. "
    "Please use AWS4-HMAC-SHA256 (boto3: Config(signature_version='s3v4'))."
)
_TWO_MECHANISMS = (
    "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, "
    "Signature query string parameter or the Authorization header should be specified"
)


@frozen
class Presented:
    """The signature a request presents, parsed but not yet believed.

    `date`, `region` and `service` are the scope; `timestamp` is x-amz-date as sent, `moment` the same as an
    aware datetime. `expires` is in seconds for a presigned URL, None for a header. `payload_hash` is the
    last line of the canonical request, None when the request does not say it (other services than S3).
    """

    access_key: str
    date: str
    region: str
    service: str
    timestamp: str
    moment: datetime
    signed_headers: tuple[str, ...]
    signature: str = field(repr=False)
    payload_hash: str | None
    expires: int | None = None
    session_token: str | None = field(default=None, repr=False)

    @property
    def presigned(self) -> bool:
        """Whether the signature came in the query."""
        return self.expires is not None

    @property
    def scope(self) -> str:
        """The credential scope, as the string to sign has it."""
        return f"{self.date}/{self.region}/{self.service}/{TERMINATOR}"


def presented(request: S3Request) -> Presented | None:
    """The signature of a request, from its Authorization header or its query; None for an anonymous request.

    Raises InvalidRequest for two mechanisms at once, Signature Version 2 and repeated security headers,
    AuthorizationHeaderMalformed, AuthorizationQueryParametersError, AccessDenied without a valid date,
    InvalidArgument for another scheme or a bad x-amz-content-sha256.
    """
    _refuse_repeated(request.headers)
    authorization = request.headers.get("authorization")
    if request.query:
        names = {name for name, _ in request.query}
        if names & _SIGV2_QUERY:
            raise InvalidRequest(_SIGV2_MESSAGE if authorization is None else _TWO_MECHANISMS)
        if names & _PRESIGNED:
            if authorization is not None:
                raise InvalidRequest(_TWO_MECHANISMS)
            return _from_query(request)
    return None if authorization is None else _from_header(authorization, request.headers)


def verify(
    request: S3Request,
    presented: Presented,
    secret_key: str,
    *,
    now: datetime,
    keys: SigningKeys,
    regions: Collection[str] | None = None,
    service: str = "s3",
    payload_hash: str | None = None,
) -> None:
    """Raise unless `secret_key` gives the presented signature for this very request at this time.

    `regions` are the regions allowed in the scope, None allows any. `payload_hash` is the SHA-256 of the
    body where the caller has it: required for services whose clients do not send x-amz-content-sha256, and
    compared with the announced one otherwise. Raises AuthorizationHeaderMalformed (or its query form) for a
    wrong scope, RequestTimeTooSkewed, AccessDenied for an expired presigned URL and for unsigned x-amz-*
    headers, MissingSecurityHeader, XAmzContentSHA256Mismatch, SignatureDoesNotMatch with the strings that
    were computed.
    """
    _check_scope(presented, regions, service)
    _check_time(presented, now)
    _check_signed_headers(request, presented)
    canonical = _canonical(request, presented, _payload(presented, payload_hash))
    text = string_to_sign(canonical, presented.timestamp, presented.scope)
    signer = keys.signer(secret_key, presented.date, presented.region, presented.service)
    if not hmac.compare_digest(signer(text).encode(), presented.signature.encode("utf-8", "replace")):
        raise _mismatch(presented, canonical, text)


def announced_payload(request: S3Request) -> str | None:
    """What a request says of its body in x-amz-content-sha256, a header or hoisted into the query.

    It is a SHA-256, UNSIGNED-PAYLOAD or one of the STREAMING- names; None when it was not sent. Raises
    InvalidArgument for another value, and for two that contradict each other.
    """
    announced = set(request.headers.all(_CONTENT_SHA256))
    if request.query:
        announced.update(value for name, value in request.query if name.lower() == _CONTENT_SHA256)
    if len(announced) > 1:
        raise InvalidArgument(
            "x-amz-content-sha256 was sent more than once, with different values.",
            fields={"ArgumentName": _CONTENT_SHA256},
        )
    return _payload_name(next(iter(announced), None))


def _refuse_repeated(headers: Headers) -> None:
    """Of some headers there may be one at most."""
    if headers.repeats:
        for name in _SINGLE:
            if len(headers.all(name)) > 1:
                raise InvalidRequest(f"The header {name} was sent more than once.")


def _from_header(authorization: str, headers: Headers) -> Presented:
    scheme, _, rest = authorization.partition(" ")
    if scheme == "AWS":
        raise InvalidRequest(_SIGV2_MESSAGE)
    if scheme != ALGORITHM:
        raise InvalidArgument("Unsupported Authorization Type", fields={"ArgumentName": "Authorization"})
    # All but the signature is the same in every request of a client for a day.
    claim, _, provided = rest.partition(_SIGNATURE)
    if not provided or "," in provided or _SIGNATURE in provided:
        parts = _authorization_parts(rest)
        claim, provided = (
            f"Credential={parts['Credential']},SignedHeaders={parts['SignedHeaders']},",
            parts["Signature"],
        )
    credential, names = _claim(claim)
    timestamp = headers.get("x-amz-date")
    moment = None if timestamp is None else _moment(timestamp)
    if timestamp is None or moment is None:
        raise AccessDenied("AWS authentication requires a valid Date or x-amz-date header")
    access_key, date, region, service = _credential(credential, AuthorizationHeaderMalformed)
    return Presented(
        access_key=access_key,
        date=date,
        region=region,
        service=service,
        timestamp=timestamp,
        moment=moment,
        signed_headers=_signed_headers(names, AuthorizationHeaderMalformed),
        signature=provided,
        payload_hash=_payload_name(headers.get("x-amz-content-sha256")),
        session_token=headers.get("x-amz-security-token"),
    )


def _from_query(request: S3Request) -> Presented:
    query = dict(request.query)
    algorithm, credential, timestamp, expires, signed_headers, provided = map(query.get, _PRESIGN_NAMES)
    if (
        algorithm is None
        or credential is None
        or timestamp is None
        or expires is None
        or signed_headers is None
        or provided is None
    ):
        raise AuthorizationQueryParametersError(
            "Query-string authentication version 4 requires the X-Amz-Algorithm, X-Amz-Credential, "
            "X-Amz-Signature, X-Amz-Date, X-Amz-SignedHeaders, and X-Amz-Expires parameters."
        )
    if algorithm != ALGORITHM:
        raise AuthorizationQueryParametersError('X-Amz-Algorithm only supports "AWS4-HMAC-SHA256"')
    access_key, date, region, service = _credential(credential, AuthorizationQueryParametersError)
    moment = _moment(timestamp)
    if moment is None:
        raise AuthorizationQueryParametersError(
            "X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\""
        )
    return Presented(
        access_key=access_key,
        date=date,
        region=region,
        service=service,
        timestamp=timestamp,
        moment=moment,
        signed_headers=_signed_headers(signed_headers, AuthorizationQueryParametersError),
        signature=provided,
        payload_hash=_payload_name(_hoisted_payload(request)) or UNSIGNED_PAYLOAD,
        expires=_expires(expires),
        session_token=query.get("X-Amz-Security-Token", request.headers.get("x-amz-security-token")),
    )


@lru_cache(maxsize=_SCOPES)
def _claim(text: str) -> tuple[str, str]:
    """The Credential and the SignedHeaders of an Authorization header up to its signature."""
    parts = _authorization_parts(f"{text}{_SIGNATURE}_")
    return parts["Credential"], parts["SignedHeaders"]


def _authorization_parts(text: str) -> dict[str, str]:
    """The three parts of the header, in any order, with or without spaces after the commas."""
    parts: dict[str, str] = {}
    for piece in text.split(","):
        name, _, value = piece.strip(" ").partition("=")
        if name in parts:
            raise AuthorizationHeaderMalformed(
                f"The authorization header is malformed; {name[:100]} is repeated."
            )
        parts[name] = value
    if parts.keys() != {"Credential", "SignedHeaders", "Signature"} or not all(parts.values()):
        raise AuthorizationHeaderMalformed(
            "The authorization header is malformed; "
            "the authorization header requires three components: Credential, SignedHeaders, and Signature."
        )
    return parts


@lru_cache(maxsize=_SCOPES)
def _credential(text: str, error: type[S3Error]) -> tuple[str, str, str, str]:
    """Access key, date, region and service of a Credential."""
    pieces = text.rsplit("/", 4)
    if len(pieces) != 5:
        raise error(
            'The Credential is mal-formed; expecting "<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request".'
        )
    access_key, date, region, service, terminator = pieces
    if terminator != TERMINATOR:
        raise error(f"The Credential is mal-formed; incorrect terminal, expecting {TERMINATOR}.")
    if not _ACCESS_KEY.fullmatch(access_key) or not _REGION.fullmatch(region):
        raise error("The Credential is mal-formed; the access key or the region is not valid.")
    if not _DATE.fullmatch(date):
        raise error('The Credential is mal-formed; the date is not in the form "yyyyMMdd".')
    return access_key, date, region, service


@lru_cache(maxsize=_SCOPES)
def _signed_headers(text: str, error: type[S3Error]) -> tuple[str, ...]:
    names = tuple(text.split(";"))
    if list(names) != sorted(set(names)) or "" in names or text != text.lower():
        raise error("SignedHeaders is mal-formed; expecting lower-case names in ascending order.")
    return names


@lru_cache(maxsize=_SCOPES)
def _moment(timestamp: str) -> datetime | None:
    if not _TIMESTAMP.fullmatch(timestamp):
        return None
    try:
        return datetime.fromisoformat(timestamp)
    except ValueError:
        return None


def _expires(text: str) -> int:
    if not _EXPIRES.fullmatch(text) or int(text) > MAX_PRESIGN_SECONDS:
        raise AuthorizationQueryParametersError(
            "X-Amz-Expires must be a number of seconds, at most a week (604800)"
        )
    return int(text)


def _payload_name(text: str | None) -> str | None:
    if text is None or text in _NAMED_PAYLOADS or _SHA256.fullmatch(text):
        return text
    raise InvalidArgument(
        "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-AWS4-HMAC-SHA256-PAYLOAD, one of the "
        "-TRAILER forms, or a valid sha256 value.",
        fields={"ArgumentName": "x-amz-content-sha256", "ArgumentValue": text[:100]},
    )


def _hoisted_payload(request: S3Request) -> str | None:
    """The payload hash that some presigners put into the query."""
    return next((value for name, value in request.query if name.lower() == _CONTENT_SHA256), None)


def _check_scope(presented: Presented, regions: Collection[str] | None, service: str) -> None:
    error = AuthorizationQueryParametersError if presented.presigned else AuthorizationHeaderMalformed
    if presented.service != service:
        raise error(
            f'The authorization is malformed; incorrect service. This endpoint belongs to "{service}".'
        )
    if presented.date != presented.timestamp[:8]:
        raise error("The authorization is malformed; the date of the Credential is not that of X-Amz-Date.")
    if regions is not None and presented.region not in regions:
        expected = sorted(regions)[0] if regions else ""
        raise error(
            f"The authorization is malformed; the region '{presented.region}' is wrong; "
            f"expecting '{expected}'",
            fields={"Region": expected},
        )


def _check_time(presented: Presented, now: datetime) -> None:
    if presented.expires is None:
        if abs(now - presented.moment) > MAX_SKEW:
            raise RequestTimeTooSkewed(
                fields={
                    "RequestTime": presented.timestamp,
                    "ServerTime": _iso(now),
                    "MaxAllowedSkewMilliseconds": str(int(MAX_SKEW.total_seconds() * 1000)),
                }
            )
        return
    if presented.moment - now > MAX_SKEW:
        raise AccessDenied("Request is not yet valid", fields={"ServerTime": _iso(now)})
    end = presented.moment + timedelta(seconds=presented.expires)
    if now > end:
        raise AccessDenied(
            "Request has expired",
            fields={
                "X-Amz-Expires": str(presented.expires),
                "Expires": _iso(end),
                "ServerTime": _iso(now),
            },
        )


def _check_signed_headers(request: S3Request, presented: Presented) -> None:
    signed = presented.signed_headers
    unsigned = [name for name, _ in request.headers.items if name not in signed and name.startswith("x-amz-")]
    if "host" not in signed:
        unsigned.append("host")
    if unsigned:
        raise AccessDenied(
            "There were headers present in the request which were not signed",
            fields={"HeadersNotSigned": ", ".join(sorted(set(unsigned)))},
        )


def _payload(presented: Presented, computed: str | None) -> str:
    announced = presented.payload_hash
    if announced is None:
        if computed is None:
            raise MissingSecurityHeader(
                "Missing required header for this request: x-amz-content-sha256",
                fields={"MissingHeaderName": "x-amz-content-sha256"},
            )
        return computed
    if computed is not None and announced not in _NAMED_PAYLOADS and announced != computed:
        raise XAmzContentSHA256Mismatch(
            fields={"ClientComputedContentSHA256": announced, "S3ComputedContentSHA256": computed}
        )
    return announced


def _canonical(request: S3Request, presented: Presented, payload: str) -> str:
    query = ""
    if request.query:
        query = canonical_query([pair for pair in request.query if pair[0] != "X-Amz-Signature"])
    return canonical_request(
        request.method,
        request.raw_path.decode("utf-8", "surrogateescape"),
        query,
        _canonical_block(request, presented.signed_headers),
        ";".join(presented.signed_headers),
        payload,
    )


def _canonical_block(request: S3Request, signed: tuple[str, ...]) -> str:
    """The lines of the signed headers. Most requests have each once, in ASCII, without spaces in a row."""
    headers, host = request.headers, request.host
    block = "".join(
        [
            f"{name}:{value}\n"
            for name in signed
            if (value := host if name == "host" else headers.get(name)) is not None
        ]
    )
    if headers.repeats or "  " in block or not block.isascii():
        return "".join([_canonical_line(request, name) for name in signed])
    return block


def _canonical_line(request: S3Request, name: str) -> str:
    """The line of a signed header, "" for one that was not sent; `host` is what the request is for."""
    value = request.host if name == "host" else request.headers.get(name)
    if value is None:
        return ""
    if request.headers.repeats and name != "host":
        values = [canonical_value(wire_text(each)) for each in request.headers.all(name)]
        return f"{name}:{','.join(values)}\n"
    return f"{name}:{canonical_value(wire_text(value))}\n"


def _mismatch(presented: Presented, canonical: str, text: str) -> SignatureDoesNotMatch:
    return SignatureDoesNotMatch(
        fields={
            "AWSAccessKeyId": presented.access_key,
            "StringToSign": text,
            "SignatureProvided": presented.signature,
            "StringToSignBytes": _hex(text),
            "CanonicalRequest": canonical,
            "CanonicalRequestBytes": _hex(canonical),
        }
    )


def _hex(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").hex(" ")


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
