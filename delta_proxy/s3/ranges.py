"""Range requests on an object of known size.

Sources: RFC 9110, section 14; "GetObject" in the Amazon S3 API reference. S3 serves one range only and
answers several, or a malformed header, with the whole object.
"""

from __future__ import annotations

import re

from attrs import frozen

from delta_proxy.s3.errors import InvalidRange

_RANGE = re.compile(r"bytes=([0-9]*)-([0-9]*)", re.IGNORECASE)
# More digits than any size has; beyond that the number no longer matters.
_MANY_DIGITS = 19


@frozen
class ByteRange:
    """Bytes `first` to `last` of an object, both inclusive."""

    first: int
    last: int

    @property
    def length(self) -> int:
        """The number of bytes."""
        return self.last - self.first + 1

    def content_range(self, size: int) -> str:
        """The Content-Range of the answer, for an object of `size` bytes."""
        return f"bytes {self.first}-{self.last}/{size}"


def parse_range(value: str | None, size: int) -> ByteRange | None:
    """The range that a Range header asks of an object of `size` bytes; None asks for the whole object.

    Raises InvalidRange when no byte of the object is in the range: with Content-Range, and S3's fields.
    """
    match = _RANGE.fullmatch(value or "")
    if match is None or match.groups() == ("", ""):
        return None
    first, last = (_number(digits) for digits in match.groups())
    if first is None:
        return _from_end(last or 0, size, match.group())
    if last is not None and last < first:
        return None
    if first >= size:
        raise _unsatisfiable(match.group(), size)
    return ByteRange(first, size - 1 if last is None else min(last, size - 1))


def _from_end(length: int, size: int, header: str) -> ByteRange:
    if length == 0 or size == 0:
        raise _unsatisfiable(header, size)
    return ByteRange(max(0, size - length), size - 1)


def _number(digits: str) -> int | None:
    if not digits:
        return None
    significant = digits.lstrip("0") or "0"
    return int(significant) if len(significant) <= _MANY_DIGITS else 10**_MANY_DIGITS


def _unsatisfiable(header: str, size: int) -> InvalidRange:
    return InvalidRange(
        fields={"RangeRequested": header[:100], "ActualObjectSize": str(size)},
        headers=(("content-range", f"bytes */{size}"),),
    )
