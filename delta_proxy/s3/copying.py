"""x-amz-copy-source: which object a copy is made of. Source: "CopyObject" in the Amazon S3 API reference."""

from __future__ import annotations

from attrs import frozen

from delta_proxy.s3.errors import InvalidArgument, NotImplementedByProxy
from delta_proxy.s3.headers import Headers
from delta_proxy.s3.request import decode

HEADER = "x-amz-copy-source"


@frozen
class CopySource:
    """The object a copy is made of, its key decoded once."""

    bucket: str
    key: str


def copy_source(headers: Headers) -> CopySource:
    """What the header names, with or without a slash before the bucket.

    Raises InvalidArgument when it names nothing, or more than once, and NotImplementedByProxy for a version.
    """
    values = headers.all(HEADER)
    path, question, _ = (values[0] if values else "").partition("?")
    if question:
        raise NotImplementedByProxy(fields={"Parameter": "versionId"})
    bucket, _, key = decode(path.encode("latin-1")).removeprefix("/").partition("/")
    if len(values) != 1 or not bucket or not key:
        raise InvalidArgument(
            "Copy Source must mention the source bucket and key: sourcebucket/sourcekey",
            fields={"ArgumentName": HEADER},
        )
    return CopySource(bucket, key)
