"""`POST /` as AWS STS: session credentials for a web identity, and who the caller is.

Sources: "AssumeRoleWithWebIdentity" and "GetCallerIdentity" in the AWS Security Token Service API reference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime

from attrs import frozen

from delta_proxy.access.identity import AuthKind, Principal
from delta_proxy.access.jwks import OidcVerifier
from delta_proxy.access.sts import (
    MAX_BODY_BYTES,
    AssumeRoleWithWebIdentity,
    GetCallerIdentity,
    SessionTokens,
    parse_sts,
)
from delta_proxy.resources.authentication import SigV4Authenticator
from delta_proxy.resources.base import Answer, S3Resource, annotate
from delta_proxy.resources.server import EdgeRequest
from delta_proxy.resources.services import Services
from delta_proxy.s3.errors import S3Error
from delta_proxy.s3.request import S3Request
from delta_proxy.s3.sts_xml import (
    CONTENT_TYPE,
    InvalidAction,
    StsError,
    ValidationError,
    assume_role_with_web_identity,
    error_document,
    get_caller_identity,
)

ACCOUNT = "000000000000"
"""The account of every principal: the proxy has none of AWS's."""

_CODES = {
    "AccessDenied": "MissingAuthenticationToken",
    "InvalidAccessKeyId": "InvalidClientTokenId",
    "AuthorizationHeaderMalformed": "IncompleteSignature",
    "InvalidToken": "InvalidClientTokenId",
}


@frozen
class WebIdentities:
    """Takes tokens of one issuer for sessions of at most `session_seconds`."""

    verifier: OidcVerifier
    tokens: SessionTokens
    session_seconds: int

    async def assume(self, asked: AssumeRoleWithWebIdentity, now: datetime, request_id: str) -> Assumed:
        """A session for whom the token is about. Raises StsError."""
        seconds = asked.duration_seconds or self.session_seconds
        if seconds > self.session_seconds:
            raise ValidationError(
                "The requested DurationSeconds exceeds the MaxSessionDuration set for this role."
            )
        identity = await self.verifier.verify(asked.web_identity_token, now)
        credentials = self.tokens.issue(identity.principal, identity.groups, seconds, now)
        session = asked.session(credentials, identity.subject, identity.audience, identity.issuer)
        return Assumed(identity.principal, assume_role_with_web_identity(session, request_id))


@frozen
class Assumed:
    """Whose session was issued, and the document that hands it out."""

    principal: str
    document: bytes


@frozen
class SessionService:
    """What answers STS. `web_identities` is None where no issuer is trusted."""

    authenticator: SigV4Authenticator
    now: Callable[[], datetime]
    web_identities: WebIdentities | None = None


class StsResource(S3Resource):
    """`POST /`; whatever is not one of the two actions learns only that."""

    def __init__(self, services: Services, sts: SessionService, s3: S3Request) -> None:
        super().__init__(services, s3)
        self._sts = sts

    async def _authenticated_answer(self, request: EdgeRequest) -> Answer:
        try:
            return _xml(200, await self._document(request))
        except S3Error as error:
            return self._refused(request, _in_words_of_sts(error))
        except StsError as error:
            return self._refused(request, error)

    async def _document(self, request: EdgeRequest) -> bytes:
        body = await request.read_body(MAX_BODY_BYTES)
        match parse_sts(body, self.s3.query):
            case AssumeRoleWithWebIdentity() as asked:
                return await self._assume(asked, request)
            case GetCallerIdentity():
                return self._caller(body, request)

    async def _assume(self, asked: AssumeRoleWithWebIdentity, request: EdgeRequest) -> bytes:
        annotate(request, operation="AssumeRoleWithWebIdentity", auth="web identity")
        if self._sts.web_identities is None:
            raise InvalidAction
        assumed = await self._sts.web_identities.assume(asked, self._sts.now(), request.request_id)
        annotate(request, principal=assumed.principal)
        return assumed.document

    def _caller(self, body: bytes, request: EdgeRequest) -> bytes:
        annotate(request, operation="GetCallerIdentity")
        sha256 = hashlib.sha256(body).hexdigest()
        principal = self._sts.authenticator.caller(self.s3, request, sha256)
        annotate(request, principal=principal.id)
        return get_caller_identity(
            arn=_arn(principal), user_id=principal.id, account=ACCOUNT, request_id=request.request_id
        )

    def _refused(self, request: EdgeRequest, error: StsError) -> Answer:
        annotate(request, decision="refused", reason=error.code)
        return _xml(error.status, error_document(error, request.request_id))


def _xml(status: int, document: bytes) -> Answer:
    return Answer(status, (("content-type", CONTENT_TYPE), ("cache-control", "no-store")), document)


def _arn(principal: Principal) -> str:
    if principal.auth is AuthKind.SESSION:
        return f"arn:aws:sts::{ACCOUNT}:assumed-role/delta-s3-proxy/{principal.id}"
    return f"arn:aws:iam::{ACCOUNT}:user/{principal.id}"


def _in_words_of_sts(error: S3Error) -> StsError:
    """The same refusal under the code that STS gives it."""
    words = {"code": _CODES.get(error.code, error.code), "status": error.status}
    made: StsError = type("Refused", (StsError,), words)(error.message)
    return made
