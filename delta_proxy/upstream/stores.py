"""Where a table really lies: the store, the bucket and the prefix, as frozen values."""

from __future__ import annotations

import re
from enum import Enum

import attrs

from delta_proxy.s3.errors import NoSuchKey

_SCHEME = "s3://"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_IPV4 = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){3}")
_MAX_KEY_BYTES = 1024
_DOTS = frozenset({".", ".."})


def has_dot_segments(path: str) -> bool:
    """Whether a path has a "." or ".." segment: a name like any other to S3, but stores over a file system
    walk it, and so do clients that follow a redirect.
    """
    # A segment that is one begins with a dot: few paths have to be split.
    return ("/." in path or path.startswith(".")) and not _DOTS.isdisjoint(path.split("/"))


def leaves_root(path: str) -> bool:
    """Whether a store that walks dot segments would be led to the table root or above it, past the grant."""
    if not has_dot_segments(path):
        return False
    depth = 0
    for segment in path.split("/"):
        depth += -1 if segment == ".." else segment not in {"", "."}
        if depth < 0:
            return True
    return depth == 0


class AddressingStyle(Enum):
    """How the bucket is named in a request: in the path, in the host, or as the endpoint suggests."""

    PATH = "path"
    VIRTUAL = "virtual"
    AUTO = "auto"


@attrs.frozen(cache_hash=True)
class StoreConfig:
    """An S3-compatible store; endpoint None is AWS, region and profile None are left to botocore's chain."""

    endpoint: str | None = None
    region: str | None = None
    profile: str | None = None
    addressing_style: AddressingStyle = AddressingStyle.AUTO


class CommitProbe(Enum):
    """Whether it is tried, before the first write, that a store honours If-None-Match."""

    ON = "on"
    OFF = "off"


@attrs.frozen
class TableLocation:
    """The root of a table. `prefix` has no slash at either end; "" is a table at the root of its bucket."""

    bucket: str
    prefix: str
    store: StoreConfig = StoreConfig()
    commit_probe: CommitProbe = CommitProbe.ON

    def key(self, path: str) -> str:
        """The object key of a path relative to the table root."""
        return f"{self.prefix}/{path}" if self.prefix else path

    def object_key(self, path: str) -> str:
        """`key` of an object. Raises NoSuchKey for a path that could lead elsewhere: one whose dot segments
        leave the table, and the empty key of a whole bucket, which every store takes for the bucket itself.
        """
        key = self.key(path)
        if not key or leaves_root(path):
            raise NoSuchKey()
        return key

    @property
    def uri(self) -> str:
        """The location as `s3://bucket/prefix`."""
        return f"{_SCHEME}{self.bucket}/{self.prefix}" if self.prefix else f"{_SCHEME}{self.bucket}"


def parse_s3_uri(uri: str) -> tuple[str, str]:
    """`s3://bucket/prefix` as (bucket, prefix); one slash at the end is dropped, nothing is percent-decoded.

    Raises ValueError that says what is wrong. Bucket names follow the AWS page "General purpose bucket naming
    rules". A prefix with empty, `.` or `..` segments is refused: clients and stores disagree on what it is.
    """
    if not uri.startswith(_SCHEME):
        raise ValueError(f'"{uri}" is not an S3 URI; expected "s3://bucket/prefix"')
    if "?" in uri or "#" in uri:
        raise ValueError(f'"{uri}" has a query or a fragment; expected "s3://bucket/prefix"')
    bucket, slash, prefix = uri.removeprefix(_SCHEME).partition("/")
    check_bucket_name(bucket)
    prefix = prefix.removesuffix("/")
    if slash and prefix:
        _check_prefix(uri, prefix)
    return bucket, prefix


def check_bucket_name(bucket: str) -> None:
    """Raises ValueError when the name is not one that S3 gives to a general purpose bucket."""
    if not _BUCKET.fullmatch(bucket) or ".." in bucket or _IPV4.fullmatch(bucket):
        raise ValueError(
            f'"{bucket}" is not a bucket name; expected 3 to 63 lower-case letters, digits, "-" and "."'
        )


def _check_prefix(uri: str, prefix: str) -> None:
    if any(segment in {"", ".", ".."} for segment in prefix.split("/")):
        raise ValueError(f'"{uri}" has an empty, "." or ".." path segment')
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in prefix):
        raise ValueError(f'"{uri!r}" has a control character')
    if len(prefix.encode("utf-8", "replace")) > _MAX_KEY_BYTES:
        raise ValueError(f"the prefix is longer than {_MAX_KEY_BYTES} bytes")
