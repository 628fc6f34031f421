"""Checks a token of an OpenID Connect issuer: RS256 or ES256 and nothing else, against keys that were
fetched before.

The signature is PyJWT's work; the claims are checked here because the time is passed in. Rules: RFC 7519
section 4.1, RFC 7515 section 4.1, RFC 7517, RFC 8725 (the algorithm comes from the key, never from the
token alone), OpenID Connect Core 1.0 section 3.1.3.7.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import attrs
import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from delta_proxy.s3.sts_xml import ExpiredTokenException, IDPRejectedClaim, InvalidIdentityToken

ALGORITHMS = ("RS256", "ES256")
MAX_TOKEN_LENGTH = 20_000
MAX_GROUPS = 1_000
PRINCIPAL_PREFIX = "oidc:"
_KEY_TYPES = {"RS256": "RSA", "ES256": "EC"}
_MIN_RSA_BITS = 2048
_NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]{1,255}\Z")
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@attrs.frozen
class VerificationKey:
    """One public key of the issuer, good for one algorithm."""

    kid: str | None
    algorithm: str
    key: RSAPublicKey | EllipticCurvePublicKey = attrs.field(eq=False, repr=False)


@attrs.frozen
class KeySet:
    """The usable keys of an issuer; keys of other kinds and uses are left out."""

    keys: tuple[VerificationKey, ...]

    def find(self, kid: str | None, algorithm: str) -> tuple[VerificationKey, ...]:
        """The keys that a token's header may mean; without a `kid` only where there is no choice."""
        able = tuple(key for key in self.keys if key.algorithm == algorithm)
        if kid is None:
            return able if len(able) == 1 else ()
        return tuple(key for key in able if key.kid == kid)


@attrs.frozen
class TokenHeader:
    """What an unverified token says about how to verify it."""

    algorithm: str
    kid: str | None


@attrs.frozen
class OidcIdentity:
    """Who a verified token is about."""

    subject: str
    groups: frozenset[str]
    issuer: str
    audience: str
    expires: datetime

    @property
    def principal(self) -> str:
        """The principal's id: marked, so that a subject never passes for a configured user."""
        return PRINCIPAL_PREFIX + self.subject


@attrs.frozen
class TokenRules:
    """What is demanded of a token. `leeway` in seconds bears with clocks that differ."""

    issuer: str
    audience: str
    groups_claim: str = "groups"
    leeway: float = 30.0

    def verify(
        self, token: str, header: TokenHeader, keys: Sequence[VerificationKey], now: datetime
    ) -> OidcIdentity:
        """The identity in `token`, whose signature one of `keys` made.

        Raises InvalidIdentityToken (signature, issuer, audience, form, not yet valid), ExpiredTokenException,
        IDPRejectedClaim (subject or groups that cannot be used).
        """
        claims = _signed_claims(token, header, keys)
        self._check_times(claims, now.timestamp())
        if claims.get("iss") != self.issuer or not self._is_audience(claims.get("aud")):
            raise InvalidIdentityToken("The issuer or audience of the token is not the configured one")
        expires = datetime.fromtimestamp(_time(claims, "exp"), UTC)
        return OidcIdentity(_subject(claims), self._groups(claims), self.issuer, self.audience, expires)

    def _is_audience(self, value: object) -> bool:
        if isinstance(value, list):
            return self.audience in value and all(isinstance(one, str) for one in value)
        return value == self.audience

    def _check_times(self, claims: Mapping[str, Any], now: float) -> None:
        # Not every issuer sends nbf (OpenID Connect demands iat only); a token with neither has no beginning.
        begin = _time(claims, "nbf" if "nbf" in claims else "iat")
        if now + self.leeway < begin:
            raise InvalidIdentityToken("The token is not valid yet")
        if now - self.leeway >= _time(claims, "exp"):
            raise ExpiredTokenException

    def _groups(self, claims: Mapping[str, Any]) -> frozenset[str]:
        value = _claim(claims, self.groups_claim)
        names = [value] if isinstance(value, str) else [] if value is None else value
        if not isinstance(names, list) or len(names) > MAX_GROUPS:
            raise IDPRejectedClaim("The groups of the token are not a list of names")
        if not all(isinstance(name, str) and _NAME.match(name) for name in names):
            raise IDPRejectedClaim("The groups of the token are not a list of names")
        return frozenset(names)


def read_header(token: str) -> TokenHeader:
    """What `token` says of its key; InvalidIdentityToken for what can never be verified here."""
    if len(token) > MAX_TOKEN_LENGTH:
        raise InvalidIdentityToken
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError):
        raise InvalidIdentityToken from None
    algorithm, kid = header.get("alg"), header.get("kid")
    if algorithm not in ALGORITHMS:
        raise InvalidIdentityToken("The token must be signed with RS256 or ES256")
    # RFC 7515 section 4.1.11: an extension that is critical and not understood refuses the token.
    if "crit" in header or header.get("b64", True) is not True or not isinstance(kid, str | None):
        raise InvalidIdentityToken
    return TokenHeader(algorithm, kid)


def parse_keys(document: object) -> KeySet:
    """The keys of a JWKS document (RFC 7517); ValueError when it is not one.

    Private, symmetric, weak (RSA below 2048 bits) and encryption keys are left out: none of them can verify.
    """
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("the document holds no keys")
    return KeySet(tuple(key for entry in entries if isinstance(entry, dict) for key in _key(entry)))


def jwks_location(document: object, issuer: str) -> str:
    """The jwks_uri of a discovery document (OpenID Connect Discovery 1.0 section 4.3).

    ValueError when the document is not of this issuer.
    """
    if not isinstance(document, dict) or document.get("issuer") != issuer:
        raise ValueError("the discovery document is not of the configured issuer")
    return checked_url(document.get("jwks_uri"))


def checked_url(url: object) -> str:
    """A URL that keys may come from: https, or http on loopback; else ValueError."""
    if not isinstance(url, str):
        raise ValueError("a URL is missing")
    parts = urlsplit(url)
    safe = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
    if safe and parts.hostname and parts.username is None:
        return url
    raise ValueError("keys are taken over https only (http on loopback)")


def _key(entry: Mapping[str, Any]) -> tuple[VerificationKey, ...]:
    algorithm = next((name for name, kind in _KEY_TYPES.items() if kind == entry.get("kty")), None)
    kid = entry.get("kid")
    operations = entry.get("key_ops", ["verify"])
    usable = (
        algorithm is not None
        and entry.get("alg", algorithm) == algorithm
        and entry.get("use", "sig") == "sig"
        and isinstance(operations, list)
        and "verify" in operations
        and isinstance(kid, str | None)
    )
    if not usable or algorithm is None:
        return ()
    try:
        key = jwt.PyJWK(dict(entry), algorithm=algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return ()
    strong = (isinstance(key, RSAPublicKey) and key.key_size >= _MIN_RSA_BITS) or (
        isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)
    )
    return (VerificationKey(kid, algorithm, key),) if strong else ()


def _signed_claims(token: str, header: TokenHeader, keys: Sequence[VerificationKey]) -> dict[str, Any]:
    for key in keys:
        # The algorithm is the key's: a token cannot choose how it is verified.
        if key.algorithm != header.algorithm:
            continue
        try:
            claims = jwt.decode(token, key.key, algorithms=[key.algorithm], options=_SIGNATURE_ONLY)
        except (jwt.PyJWTError, ValueError, TypeError):
            continue
        return claims
    raise InvalidIdentityToken


_SIGNATURE_ONLY: Any = {
    "verify_signature": True,
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
    "verify_aud": False,
    "verify_iss": False,
    "verify_sub": False,
    "verify_jti": False,
}


def _time(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidIdentityToken(f"The token has no usable {name}")
    if not 0 <= value <= 253_402_300_799:
        raise InvalidIdentityToken(f"The token has no usable {name}")
    return float(value)


def _subject(claims: Mapping[str, Any]) -> str:
    subject = claims.get("sub")
    if not isinstance(subject, str) or _NAME.match(subject) is None:
        raise IDPRejectedClaim("The subject of the token cannot be used")
    return subject


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """The claim of that very name, or where there is none the nested one that the dots lead to (Keycloak)."""
    if name in claims:
        return claims[name]
    value: Any = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
