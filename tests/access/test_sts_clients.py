"""What the SDK of Python asks of STS is understood, and it takes the answer for credentials."""

from __future__ import annotations

import pathlib
from datetime import UTC, datetime
from typing import Any

import botocore.session
import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.exceptions import ClientError
from twisted.internet.task import Clock

from delta_proxy.access.jwks import IssuerKeys, OidcVerifier
from delta_proxy.access.keys import SecretKeys, generate_key
from delta_proxy.access.oidc import TokenRules
from delta_proxy.access.sts import AssumeRoleWithWebIdentity, SessionTokens, parse_sts
from delta_proxy.s3.sts_xml import StsError, assume_role_with_web_identity, error_document
from tests.access.oidc_issuer import AUDIENCE, Issuer
from tests.helpers import result_of


class _Body:
    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self, *_: Any, **__: Any) -> Any:
        yield self._body


class Endpoint:
    """STS without a network: it answers a prepared request of botocore."""

    def __init__(self, issuer: Issuer) -> None:
        self.tokens = SessionTokens(SecretKeys.parse(generate_key()))
        keys = IssuerKeys(issuer.url, fetch=issuer.fetch, clock=Clock())
        self.verifier = OidcVerifier(TokenRules(issuer.url, AUDIENCE), keys)

    def __call__(self, request: AWSPreparedRequest, **_: Any) -> AWSResponse:
        body: Any = request.body
        try:
            status, answer = 200, self._answer(body if isinstance(body, bytes) else body.encode())
        except StsError as error:
            status, answer = error.status, error_document(error, "r")
        return AWSResponse(request.url, status, {}, _Body(answer))

    def _answer(self, body: bytes) -> bytes:
        now = datetime.now(UTC)
        asked = parse_sts(body)
        assert isinstance(asked, AssumeRoleWithWebIdentity)
        identity = result_of(self.verifier.verify(asked.web_identity_token, now))
        made = self.tokens.issue(identity.principal, identity.groups, asked.duration_seconds or 3600, now)
        return assume_role_with_web_identity(
            asked.session(made, identity.subject, identity.audience, identity.issuer), "r"
        )


def session_with(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, token: pathlib.Path) -> Any:
    """A session of the SDK as a pod with a web identity token configures it."""
    for name, value in {
        "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/reader",
        "AWS_ROLE_SESSION_NAME": "alice",
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(token),
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_SHARED_CREDENTIALS_FILE": str(token.parent / "none"),
        "AWS_CONFIG_FILE": str(token.parent / "none"),
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    session = botocore.session.Session()
    session.register("before-send.sts.AssumeRoleWithWebIdentity", endpoint)
    return session


def test_the_web_identity_provider_of_the_sdk_gets_credentials_that_open(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    issuer = Issuer()
    endpoint = Endpoint(issuer)
    token = tmp_path / "token"
    token.write_text(issuer.token(issuer.claims(datetime.now(UTC).timestamp())))
    found = session_with(endpoint, monkeypatch, token).get_credentials().get_frozen_credentials()
    identity = endpoint.tokens.open_token(found.token, found.access_key, datetime.now(UTC))
    assert identity.secret_key.value == found.secret_key
    assert (identity.principal, identity.groups) == ("oidc:4711", frozenset({"desk"}))


def test_the_sdk_understands_why_a_token_was_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    issuer = Issuer()
    token = tmp_path / "token"
    token.write_text(issuer.token(issuer.claims(datetime.now(UTC).timestamp(), aud="other")))
    credentials = session_with(Endpoint(issuer), monkeypatch, token).get_credentials()
    with pytest.raises(ClientError) as refused:
        credentials.get_frozen_credentials()
    assert refused.value.response["Error"]["Code"] == "InvalidIdentityToken"
