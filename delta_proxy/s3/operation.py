"""The closed set of S3 operations the proxy knows, and which one a request is.

S3 tells operations apart by method, level (service, bucket, object) and query parameters; see the "Actions"
pages of the Amazon S3 API reference. A parameter that is not known for an operation is refused: `GET
/b/k?acl` must never be answered as GetObject.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum, auto

from attrs import frozen

from delta_proxy.s3.errors import InvalidArgument, MethodNotAllowed, NotImplementedByProxy
from delta_proxy.s3.headers import Headers


class Operation(Enum):
    """An operation, by S3's own name."""

    # Enum hashes its name anew each time; members are equal only to themselves.
    __hash__ = object.__hash__

    LIST_BUCKETS = "ListBuckets"
    HEAD_BUCKET = "HeadBucket"
    GET_BUCKET_LOCATION = "GetBucketLocation"
    LIST_OBJECTS = "ListObjects"
    LIST_OBJECTS_V2 = "ListObjectsV2"
    GET_OBJECT = "GetObject"
    HEAD_OBJECT = "HeadObject"
    PUT_OBJECT = "PutObject"
    DELETE_OBJECT = "DeleteObject"
    DELETE_OBJECTS = "DeleteObjects"
    COPY_OBJECT = "CopyObject"
    CREATE_MULTIPART_UPLOAD = "CreateMultipartUpload"
    UPLOAD_PART = "UploadPart"
    UPLOAD_PART_COPY = "UploadPartCopy"
    COMPLETE_MULTIPART_UPLOAD = "CompleteMultipartUpload"
    ABORT_MULTIPART_UPLOAD = "AbortMultipartUpload"
    LIST_PARTS = "ListParts"
    LIST_MULTIPART_UPLOADS = "ListMultipartUploads"
    STS = "STS"

    @property
    def is_write(self) -> bool:
        """Whether it belongs to the writing side: the whole multipart family does, its listings included."""
        return self in _WRITES


# In one spelling only, so that no store reads another number than the proxy.
_PART_NUMBER = re.compile("[1-9][0-9]{0,3}|10000")

_WRITES = frozenset(
    {
        Operation.PUT_OBJECT,
        Operation.DELETE_OBJECT,
        Operation.DELETE_OBJECTS,
        Operation.COPY_OBJECT,
        Operation.CREATE_MULTIPART_UPLOAD,
        Operation.UPLOAD_PART,
        Operation.UPLOAD_PART_COPY,
        Operation.COMPLETE_MULTIPART_UPLOAD,
        Operation.ABORT_MULTIPART_UPLOAD,
        Operation.LIST_PARTS,
        Operation.LIST_MULTIPART_UPLOADS,
    }
)


class _Level(Enum):
    __hash__ = object.__hash__

    SERVICE = auto()
    BUCKET = auto()
    OBJECT = auto()


@frozen
class _Form:
    """A shape of request: an operation with the parameters it must and may have."""

    operation: Operation
    required: frozenset[str]
    optional: frozenset[str]


def _form(operation: Operation, required: Iterable[str] = (), optional: Iterable[str] = ()) -> _Form:
    return _Form(operation, frozenset(required), frozenset(optional))


_LIST = ("prefix", "delimiter", "max-keys", "encoding-type")
_RESPONSE = (
    "response-cache-control",
    "response-content-disposition",
    "response-content-encoding",
    "response-content-language",
    "response-content-type",
    "response-expires",
)
_STS = ("Action", "Version", "RoleArn", "RoleSessionName", "WebIdentityToken", "DurationSeconds")
# The more telling form first: the first whose required parameters are all there is taken.
_FORMS = {
    ("GET", _Level.SERVICE): (
        _form(
            Operation.LIST_BUCKETS, optional=("max-buckets", "continuation-token", "prefix", "bucket-region")
        ),
    ),
    # The Rust object_store sends the parameters of STS in the query.
    ("POST", _Level.SERVICE): (_form(Operation.STS, optional=_STS),),
    ("HEAD", _Level.BUCKET): (_form(Operation.HEAD_BUCKET),),
    ("GET", _Level.BUCKET): (
        _form(Operation.GET_BUCKET_LOCATION, ("location",)),
        _form(
            Operation.LIST_MULTIPART_UPLOADS,
            ("uploads",),
            ("prefix", "delimiter", "encoding-type", "key-marker", "upload-id-marker", "max-uploads"),
        ),
        _form(
            Operation.LIST_OBJECTS_V2,
            ("list-type",),
            # MinIO's clients send metadata=true, which S3 ignores.
            (*_LIST, "start-after", "continuation-token", "fetch-owner", "metadata"),
        ),
        _form(Operation.LIST_OBJECTS, optional=(*_LIST, "marker")),
    ),
    ("POST", _Level.BUCKET): (_form(Operation.DELETE_OBJECTS, ("delete",)),),
    ("HEAD", _Level.OBJECT): (_form(Operation.HEAD_OBJECT, optional=("partNumber", *_RESPONSE)),),
    ("GET", _Level.OBJECT): (
        _form(Operation.LIST_PARTS, ("uploadId",), ("max-parts", "part-number-marker", "encoding-type")),
        _form(Operation.GET_OBJECT, optional=("partNumber", *_RESPONSE)),
    ),
    ("PUT", _Level.OBJECT): (
        _form(Operation.UPLOAD_PART, ("partNumber", "uploadId")),
        _form(Operation.PUT_OBJECT),
    ),
    ("POST", _Level.OBJECT): (
        _form(Operation.CREATE_MULTIPART_UPLOAD, ("uploads",)),
        _form(Operation.COMPLETE_MULTIPART_UPLOAD, ("uploadId",)),
    ),
    ("DELETE", _Level.OBJECT): (
        _form(Operation.ABORT_MULTIPART_UPLOAD, ("uploadId",)),
        _form(Operation.DELETE_OBJECT),
    ),
}
# What each of these is without any parameter.
_PLAIN = {place: form.operation for place, forms in _FORMS.items() for form in forms if not form.required}
_COPIES = {
    Operation.PUT_OBJECT: Operation.COPY_OBJECT,
    Operation.UPLOAD_PART: Operation.UPLOAD_PART_COPY,
}
# Known with every operation: SDK telemetry, and the parameters of both generations of presigned URLs.
_EVERYWHERE = frozenset(
    {
        "x-id",
        "X-Amz-Algorithm",
        "X-Amz-Credential",
        "X-Amz-Date",
        "X-Amz-Expires",
        "X-Amz-SignedHeaders",
        "X-Amz-Signature",
        "X-Amz-Security-Token",
        "x-amz-security-token",
        "AWSAccessKeyId",
        "Signature",
        "Expires",
    }
)
# Headers that presigners move into the query, in either spelling. None of them changes what an operation
# does.
_HOISTED = frozenset(
    {"x-amz-content-sha256", "x-amz-checksum-mode", "x-amz-sdk-checksum-algorithm", "x-amz-user-agent"}
)
_METHODS = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE"})


def classify(
    method: str, bucket: str, key: str, query: tuple[tuple[str, str], ...], headers: Headers
) -> Operation:
    """The operation of a request; an empty bucket is the service level, an empty key the bucket level.

    Raises NotImplementedByProxy for all of S3 outside the set, unknown query parameters included,
    MethodNotAllowed for a method S3 does not have, InvalidArgument for a list-type other than 2 and for an
    empty uploadId.
    """
    if not query and "x-amz-copy-source" not in headers:
        plain = _PLAIN.get((method, _level(bucket, key)))
        if plain is not None:
            return plain
    if method not in _METHODS:
        raise NotImplementedByProxy() if method == "OPTIONS" else MethodNotAllowed(fields={"Method": method})
    names = {name for name, _ in query}
    form = _matching(method, _level(bucket, key), names)
    unknown = sorted(
        name for name in names - form.required - form.optional - _EVERYWHERE if name.lower() not in _HOISTED
    )
    if unknown:
        raise NotImplementedByProxy(fields={"Parameter": unknown[0][:100]})
    _check_values(form.operation, query)
    if "x-amz-copy-source" in headers:
        return _COPIES.get(form.operation, form.operation)
    return form.operation


def _level(bucket: str, key: str) -> _Level:
    if not bucket:
        return _Level.SERVICE
    return _Level.OBJECT if key else _Level.BUCKET


def _matching(method: str, level: _Level, names: set[str]) -> _Form:
    for form in _FORMS.get((method, level), ()):
        if form.required <= names:
            return form
    raise NotImplementedByProxy()


def _check_values(operation: Operation, query: tuple[tuple[str, str], ...]) -> None:
    for name, value in query:
        if name == "list-type" and value != "2":
            raise InvalidArgument(
                "Invalid List Type specified in Query String",
                fields={"ArgumentName": "list-type", "ArgumentValue": value},
            )
        if name == "uploadId" and not value:
            # Some stores take it for none at all, and what was to abort an upload deletes the object.
            raise InvalidArgument("uploadId must not be empty.", fields={"ArgumentName": "uploadId"})
        if (
            name == "partNumber"
            and operation in {Operation.GET_OBJECT, Operation.HEAD_OBJECT}
            and not _PART_NUMBER.fullmatch(value)
        ):
            raise InvalidArgument(
                "Part number must be an integer between 1 and 10000, inclusive",
                fields={"ArgumentName": "partNumber", "ArgumentValue": value},
            )
