"""SSE-C: objects that are encrypted with a key which the client brings with each request.

The key is the store's to use; the proxy passes it on, and keeps, caches and logs nothing of it. As S3 does,
the proxy refuses one that comes over a connection which others can read. Source: "Using server-side
encryption with customer-provided keys (SSE-C)" in the Amazon S3 user guide.
"""

# mypy: allow-untyped-calls
from __future__ import annotations

import ipaddress
from typing import Final

from delta_proxy.resources.server import EdgeRequest
from delta_proxy.s3.errors import InvalidRequest
from delta_proxy.s3.headers import Headers

_KEY: Final = "x-amz-server-side-encryption-customer-"
FIELDS: Final = frozenset({f"{_KEY}algorithm", f"{_KEY}key", f"{_KEY}key-md5"})
"""The fields of a key that an object is read or written with."""

TOLD: Final = frozenset({f"{_KEY}algorithm", f"{_KEY}key-md5"})
"""What a store tells of the key."""

_SOURCE: Final = "x-amz-copy-source-server-side-encryption-customer-"
_ALL: Final = FIELDS | {f"{_SOURCE}algorithm", f"{_SOURCE}key", f"{_SOURCE}key-md5"}


def brings_key(headers: Headers) -> bool:
    """Whether a read comes with a key, or part of one."""
    return not headers.lacks(FIELDS)


def check_key_is_safe(headers: Headers, request: EdgeRequest) -> None:
    """Raises InvalidRequest for a key that came over plain HTTP from another host."""
    if not headers.lacks(_ALL) and not request.isSecure() and not _is_near(request):
        raise InvalidRequest(
            "Requests specifying Server Side Encryption with Customer provided keys must be made over a "
            "secure connection."
        )


def _is_near(request: EdgeRequest) -> bool:
    try:
        address = ipaddress.ip_address(getattr(request.client, "host", ""))
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
