"""Files of the Delta log to rows of the index.

Commits are read line by line with orjson; Parquet checkpoints batch by batch with Arrow kernels, which leave
other threads running. Only what decides what a file is gets read: paths, partition values and deletion
vectors.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Iterator
from enum import Enum
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, TypeAlias

import attrs
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from delta_proxy.access.partitions import Column

from .actions import (
    Action,
    Add,
    Cdc,
    DeletionVector,
    LogError,
    Metadata,
    Protocol,
    Remove,
    Sidecar,
    Values,
    parse_line,
)
from .directory import raise_if_of_the_machine
from .index import TupleTable
from .paths import OutsideTable, TableRoot, deletion_vector_path, object_path
from .rows import NONE, UNKNOWN_TUPLE, FileKind, Int32s, Int64s, arrow, flags, make_rows, numbers, numbers_or

_LINES: Final = 8_192
_BATCH: Final = 65_536
_BLOCK: Final = 1 << 20
_HISTORY: Final = 1 << 60
_MAX_KEYS: Final = 1_000
_SPAN: Final = 1 << 62
_HEADERS: Final = (b"metaData", b"protocol", b"sidecar")
_ODD_NAME: Final = re.compile(r"[%:\x00]")
_DOTS: Final = frozenset({"", ".", ".."})
_ODD_PATH: Final = r"[%:\x00]|(?:^|/)\.{0,2}(?:/|$)"


@attrs.frozen
class LogContent:
    """A file of the log at hand. `name` is relative to `_delta_log/`; `body` its bytes, or where they are."""

    name: str
    version: int
    body: bytes | Path

    @property
    def is_parquet(self) -> bool:
        """Whether it is Parquet, else it is lines of JSON."""
        return self.name.endswith(".parquet")


@attrs.frozen
class Header:
    """What a file of the log says besides files."""

    metadata: Metadata | None = None
    protocol: Protocol | None = None
    sidecars: tuple[str, ...] = ()

    def joined(self, other: Header) -> Header:
        """Both, where the other's later word counts."""
        return Header(
            other.metadata or self.metadata, other.protocol or self.protocol, self.sidecars + other.sidecars
        )


@attrs.frozen
class Moment:
    """When rows were said, as `seq`: removes come before the adds of the same version.

    In the history everything is older than what is known, and nothing is live by it.
    """

    version: int
    history: bool = False

    @property
    def of_removes(self) -> int:
        """The `seq` of removes."""
        return 2 * self.version - (_HISTORY if self.history else 0)

    @property
    def of_adds(self) -> int:
        """The `seq` of adds and change data files."""
        return self.of_removes + 1


@attrs.frozen
class InForce:
    """The partition columns that say what values mean.

    A version's adds are under `added`. Its removes name files of older versions and are under `removed`, the
    columns before it, unless their keys only fit `added`; values that fit neither are unknown.
    """

    added: tuple[Column, ...]
    removed: tuple[Column, ...]

    def for_remove(self, values: Values | None) -> tuple[Column, ...] | None:
        """The columns that a remove's values are under; None when they are unknown."""
        if values is None:
            return None
        for columns in (self.removed, self.added):
            if values.keys() == {column.physical for column in columns}:
                return columns
        return None


class Scanner:
    """Reads files of one table's log. `outside` counts entries that name no object below the table root."""

    def __init__(self, tuples: TupleTable, root: TableRoot) -> None:
        self._tuples = tuples
        self._root = root
        self._vectors: dict[tuple[str, str], str | None] = {}
        self._folders: dict[str, str | None] = {}
        self._known: dict[tuple[tuple[str, ...], InForce, bool], _Numbers] = {}
        self.outside = 0

    def header(self, content: LogContent) -> Header:
        """What a file says besides files. Raises LogError when it cannot be understood."""
        return _parquet_header(content) if content.is_parquet else _json_header(content)

    def rows(self, content: LogContent, columns: InForce, moment: Moment) -> Iterator[pa.RecordBatch]:
        """The rows of a commit or a checkpoint's file. Raises LogError when it cannot be understood."""
        if content.is_parquet:
            return self._parquet_rows(content, columns, moment)
        return self._json_rows(content, columns, moment)

    def _json_rows(self, content: LogContent, columns: InForce, moment: Moment) -> Iterator[pa.RecordBatch]:
        collected = _Collected(self, columns, moment)
        for number, line in _lines(content):
            for action in parse_line(line, content.name, number):
                collected.take(action)
            if collected.count >= _LINES:
                yield from collected.drain()
        yield from collected.drain()

    def intern(self, columns: tuple[Column, ...], values: Values) -> int:
        """The number of a tuple."""
        return self._tuples.intern(columns, values)

    def path_of(self, add_path: str) -> str | None:
        """The table-relative path; None, and counted, when it is outside the table.

        Escapes mostly sit in directory names, which repeat: their decoding is remembered.
        """
        folder, slash, name = add_path.rpartition("/")
        if slash and not _ODD_NAME.search(name) and ":" not in folder and name not in _DOTS:
            known = self._folders[folder] if folder in self._folders else self._remember(folder)
            # The table's own folder is "": `./x` and `/root/x` are files of it.
            return None if known is None else known + name
        return self._decode(add_path)

    def _remember(self, folder: str) -> str | None:
        if len(self._folders) >= _BATCH:
            self._folders.clear()
        path = self._decode(f"{folder}/-")
        return self._folders.setdefault(folder, None if path is None else path[:-1])

    def _decode(self, add_path: str) -> str | None:
        try:
            return object_path(add_path, self._root)
        except OutsideTable:
            self.outside += 1
            return None

    def vector_path(self, storage: str, value: str) -> str | None:
        """The table-relative path of a deletion vector's file; None for an inline one and one outside."""
        if storage == "i":
            return None
        if (storage, value) not in self._vectors:
            if len(self._vectors) >= _BATCH:
                self._vectors.clear()
            try:
                self._vectors[storage, value] = deletion_vector_path(storage, value, self._root)
            except OutsideTable:
                self._vectors[storage, value] = None
                self.outside += 1
        return self._vectors[storage, value]

    def _parquet_rows(
        self, content: LogContent, columns: InForce, moment: Moment
    ) -> Iterator[pa.RecordBatch]:
        wanted = [
            f"{action}.{field}"
            for action in ("add", "remove")
            for field in ("path", "partitionValues", "deletionVector")
        ]
        for batch in _batches(content, wanted):
            for name in ("remove", "add"):
                if name in batch.schema.names:
                    files = _Files.of(batch.column(name), name, content.name)
                    if files is not None:
                        yield from self._file_rows(files, columns, moment, content.name)

    def _file_rows(
        self, files: _Files, columns: InForce, moment: Moment, name: str
    ) -> Iterator[pa.RecordBatch]:
        live = files.is_add
        seq = moment.of_adds if live else moment.of_removes
        live = live and not moment.history
        tuples = self._encode(files, columns, name)
        paths, inside = self._paths(files.paths)
        if inside is not None:
            tuples, files = tuples[inside], files.taken(inside)
        yield make_rows(paths, FileKind.DATA, tuples, live=live, seq=seq)
        if files.vectors is not None:
            yield from self._vector_rows(files.vectors, paths, tuples, live=live, seq=seq)

    def _paths(self, raw: pa.Array) -> tuple[pa.Array, Int64s | None]:
        """The table-relative paths, and which rows they are of when some are outside."""
        odd = pc.match_substring_regex(raw, _ODD_PATH)
        if not odd.true_count:
            return raw.cast(pa.large_string()), None
        rows = np.flatnonzero(flags(odd))
        decoded = [self.path_of(path) for path in raw.take(arrow(rows)).to_pylist()]
        paths = pc.replace_with_mask(raw.cast(pa.large_string()), odd, pa.array(decoded, pa.large_string()))
        if not paths.null_count:
            return paths, None
        inside = np.flatnonzero(flags(paths.is_valid()))
        return paths.take(arrow(inside)), inside

    def _vector_rows(
        self, vectors: pa.StructArray, owners: pa.Array, tuples: Int32s, *, live: bool, seq: int
    ) -> Iterator[pa.RecordBatch]:
        rows = np.flatnonzero(flags(pc.is_valid(vectors)))
        if not len(rows):
            return
        chosen_vectors = vectors.take(arrow(rows))
        fields = _children(chosen_vectors)
        storage, values = fields["storageType"].to_pylist(), fields["pathOrInlineDv"].to_pylist()
        if None in storage or None in values:
            raise LogError("checkpoint", None, "a deletion vector without its place")
        found = [self.vector_path(*one) for one in zip(storage, values, strict=True)]
        kept = np.array([number for number, path in enumerate(found) if path is not None], np.int64)
        chosen = rows[kept]
        yield make_rows(
            pa.array([path for path in found if path is not None], pa.large_string()),
            FileKind.DELETION_VECTOR,
            tuples[chosen],
            live=live,
            seq=seq,
            offsets=_sizes(fields.get("offset"), kept),
            sizes=_sizes(fields.get("sizeInBytes"), kept),
            owners=owners.take(arrow(chosen)),
        )

    def _encode(self, files: _Files, columns: InForce, name: str) -> Int32s:
        """The tuple of each row, with a Python object for each distinct tuple only."""
        if files.values is None:
            nothing: Values = {}
            number = self.intern(columns.added, nothing) if files.is_add else UNKNOWN_TUPLE
            return np.full(len(files.paths), number, np.int32)
        names, distinct, rows = _distinct_maps(files.values, name)
        known = self._numbers(names, columns, is_add=files.is_add)
        return np.array([known[cells] for cells in distinct], np.int32)[rows]

    def _numbers(self, names: tuple[str, ...], columns: InForce, *, is_add: bool) -> _Numbers:
        """The tuples that maps with these names are; what is known of them holds from batch to batch."""
        slot = (names, columns, is_add)
        known = self._known.get(slot)
        if known is None or len(known) > _BATCH:
            number = partial(self._number, columns=columns, is_add=is_add)
            known = self._known[slot] = _Numbers(names, number)
        return known

    def _number(self, values: Values | None, *, columns: InForce, is_add: bool) -> int:
        if is_add:
            return self.intern(columns.added, values or {})
        found = columns.for_remove(values)
        return UNKNOWN_TUPLE if found is None or values is None else self.intern(found, values)


class _Collected:
    """Actions of a commit on their way into rows."""

    def __init__(self, scanner: Scanner, columns: InForce, moment: Moment) -> None:
        self._scanner = scanner
        self._columns = columns
        self._moment = moment
        self._files: dict[tuple[FileKind, bool], tuple[list[str], list[int]]] = {}
        self._vectors: list[tuple[str, int, bool, DeletionVector, str]] = []
        self.count = 0

    def take(self, action: Action) -> None:
        """Collect an action, if it names a file."""
        if isinstance(action, Add):
            number = self._scanner.intern(self._columns.added, action.values)
            self._file(FileKind.DATA, action.path, number, action.deletion_vector, is_add=True)
        elif isinstance(action, Remove):
            columns = self._columns.for_remove(action.values)
            known = columns is not None and action.values is not None
            number = self._scanner.intern(columns or (), action.values or {}) if known else UNKNOWN_TUPLE
            self._file(FileKind.DATA, action.path, number, action.deletion_vector, is_add=False)
        elif isinstance(action, Cdc):
            number = self._scanner.intern(self._columns.added, action.values)
            self._file(FileKind.CDC, action.path, number, None, is_add=True)

    def _file(
        self, kind: FileKind, add_path: str, number: int, vector: DeletionVector | None, *, is_add: bool
    ) -> None:
        path = self._scanner.path_of(add_path)
        if path is None:
            return
        paths, found = self._files.setdefault((kind, is_add), ([], []))
        paths.append(path)
        found.append(number)
        self.count += 1
        if vector is not None:
            file = self._scanner.vector_path(vector.storage, vector.value)
            if file is not None:
                self._vectors.append((file, number, is_add, vector, path))

    def drain(self) -> Iterator[pa.RecordBatch]:
        """What was collected, as rows."""
        for (kind, is_add), (paths, found) in self._files.items():
            # VACUUM removes change data without a word in the log, so it is never known to exist.
            live = is_add and not self._moment.history and kind is not FileKind.CDC
            yield make_rows(
                pa.array(paths, pa.large_string()),
                kind,
                np.array(found, np.int32),
                live=live,
                seq=self._moment.of_adds if is_add else self._moment.of_removes,
            )
        for is_add in (False, True):
            yield from self._drain_vectors(is_add)
        self._files, self._vectors, self.count = {}, [], 0

    def _drain_vectors(self, is_add: bool) -> Iterator[pa.RecordBatch]:
        chosen = [vector for vector in self._vectors if vector[2] is is_add]
        if not chosen:
            return
        files, found, _, descriptors, owners = zip(*chosen, strict=True)
        yield make_rows(
            pa.array(files, pa.large_string()),
            FileKind.DELETION_VECTOR,
            np.array(found, np.int32),
            live=is_add and not self._moment.history,
            seq=self._moment.of_adds if is_add else self._moment.of_removes,
            offsets=np.array([NONE if one.offset is None else one.offset for one in descriptors], np.int32),
            sizes=np.array([NONE if one.size is None else one.size for one in descriptors], np.int32),
            owners=pa.array(owners, pa.large_string()),
        )


def _opened(body: bytes | Path) -> IO[bytes]:
    # In large blocks: each read gives up the interpreter for a moment, and so many that other threads starve.
    return io.BytesIO(body) if isinstance(body, bytes) else body.open("rb", buffering=_BLOCK)


def _lines(content: LogContent) -> Iterator[tuple[int, bytes]]:
    with _opened(content.body) as source:
        yield from enumerate(source, 1)


def _json_header(content: LogContent) -> Header:
    """A first pass over the lines. They are parsed whole again in the second, which notices what this one
    missed.
    """
    header = Header()
    for number, line in _lines(content):
        if any(name in line for name in _HEADERS) or b"\\u" in line:
            for action in parse_line(line, content.name, number):
                header = header.joined(_header_of(action))
    return header


def _header_of(action: Action) -> Header:
    if isinstance(action, Metadata):
        return Header(metadata=action)
    if isinstance(action, Protocol):
        return Header(protocol=action)
    return Header(sidecars=(action.name,)) if isinstance(action, Sidecar) else Header()


def _batches(content: LogContent, wanted: list[str]) -> Iterator[pa.RecordBatch]:
    """Batches of the wanted columns that the file has. Raises LogError when it is no such Parquet file."""
    source = pa.BufferReader(content.body) if isinstance(content.body, bytes) else str(content.body)
    try:
        with pq.ParquetFile(source, buffer_size=1 << 20, pre_buffer=False) as file:
            top = set(file.schema_arrow.names)
            names = [name for name in wanted if name.split(".", 1)[0] in top]
            if names:
                yield from file.iter_batches(_BATCH, columns=names, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise_if_of_the_machine(error)
        raise LogError(content.name, None, f"not a readable checkpoint: {type(error).__name__}") from None


def _parquet_header(content: LogContent) -> Header:
    wanted = ["metaData.id", "metaData.schemaString", "metaData.partitionColumns", "metaData.configuration"]
    wanted += ["protocol.minReaderVersion", "protocol.readerFeatures", "sidecar.path"]
    header = Header()
    for batch in _batches(content, wanted):
        for name in batch.schema.names:
            for value in batch.column(name).drop_null().to_pylist():
                if all(field in (None, []) for field in value.values()):
                    continue
                line = orjson.dumps({name: _plain(value)})
                for action in parse_line(line, content.name, 0):
                    header = header.joined(_header_of(action))
    return header


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """A row of a checkpoint in the form that commits have: maps are pairs in Arrow."""
    pairs = value.get("configuration")
    return {**value, "configuration": dict(pairs)} if pairs is not None else value


class _Files:
    """The adds or removes of one batch of a checkpoint."""

    def __init__(
        self, is_add: bool, paths: pa.Array, values: pa.MapArray | None, vectors: pa.StructArray | None
    ) -> None:
        self.is_add = is_add
        self.paths = paths
        self.values = values
        self.vectors = vectors

    @classmethod
    def of(cls, actions: pa.StructArray, name: str, file: str) -> _Files | None:
        """The action column of a batch, without the rows of other actions; None when there are only those."""
        if actions.null_count == len(actions):
            return None
        parts = _children(actions)
        paths, values, vectors = parts.get("path"), parts.get("partitionValues"), parts.get("deletionVector")
        if paths is None or not _is_text(paths.type):
            raise LogError(file, None, f"{name} without path")
        if values is not None and not _is_map_of_text(values.type):
            raise LogError(file, None, f"{name}.partitionValues is not a map of text")
        if vectors is not None and not pa.types.is_struct(vectors.type):
            raise LogError(file, None, f"{name}.deletionVector is not a struct")
        files = cls(name == "add", paths.cast(pa.string()), values, vectors)
        # Some writers leave a struct without a path where there is no action.
        present = paths.is_valid()
        if not present.true_count:
            return None
        return files.taken(np.flatnonzero(flags(present))) if paths.null_count else files

    def taken(self, rows: Int64s) -> _Files:
        """Some of the rows."""
        chosen = arrow(rows)
        return _Files(
            self.is_add,
            self.paths.take(chosen),
            None if self.values is None else self.values.take(chosen),
            None if self.vectors is None else self.vectors.take(chosen),
        )


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def _is_map_of_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_map(kind) and _is_text(kind.key_type) and _is_text(kind.item_type))


def _children(actions: pa.StructArray) -> dict[str, pa.Array]:
    """The fields of a struct column, null where the struct is."""
    return {actions.type.field(number).name: part for number, part in enumerate(actions.flatten())}


def _sizes(values: pa.Array | None, rows: Int64s) -> Int32s:
    if values is None:
        return np.full(len(rows), NONE, np.int32)
    sizes: Int32s = numbers_or(values.cast(pa.int32()), NONE)
    return sizes[rows]


class _Cell(Enum):
    """What a map has under a name, where it has nothing there."""

    MISSING = "missing"


_Cells: TypeAlias = tuple[str | _Cell | None, ...] | None


class _Numbers(dict[_Cells, int]):
    """The tuple of each map, given as its cells under `names` (None: a null map); worked out once."""

    def __init__(self, names: tuple[str, ...], number: Callable[[Values | None], int]) -> None:
        super().__init__()
        self._names = names
        self._number = number

    def __missing__(self, cells: _Cells) -> int:
        values: Values | None = None
        if cells is not None:
            pairs = zip(self._names, cells, strict=True)
            values = {name: text for name, text in pairs if not isinstance(text, _Cell)}
        number = self[cells] = self._number(values)
        return number


def _distinct_maps(maps: pa.MapArray, file: str) -> tuple[tuple[str, ...], Iterator[_Cells], Int64s]:
    """The names in an array of maps, the cells of each distinct map, and for each row which of them it is."""
    offsets = numbers(maps.offsets).astype(np.int64)
    lengths = np.diff(offsets)
    null = flags(maps.is_null())
    keys = maps.keys.slice(offsets[0], offsets[-1] - offsets[0]).dictionary_encode()
    values = maps.items.slice(offsets[0], offsets[-1] - offsets[0]).dictionary_encode()
    names = keys.dictionary.to_pylist()
    if keys.null_count or len(names) > _MAX_KEYS or lengths[null].any():
        raise LogError(file, None, "partitionValues that cannot be understood")
    cells = np.zeros((len(maps), len(names)), np.int64)
    rows = np.repeat(np.arange(len(maps)), lengths)
    cells[rows, numbers(keys.indices)] = numbers_or(values.indices, -1) + 2
    if np.count_nonzero(cells) != len(keys):
        raise LogError(file, None, "partitionValues with a key twice")
    code, first = _number_rows(np.column_stack((null.astype(np.int64), cells)), len(values.dictionary) + 2)
    used = np.unique(cells[first])
    used = used[used > 1]
    texts: dict[int, str | _Cell | None] = {0: _Cell.MISSING, 1: None}
    texts.update(zip(used.tolist(), values.dictionary.take(arrow(used - 2)).to_pylist(), strict=True))
    by_name = [[texts[cell] for cell in part.tolist()] for part in cells[first].T]
    combinations = zip(*by_name, strict=True) if names else itertools.repeat((), len(first))
    found = zip(combinations, null[first].tolist(), strict=True)
    return tuple(names), (None if is_null else cells for cells, is_null in found), code


def _number_rows(cells: Int64s, radix: int) -> tuple[Int64s, Int64s]:
    """Number the distinct rows of a matrix of numbers below `radix`: each row's number, and a row for
    each.
    """
    code = np.zeros(len(cells), np.int64)
    bound = 1
    for cell in cells.T:
        if bound * radix > _SPAN:
            code, bound = _dense(code)
        code, bound = code * radix + cell, bound * radix
    code, distinct = _dense(code)
    first = np.zeros(distinct, np.int64)
    first[code] = np.arange(len(code))
    return code, first


def _dense(code: Int64s) -> tuple[Int64s, int]:
    encoded = arrow(code).dictionary_encode()
    return numbers(encoded.indices).astype(np.int64), len(encoded.dictionary)
