"""OIDC tokens: only one of the issuer, for this audience, in its time, by a published key, is believed."""

from __future__ import annotations

import base64
import hmac
import json
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from delta_proxy.access.jwks import IssuerKeys, OidcVerifier
from delta_proxy.access.oidc import OidcIdentity, TokenRules, checked_url, parse_keys, read_header
from delta_proxy.s3.sts_xml import (
    ExpiredTokenException,
    IDPCommunicationError,
    IDPRejectedClaim,
    InvalidIdentityToken,
)
from tests.access.oidc_issuer import AUDIENCE, Issuer, serving
from tests.helpers import result_of, start
from tests.waiting import PATIENCE

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
ISSUER = Issuer()
KEYS = parse_keys(ISSUER.jwks())
RULES = TokenRules(ISSUER.url, AUDIENCE)


def verify(token: str, now: datetime = NOW, rules: TokenRules = RULES) -> OidcIdentity:
    """Whom the token is about, with the issuer's keys at hand."""
    header = read_header(token)
    return rules.verify(token, header, KEYS.find(header.kid, header.algorithm), now)


def good(kid: str = "rsa-1", **changes: Any) -> str:
    """A good token, but for the changes of its claims."""
    return ISSUER.token(ISSUER.claims(NOW.timestamp(), **changes), kid)


GOOD = {kid: good(kid) for kid in ("rsa-1", "ec-1")}


@pytest.mark.parametrize("kid", ["rsa-1", "ec-1"])
def test_a_token_of_the_issuer_tells_subject_and_groups(kid: str) -> None:
    identity = verify(GOOD[kid])
    assert (identity.subject, identity.groups) == ("4711", frozenset({"desk"}))
    assert identity.principal == "oidc:4711"
    assert identity.expires == NOW + timedelta(minutes=10)


@settings(max_examples=1_500, deadline=None)
@given(kid=st.sampled_from(["rsa-1", "ec-1"]), at=st.integers(0, 2_000), by=st.integers(1, 63))
def test_no_token_with_another_character_is_believed(kid: str, at: int, by: int) -> None:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    token = GOOD[kid]
    at %= len(token)
    old = alphabet.find(token[at])
    changed = token[:at] + alphabet[(old + by) % 64] + token[at + 1 :]
    with pytest.raises(InvalidIdentityToken):
        verify(changed)


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://other.example"},
        {"iss": None},
        {"iss": "https://issuer.example/"},
        {"aud": "other"},
        {"aud": None},
        {"aud": []},
        {"aud": ["other"]},
        {"aud": [AUDIENCE, 1]},
        {"exp": None},
        {"exp": "tomorrow"},
        {"exp": True},
        {"exp": 1e300},
        {"nbf": None, "iat": None},
        {"nbf": "yesterday"},
        {"nbf": int(NOW.timestamp()) + 31},
    ],
)
def test_a_token_with_wrong_claims_is_not_believed(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidIdentityToken):
        verify(good(**changes))


def test_an_audience_among_several_is_enough() -> None:
    assert verify(good(aud=["other", AUDIENCE])).audience == AUDIENCE


def test_a_token_without_nbf_begins_when_it_was_issued() -> None:
    verify(good(nbf=None))
    with pytest.raises(InvalidIdentityToken):
        verify(good(nbf=None, iat=int(NOW.timestamp()) + 31))


def test_a_token_is_believed_until_its_end_and_the_leeway() -> None:
    end = NOW + timedelta(minutes=10)
    verify(GOOD["rsa-1"], end + timedelta(seconds=29))
    with pytest.raises(ExpiredTokenException):
        verify(GOOD["rsa-1"], end + timedelta(seconds=30))


@pytest.mark.parametrize("subject", [None, "", 7, "a\nb", "x" * 256, "\ufffe"])
def test_a_subject_that_cannot_be_shown_is_rejected(subject: object) -> None:
    with pytest.raises((IDPRejectedClaim, InvalidIdentityToken)):
        verify(good(sub=subject))


@pytest.mark.parametrize("groups", [{"desk": 1}, [1], ["a\n"], [""], ["g"] * 1_001, 7])
def test_groups_that_are_not_names_are_rejected(groups: object) -> None:
    with pytest.raises(IDPRejectedClaim):
        verify(good(groups=groups))


def test_groups_may_be_one_name_none_or_nested() -> None:
    assert verify(good(groups="desk")).groups == {"desk"}
    assert verify(good(groups=None)).groups == frozenset()
    rules = TokenRules(ISSUER.url, AUDIENCE, "realm_access.roles")
    assert verify(good(realm_access={"roles": ["x"]}), rules=rules).groups == {"x"}
    assert verify(
        ISSUER.token(ISSUER.claims(NOW.timestamp(), **{"realm_access.roles": ["y"]})), rules=rules
    ).groups == {"y"}


def by_hand(header: dict[str, Any], sign: Callable[[bytes], bytes]) -> str:
    """A token as no honest library makes it."""

    def encoded(data: bytes) -> bytes:
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    claims = json.dumps(ISSUER.claims(NOW.timestamp())).encode()
    text = encoded(json.dumps(header).encode()) + b"." + encoded(claims)
    return (text + b"." + encoded(sign(text))).decode()


def test_unsigned_and_symmetric_tokens_are_refused() -> None:
    public = (
        ISSUER.private["rsa-1"][1].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    claims = ISSUER.claims(NOW.timestamp())
    tokens = [
        by_hand({"alg": "none", "kid": "rsa-1"}, lambda _: b""),
        by_hand({"alg": "HS256", "kid": "rsa-1"}, lambda text: hmac.digest(public, text, "sha256")),
        by_hand({"alg": "HS256", "kid": "ec-1"}, lambda text: hmac.digest(public, text, "sha256")),
        jwt.encode(claims, ISSUER.private["rsa-1"][1], "RS512", {"kid": "rsa-1"}),
        jwt.encode(claims, ISSUER.private["rsa-1"][1], "PS256", {"kid": "rsa-1"}),
        jwt.encode(claims, ed25519.Ed25519PrivateKey.generate(), "EdDSA", {"kid": "rsa-1"}),
    ]
    for token in tokens:
        with pytest.raises(InvalidIdentityToken):
            verify(token)


def test_a_key_of_a_token_s_own_is_not_believed() -> None:
    key = rsa.generate_private_key(65537, 2048)
    own = jwt.get_algorithm_by_name("RS256").to_jwk(key.public_key(), as_dict=True)
    claims = ISSUER.claims(NOW.timestamp())
    with pytest.raises(InvalidIdentityToken):
        verify(jwt.encode(claims, key, "RS256", {"kid": "rsa-1", "jwk": own}))


def test_a_critical_extension_that_is_not_understood_refuses_the_token() -> None:
    token = ISSUER.token(ISSUER.claims(NOW.timestamp()), headers={"crit": ["exp"], "exp": 1})
    with pytest.raises(InvalidIdentityToken):
        read_header(token)


def test_an_extension_is_refused_also_where_the_library_knows_it() -> None:
    key = ISSUER.private["rsa-1"][1]
    header = {"alg": "RS256", "kid": "rsa-1", "crit": ["b64"], "b64": True}
    with pytest.raises(InvalidIdentityToken):
        verify(by_hand(header, lambda text: key.sign(text, PKCS1v15(), SHA256())))
    verify(by_hand({"alg": "RS256", "kid": "rsa-1"}, lambda text: key.sign(text, PKCS1v15(), SHA256())))


@pytest.mark.parametrize("token", ["", "a", "a.b", "a.b.c", "....", "é.é.é", "\ud800", "a" * 20_001])
def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidIdentityToken):
        read_header(token)


def test_a_token_without_kid_is_believed_only_where_there_is_no_choice() -> None:
    keys = parse_keys({"keys": [{**ISSUER.jwks()["keys"][0], "kid": None}]})
    assert parse_keys(ISSUER.jwks()).find(None, "RS256") != ()
    issuer = Issuer()
    issuer.add_rsa("rsa-2")
    assert parse_keys(issuer.jwks()).find(None, "RS256") == ()
    assert len(keys.keys) == 1


def public_jwk(key: Any, algorithm: str, **changes: Any) -> dict[str, Any]:
    """A published key, changed."""
    made = jwt.get_algorithm_by_name(algorithm).to_jwk(key, as_dict=True)
    return {**made, "kid": "k", **changes}


def test_weak_private_symmetric_and_encryption_keys_are_left_out() -> None:
    strong = rsa.generate_private_key(65537, 2048)
    entries: list[object] = [
        public_jwk(rsa.generate_private_key(65537, 1024).public_key(), "RS256"),
        public_jwk(strong, "RS256"),
        public_jwk(strong.public_key(), "RS256", use="enc"),
        public_jwk(strong.public_key(), "RS256", alg="RS512"),
        public_jwk(strong.public_key(), "RS256", key_ops=["encrypt"]),
        public_jwk(strong.public_key(), "RS256", kid=7),
        public_jwk(strong.public_key(), "RS256", n="!!"),
        public_jwk(ec.generate_private_key(ec.SECP384R1()).public_key(), "ES384"),
        {"kty": "oct", "k": base64.urlsafe_b64encode(b"x" * 32).decode(), "kid": "k"},
        {"kty": "RSA"},
        "key",
    ]
    assert parse_keys({"keys": entries}).keys == ()
    assert len(parse_keys({"keys": [*entries, public_jwk(strong.public_key(), "RS256")]}).keys) == 1


@pytest.mark.parametrize("document", [None, [], {}, {"keys": None}, {"keys": {}}])
def test_what_is_no_key_set_is_an_error(document: object) -> None:
    with pytest.raises(ValueError, match="keys"):
        parse_keys(document)


@pytest.mark.parametrize(
    "url",
    [
        "http://issuer.example",
        "ftp://issuer.example",
        "https://",
        "https://u:p@h/",
        "file:///etc/passwd",
        None,
    ],
)
def test_keys_are_taken_from_safe_places_only(url: object) -> None:
    with pytest.raises(ValueError, match=r"keys are taken|URL is missing"):
        checked_url(url)


def verifier(issuer: Issuer, clock: Clock, **settings_: Any) -> OidcVerifier:
    """A verifier that asks the issuer without a network."""
    keys = IssuerKeys(issuer.url, fetch=settings_.pop("fetch", issuer.fetch), clock=clock, **settings_)
    return OidcVerifier(TokenRules(issuer.url, AUDIENCE), keys)


def token_of(issuer: Issuer, kid: str = "rsa-1") -> str:
    """A token that is good now."""
    return issuer.token(issuer.claims(NOW.timestamp()), kid)


def test_the_keys_are_found_by_discovery_and_kept() -> None:
    issuer, clock = Issuer(), Clock()
    checker = verifier(issuer, clock)
    for _ in range(3):
        assert result_of(checker.verify(token_of(issuer), NOW)).subject == "4711"
    assert issuer.requests == ["/.well-known/openid-configuration", "/keys"]
    clock.advance(601)
    result_of(checker.verify(token_of(issuer), NOW))
    assert issuer.requests.count("/keys") == 2


def test_a_given_jwks_uri_needs_no_discovery() -> None:
    issuer = Issuer()
    checker = verifier(issuer, Clock(), jwks_uri=f"{issuer.url}/keys")
    result_of(checker.verify(token_of(issuer, "ec-1"), NOW))
    assert issuer.requests == ["/keys"]


def test_a_discovery_document_of_another_issuer_is_not_believed() -> None:
    issuer = Issuer()
    issuer.discovery_issuer = "https://other.example"
    with pytest.raises(IDPCommunicationError):
        result_of(verifier(issuer, Clock()).verify(token_of(issuer), NOW))


def test_a_new_key_of_the_issuer_is_fetched_when_a_token_names_it() -> None:
    issuer, clock = Issuer(), Clock()
    checker = verifier(issuer, clock)
    result_of(checker.verify(token_of(issuer), NOW))
    issuer.add_rsa("rsa-2")
    clock.advance(31)
    assert result_of(checker.verify(token_of(issuer, "rsa-2"), NOW)).subject == "4711"


def test_made_up_key_names_do_not_make_the_proxy_ask_again_and_again() -> None:
    issuer, clock = Issuer(), Clock()
    checker = verifier(issuer, clock)
    result_of(checker.verify(token_of(issuer), NOW))
    forged = issuer.token(issuer.claims(NOW.timestamp()), headers={"kid": "made-up"})
    for _ in range(50):
        clock.advance(1)
        with pytest.raises(InvalidIdentityToken):
            result_of(checker.verify(forged, NOW))
    assert issuer.requests.count("/keys") == 2


def test_a_retired_key_is_refused_once_the_keys_are_fetched_again() -> None:
    issuer, clock = Issuer(), Clock()
    checker = verifier(issuer, clock)
    token = token_of(issuer)
    result_of(checker.verify(token, NOW))
    issuer.retire("rsa-1")
    clock.advance(600)
    with pytest.raises(InvalidIdentityToken):
        result_of(checker.verify(token, NOW))


def test_a_clock_that_is_set_back_keeps_no_retired_key() -> None:
    issuer, clock = Issuer(), Clock()
    clock.advance(10_000)
    checker, token = verifier(issuer, clock), token_of(issuer)
    result_of(checker.verify(token, NOW))
    issuer.retire("rsa-1")
    clock.rightNow -= 3_600
    with pytest.raises(InvalidIdentityToken):
        result_of(checker.verify(token, NOW))


def test_the_keys_outlive_an_unreachable_issuer_for_an_hour() -> None:
    issuer, clock = Issuer(), Clock()
    down: list[bool] = []

    async def fetch(url: str) -> bytes:
        if down:
            raise OSError("unreachable")
        return await issuer.fetch(url)

    checker = verifier(issuer, clock, fetch=fetch)
    result_of(checker.verify(token_of(issuer), NOW))
    down.append(True)
    clock.advance(3_599)
    result_of(checker.verify(token_of(issuer), NOW))
    clock.advance(1)
    with pytest.raises(IDPCommunicationError):
        result_of(checker.verify(token_of(issuer), NOW))
    down.clear()
    clock.advance(30)
    result_of(checker.verify(token_of(issuer), NOW))


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"keys": 1}', b" " * ((1 << 20) + 1)])
def test_a_broken_answer_of_the_issuer_is_no_key_set(body: bytes) -> None:
    async def fetch(_: str) -> bytes:
        return body

    issuer = Issuer()
    with pytest.raises(IDPCommunicationError):
        result_of(verifier(issuer, Clock(), fetch=fetch).verify(token_of(issuer), NOW))


def test_many_callers_wait_for_one_flight_and_one_that_goes_away_takes_it_from_none() -> None:
    issuer, asked = Issuer(), []

    async def fetch(url: str) -> bytes:
        waiting: Deferred[bytes] = Deferred()
        asked.append((url, waiting))
        return await waiting

    checker = verifier(issuer, Clock(), fetch=fetch, jwks_uri=f"{issuer.url}/keys")
    callers = [start(checker.verify(token_of(issuer), NOW)) for _ in range(5)]
    callers[0].addErrback(lambda _: None)
    callers[0].cancel()
    ((_, waiting),) = asked
    waiting.callback(json.dumps(issuer.jwks()).encode())
    assert [result_of(caller).subject for caller in callers[1:]] == ["4711"] * 4
    assert len(asked) == 1


def test_an_issuer_over_http_is_understood() -> None:
    def fetch(url: str) -> Deferred[bytes]:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            return succeed(answer.read())

    with serving(Issuer()) as issuer:
        checker = verifier(issuer, Clock(), fetch=fetch)
        assert result_of(checker.verify(token_of(issuer), NOW)).issuer == issuer.url
