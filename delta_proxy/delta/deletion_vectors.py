"""Deletion vector files as a grant sees them: zeros wherever another file's vector stands.

Source: Delta PROTOCOL, "Deletion Vector File Storage Format": one version byte, then vectors, each a
big-endian int32 size, `size` bytes of data and a big-endian int32 CRC-32. A descriptor's `offset` points at
its size field.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

_VERSION_BYTES = 1
_SIZE_BYTES = 4
_CHECKSUM_BYTES = 4
# Readers take a descriptor without offset as one of the first vector of its file.
_FIRST_OFFSET = 1


@attrs.frozen(order=True)
class Region:
    """The bytes `start` to `stop` (not included) of a file."""

    start: int
    stop: int


VERSION = Region(0, _VERSION_BYTES)


def region(offset: int | None, size: int) -> Region:
    """The bytes of a descriptor's vector in its file; empty for a descriptor that cannot be one."""
    start = _FIRST_OFFSET if offset is None else offset
    if start < _VERSION_BYTES or size < 0:
        return Region(_VERSION_BYTES, _VERSION_BYTES)
    return Region(start, start + _SIZE_BYTES + size + _CHECKSUM_BYTES)


def regions(
    granted: Iterable[tuple[int | None, int]], denied: Iterable[tuple[int | None, int]]
) -> tuple[Region, ...]:
    """What may be seen of a deletion vector file, sorted, without overlaps, the version byte included.

    `granted` and `denied` are the (offset, sizeInBytes) of the descriptors that name the file. A byte that a
    denied descriptor covers is not shown, whatever a granted one claims.
    """
    shown: list[Region] = []
    hidden = sorted(region(*descriptor) for descriptor in denied)
    for piece in _without(sorted(region(*descriptor) for descriptor in granted), hidden):
        if shown and piece.start <= shown[-1].stop:
            shown[-1] = Region(shown[-1].start, max(shown[-1].stop, piece.stop))
        else:
            shown.append(piece)
    return (VERSION, *shown)


def _without(wanted: Sequence[Region], hidden: Sequence[Region]) -> list[Region]:
    left: list[Region] = []
    for piece in wanted:
        start = piece.start
        for hole in hidden:
            if hole.stop <= start or hole.start >= piece.stop:
                continue
            if hole.start > start:
                left.append(Region(start, hole.start))
            start = max(start, hole.stop)
        if start < piece.stop:
            left.append(Region(start, piece.stop))
    return sorted(left)


def mask(chunk: bytes, position: int, shown: Sequence[Region]) -> bytes:
    """A chunk of a file that starts at byte `position`, with zeros outside the regions that are shown."""
    end = position + len(chunk)
    masked = bytearray(len(chunk))
    for piece in shown:
        start, stop = max(piece.start, position), min(piece.stop, end)
        if start < stop:
            masked[start - position : stop - position] = chunk[start - position : stop - position]
    return bytes(masked)
