"""The index of a table: path to every set of partition values it ever had in the log.

A TableIndex is a snapshot: cheap to make, never changed. It is a sorted segment on disk, shared by all
snapshots that build on it, and a small overlay that holds the complete statements of every path that newer
commits touched.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import attrs
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from delta_proxy.access.partitions import Column, ColumnType, PartitionTuple

from .actions import TableMetadata, Values
from .rows import NONE, UNKNOWN_TUPLE, FileKind
from .segment import Bits, Entry, Segment, utf8

__all__ = ["Anchor", "Entry", "FileKind", "Overlay", "TableIndex", "TupleTable"]

_serials = itertools.count(1)
_UNKNOWN: Final = PartitionTuple((), ())


class TupleTable:
    """The distinct partition tuples of a table, numbered. It only grows, and numbers never change.

    Number 0 is UNKNOWN_TUPLE. One thread at a time may intern; reading needs no lock.
    """

    def __init__(self) -> None:
        self.serial = next(_serials)
        self.tuples: list[PartitionTuple] = [_UNKNOWN]
        self._schemas: dict[tuple[Column, ...], int] = {}
        self._numbers: dict[tuple[int, tuple[tuple[str, str | None], ...]], int] = {}
        self._latest: tuple[tuple[Column, ...], int] = ((), self._schemas.setdefault((), 0))

    def __len__(self) -> int:
        return len(self.tuples)

    def intern(self, columns: tuple[Column, ...], values: Values) -> int:
        """The number of the tuple that these values (by physical name) are under the columns in force."""
        pairs = tuple(sorted(values.items(), key=_name))
        schema = self._schema(columns)
        number = self._numbers.get((schema, pairs))
        if number is None:
            number = self._numbers[schema, pairs] = len(self.tuples)
            self.tuples.append(PartitionTuple(columns, pairs))
        return number

    def _schema(self, columns: tuple[Column, ...]) -> int:
        """The number of a set of columns; mostly it is the one asked for before, which saves hashing it."""
        if columns is not self._latest[0]:
            self._latest = (columns, self._schemas.setdefault(columns, len(self._schemas)))
        return self._latest[1]

    def to_json(self) -> dict[str, Any]:
        """The table as plain data: the column sets, and each tuple as the number of its columns and its
        values.
        """
        schemas: dict[tuple[Column, ...], int] = {}
        rows = [
            [schemas.setdefault(known.columns, len(schemas)), known.values]
            for known in itertools.islice(self.tuples, 1, None)
        ]
        return {"schemas": [columns_to_json(columns) for columns in schemas], "rows": rows}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TupleTable:
        """The table that `to_json` gave. Raises KeyError, TypeError or ValueError for other data."""
        table = cls()
        schemas = [columns_from_json(columns) for columns in data["schemas"]]
        for schema, pairs in data["rows"]:
            table.intern(schemas[schema], {str(name): value for name, value in pairs})
        if len(table) != len(data["rows"]) + 1:
            raise ValueError("a tuple occurs twice")
        return table


def _name(pair: tuple[str, str | None]) -> str:
    return pair[0]


def columns_to_json(columns: Iterable[Column]) -> list[list[str]]:
    """Columns as plain data."""
    return [[column.name, column.physical, str(column.type)] for column in columns]


def columns_from_json(data: Iterable[Sequence[str]]) -> tuple[Column, ...]:
    """The columns that `columns_to_json` gave."""
    return tuple(Column(name, physical, ColumnType.parse(kind)) for name, physical, kind in data)


@attrs.frozen(eq=False)
class Overlay:
    """What newer commits say. `entries` is complete for the paths it holds: the base is not asked about them.

    `paths` are its keys in order, and `first` the tuple that must be visible for each to be, NONE when
    several could. `shadowed` are the rows of the base that it replaces, sorted.
    """

    entries: Mapping[str, tuple[Entry, ...]]
    paths: Sequence[str]
    first: npt.NDArray[np.int32]
    shadowed: npt.NDArray[np.int64]

    @classmethod
    def empty(cls) -> Overlay:
        """An overlay that holds nothing."""
        return cls({}, (), np.zeros(0, np.int32), np.zeros(0, np.int64))

    def over(self, base: Segment, batches: Iterable[pa.RecordBatch]) -> Overlay:
        """This overlay and the statements of newer rows, in the order of the log."""
        entries = dict(self.entries)
        touched: set[str] = set()
        for path, statement, seq in _statements(batches):
            known = entries.get(path)
            current = base.lookup(path) if known is None else known
            changed = _with(current, statement, history=seq < 0)
            if known is not None or changed != current:
                touched.add(path)
                entries[path] = changed
        added = [path for path in touched if path not in self.entries]
        paths = [*self.paths, *sorted(added)]
        paths.sort()
        first = np.fromiter((_deciding(entries[path]) for path in paths), np.int32, len(paths))
        rows = [row for path in added for row in base.row_range(path)]
        shadowed = np.sort(np.concatenate((self.shadowed, np.array(rows, np.int64))))
        return Overlay(entries, paths, first, shadowed)


def _statements(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[str, Entry, int]]:
    """Rows as entries with their moments, the older first (so that removes come before adds)."""
    rows = [row for batch in batches for row in batch.to_pylist()]
    rows.sort(key=lambda row: row["seq"])
    for row in rows:
        offset, size = row["offset"], row["size"]
        entry = Entry(
            FileKind(row["kind"]),
            row["tuple"],
            bool(row["live"]),
            None if offset == NONE else offset,
            None if size == NONE else size,
            row["owner"],
        )
        yield row["path"], entry, row["seq"]


def _identity(entry: Entry) -> tuple[FileKind, int, int | None, int | None, str | None]:
    return entry.kind, entry.tuple_id, entry.offset, entry.size, entry.owner


def _with(current: tuple[Entry, ...], new: Entry, *, history: bool) -> tuple[Entry, ...]:
    """The statements about a path when one more is made; one of the history never changes what is live."""
    same = _identity(new)
    if history:
        kept = list(current)
        if all(_identity(entry) != same for entry in current):
            kept.append(new)
    elif new.kind is FileKind.DATA:
        kept = [_dead(entry) for entry in current if _identity(entry) != same]
        kept.append(new)
    else:
        kept = [entry for entry in current if _identity(entry) != same]
        kept.append(new)
    if any(entry.kind is FileKind.DATA and entry.tuple_id != UNKNOWN_TUPLE for entry in kept):
        kept = [e for e in kept if e.kind is not FileKind.DATA or e.tuple_id != UNKNOWN_TUPLE]
    return tuple(kept)


def _dead(entry: Entry) -> Entry:
    return attrs.evolve(entry, live=False) if entry.kind is FileKind.DATA and entry.live else entry


def _deciding(entries: tuple[Entry, ...]) -> int:
    data = [entry.tuple_id for entry in entries if entry.kind is not FileKind.DELETION_VECTOR]
    return data[0] if data else NONE


@attrs.frozen
class Anchor:
    """A file of the log at the index's version: when its ETag is another, the table is another."""

    name: str
    etag: str


@attrs.frozen
class ColumnsSince:
    """The partition columns that the log gives from a version on."""

    version: int
    columns: tuple[Column, ...]


def joined(*told: Iterable[ColumnsSince]) -> tuple[ColumnsSince, ...]:
    """What several readings of the log tell, in order, each change of the columns once."""
    changes: list[ColumnsSince] = []
    for since in sorted(itertools.chain(*told), key=lambda since: since.version):
        if not changes or changes[-1].columns != since.columns:
            changes.append(since)
    return tuple(changes)


@attrs.frozen(eq=False)
class TableIndex:
    """A table's index as of `version`.

    `columns` tells, oldest first, which partition columns were in force from which version on.

    `since` is the version of the checkpoint it was first built on, -1 without one, and `complete` tells
    whether what remains of the log up to there was read too. `outside` counts log
    entries that name no object below the table root: no path of theirs is in the index.
    """

    tuples: TupleTable = attrs.field(repr=False)
    base: Segment = attrs.field(repr=False)
    overlay: Overlay = attrs.field(repr=False)
    version: int
    metadata: TableMetadata
    anchor: Anchor
    columns: tuple[ColumnsSince, ...] = ()
    since: int = -1
    complete: bool = False
    outside: int = 0

    @property
    def partitions(self) -> Sequence[PartitionTuple]:
        """The distinct partition tuples by number. The list is shared by all snapshots and only grows."""
        return self.tuples.tuples

    @property
    def identity(self) -> int:
        """The same for all snapshots whose tuples have the same numbers."""
        return self.tuples.serial

    @property
    def rows(self) -> int:
        """How many statements the base holds, and paths the overlay."""
        return self.base.rows + len(self.overlay.paths)

    def columns_before(self, version: int) -> tuple[Column, ...] | None:
        """The partition columns in force before a version; None before the first.

        Where the log of that time is gone, these are the oldest that remain: values under others do not fit.
        """
        earlier = [since.columns for since in self.columns if since.version < version]
        if earlier:
            return earlier[-1]
        return self.columns[0].columns if self.columns and version > 0 else None

    def relabelled(self) -> Iterator[str]:
        """The paths that had more than one set of partition values, or whose values are told in several
        statements; some more than once.
        """
        for row in self.base.shared_rows():
            path = self.base.path(row)
            if path not in self.overlay.entries:
                yield path
        for path, entries in self.overlay.entries.items():
            if len({entry.tuple_id for entry in entries if entry.kind is not FileKind.DELETION_VECTOR}) > 1:
                yield path

    def lookup(self, path: str) -> tuple[Entry, ...]:
        """Everything the log ever said about a path; empty when it says nothing."""
        found = self.overlay.entries.get(path)
        return self.base.lookup(path) if found is None else found

    def granted_among(self, paths: Sequence[str], bits: Bits) -> tuple[set[str], set[str]]:
        """Of these paths, those that are granted by one statement alone when `bits` tells which tuples are
        visible, and those whose `lookup` must be asked. Those in neither are not granted.
        """
        entries = self.overlay.entries
        newer = {path for path in paths if path in entries} if entries else set()
        granted, closer = self.base.granted_among(set(paths).difference(newer), bits)
        return granted, closer | newer

    def allows(self, entries: tuple[Entry, ...], bits: Bits) -> bool:
        """Whether a path with these entries is granted when `bits` tells which tuples are visible.

        Every value the path ever had must be visible. A deletion vector file is granted when any of its
        vectors belongs to a data file that is.
        """
        if len(entries) == 1 and entries[0].kind is not FileKind.DELETION_VECTOR:
            return bool(bits[entries[0].tuple_id])
        own = [entry for entry in entries if entry.kind is not FileKind.DELETION_VECTOR]
        vectors = [entry for entry in entries if entry.kind is FileKind.DELETION_VECTOR]
        if not all(bits[entry.tuple_id] for entry in own):
            return False
        return any(self.allows_vector(entry, bits) for entry in vectors) if vectors else bool(own)

    def allows_vector(self, entry: Entry, bits: Bits) -> bool:
        """Whether one deletion vector is granted: the data file that it belongs to must be."""
        if entry.owner is None or not bits[entry.tuple_id]:
            return False
        owner = [found for found in self.lookup(entry.owner) if found.kind is FileKind.DATA]
        return bool(owner) and all(bits[found.tuple_id] for found in owner)

    def has_live_below(self, prefix: str, bits: Bits) -> bool:
        """Whether a live granted file has a path that starts with the prefix."""
        key = utf8(prefix)
        in_base = self._first_in_base(self.base.bound(key), prefix, bits, live=True)
        return (
            in_base is not None
            or self._first_in_overlay(self._begin(prefix), prefix, bits, live=True) is not None
        )

    def next_visible(self, after: str, prefix: str, bits: Bits, *, live: bool = False) -> str | None:
        """The smallest granted path behind `after` that starts with the prefix, `live` or whatever it is;
        None without one.

        Paths are in the order of their UTF-8 bytes, which is that of their code points.
        """
        start = max(self.base.bound(utf8(prefix)), self.base.bound(utf8(after), after=True))
        begin = max(self._begin(prefix), bisect_right(self.overlay.paths, after))
        found = (
            self._first_in_base(start, prefix, bits, live=live),
            self._first_in_overlay(begin, prefix, bits, live=live),
        )
        return min((path for path in found if path is not None), default=None)

    def count(self, bits: Bits) -> int:
        """How many live data files are granted."""
        total = 0
        for simple, compound in self.base.live_data(bits, self.overlay.shadowed):
            paths = {self.base.path(row) for row in compound}
            total += simple + sum(self._granted(path, bits, live=True) for path in paths)
        for path in self._overlay_candidates(0, len(self.overlay.paths), bits):
            live = any(entry.live and entry.kind is FileKind.DATA for entry in self.overlay.entries[path])
            total += live and self._granted(path, bits, live=True)
        return total

    def _granted(self, path: str, bits: Bits, *, live: bool) -> bool:
        entries = self.lookup(path)
        return (not live or any(entry.live for entry in entries)) and self.allows(entries, bits)

    def _first_in_base(self, start: int, prefix: str, bits: Bits, *, live: bool) -> str | None:
        end = self.base.bound(utf8(prefix) + b"\xff")
        for row in self.base.candidates(start, end, bits, live=live):
            path = self.base.path(row)
            if path in self.overlay.entries:
                continue
            if not self.base.is_compound(row) or self._granted(path, bits, live=live):
                return path
        return None

    def _begin(self, prefix: str) -> int:
        return bisect_left(self.overlay.paths, prefix)

    def _first_in_overlay(self, begin: int, prefix: str, bits: Bits, *, live: bool) -> str | None:
        paths = self.overlay.paths
        end = bisect_left(paths, True, begin, key=lambda path: not path.startswith(prefix))
        candidates = self._overlay_candidates(begin, end, bits)
        return next((path for path in candidates if self._granted(path, bits, live=live)), None)

    def _overlay_candidates(self, begin: int, end: int, bits: Bits) -> Iterator[str]:
        """The paths of the overlay that could be granted. The extra bit stands for NONE: to be judged."""
        visible = np.append(bits, True)[self.overlay.first[begin:end]]
        return (self.overlay.paths[begin + number] for number in np.flatnonzero(visible).tolist())
