"""Where a bucket is reached: scheme, host and path. Source: "Virtual hosting of buckets" in the Amazon S3
user guide.
"""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import urlsplit

from attrs import frozen

from delta_proxy.s3.sigv4 import object_path, quote
from delta_proxy.upstream.stores import AddressingStyle, StoreConfig

DEFAULT_REGION = "us-east-1"
# It becomes a part of a host name, and it may come from a store's answer.
_REGION = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_AWS = re.compile(r".+\.amazonaws\.com(\.cn)?(:[0-9]+)?")
_OTHER_PARTITION = re.compile(r"[.-](cn|us-gov|us-iso[a-z]?|eu-isoe)-[a-z]+-[0-9]\.")
_CHINA = ".amazonaws.com.cn"


@frozen
class Origin:
    """The scheme and host (with a port that is not the scheme's own) of a store in a region."""

    scheme: str
    host: str

    @classmethod
    def of(cls, store: StoreConfig, region: str) -> Origin:
        """The origin of a store; AWS's regional one without an endpoint. Raises ValueError for a bad
        endpoint.
        """
        if store.endpoint is None:
            suffix = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
            return cls("https", f"s3.{region}.{suffix}")
        return parse_endpoint(store.endpoint)


@frozen
class Address:
    """The parts of a request's URL that SigV4 signs, encoded as they go on the wire."""

    scheme: str
    host: str
    raw_path: str

    @property
    def url(self) -> str:
        """Scheme, host and path."""
        return f"{self.scheme}://{self.host}{self.raw_path}"


@lru_cache(maxsize=256)
def parse_endpoint(endpoint: str) -> Origin:
    """The origin an endpoint names. Raises ValueError that says what is wrong.

    A path is refused: SigV4 signs it, and stores behind a rewriting gateway disagree on whether it belongs
    to the key.
    """
    parts = urlsplit(endpoint)
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise ValueError(f'"{endpoint}" is no endpoint; expected "http://host:port" or "https://host"')
    if parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ValueError(
            f'the endpoint "{endpoint}" has a path or a query; expected only scheme, host and port'
        )
    if parts.username is not None or parts.password is not None:
        raise ValueError("an endpoint holds no user or password")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    port = parts.port
    if port is None or port == _DEFAULT_PORTS[parts.scheme]:
        return Origin(parts.scheme, host)
    return Origin(parts.scheme, f"{host}:{port}")


def aws_partition(host: str) -> str:
    """The partition of AWS that a host such as `s3.cn-north-1.amazonaws.com.cn` is in.

    A bucket's name is its owner's in one partition alone: in another anybody may have a bucket of that name,
    and would be accepted there.
    """
    if host.endswith(_CHINA):
        # With or without a region.
        return "aws-cn"
    found = _OTHER_PARTITION.search(host)
    return f"aws-{found[1]}" if found is not None else "aws"


def namespace(store: StoreConfig) -> str:
    """What is equal for two stores in which a name of a bucket means the same one, however they are spelled:
    all of a partition of AWS, one host of others, whose ports for http and https lead to the same.
    """
    host = Origin.of(store, store.region or DEFAULT_REGION).host
    return aws_partition(host) if _AWS.fullmatch(host) else host


def is_region(text: str) -> bool:
    """Whether this can be the name of a region."""
    return _REGION.fullmatch(text) is not None


def address(store: StoreConfig, region: str, bucket: str, key: str | None) -> Address:
    """Where an object is reached, or the bucket itself when the key is None.

    AUTO is virtual-host style for AWS, save for buckets with dots, which its certificate does not cover,
    and path style for other stores. A key that starts with a slash goes by path style always: a URL whose
    path starts with two slashes is altered by URL libraries on its way to the wire.
    """
    at = _place(store, region, bucket)
    if at.virtual and not (key or "").startswith("/"):
        return Address(at.scheme, at.virtual, object_path(None, key or ""))
    return Address(at.scheme, at.host, at.path if key is None else f"{at.path}{object_path(None, key)}")


@frozen
class _Place:
    """Where a bucket lies. `virtual` is its own host, "" where it is reached by path alone."""

    scheme: str
    host: str
    path: str
    virtual: str


@lru_cache(maxsize=256)
def _place(store: StoreConfig, region: str, bucket: str) -> _Place:
    origin = Origin.of(store, region)
    virtual = f"{bucket}.{origin.host}" if _is_virtual(store, bucket) else ""
    return _Place(origin.scheme, origin.host, f"/{quote(bucket)}", virtual)


def _is_virtual(store: StoreConfig, bucket: str) -> bool:
    if store.addressing_style is AddressingStyle.AUTO:
        return store.endpoint is None and "." not in bucket
    return store.addressing_style is AddressingStyle.VIRTUAL
