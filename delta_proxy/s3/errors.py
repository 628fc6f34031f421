"""The errors of S3, as exceptions that know their own code, status and words.

The codes and statuses are those of the "Error responses" page of the Amazon S3 API reference. An error is
raised where it is found and rendered once, by `delta_proxy.s3.xml.error_document`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar


class S3Error(Exception):
    """An answer that is an error.

    `fields` become extra children of the Error element, in their order; `headers` are added to the response.
    The message goes to the client: it must hold nothing the client may not know.
    """

    code: ClassVar[str] = "InternalError"
    status: ClassVar[int] = 500
    default_message: ClassVar[str] = "We encountered an internal error. Please try again."

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "code" not in cls.__dict__:
            cls.code = cls.__name__

    def __init__(
        self,
        message: str | None = None,
        *,
        fields: Mapping[str, str] | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self.message = self.default_message if message is None else message
        self.fields: Mapping[str, str] = MappingProxyType(dict(fields or {}))
        self.headers = headers
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class NotModified(S3Error):
    """The client's copy is still right; the answer has no body."""

    status = 304
    default_message = "Not Modified"


class AuthorizationHeaderMalformed(S3Error):
    """An Authorization header that is not of the SigV4 form, or has the wrong scope."""

    status = 400
    default_message = "The authorization header that you provided is not valid."


class AuthorizationQueryParametersError(S3Error):
    """Presign parameters that are missing or malformed."""

    status = 400
    default_message = "The authorization query parameters that you provided are not valid."


class BadRequest(S3Error):
    """A preflight of a browser that lacks what makes one."""

    status = 400
    default_message = "Bad Request"


class BadDigest(S3Error):
    """A body that differs from its Content-MD5 or checksum."""

    status = 400
    default_message = (
        "The Content-MD5 or checksum value that you specified did not match what the server received."
    )


class EntityTooLarge(S3Error):
    """A body beyond the bound."""

    status = 400
    default_message = "Your proposed upload exceeds the maximum allowed object size."


class EntityTooSmall(S3Error):
    """A part of a multipart upload below the minimum."""

    status = 400
    default_message = "Your proposed upload is smaller than the minimum allowed object size."


class ExpiredToken(S3Error):
    """A session token past its end."""

    status = 400
    default_message = "The provided token has expired."


class IncompleteBody(S3Error):
    """A body shorter or longer than its announced length."""

    status = 400
    default_message = "You did not provide the number of bytes specified by the Content-Length HTTP header."


class InvalidArgument(S3Error):
    """A parameter or header whose value S3 does not take."""

    status = 400
    default_message = "Invalid Argument"


class InvalidDigest(S3Error):
    """A Content-MD5 or checksum header that is no digest."""

    status = 400
    default_message = "The Content-MD5 or checksum value that you specified is not valid."


class InvalidPart(S3Error):
    """A part named in CompleteMultipartUpload that was not uploaded so."""

    status = 400
    default_message = (
        "One or more of the specified parts could not be found. The part might not have been uploaded, "
        "or the specified entity tag might not have matched the part's entity tag."
    )


class InvalidPartNumber(S3Error):
    """A read of a part that the object does not have."""

    status = 416
    default_message = "The requested partnumber is not satisfiable"


class InvalidPartOrder(S3Error):
    """Parts of CompleteMultipartUpload out of order."""

    status = 400
    default_message = "The list of parts was not in ascending order. Parts must be ordered by part number."


class InvalidRequest(S3Error):
    """A request that contradicts itself or uses what is not supported."""

    status = 400
    default_message = "Invalid Request"


class InvalidToken(S3Error):
    """A session token that is malformed or not of this proxy."""

    status = 400
    default_message = "The provided token is malformed or otherwise invalid."


class InvalidURI(S3Error):
    """A request target that is no URI of an S3 resource."""

    status = 400
    default_message = "Couldn't parse the specified URI."


class KeyTooLongError(S3Error):
    """A key of more than 1024 bytes."""

    status = 400
    default_message = "Your key is too long."


class MalformedTrailerError(S3Error):
    """Trailing headers of an aws-chunked body that are not those announced."""

    status = 400
    default_message = (
        "The request contained trailing data that was not well-formed "
        "or did not conform to our published schema."
    )


class MalformedXML(S3Error):
    """A request document that is not well formed or not of S3's schema."""

    status = 400
    default_message = (
        "The XML you provided was not well-formed or did not validate against our published schema."
    )


class MetadataTooLarge(S3Error):
    """User metadata beyond 2 KiB."""

    status = 400
    default_message = "Your metadata headers exceed the maximum allowed metadata size."


class MissingSecurityHeader(S3Error):
    """A signed request without a header that signing requires."""

    status = 400
    default_message = "Your request was missing a required header."


class RequestHeaderSectionTooLarge(S3Error):
    """Headers beyond the bound."""

    status = 400
    default_message = "Your request header section exceeds the maximum allowed size."


class RequestTimeout(S3Error):
    """A client that stopped sending."""

    status = 400
    default_message = (
        "Your socket connection to the server was not read from or written to within the timeout period."
    )


class XAmzContentSHA256Mismatch(S3Error):
    """A body whose SHA-256 is not the one the client announced."""

    status = 400
    default_message = "The provided 'x-amz-content-sha256' header does not match what was computed."


class AccessForbidden(S3Error):
    """A request across origins that no rule allows."""

    status = 403
    default_message = "CORSResponse: This CORS request is not allowed."


class AccessDenied(S3Error):
    """What the caller may not do or see."""

    status = 403
    default_message = "Access Denied"


class InvalidAccessKeyId(S3Error):
    """An access key that nobody has."""

    status = 403
    default_message = "The AWS Access Key Id you provided does not exist in our records."


class RequestTimeTooSkewed(S3Error):
    """A request signed at another time than now."""

    status = 403
    default_message = "The difference between the request time and the current time is too large."


class SignatureDoesNotMatch(S3Error):
    """A signature that the caller's secret does not give."""

    status = 403
    default_message = (
        "The request signature we calculated does not match the signature you provided. "
        "Check your key and signing method."
    )


class NoSuchBucket(S3Error):
    """A bucket that does not exist."""

    status = 404
    default_message = "The specified bucket does not exist"


class NoSuchKey(S3Error):
    """A key that does not exist, or must look so."""

    status = 404
    default_message = "The specified key does not exist."


class NoSuchUpload(S3Error):
    """A multipart upload that does not exist."""

    status = 404
    default_message = (
        "The specified multipart upload does not exist. The upload ID might be invalid, "
        "or the multipart upload might have been aborted or completed."
    )


class MethodNotAllowed(S3Error):
    """A method that this resource does not take, such as a write in read-only mode."""

    status = 405
    default_message = "The specified method is not allowed against this resource."


class ConditionalRequestConflict(S3Error):
    """A conditional write that lost a race with another write."""

    status = 409
    default_message = "A conflicting operation occurred during the conditional request. Retry the request."


class OperationAborted(S3Error):
    """A write that collides with another one in progress."""

    status = 409
    default_message = (
        "A conflicting conditional operation is currently in progress against this resource. Try again."
    )


class MissingContentLength(S3Error):
    """An upload without a length."""

    status = 411
    default_message = "You must provide the Content-Length HTTP header."


class PreconditionFailed(S3Error):
    """A condition of the request that does not hold."""

    status = 412
    default_message = "At least one of the pre-conditions you specified did not hold"


class InvalidRange(S3Error):
    """A range that lies beyond the object."""

    status = 416
    default_message = "The requested range is not satisfiable"


class InternalError(S3Error):
    """A fault of the proxy."""


class NotImplementedByProxy(S3Error):
    """An S3 operation or parameter outside the proxy's closed set."""

    code = "NotImplemented"
    status = 501
    default_message = "A header or parameter that you provided implies functionality that is not implemented."


class ServiceUnavailable(S3Error):
    """The store behind the proxy does not answer; the client may retry."""

    status = 503
    default_message = "Service is unable to handle request."


class SlowDown(S3Error):
    """Too many requests; the client should retry later."""

    status = 503
    default_message = "Please reduce your request rate."
