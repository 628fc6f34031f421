"""The checksums of bodies, by the header or trailer that carries them.

Source: "Checking object integrity" in the Amazon S3 user guide. CRCs are big-endian, values in Base64.
The CRCs come from awscrt, the library that botocore takes for them too: 20 GB/s where tables in Python would
reach 5 MB/s.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from awscrt import checksums


class Checksum(Protocol):
    """A digest that grows with the body."""

    def update(self, data: bytes, /) -> None:
        """Take in more of the body."""
        ...

    def digest(self) -> bytes:
        """The digest of what was taken in."""
        ...


class _Crc:
    def __init__(self, step: Callable[[bytes, int], int], size: int) -> None:
        self._step, self._size, self._value = step, size, 0

    def update(self, data: bytes, /) -> None:
        self._value = self._step(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._size, "big")


CHECKSUMS: Final[Mapping[str, Callable[[], Checksum]]] = {
    "x-amz-checksum-crc32": lambda: _Crc(checksums.crc32, 4),
    "x-amz-checksum-crc32c": lambda: _Crc(checksums.crc32c, 4),
    "x-amz-checksum-crc64nvme": lambda: _Crc(checksums.crc64nvme, 8),
    "x-amz-checksum-md5": lambda: hashlib.md5(usedforsecurity=False),
    "x-amz-checksum-sha1": lambda: hashlib.sha1(usedforsecurity=False),
    "x-amz-checksum-sha256": hashlib.sha256,
    "x-amz-checksum-sha512": hashlib.sha512,
}


def encoded(digest: bytes) -> str:
    """A digest as headers and trailers write it."""
    return base64.b64encode(digest).decode("ascii")


def encoded_size(name: str) -> int:
    """How many characters the value of a checksum has."""
    return len(encoded(CHECKSUMS[name]().digest()))
