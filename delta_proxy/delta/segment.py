"""The index on disk: sorted Arrow columns in an IPC file, memory-mapped and searched in place.

The file is written once and renamed into its place; the distinct partition tuples and what else belongs to
the index are JSON in the metadata of its schema. A file that is not whole or not ours is refused with
InvalidSegment.
"""

from __future__ import annotations

import os
import tempfile
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import lru_cache
from itertools import compress, pairwise
from pathlib import Path
from typing import Any, Final

import attrs
import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from .leftovers import owner
from .rows import NONE, ROW_SCHEMA, SLICE, Bytes, FileKind, Int32s, arrow, column, reconcile, sorted_slices

Bits = npt.NDArray[np.bool_]

FORMAT: Final = "delta-proxy-index 3"
_FILE_SCHEMA: Final = pa.schema(
    [*(field for field in ROW_SCHEMA if field.name != "seq"), pa.field("compound", pa.uint8())]
)
RUN_BYTES: Final = 192 << 20
_FIRST_LOOK: Final = 64
# Every so manieth path of a batch is kept in memory once the batch is searched: half of the search is in C.
_MARK_EVERY: Final = 256
# So many rows passed over for each that is wanted are no slower than a search for each.
_SPREAD: Final = 8


_KINDS: Final = {kind.value: kind for kind in FileKind}


class InvalidSegment(Exception):
    """The file is no index of this format."""


@attrs.frozen
class Entry:
    """One statement of the index about a path.

    `offset` and `size` are those of a deletion vector's descriptor, in bytes as in the log, and `owner` is
    the path of the data file that it belongs to; None for other kinds.
    """

    kind: FileKind
    tuple_id: int
    live: bool
    offset: int | None = None
    size: int | None = None
    owner: str | None = None


@lru_cache(maxsize=4096)
def _entry(kind: FileKind, tuple_id: int, live: bool) -> Entry:
    """An entry that is not of a deletion vector: the files of a partition share it."""
    return Entry(kind, tuple_id, live)


def utf8(path: str) -> bytes:
    """A path as the index has it."""
    return path.encode("utf-8", "surrogatepass")


class _Paths:
    """Sorted paths, searched in the buffers of their array."""

    def __init__(self, paths: pa.Array) -> None:
        offsets, data = paths.buffers()[1:]
        self.rows = len(paths)
        self.offsets = memoryview(offsets).cast("B").cast("q")[paths.offset :]
        self.data = memoryview(data).cast("B") if data is not None else memoryview(b"")
        self._marks: list[bytes] | None = None

    def key(self, row: int) -> bytes:
        """The path of a row, as UTF-8."""
        return self.data[self.offsets[row] : self.offsets[row + 1]].tobytes()

    def names(self, low: int, high: int) -> list[str]:
        """The paths of the rows from `low` to `high`; what is no UTF-8 in them is as no listing has it."""
        offsets = self.offsets[low : high + 1].tolist()
        start = offsets[0]
        whole = self.data[start : offsets[-1]].tobytes()
        if not whole.isascii():
            parts = (whole[begin - start : end - start] for begin, end in pairwise(offsets))
            return [part.decode(errors="surrogateescape") for part in parts]
        text = whole.decode("ascii")
        return [text[begin - start : end - start] for begin, end in pairwise(offsets)]

    def bound(self, key: bytes, *, after: bool) -> int:
        """The first row whose path is at or, with `after`, behind the key."""
        marks = self._marks
        if marks is None:
            marks = self._marks = [self.key(row) for row in range(0, self.rows, _MARK_EVERY)]
        number = bisect_right(marks, key) if after else bisect_left(marks, key)
        low, high = max(0, number - 1) * _MARK_EVERY, min(self.rows, number * _MARK_EVERY)
        offsets, data = self.offsets, self.data
        while low < high:
            middle = (low + high) >> 1
            found = data[offsets[middle] : offsets[middle + 1]].tobytes()
            if found < key or (after and found == key):
                low = middle + 1
            else:
                high = middle
        return low


class _Chunk:
    """One record batch of a segment, with its buffers ready to be searched."""

    def __init__(self, batch: pa.RecordBatch, start: int) -> None:
        self.start = start
        self.rows = len(batch)
        self.paths = _Paths(batch.column("path"))
        self.kinds: Bytes = column(batch, "kind")
        self.tuples: Int32s = column(batch, "tuple")
        self.live: Bytes = column(batch, "live")
        self.compound: Bytes = column(batch, "compound")
        # numpy makes an object of its own for each number that is asked for.
        self._kind_of: memoryview = memoryview(self.kinds)
        self._tuple_of: memoryview = memoryview(self.tuples)
        self._live_of: memoryview = memoryview(self.live)
        self._offset: Int32s = column(batch, "offset")
        self._size: Int32s = column(batch, "size")
        self._owners = batch.column("owner")

    def entry(self, row: int) -> Entry:
        """The statement of a row."""
        kind = _KINDS[self._kind_of[row]]
        tuple_id, live = self._tuple_of[row], self._live_of[row] != 0
        if kind is not FileKind.DELETION_VECTOR:
            return _entry(kind, tuple_id, live)
        offset, size = int(self._offset[row]), int(self._size[row])
        return Entry(
            kind,
            tuple_id,
            live,
            None if offset == NONE else offset,
            None if size == NONE else size,
            self._owners[row].as_py(),
        )

    def check(self, tuples: int) -> None:
        """Raise InvalidSegment unless the columns are within their bounds."""
        offsets = np.frombuffer(self.paths.offsets, np.int64, self.rows + 1)
        sound = offsets[0] >= 0 and offsets[-1] <= len(self.paths.data) and bool((np.diff(offsets) > 0).all())
        in_range = bool(((self.tuples >= 0) & (self.tuples < tuples)).all())
        if not (sound and in_range and bool((self.kinds <= max(FileKind)).all())):
            raise InvalidSegment("columns out of their bounds")


class Segment:
    """Sorted rows of an index, read-only. Rows are numbered from 0 in the order of the UTF-8 bytes of their
    paths.
    """

    def __init__(self, batches: Sequence[pa.RecordBatch], details: bytes = b"{}") -> None:
        self._details = details
        self._chunks: list[_Chunk] = []
        self._batches = tuple(batch for batch in batches if len(batch))
        self.rows = 0
        for batch in self._batches:
            self._chunks.append(_Chunk(batch, self.rows))
            self.rows += len(batch)
        self._starts = [chunk.start for chunk in self._chunks]
        self._firsts = [chunk.paths.key(0) for chunk in self._chunks]

    @classmethod
    def open(cls, path: Path) -> Segment:
        """Map a file that a SegmentWriter wrote. Raises InvalidSegment for any other, OSError without one."""
        try:
            with pa.memory_map(str(path)) as source:
                reader = pa.ipc.open_file(source)
                tuples, details = _details(reader.schema)
                batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
                segment = cls(batches, details)
        except (pa.ArrowException, KeyError, ValueError, TypeError) as error:
            raise InvalidSegment(str(error)) from None
        for chunk in segment._chunks:
            chunk.check(tuples)
        return segment

    @classmethod
    def empty(cls) -> Segment:
        """A segment without rows."""
        return cls(())

    def details(self) -> dict[str, Any]:
        """What was written with the rows. Raises InvalidSegment when it is not a JSON object."""
        try:
            details = orjson.loads(self._details)
        except orjson.JSONDecodeError:
            raise InvalidSegment("details that are not JSON") from None
        if not isinstance(details, dict):
            raise InvalidSegment("details that are no object")
        return details

    def bound(self, key: bytes, *, after: bool = False) -> int:
        """The first row whose path is at or, with `after`, behind the key."""
        number = max(0, bisect_right(self._firsts, key) - 1)
        if not self._chunks:
            return 0
        chunk = self._chunks[number]
        return chunk.start + chunk.paths.bound(key, after=after)

    def lookup(self, path: str) -> tuple[Entry, ...]:
        """Every statement about a path; none when the path is not there."""
        key = utf8(path)
        number = bisect_right(self._firsts, key) - 1
        if number < 0:
            return ()
        chunk = self._chunks[number]
        row = first = chunk.paths.bound(key, after=False)
        while row < chunk.rows and chunk.paths.key(row) == key:
            row += 1
        return tuple([chunk.entry(found) for found in range(first, row)])

    def granted_among(self, paths: Set[str], bits: Bits) -> tuple[set[str], set[str]]:
        """Of these paths those that one visible statement is about, and those to be looked at closer. Those
        in neither are not granted.

        Quick where the paths lie close to each other, as those of a listing do.
        """
        least, most = min(paths, default=""), max(paths, default="")
        first, end = self.bound(utf8(least)), self.bound(utf8(most), after=True)
        if end - first > _SPREAD * len(paths):
            return set(), set(paths)
        granted, closer = set[str](), set[str]()
        row = first
        while row < end:
            chunk = self._chunk_of(row)
            low, high = row - chunk.start, min(chunk.rows, end - chunk.start)
            names = chunk.paths.names(low, high)
            together = chunk.compound[low:high] != 0
            granted.update(compress(names, (bits[chunk.tuples[low:high]] & ~together).tolist()))
            closer.update(compress(names, together.tolist()))
            row = chunk.start + high
        return granted & paths, closer & paths

    def row_range(self, path: str) -> range:
        """The rows of a path."""
        key = utf8(path)
        return range(self.bound(key), self.bound(key, after=True))

    def path(self, row: int) -> str:
        """The path of a row."""
        chunk = self._chunk_of(row)
        return chunk.paths.key(row - chunk.start).decode("utf-8")

    def is_compound(self, row: int) -> bool:
        """Whether a row is judged together with others."""
        chunk = self._chunk_of(row)
        return bool(chunk.compound[row - chunk.start])

    def shared_rows(self) -> Iterator[int]:
        """The rows of files that share their path with another row; deletion vectors are not among them."""
        for chunk in self._chunks:
            shared = (chunk.compound != 0) & (chunk.kinds != FileKind.DELETION_VECTOR)
            yield from (np.flatnonzero(shared) + chunk.start).tolist()

    def _chunk_of(self, row: int) -> _Chunk:
        return self._chunks[bisect_right(self._starts, row) - 1]

    def candidates(self, start: int, end: int, bits: Bits, *, live: bool = False) -> Iterator[int]:
        """The rows from `start` to `end` whose tuple is visible (and that are live), in slices that grow."""
        row, width = start, _FIRST_LOOK
        while row < end:
            chunk = self._chunk_of(row)
            low = row - chunk.start
            high = min(chunk.rows, low + width, end - chunk.start)
            hits = bits[chunk.tuples[low:high]]
            if live:
                hits &= chunk.live[low:high] != 0
            yield from (np.flatnonzero(hits) + row).tolist()
            row, width = chunk.start + high, min(SLICE, width * 8)

    def live_data(self, bits: Bits, hidden: npt.NDArray[np.int64]) -> Iterator[tuple[int, list[int]]]:
        """For each chunk, how many simple live data rows are visible, and which compound ones.

        `hidden` are row numbers to leave out, sorted.
        """
        for chunk in self._chunks:
            hits = bits[chunk.tuples] & (chunk.live != 0) & (chunk.kinds == FileKind.DATA)
            low, high = np.searchsorted(hidden, (chunk.start, chunk.start + chunk.rows))
            hits[hidden[low:high] - chunk.start] = False
            compound = np.flatnonzero(hits & (chunk.compound != 0))
            yield int(hits.sum()) - len(compound), (compound + chunk.start).tolist()

    def row_batches(self, seq: int, *, live: bool) -> Iterator[pa.RecordBatch]:
        """The rows as they were before they were written, all of one moment of the log; none live unless
        `live`.
        """
        for batch in self._batches:
            count = len(batch)
            columns = {name: batch.column(name) for name in ROW_SCHEMA.names if name != "seq"}
            columns["seq"] = arrow(np.full(count, seq, np.int64))
            if not live:
                columns["live"] = arrow(np.zeros(count, np.uint8))
            yield pa.RecordBatch.from_arrays([columns[name] for name in ROW_SCHEMA.names], schema=ROW_SCHEMA)


def _details(schema: pa.Schema) -> tuple[int, bytes]:
    """The number of distinct tuples and the details, unparsed: parsing them makes many objects at once."""
    metadata = schema.metadata or {}
    if metadata.get(b"format") != FORMAT.encode() or not schema.equals(_FILE_SCHEMA):
        raise InvalidSegment("another format")
    return int(metadata[b"tuples"]), metadata[b"details"]


class SegmentBuilder:
    """Collects rows and writes them as one sorted, reconciled file.

    At most about 200 MB of rows are held: beyond that sorted runs go to temporary files and are merged at the
    end. Not thread-safe; meant for one thread of the pool. Use it as a context manager: it removes its
    temporary files.
    """

    def __init__(self, directory: Path, run_bytes: int = RUN_BYTES) -> None:
        self._directory = directory
        self._run_bytes = run_bytes
        self._pending: list[pa.RecordBatch] = []
        self._pending_bytes = 0
        self._runs: list[Iterator[pa.RecordBatch]] = []
        self._scratch = tempfile.TemporaryDirectory(prefix=f"building-{owner()}-", dir=directory)
        self.rows = 0

    def __enter__(self) -> SegmentBuilder:
        return self

    def __exit__(self, *_: object) -> None:
        self._runs.clear()
        self._pending.clear()
        self._scratch.cleanup()
        pa.default_memory_pool().release_unused()

    def add(self, rows: pa.RecordBatch) -> None:
        """Collect rows, in any order."""
        if not len(rows):
            return
        self._pending.append(rows)
        self._pending_bytes += rows.nbytes
        self.rows += len(rows)
        if self._pending_bytes > self._run_bytes:
            self._spill()

    def add_segment(self, segment: Segment, seq: int, *, live: bool) -> None:
        """Merge a finished segment in, as what was known at a moment of the log; nothing is live unless
        `live`.
        """
        if segment.rows:
            self._runs.append(segment.row_batches(seq, live=live))
            self.rows += segment.rows

    def write(self, target: Path, tuples: int, details: Mapping[str, Any]) -> None:
        """Write the file and rename it into its place. Call it once. `tuples` is how many distinct ones there
        are.
        """
        if self._runs and self._pending:
            self._spill()
        source = _merged(self._runs) if self._runs else self._sorted()
        schema = _FILE_SCHEMA.with_metadata(
            {"format": FORMAT, "tuples": str(tuples), "details": orjson.dumps(details)}
        )
        handle, name = tempfile.mkstemp(prefix="new-", dir=self._scratch.name)
        os.close(handle)
        with pa.OSFile(name, "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for rows, compound in source:
                columns = [rows.column(field.name) for field in _FILE_SCHEMA if field.name != "compound"]
                writer.write_batch(pa.RecordBatch.from_arrays([*columns, arrow(compound)], schema=schema))
        os.replace(name, target)

    def _sorted(self) -> Iterator[tuple[pa.RecordBatch, Bytes]]:
        pending, self._pending, self._pending_bytes = self._pending, [], 0
        pa.default_memory_pool().release_unused()
        for rows in sorted_slices(pending):
            yield reconcile(rows)

    def _spill(self) -> None:
        name = Path(self._scratch.name) / f"run-{len(self._runs)}"
        with pa.OSFile(str(name), "wb") as sink, pa.ipc.new_file(sink, ROW_SCHEMA) as writer:
            for rows, _ in self._sorted():
                writer.write_batch(rows)
        self._runs.append(_read_run(name))


def _read_run(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def _merged(runs: Sequence[Iterator[pa.RecordBatch]]) -> Iterator[tuple[pa.RecordBatch, Bytes]]:
    """Merge sorted runs, none of whose batches splits a path, a window of about one batch of each at a
    time.
    """
    heads = {number: batch for number, run in enumerate(runs) if (batch := next(run, None)) is not None}
    while heads:
        limit = min(batch.column("path")[len(batch) - 1].as_py().encode() for batch in heads.values())
        window = []
        for number, batch in list(heads.items()):
            count = _Paths(batch.column("path")).bound(limit, after=True)
            window.append(batch.slice(0, count))
            rest = batch.slice(count) if count < len(batch) else next(runs[number], None)
            heads.pop(number)
            if rest is not None:
                heads[number] = rest
        for rows in sorted_slices(window):
            yield reconcile(rows)
