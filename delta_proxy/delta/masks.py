"""What a grant sees of a table: one bit for each distinct partition tuple, so that a decision costs O(1) a
file.
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import datetime
from typing import Final

import attrs
import numpy as np

from delta_proxy.access.policy import Allowed, Decision, Denied, Grant, Reason, decide, misfit

from .index import TableIndex
from .rows import UNKNOWN_TUPLE, FileKind
from .segment import Bits, Entry

_DENIED: Final = Denied(Reason.NOT_GRANTED)
_CLOSED: Final = Denied(Reason.UNKNOWN_FEATURE)
_REMEMBERED: Final = 1_024


def closed(index: TableIndex, grant: Grant) -> Reason | None:
    """Why the whole table, its log included, is closed to a grant; None when it is not.

    A table with a reader feature the proxy does not know is closed to every grant but everything, and so is
    one to which no alternative of the grant can apply.
    """
    if grant.is_everything:
        return None
    if index.metadata.unknown_features:
        return Reason.UNKNOWN_FEATURE
    return misfit(grant, index.metadata.columns)


def authorise(index: TableIndex, grant: Grant, path: str, now: datetime) -> Decision | None:
    """Whether a grant allows a path, and the reason when not; None when the log says nothing about the path.

    Every set of values the path ever had must be allowed. A deletion vector file is allowed when the data
    file of any of its vectors is. A table with a reader feature the proxy does not know is closed to every
    grant but everything.
    """
    return authorise_entries(index, grant, index.lookup(path), now)


def authorise_entries(
    index: TableIndex, grant: Grant, entries: tuple[Entry, ...], now: datetime
) -> Decision | None:
    """`authorise` for a path with these entries of the index."""
    if not entries:
        return None
    if grant.is_everything:
        return Allowed()
    if index.metadata.unknown_features:
        return _CLOSED
    own = [entry for entry in entries if entry.kind is not FileKind.DELETION_VECTOR]
    for entry in own:
        decision = _decide(index, grant, entry.tuple_id, now)
        if isinstance(decision, Denied):
            return decision
    owners = dict.fromkeys(
        entry.owner
        for entry in entries
        if entry.kind is FileKind.DELETION_VECTOR and entry.tuple_id != UNKNOWN_TUPLE
    )
    if len(own) == len(entries):
        return Allowed()
    decisions = [
        authorise_entries(index, grant, _data(index, owner), now) for owner in owners if owner is not None
    ]
    return next((one for one in decisions if isinstance(one, Allowed)), _DENIED)


def _data(index: TableIndex, path: str) -> tuple[Entry, ...]:
    return tuple(entry for entry in index.lookup(path) if entry.kind is FileKind.DATA)


def _decide(index: TableIndex, grant: Grant, number: int, now: datetime) -> Decision:
    if number == UNKNOWN_TUPLE:
        return Denied(Reason.MISSING_VALUE)
    partition = index.partitions[number]
    return decide(grant, partition, now)


@attrs.frozen(eq=False)
class GrantMask:
    """One grant's view of one snapshot: `bits[n]` tells whether files of tuple n are visible."""

    index: TableIndex
    bits: Bits

    def allows(self, entries: tuple[Entry, ...]) -> bool:
        """Whether a path with these entries of the index is granted; one without any is not."""
        return self.index.allows(entries, self.bits)

    def allows_vector(self, entry: Entry) -> bool:
        """Whether the bytes of one deletion vector are granted."""
        return self.index.allows_vector(entry, self.bits)


class GrantMasks:
    """Masks by table and grant, least recently used first out. A mask is extended when its table gets new
    tuples.

    Relative grants are judged anew each minute of `now`.
    """

    def __init__(self, limit: int = _REMEMBERED) -> None:
        self._limit = limit
        self._bits: OrderedDict[tuple[int, str, str], Bits] = OrderedDict()

    def __len__(self) -> int:
        return len(self._bits)

    def of(self, index: TableIndex, grant: Grant, now: datetime) -> GrantMask:
        """The mask of a grant over a snapshot."""
        return GrantMask(index, self._bits_of(index, grant, now))

    def allows_data(self, index: TableIndex, grant: Grant, entries: tuple[Entry, ...], now: datetime) -> bool:
        """Whether these entries are of data or change data alone, all granted, without a mask being made.

        False may just mean: look closer.
        """
        bits = self._bits_of(index, grant, now)
        for entry in entries:
            if entry.kind is FileKind.DELETION_VECTOR or not bits[entry.tuple_id]:
                return False
        return bool(entries)

    def _bits_of(self, index: TableIndex, grant: Grant, now: datetime) -> Bits:
        count = len(index.partitions)
        if grant.is_everything:
            return np.ones(count, np.bool_)
        if index.metadata.unknown_features:
            return np.zeros(count, np.bool_)
        minute = now.replace(second=0, microsecond=0) if grant.is_relative else None
        key = (index.identity, grant.fingerprint, minute.isoformat() if minute else "")
        bits = self._bits.get(key)
        if bits is None or len(bits) < count:
            bits = self._bits[key] = _extended(index, grant, minute or now, bits, count)
        self._bits.move_to_end(key)
        while len(self._bits) > self._limit:
            self._bits.popitem(last=False)
        return bits


def _extended(index: TableIndex, grant: Grant, now: datetime, known: Bits | None, count: int) -> Bits:
    start = 0 if known is None else len(known)
    bits = np.zeros(count, np.bool_)
    if known is not None:
        bits[:start] = known
    for number in range(start, count):
        bits[number] = isinstance(_decide(index, grant, number, now), Allowed)
    bits.setflags(write=False)
    return bits
