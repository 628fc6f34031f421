"""The documents of AWS STS, API version 2011-06-15: answers and errors.

Shapes as on the pages "AssumeRoleWithWebIdentity", "GetCallerIdentity" and "Common error types" of the AWS
Security Token Service API reference. Text that XML 1.0 cannot hold is refused with ValueError, so no
document is ever invalid.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import ClassVar
from xml.sax.saxutils import escape

import attrs

NAMESPACE = "https://sts.amazonaws.com/doc/2011-06-15/"
CONTENT_TYPE = "text/xml"
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class StsError(Exception):
    """An answer of STS that is an error; the message goes to the client and must hold no secret."""

    code: ClassVar[str] = "InternalFailure"
    status: ClassVar[int] = 500
    default_message: ClassVar[str] = "The request processing has failed because of an unknown error."

    def __init__(self, message: str | None = None) -> None:
        self.message = self.default_message if message is None else message
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class InvalidAction(StsError):
    """An action that is not one of the two."""

    code = "InvalidAction"
    status = 400
    default_message = "The action or operation requested is not valid."


class ValidationError(StsError):
    """A parameter that is missing, given twice, or outside its constraints."""

    code = "ValidationError"
    status = 400
    default_message = "The input fails to satisfy the constraints specified."


class InvalidIdentityToken(StsError):
    """A web identity token that is malformed, wrongly signed or not for this proxy."""

    code = "InvalidIdentityToken"
    status = 400
    default_message = "The web identity token that was passed could not be validated."


class ExpiredTokenException(StsError):
    """A web identity token past its end."""

    code = "ExpiredTokenException"
    status = 400
    default_message = "The web identity token that was passed is expired."


class IDPCommunicationError(StsError):
    """The identity provider's keys could not be fetched; clients try again."""

    code = "IDPCommunicationError"
    status = 400
    default_message = "The identity provider could not be reached to verify the token."


class IDPRejectedClaim(StsError):
    """A token that is genuine but whose claims are not accepted."""

    code = "IDPRejectedClaim"
    status = 403
    default_message = "The claims of the web identity token were rejected."


class PackedPolicyTooLarge(StsError):
    """A session that would not fit in a token: too many groups."""

    code = "PackedPolicyTooLarge"
    status = 400
    default_message = "The session's groups exceed the size that a session token can carry."


class StsUnavailable(StsError):
    """The proxy cannot answer now."""

    code = "ServiceUnavailable"
    status = 503
    default_message = "The request has failed due to a temporary failure of the server."


@attrs.frozen
class IssuedSession:
    """What AssumeRoleWithWebIdentity tells: the credentials and whose they are."""

    access_key: str
    secret_key: str = attrs.field(repr=False)
    session_token: str = attrs.field(repr=False)
    expires: datetime
    role_arn: str
    assumed_role_arn: str
    assumed_role_id: str
    subject: str
    audience: str
    provider: str


def assume_role_with_web_identity(session: IssuedSession, request_id: str) -> bytes:
    """The AssumeRoleWithWebIdentityResponse document."""
    credentials = _elements(
        ("AccessKeyId", session.access_key),
        ("SecretAccessKey", session.secret_key),
        ("SessionToken", session.session_token),
        ("Expiration", session.expires.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")),
    )
    user = _elements(("AssumedRoleId", session.assumed_role_id), ("Arn", session.assumed_role_arn))
    rest = _elements(
        ("SubjectFromWebIdentityToken", session.subject),
        ("Audience", session.audience),
        ("Provider", session.provider),
    )
    result = f"<Credentials>{credentials}</Credentials><AssumedRoleUser>{user}</AssumedRoleUser>{rest}"
    return _response("AssumeRoleWithWebIdentity", result, request_id)


def get_caller_identity(*, arn: str, user_id: str, account: str, request_id: str) -> bytes:
    """The GetCallerIdentityResponse document."""
    result = _elements(("Arn", arn), ("UserId", user_id), ("Account", account))
    return _response("GetCallerIdentity", result, request_id)


def error_document(error: StsError, request_id: str) -> bytes:
    """The ErrorResponse document; Type tells the SDKs whose fault it is."""
    kind = "Sender" if error.status < 500 else "Receiver"
    children = _elements(
        ("Type", kind), ("Code", error.code), ("Message", _ILLEGAL.sub("\ufffd", error.message))
    )
    body = f"<Error>{children}</Error>" + _elements(("RequestId", request_id))
    return f'<ErrorResponse xmlns="{NAMESPACE}">{body}</ErrorResponse>'.encode()


def _response(action: str, result: str, request_id: str) -> bytes:
    metadata = f"<ResponseMetadata>{_elements(('RequestId', request_id))}</ResponseMetadata>"
    body = f"<{action}Result>{result}</{action}Result>{metadata}"
    return f'<{action}Response xmlns="{NAMESPACE}">{body}</{action}Response>'.encode()


def _elements(*children: tuple[str, str]) -> str:
    return "".join(_element(children))


def _element(children: Iterable[tuple[str, str]]) -> Iterable[str]:
    for name, text in children:
        if _ILLEGAL.search(text):
            raise ValueError(f"{name} holds a character that XML cannot hold")
        yield f"<{name}>{escape(text, {chr(13): '&#13;'})}</{name}>"
