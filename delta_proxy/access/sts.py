"""Session credentials that need no memory: sealed tokens, and the requests that ask for them.

A session token is the sealed text of who the session is and until when; the secret key of the session is
derived from the token. So any worker or replica with the same `PROXY_SECRET_KEYS` verifies a session that
another one issued, and nothing is stored. The access key (`ASIA…`, as AWS marks temporary keys) is bound
into the seal: a token opens only beside its own.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl

import attrs
import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from delta_proxy.access.keys import Secret, SecretKeys
from delta_proxy.s3.errors import ExpiredToken, InvalidToken
from delta_proxy.s3.sts_xml import (
    InvalidAction,
    IssuedSession,
    PackedPolicyTooLarge,
    ValidationError,
)

MIN_SESSION_SECONDS = 900
MAX_SESSION_SECONDS = 43_200
DEFAULT_SESSION_SECONDS = 3_600
SESSION_KEY_PREFIX = "ASIA"
MAX_TOKEN_LENGTH = 6_144
MAX_BODY_BYTES = 65_536
_OPENED = 4_096
_FORMAT = b"\x01"
_KEY_ID_BYTES = 4
_NONCE_BYTES = 12
_HEADER_BYTES = len(_FORMAT) + _KEY_ID_BYTES + _NONCE_BYTES
_ACCESS_KEY = re.compile(r"ASIA[A-Z2-7]{16}\Z")


@attrs.frozen
class SessionCredentials:
    """What the client of a session signs with."""

    access_key: str
    secret_key: Secret
    session_token: Secret
    expires: datetime


@attrs.frozen
class SessionIdentity:
    """Who a session token stands for, once it was opened."""

    principal: str
    groups: frozenset[str]
    secret_key: Secret
    issued: datetime
    expires: datetime


@attrs.frozen
class _Sealer:
    """One sealing key, taken apart into keys for one use each (HKDF, RFC 5869)."""

    key_id: bytes
    cipher: AESGCM = attrs.field(repr=False)
    secret_key: bytes = attrs.field(repr=False)

    @classmethod
    def of(cls, key: bytes) -> _Sealer:
        cipher = AESGCM(_derive(key, b"session token"))
        return cls(_derive(key, b"session key id")[:_KEY_ID_BYTES], cipher, _derive(key, b"session secret"))

    def secret(self, access_key: str, token: str) -> Secret:
        """40 characters, as long as AWS's, that follow from the token alone."""
        text = f"{access_key}\n{token}".encode("ascii")
        digest = hmac.digest(self.secret_key, text, hashlib.sha256)
        return Secret(base64.b64encode(digest)[:40].decode("ascii"))


class SessionTokens:
    """Issues session credentials and opens session tokens.

    `random` gives random bytes: `secrets.token_bytes` but in tests of the format.
    """

    def __init__(self, keys: SecretKeys, random: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self._sealers = tuple(_Sealer.of(key) for key in keys.keys)
        self._random = random
        # A client sends its token with every request; only tokens that opened are kept.
        self._opened: dict[tuple[str, str], SessionIdentity] = {}

    def issue(self, principal: str, groups: Iterable[str], seconds: int, now: datetime) -> SessionCredentials:
        """Credentials for `seconds` (900 to 43200) from `now`.

        Raises ValidationError for another length of time and PackedPolicyTooLarge when the groups do not fit.
        """
        check_duration(seconds)
        sealer = self._sealers[0]
        access_key = SESSION_KEY_PREFIX + base64.b32encode(self._random(10)).decode("ascii")
        issued = int(now.timestamp())
        claims = {"p": principal, "g": sorted(set(groups)), "i": issued, "e": issued + seconds}
        header = _FORMAT + sealer.key_id
        nonce = self._random(_NONCE_BYTES)
        sealed = sealer.cipher.encrypt(nonce, orjson.dumps(claims), _bound(header, access_key))
        token = base64.urlsafe_b64encode(header + nonce + sealed).rstrip(b"=").decode("ascii")
        if len(token) > MAX_TOKEN_LENGTH:
            raise PackedPolicyTooLarge
        expires = datetime.fromtimestamp(issued + seconds, UTC)
        return SessionCredentials(access_key, sealer.secret(access_key, token), Secret(token), expires)

    def open_token(self, token: str, access_key: str, now: datetime) -> SessionIdentity:
        """Who `token` stands for beside `access_key`.

        Raises InvalidToken when it is not a token of these keys for this access key, ExpiredToken from its
        end on.
        """
        known = self._opened.get((token, access_key))
        if known is None:
            known = self._open(token, access_key)
            if len(self._opened) >= _OPENED:
                self._opened.clear()
            self._opened[token, access_key] = known
        if now >= known.expires:
            raise ExpiredToken
        return known

    def _open(self, token: str, access_key: str) -> SessionIdentity:
        raw = _canonical_bytes(token)
        if _ACCESS_KEY.match(access_key) is None or len(raw) <= _HEADER_BYTES or raw[:1] != _FORMAT:
            raise InvalidToken
        header, nonce, sealed = raw[:5], raw[5:_HEADER_BYTES], raw[_HEADER_BYTES:]
        for sealer in self._sealers:
            if not hmac.compare_digest(sealer.key_id, header[1:]):
                continue
            try:
                text = sealer.cipher.decrypt(nonce, sealed, _bound(header, access_key))
            except InvalidTag:
                continue
            return _identity(text, sealer.secret(access_key, token))
        raise InvalidToken


def is_session_key(access_key: str) -> bool:
    """Whether an access key is of the kind that needs a session token."""
    return access_key.startswith(SESSION_KEY_PREFIX)


def check_duration(seconds: int) -> None:
    """Raises ValidationError unless a session may last so long."""
    if not MIN_SESSION_SECONDS <= seconds <= MAX_SESSION_SECONDS:
        raise ValidationError(f"DurationSeconds must be from {MIN_SESSION_SECONDS} to {MAX_SESSION_SECONDS}")


@attrs.frozen
class AssumeRoleWithWebIdentity:
    """The parameters of the action, checked against the constraints of its page in the STS API reference."""

    role_arn: str
    role_session_name: str
    web_identity_token: str = attrs.field(repr=False)
    duration_seconds: int | None = None

    @property
    def account(self) -> str:
        """The 12 digits of the role's account."""
        return self.role_arn.split(":")[4]

    @property
    def assumed_role_arn(self) -> str:
        """How AWS names the session: the role without its path, then the session."""
        partition = self.role_arn.split(":")[1]
        role = self.role_arn.rsplit("/", 1)[1]
        return f"arn:{partition}:sts::{self.account}:assumed-role/{role}/{self.role_session_name}"

    @property
    def assumed_role_id(self) -> str:
        """A stable id of the role, then the session; the same on every replica."""
        digest = hashlib.sha256(self.role_arn.encode()).digest()
        return f"AROA{base64.b32encode(digest)[:17].decode('ascii')}:{self.role_session_name}"

    def session(
        self, credentials: SessionCredentials, subject: str, audience: str, provider: str
    ) -> IssuedSession:
        """What the answer's document says."""
        return IssuedSession(
            access_key=credentials.access_key,
            secret_key=credentials.secret_key.value,
            session_token=credentials.session_token.value,
            expires=credentials.expires,
            role_arn=self.role_arn,
            assumed_role_arn=self.assumed_role_arn,
            assumed_role_id=self.assumed_role_id,
            subject=subject,
            audience=audience,
            provider=provider,
        )


@attrs.frozen
class GetCallerIdentity:
    """The action that tells who asks; it has no parameters."""


_VERSION = "2011-06-15"
_ASSUME_PARAMETERS = frozenset({"RoleArn", "RoleSessionName", "WebIdentityToken", "DurationSeconds"})
_ROLE_ARN = re.compile(r"arn:aws[a-z-]*:iam::[0-9]{12}:role/(?:[\x21-\x7e]+/)?[A-Za-z0-9_+=,.@-]{1,64}\Z")
_SESSION_NAME = re.compile(r"[A-Za-z0-9_+=,.@-]{2,64}\Z")
_DIGITS = re.compile(r"[0-9]{1,6}\Z")


def parse_sts(
    body: bytes, query: Sequence[tuple[str, str]] = ()
) -> AssumeRoleWithWebIdentity | GetCallerIdentity:
    """The action that a form-encoded body asks for.

    The Rust object_store (deltalake, polars) sends the parameters in the query of the POST instead, so
    `query` counts as well. Raises InvalidAction for other actions, ValidationError for parameters that are
    unknown, missing, given twice or outside their constraints. Policy, PolicyArns and ProviderId are
    refused: a session narrower than the groups' grants cannot be made, and a wider one than was asked for
    must not be.
    """
    parameters = _parameters(body, query)
    action = parameters.pop("Action", "")
    if parameters.pop("Version", _VERSION) != _VERSION or action not in _PARSERS:
        raise InvalidAction
    return _PARSERS[action](parameters)


def _assume_role(parameters: Mapping[str, str]) -> AssumeRoleWithWebIdentity:
    _only(parameters, _ASSUME_PARAMETERS)
    role = _matching(parameters, "RoleArn", _ROLE_ARN)
    if not 20 <= len(role) <= 2048:
        raise ValidationError("RoleArn must have 20 to 2048 characters")
    token = parameters.get("WebIdentityToken", "")
    if not 4 <= len(token) <= 20_000:
        raise ValidationError("WebIdentityToken must have 4 to 20000 characters")
    seconds = None
    if "DurationSeconds" in parameters:
        seconds = int(_matching(parameters, "DurationSeconds", _DIGITS))
        check_duration(seconds)
    return AssumeRoleWithWebIdentity(
        role, _matching(parameters, "RoleSessionName", _SESSION_NAME), token, seconds
    )


def _caller_identity(parameters: Mapping[str, str]) -> GetCallerIdentity:
    _only(parameters, frozenset())
    return GetCallerIdentity()


_PARSERS: Mapping[str, Callable[[Mapping[str, str]], AssumeRoleWithWebIdentity | GetCallerIdentity]] = {
    "AssumeRoleWithWebIdentity": _assume_role,
    "GetCallerIdentity": _caller_identity,
}


def _only(parameters: Mapping[str, str], known: frozenset[str]) -> None:
    if not parameters.keys() <= known:
        raise ValidationError("The request holds a parameter that is not supported")


def _matching(parameters: Mapping[str, str], name: str, pattern: re.Pattern[str]) -> str:
    value = parameters.get(name)
    if value is None:
        raise ValidationError(f"The parameter {name} is missing")
    if pattern.match(value) is None:
        raise ValidationError(f"The value of {name} does not satisfy its constraint")
    return value


def _parameters(body: bytes, query: Sequence[tuple[str, str]]) -> dict[str, str]:
    if len(body) > MAX_BODY_BYTES:
        raise ValidationError("The body is too long")
    try:
        form = parse_qsl(
            body.decode("utf-8"),
            keep_blank_values=True,
            strict_parsing=bool(body),
            errors="strict",
            max_num_fields=32,
        )
    except ValueError:
        # UnicodeDecodeError is a ValueError; its text would repeat the body.
        raise ValidationError("The body is not a form") from None
    pairs = [*query, *form]
    parameters = dict(pairs)
    if len(parameters) != len(pairs):
        raise ValidationError("A parameter is given twice")
    return parameters


def _derive(key: bytes, purpose: bytes) -> bytes:
    return HKDF(SHA256(), 32, salt=None, info=b"delta-s3-proxy " + purpose).derive(key)


def _bound(header: bytes, access_key: str) -> bytes:
    return header + access_key.encode("ascii")


def _canonical_bytes(token: str) -> bytes:
    """The bytes of a token; only the one spelling that `issue` gives them is taken."""
    if len(token) > MAX_TOKEN_LENGTH:
        raise InvalidToken
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        raise InvalidToken from None
    if base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii") != token:
        raise InvalidToken
    return raw


def _identity(text: bytes, secret: Secret) -> SessionIdentity:
    claims = orjson.loads(text)
    issued = datetime.fromtimestamp(claims["i"], UTC)
    expires = datetime.fromtimestamp(claims["e"], UTC)
    # A seal of the right key with a longer life than any session has is not one of `issue`.
    if expires - issued > timedelta(seconds=MAX_SESSION_SECONDS):
        raise InvalidToken
    return SessionIdentity(claims["p"], frozenset(claims["g"]), secret, issued, expires)
