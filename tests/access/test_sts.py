"""Session tokens: what they carry, and that nothing but the very token of the very access key opens."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from delta_proxy.access.keys import SecretKeys, generate_key
from delta_proxy.access.sts import (
    AssumeRoleWithWebIdentity,
    GetCallerIdentity,
    SessionTokens,
    is_session_key,
    parse_sts,
)
from delta_proxy.s3.errors import ExpiredToken, InvalidToken
from delta_proxy.s3.sts_xml import InvalidAction, PackedPolicyTooLarge, StsError, ValidationError

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
OLD, NEW = generate_key(), generate_key()
TOKENS = SessionTokens(SecretKeys.parse(OLD))
SESSION = TOKENS.issue("oidc:4711", {"desk", "audit"}, 3600, NOW)
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def open_session(token: str, access_key: str = SESSION.access_key, now: datetime = NOW) -> object:
    """What the token says."""
    return TOKENS.open_token(token, access_key, now)


def test_a_token_says_who_the_session_is_and_until_when() -> None:
    identity = TOKENS.open_token(SESSION.session_token.value, SESSION.access_key, NOW)
    assert identity.principal == "oidc:4711"
    assert identity.groups == {"desk", "audit"}
    assert identity.secret_key == SESSION.secret_key
    assert identity.expires == SESSION.expires == NOW + timedelta(hours=1)


def test_a_session_key_has_the_form_of_a_temporary_key_of_aws() -> None:
    assert is_session_key(SESSION.access_key)
    assert len(SESSION.access_key) == 20
    assert len(SESSION.secret_key.value) == 40


def test_any_replica_with_the_same_keys_opens_the_token() -> None:
    other = SessionTokens(SecretKeys.parse(OLD))
    identity = other.open_token(SESSION.session_token.value, SESSION.access_key, NOW)
    assert identity.secret_key == SESSION.secret_key


def test_a_token_of_the_old_key_opens_while_the_old_key_is_kept() -> None:
    rotated = SessionTokens(SecretKeys.parse(f"{NEW},{OLD}"))
    identity = rotated.open_token(SESSION.session_token.value, SESSION.access_key, NOW)
    assert identity.secret_key == SESSION.secret_key


def test_a_token_does_not_open_once_its_key_is_gone() -> None:
    with pytest.raises(InvalidToken):
        SessionTokens(SecretKeys.parse(NEW)).open_token(SESSION.session_token.value, SESSION.access_key, NOW)


def test_the_first_key_seals() -> None:
    session = SessionTokens(SecretKeys.parse(f"{NEW},{OLD}")).issue("p", (), 900, NOW)
    opened = SessionTokens(SecretKeys.parse(NEW)).open_token(
        session.session_token.value, session.access_key, NOW
    )
    assert opened.principal == "p"


def test_a_session_ends_at_its_end() -> None:
    open_session(SESSION.session_token.value, now=SESSION.expires - timedelta(microseconds=1))
    with pytest.raises(ExpiredToken):
        open_session(SESSION.session_token.value, now=SESSION.expires)


def test_a_token_opens_beside_no_other_access_key() -> None:
    other = TOKENS.issue("oidc:4711", {"desk", "audit"}, 3600, NOW)
    with pytest.raises(InvalidToken):
        open_session(SESSION.session_token.value, other.access_key)


def sealed(seconds: int) -> str:
    """A token of these keys, written by hand, for a session of so many seconds."""

    def derived(purpose: bytes) -> bytes:
        return HKDF(SHA256(), 32, salt=None, info=b"delta-s3-proxy " + purpose).derive(
            SecretKeys.parse(OLD).keys[0]
        )

    issued = int(NOW.timestamp())
    header, nonce = b"\x01" + derived(b"session key id")[:4], bytes(12)
    claims = json.dumps({"p": "oidc:ann", "g": [], "i": issued, "e": issued + seconds}).encode()
    bound = header + SESSION.access_key.encode()
    text = header + nonce + AESGCM(derived(b"session token")).encrypt(nonce, claims, bound)
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def test_no_session_lasts_longer_than_any_that_is_issued() -> None:
    open_session(sealed(43_200))
    with pytest.raises(InvalidToken):
        open_session(sealed(43_201))


def test_two_sessions_of_one_principal_share_nothing() -> None:
    other = TOKENS.issue("oidc:4711", {"desk", "audit"}, 3600, NOW)
    assert other.access_key != SESSION.access_key
    assert other.secret_key != SESSION.secret_key


def test_nothing_secret_shows() -> None:
    identity = TOKENS.open_token(SESSION.session_token.value, SESSION.access_key, NOW)
    shown = repr((SESSION, identity, SecretKeys.parse(OLD))) + str(SESSION.secret_key)
    for secret in (SESSION.secret_key.value, SESSION.session_token.value, OLD):
        assert secret not in shown


@pytest.mark.parametrize("seconds", [-1, 0, 899, 43_201])
def test_a_session_lasts_15_minutes_to_12_hours(seconds: int) -> None:
    with pytest.raises(ValidationError):
        TOKENS.issue("p", (), seconds, NOW)
    assert TOKENS.issue("p", (), 900, NOW).expires == NOW + timedelta(minutes=15)
    assert TOKENS.issue("p", (), 43_200, NOW).expires == NOW + timedelta(hours=12)


def test_a_session_with_too_many_groups_for_a_header_is_refused() -> None:
    with pytest.raises(PackedPolicyTooLarge):
        TOKENS.issue("p", {f"group-{number:040}" for number in range(200)}, 900, NOW)


@settings(max_examples=2_000, deadline=None)
@given(at=st.integers(0, len(SESSION.session_token.value) - 1), by=st.integers(1, 63))
def test_no_token_with_another_character_opens(at: int, by: int) -> None:
    token = SESSION.session_token.value
    changed = token[:at] + ALPHABET[(ALPHABET.index(token[at]) + by) % 64] + token[at + 1 :]
    with pytest.raises(InvalidToken):
        open_session(changed)


@settings(max_examples=500, deadline=None)
@given(text=st.text(max_size=300))
@example("")
@example("=")
@example(SESSION.session_token.value + "=")
@example(SESSION.session_token.value + "\n")
@example(" " + SESSION.session_token.value)
@example(SESSION.session_token.value[:-1])
@example(SESSION.session_token.value + "A")
@example(SESSION.session_token.value * 2)
def test_no_other_text_opens(text: str) -> None:
    with pytest.raises(InvalidToken):
        open_session(text)


@settings(max_examples=500, deadline=None)
@given(at=st.integers(0, 19), character=st.sampled_from(list(ALPHABET)))
def test_no_other_access_key_opens_the_token(at: int, character: str) -> None:
    key = SESSION.access_key[:at] + character + SESSION.access_key[at + 1 :]
    if key == SESSION.access_key:
        open_session(SESSION.session_token.value, key)
        return
    with pytest.raises(InvalidToken):
        open_session(SESSION.session_token.value, key)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.binary(max_size=200))
def test_no_bytes_that_only_look_like_a_token_open(data: bytes) -> None:
    header = base64.urlsafe_b64decode(SESSION.session_token.value[:20])[:5]
    forged = base64.urlsafe_b64encode(header + data).rstrip(b"=").decode()
    with pytest.raises(InvalidToken):
        open_session(forged)


GOOD = {
    "Action": "AssumeRoleWithWebIdentity",
    "Version": "2011-06-15",
    "RoleArn": "arn:aws:iam::123456789012:role/path/reader",
    "RoleSessionName": "alice@example.com",
    "WebIdentityToken": "a.b.c",
}


def body(**changes: str | None) -> bytes:
    """A form with changed parameters; None takes one away."""
    return urlencode(
        {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    ).encode()


def test_the_parameters_come_from_the_body() -> None:
    request = parse_sts(body(DurationSeconds="900"))
    assert isinstance(request, AssumeRoleWithWebIdentity)
    assert request.web_identity_token == "a.b.c"
    assert request.duration_seconds == 900
    assert request.account == "123456789012"
    assert request.assumed_role_arn == "arn:aws:sts::123456789012:assumed-role/reader/alice@example.com"
    assert request.assumed_role_id.endswith(":alice@example.com")
    assert "a.b.c" not in repr(request)


def test_the_parameters_come_from_the_query_as_the_rust_object_store_sends_them() -> None:
    assert parse_sts(b"", tuple(GOOD.items())) == parse_sts(body())


def test_who_am_i_has_no_parameters() -> None:
    assert parse_sts(b"Action=GetCallerIdentity&Version=2011-06-15") == GetCallerIdentity()


@pytest.mark.parametrize("action", [None, "", "AssumeRole", "GetSessionToken", "getcalleridentity"])
def test_another_action_is_refused(action: str | None) -> None:
    with pytest.raises(InvalidAction):
        parse_sts(body(Action=action))


def test_another_version_is_refused() -> None:
    with pytest.raises(InvalidAction):
        parse_sts(body(Version="2010-01-01"))


@pytest.mark.parametrize(
    "changes",
    [
        {"RoleArn": None},
        {"RoleArn": "reader"},
        {"RoleArn": "arn:aws:iam::12:role/reader"},
        {"RoleArn": "arn:aws:iam::123456789012:user/reader"},
        {"RoleArn": "arn:aws:iam::123456789012:role/<b>"},
        {"RoleArn": "arn:aws:iam::123456789012:role/" + "p/" * 1100 + "r"},
        {"RoleSessionName": None},
        {"RoleSessionName": "a"},
        {"RoleSessionName": "a" * 65},
        {"RoleSessionName": "a b"},
        {"RoleSessionName": "ab\n"},
        {"WebIdentityToken": None},
        {"WebIdentityToken": "abc"},
        {"WebIdentityToken": "a" * 20_001},
        {"DurationSeconds": "899"},
        {"DurationSeconds": "43201"},
        {"DurationSeconds": "1e3"},
        {"DurationSeconds": "٩٠٠"},
        {"DurationSeconds": ""},
        {"DurationSeconds": "9" * 5000},
        {"Policy": "{}"},
        {"PolicyArns.member.1.arn": "arn:aws:iam::aws:policy/ReadOnlyAccess"},
        {"ProviderId": "www.amazon.com"},
    ],
)
def test_a_parameter_outside_its_constraints_is_refused(changes: dict[str, str | None]) -> None:
    with pytest.raises(ValidationError):
        parse_sts(body(**changes))


def test_a_parameter_given_twice_is_refused() -> None:
    with pytest.raises(ValidationError):
        parse_sts(body() + b"&RoleSessionName=bob")
    with pytest.raises(ValidationError):
        parse_sts(body(), (("WebIdentityToken", "d.e.f"),))


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=400))
@example(b"Action=GetCallerIdentity&Version=2011-06-15&x=%ff")
@example(b"a" * 70_000)
@example(b"&".join(b"a%d=1" % n for n in range(100)))
def test_no_body_raises_anything_but_an_error_of_sts(data: bytes) -> None:
    with pytest.raises(StsError):
        parse_sts(data)
