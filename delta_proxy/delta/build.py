"""Builds and advances the index of a table. Everything here blocks, and runs in the thread pool."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import numpy as np
import pyarrow as pa

from delta_proxy.access.partitions import Column

from .actions import LogError, Metadata, Protocol, TableMetadata
from .index import (
    Anchor,
    ColumnsSince,
    Overlay,
    TableIndex,
    TupleTable,
    columns_from_json,
    columns_to_json,
    joined,
)
from .paths import TableRoot
from .rows import NONE, FileKind, Int32s, make_rows
from .scan import Header, InForce, LogContent, Moment, Scanner
from .segment import RUN_BYTES, InvalidSegment, Segment, SegmentBuilder

OVERLAY_LIMIT: Final = 50_000


@attrs.frozen
class Place:
    """Where a table lies and where its index is kept. `identity` names the store and the place in it."""

    identity: str
    root: TableRoot
    directory: Path

    @property
    def file(self) -> Path:
        """The index on disk."""
        return self.directory / f"index-{hashlib.sha256(self.identity.encode()).hexdigest()[:32]}.arrow"


@attrs.frozen
class CheckpointContent:
    """A checkpoint at hand: its own files, and the sidecars they name."""

    version: int
    files: tuple[LogContent, ...]
    sidecars: tuple[LogContent, ...] = ()


def sidecar_names(root: TableRoot, files: Iterable[LogContent]) -> tuple[str, ...]:
    """The paths, relative to `_delta_log/`, of the sidecars that a checkpoint names. Raises LogError."""
    scanner = Scanner(TupleTable(), root)
    names = [name for content in files for name in scanner.header(content).sidecars]
    if any("/" in name for name in names):
        raise LogError("checkpoint", None, "a sidecar outside its directory")
    return tuple(f"_sidecars/{name}" for name in names)


class _InForce:
    """The metaData and protocol in force while a log is read forwards. `told` is what each version said."""

    def __init__(self, metadata: Metadata | None = None, protocol: Protocol | None = None) -> None:
        self._metadata = metadata
        self._protocol = protocol
        self.told: list[ColumnsSince] = []

    def take(self, header: Header, version: int, file: str) -> InForce:
        """Take in what a file says, and tell which columns its values are under."""
        before = self._metadata
        self._metadata = header.metadata or before
        if header.metadata is not None:
            self.told.append(ColumnsSince(version, header.metadata.columns))
        self._protocol = header.protocol or self._protocol
        if self._metadata is None:
            raise LogError(file, None, "no metaData is in force")
        return InForce(self._metadata.columns, (before or self._metadata).columns)

    def result(self, file: str) -> TableMetadata:
        """What is in force at the end."""
        if self._metadata is None or self._protocol is None:
            raise LogError(file, None, "no metaData or no protocol is in force")
        return TableMetadata.of(self._metadata, self._protocol)


def build(
    place: Place,
    checkpoint: CheckpointContent | None,
    commits: Sequence[LogContent],
    anchor: Anchor,
    previous: TableIndex | None = None,
    *,
    run_bytes: int = RUN_BYTES,
) -> TableIndex:
    """Read a segment of the log and write its index.

    `previous` is an older index of the same table whose log was cut: what it knows is kept. Beyond
    `run_bytes` of rows the disk is used to sort them. Raises LogError
    when the log cannot be understood and OSError when the index cannot be written.
    """
    if previous is not None and previous.metadata.id != _identity(place.root, checkpoint, commits):
        previous = None
    tuples = TupleTable() if previous is None else previous.tuples
    scanner, state = Scanner(tuples, place.root), _InForce()
    version = checkpoint.version if checkpoint else -1
    with SegmentBuilder(place.directory, run_bytes) as builder:
        if checkpoint is not None:
            for rows in _checkpoint_rows(scanner, checkpoint, state):
                builder.add(rows)
        for content in commits:
            version = content.version
            for rows in _commit_rows(scanner, content, state):
                builder.add(rows)
        metadata = state.result("_delta_log")
        if previous is not None:
            _add_index(builder, previous, history=True)
        unwritten = TableIndex(
            tuples,
            Segment.empty(),
            Overlay.empty(),
            version,
            metadata,
            anchor,
            joined(state.told, previous.columns if previous is not None else ()),
            since=checkpoint.version if checkpoint else -1,
            complete=checkpoint is None,
            outside=scanner.outside,
        )
        return _written(place, builder, unwritten)


def _identity(
    root: TableRoot, checkpoint: CheckpointContent | None, commits: Sequence[LogContent]
) -> str | None:
    """The id of the table that a segment of the log is of."""
    scanner = Scanner(TupleTable(), root)
    for content in (*reversed(commits), *(checkpoint.files if checkpoint else ())):
        metadata = scanner.header(content).metadata
        if metadata is not None:
            return metadata.id
    return None


def _checkpoint_rows(
    scanner: Scanner, checkpoint: CheckpointContent, state: _InForce, *, history: bool = False
) -> Iterator[pa.RecordBatch]:
    header = Header()
    for content in checkpoint.files:
        header = header.joined(scanner.header(content))
    if header.metadata is None:
        raise LogError(checkpoint.files[0].name, None, "a checkpoint without metaData")
    state.take(header, checkpoint.version, checkpoint.files[0].name)
    columns = InForce(header.metadata.columns, header.metadata.columns)
    for content in (*checkpoint.files, *checkpoint.sidecars):
        yield from scanner.rows(content, columns, Moment(checkpoint.version, history))


def _commit_rows(
    scanner: Scanner, content: LogContent, state: _InForce, *, history: bool = False
) -> Iterator[pa.RecordBatch]:
    columns = state.take(scanner.header(content), content.version, content.name)
    yield from scanner.rows(content, columns, Moment(content.version, history))


def _written(place: Place, builder: SegmentBuilder, index: TableIndex) -> TableIndex:
    """The index with everything the builder holds as its base."""
    details = {
        "identity": place.identity,
        "version": index.version,
        "anchor": [index.anchor.name, index.anchor.etag],
        "metadata": _metadata_to_json(index.metadata),
        "tuples": index.tuples.to_json(),
        "tuple_count": len(index.tuples),
        "since": index.since,
        "columns": [[since.version, columns_to_json(since.columns)] for since in index.columns],
        "complete": index.complete,
        "outside": index.outside,
    }
    builder.write(place.file, len(index.tuples), details)
    return attrs.evolve(index, base=Segment.open(place.file), overlay=Overlay.empty())


def _metadata_to_json(metadata: TableMetadata) -> dict[str, Any]:
    return {
        "id": metadata.id,
        "columns": columns_to_json(metadata.columns),
        "min_reader": metadata.min_reader,
        "reader_features": sorted(metadata.reader_features),
    }


def _metadata_from_json(data: Mapping[str, Any]) -> TableMetadata:
    columns: tuple[Column, ...] = columns_from_json(data["columns"])
    return TableMetadata(
        str(data["id"]), columns, int(data["min_reader"]), frozenset(map(str, data["reader_features"]))
    )


def load(place: Place) -> TableIndex | None:
    """The index that an earlier process, or another worker, wrote; None when there is none that can be
    used.
    """
    try:
        segment = Segment.open(place.file)
        details = segment.details()
        if details["identity"] != place.identity:
            return None
        name, etag = details["anchor"]
        tuples = TupleTable.from_json(details["tuples"])
        if len(tuples) != details["tuple_count"]:
            return None
        return TableIndex(
            tuples,
            segment,
            Overlay.empty(),
            int(details["version"]),
            _metadata_from_json(details["metadata"]),
            Anchor(str(name), str(etag)),
            tuple(ColumnsSince(int(v), columns_from_json(columns)) for v, columns in details["columns"]),
            int(details["since"]),
            bool(details["complete"]),
            int(details["outside"]),
        )
    except (InvalidSegment, OSError, KeyError, TypeError, ValueError):
        return None


def advance(place: Place, index: TableIndex, commits: Sequence[LogContent], anchor: Anchor) -> TableIndex:
    """The index with newer commits, in order and without a hole, taken in. Raises LogError."""
    scanner = Scanner(index.tuples, place.root)
    state = _InForce(
        Metadata(index.metadata.id, index.metadata.columns),
        Protocol(index.metadata.min_reader, index.metadata.reader_features),
    )

    def rows() -> Iterator[pa.RecordBatch]:
        for content in commits:
            yield from _commit_rows(scanner, content, state)

    def taken_in(grown: TableIndex) -> TableIndex:
        return attrs.evolve(
            grown,
            version=commits[-1].version if commits else index.version,
            metadata=state.result("_delta_log"),
            anchor=anchor,
            columns=joined(index.columns, state.told),
            outside=index.outside + scanner.outside,
        )

    return _grown(place, index, rows(), taken_in)


def add_history(
    place: Place, index: TableIndex, checkpoints: Sequence[CheckpointContent], commits: Sequence[LogContent]
) -> TableIndex:
    """The index with what the log says about versions before its base. It adds values, and changes nothing
    live.
    """
    scanner = Scanner(index.tuples, place.root)
    steps: list[CheckpointContent | LogContent] = [*checkpoints, *commits]
    steps.sort(key=lambda step: (step.version, isinstance(step, CheckpointContent)))
    state = _InForce(_earliest(scanner, steps) or Metadata(index.metadata.id, index.metadata.columns))

    def rows() -> Iterator[pa.RecordBatch]:
        for step in steps:
            if isinstance(step, CheckpointContent):
                yield from _checkpoint_rows(scanner, step, state, history=True)
            else:
                yield from _commit_rows(scanner, step, state, history=True)

    def taken_in(grown: TableIndex) -> TableIndex:
        outside, columns = index.outside + scanner.outside, joined(index.columns, state.told)
        return attrs.evolve(grown, complete=True, outside=outside, columns=columns)

    return _grown(place, index, rows(), taken_in)


def _earliest(scanner: Scanner, steps: Iterable[CheckpointContent | LogContent]) -> Metadata | None:
    """The first metaData of a cut log: commits before it were under it too, unless it is what changed."""
    for step in steps:
        for content in step.files if isinstance(step, CheckpointContent) else (step,):
            metadata = scanner.header(content).metadata
            if metadata is not None:
                return metadata
    return None


def _grown(
    place: Place,
    index: TableIndex,
    rows: Iterator[pa.RecordBatch],
    taken_in: Callable[[TableIndex], TableIndex],
) -> TableIndex:
    """The index with more rows: in its overlay while that is small, else in a new base.

    `taken_in` is asked for the other fields when the rows have been read.
    """
    room = OVERLAY_LIMIT - len(index.overlay.paths)
    few: list[pa.RecordBatch] = []
    for batch in rows:
        few.append(batch)
        room -= len(batch)
        if room < 0:
            return _rebased(place, index, itertools.chain(few, rows), taken_in)
    return taken_in(attrs.evolve(index, overlay=index.overlay.over(index.base, few)))


def _rebased(
    place: Place,
    index: TableIndex,
    rows: Iterable[pa.RecordBatch],
    taken_in: Callable[[TableIndex], TableIndex],
) -> TableIndex:
    with SegmentBuilder(place.directory) as builder:
        for batch in rows:
            builder.add(batch)
        _add_index(builder, index, history=False)
        return _written(place, builder, taken_in(index))


def rebased(place: Place, index: TableIndex) -> TableIndex:
    """The same index with its overlay merged into a new base."""
    return _rebased(place, index, (), lambda grown: grown)


def _add_index(builder: SegmentBuilder, index: TableIndex, *, history: bool) -> None:
    """Everything an index knows. As history it is older than all else, and nothing is live by it."""
    moment = Moment(index.version, history).of_adds
    builder.add_segment(index.base, moment - 1, live=not history)
    for kind in FileKind:
        builder.add(_overlay_rows(index.overlay, kind, moment, live=not history))


def _overlay_rows(overlay: Overlay, kind: FileKind, seq: int, *, live: bool) -> pa.RecordBatch:
    found = [
        (path, entry) for path, entries in overlay.entries.items() for entry in entries if entry.kind is kind
    ]
    entries = [entry for _, entry in found]
    return make_rows(
        pa.array([path for path, _ in found], pa.large_string()),
        kind,
        np.fromiter((entry.tuple_id for entry in entries), np.int32, len(entries)),
        live=np.fromiter((entry.live and live for entry in entries), np.uint8, len(entries)),
        seq=seq,
        offsets=_numbers(entry.offset for entry in entries),
        sizes=_numbers(entry.size for entry in entries),
        owners=pa.array([entry.owner for entry in entries], pa.large_string()),
    )


def _numbers(values: Iterable[int | None]) -> Int32s:
    return np.array([NONE if value is None else value for value in values], np.int32)
