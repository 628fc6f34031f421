"""Parquet checkpoints and sidecars as a grant sees them: same schema, same size, only granted adds.

Source of the rules: Delta PROTOCOL, "Checkpoints". A rewritten file has its own dictionaries and statistics,
made of the rows it holds; the room that is left lies between the last row group and the footer, where no
offset points (parquet-format, "File format": readers find everything by the footer's offsets).
"""

from __future__ import annotations

import functools
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .commits import sidecar_name
from .directory import raise_if_of_the_machine
from .rows import arrow
from .view_grant import (
    KEPT_DOMAINS,
    Columns,
    Judge,
    StaleIndex,
    ViewError,
    ViewGrant,
    check_protocol,
    partition_columns,
)

_Pairs: TypeAlias = tuple[tuple[str | None, str | None], ...]

BATCH_ROWS = 65_536
_FLUSH_BYTES = 64 * 1024 * 1024
_STEP_ROWS = 8_192
_MAGIC = b"PAR1"
# What pyarrow raises for files it cannot read; a key twice in a map of the metaData is a KeyError.
_UNREADABLE = (pa.ArrowException, OSError, ValueError, KeyError, TypeError)

# The field that says whether a row holds the action: some writers leave an empty struct where there is none.
_KEY_FIELDS = {
    "add": "path",
    "remove": "path",
    "txn": "appId",
    "metaData": "id",
    "protocol": "minReaderVersion",
    "domainMetadata": "domain",
    "checkpointMetadata": "version",
    "sidecar": "path",
}
_KEPT_WHOLE = ("add", "metaData", "protocol", "domainMetadata")
_KEPT_FIELDS = {
    "checkpointMetadata": frozenset({"version"}),
    "sidecar": frozenset({"path", "sizeInBytes", "modificationTime"}),
}
# Spark decides by these how to read dates before 1582; anything else in the footer may say what it likes.
_KEPT_FOOTER_KEYS = frozenset({b"org.apache.spark.version", b"org.apache.spark.legacyDateTime"})
_SHORT_TEXT = re.compile(rb"[0-9A-Za-z.+_-]{0,64}")


@attrs.frozen
class _Effort:
    """One way to write the file."""

    codec: str = "zstd"
    level: int | None = None
    statistics: bool = True
    stats: bool = True


# Each is tried when those before made too large a file; in tiny pages zstd costs more than it saves.
_EFFORTS = (
    _Effort(level=3),
    _Effort(level=15),
    _Effort(level=15, statistics=False),
    _Effort(level=15, statistics=False, stats=False),
)
_SMALL_EFFORTS = (
    _Effort(level=3, statistics=False),
    _Effort("snappy", statistics=False),
    _Effort(level=15, statistics=False),
    _Effort(level=15, statistics=False, stats=False),
)
# Of a file of one row group or so the footer's statistics save no reading, and they may be half of it.
_SMALL_BYTES = 1024 * 1024


@attrs.frozen
class Manifest:
    """A checkpoint's top level: partition columns of its `metaData` (None: it has none), sidecars."""

    columns: Columns | None
    sidecars: tuple[str, ...]


@attrs.frozen
class RewrittenCheckpoint:
    """What a rewrite made: rows kept, adds among them, bytes of zeros before the footer."""

    rows: int
    adds: int
    padding: int


def read_manifest(source: pathlib.Path) -> Manifest:
    """The `metaData` and sidecars of a classic, multi-part or V2 Parquet checkpoint. Raises ViewError."""
    try:
        with _opened(source) as file:
            return _manifest(file)
    except _UNREADABLE as error:
        raise_if_of_the_machine(error)
        raise ViewError("a checkpoint cannot be read") from error


def rewrite(source: pathlib.Path, target: pathlib.Path, grant: ViewGrant) -> RewrittenCheckpoint:
    """Write to `target` what `grant` shows of a checkpoint file or sidecar, in exactly the bytes of `source`.

    Adds are judged by the `metaData` in the file itself or, where there is none, by `grant.permits`. Removes,
    `txn`, foreign `domainMetadata`, unknown actions and tags of the checkpoint are left out. The same input
    gives the same bytes. Blocks and computes: call it in a thread. Raises ViewError when the file cannot be
    read, holds two actions in a row, two `metaData` or an unknown reader feature, or does not fit its own
    size when rewritten; StaleIndex for a granted add of a path the index does not know; OSError when the disk
    does not take it. `target` is then not to be used.
    """
    try:
        size = source.stat().st_size
        for effort in _SMALL_EFFORTS if size < _SMALL_BYTES else _EFFORTS:
            written = _write(source, target, grant, effort)
            padding = size - target.stat().st_size
            if padding >= 0:
                _pad(target, padding)
                return attrs.evolve(written, padding=padding)
    except _UNREADABLE as error:
        raise_if_of_the_machine(error)
        raise ViewError("a checkpoint cannot be rewritten") from error
    raise ViewError("the filtered checkpoint does not fit the size of the original")


def _opened(source: pathlib.Path) -> pq.ParquetFile:
    return pq.ParquetFile(source, buffer_size=1 << 20, pre_buffer=False, coerce_int96_timestamp_unit="us")


def _write(
    source: pathlib.Path, target: pathlib.Path, grant: ViewGrant, effort: _Effort
) -> RewrittenCheckpoint:
    with _opened(source) as file:
        columns = _manifest(file).columns
        judge = _Judge(grant, grant.judge(grant.columns if columns is None else columns))
        schema = _target_schema(source, file)
        rows = adds = 0
        with pq.ParquetWriter(
            target,
            schema,
            compression=effort.codec,
            compression_level=effort.level,
            use_dictionary=_dictionary_columns(schema),
            write_statistics=effort.statistics,
            store_schema=False,
            version="2.6",
        ) as writer:
            writer.add_key_value_metadata(_footer_keys(file))
            for table in _grouped(_filtered(file, schema, judge, effort), schema):
                rows += table.num_rows
                adds += (
                    _present(table.column("add").combine_chunks(), "add").sum()
                    if "add" in schema.names
                    else 0
                )
                writer.write_table(table, row_group_size=max(table.num_rows, 1))
    return RewrittenCheckpoint(rows, int(adds), 0)


def _grouped(batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """Row groups, cut by nothing but the rows that are kept and each in one piece: where batches of the
    source ended would tell how many rows were dropped in between.
    """
    group: list[pa.Table] = []
    weight = 0
    for rows in _evenly(batches, schema):
        group.append(rows)
        weight += sum(map(_weight, rows.columns))
        if len(group) * _STEP_ROWS >= BATCH_ROWS or weight > _FLUSH_BYTES:
            yield pa.concat_tables(group).combine_chunks()
            group, weight = [], 0
    if group:
        yield pa.concat_tables(group).combine_chunks()


def _evenly(batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows of the batches, so many at a time whatever batch they came in."""
    rest = schema.empty_table()
    for batch in batches:
        rest = pa.concat_tables([rest, pa.Table.from_batches([batch], schema)])
        while rest.num_rows >= _STEP_ROWS:
            yield rest.slice(0, _STEP_ROWS)
            rest = rest.slice(_STEP_ROWS)
    if rest.num_rows:
        yield rest


def _weight(column: pa.ChunkedArray) -> int:
    """About how many bytes the values take: unlike `nbytes` the same however they came together."""
    if pa.types.is_struct(column.type):
        return sum(map(_weight, column.flatten()))
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return pc.sum(pc.binary_length(column)).as_py() or 0
    return 8 * len(column)


def _filtered(
    file: pq.ParquetFile, schema: pa.Schema, judge: _Judge, effort: _Effort
) -> Iterator[pa.RecordBatch]:
    for batch in file.iter_batches(BATCH_ROWS, columns=_columns_read(file.schema_arrow), use_threads=False):
        keep = _kept(batch, judge)
        if keep.any():
            yield _output(batch.filter(pa.array(keep)), schema, effort)


def _columns_read(schema: pa.Schema) -> list[str]:
    """The kept columns, and of the dropped ones only the field that says whether they are there."""
    names = []
    for field in schema:
        if field.name in _KEPT_WHOLE or field.name in _KEPT_FIELDS:
            names.append(field.name)
        elif field.name in _KEY_FIELDS:
            names.append(f"{field.name}.{_KEY_FIELDS[field.name]}")
    return names


def _present(column: pa.Array, action: str) -> npt.NDArray[np.bool_]:
    key = _field(column, _KEY_FIELDS[action])
    return np.asarray(pc.is_valid(key).to_numpy(zero_copy_only=False), dtype=np.bool_)


def _field(column: pa.Array, name: str) -> pa.Array:
    """A field of a struct column, null where the struct is. Raises ViewError when there is none such."""
    if not pa.types.is_struct(column.type) or column.type.get_field_index(name) < 0:
        raise ViewError(f"a checkpoint has no {name}")
    return _decoded(pc.struct_field(column, name))


def _decoded(array: pa.Array) -> pa.Array:
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _kept(batch: pa.RecordBatch, judge: _Judge) -> npt.NDArray[np.bool_]:
    """Which rows stay. Raises ViewError for a row with two actions."""
    present = {name: _present(batch.column(name), name) for name in _KEY_FIELDS if name in batch.schema.names}
    held = np.zeros(batch.num_rows, np.int8)
    for rows in present.values():
        held += rows
    if held.max(initial=0) > 1:
        raise ViewError("a row of a checkpoint holds more than one action")
    keep = np.zeros(batch.num_rows, np.bool_)
    for name in ("metaData", "protocol", *_KEPT_FIELDS):
        keep |= present.get(name, False)
    if "domainMetadata" in present:
        domains = _field(batch.column("domainMetadata"), "domain")
        keep |= pc.is_in(domains, pa.array(sorted(KEPT_DOMAINS), domains.type)).to_numpy(zero_copy_only=False)
    if "add" in present:
        adds = np.flatnonzero(present["add"])
        keep[adds[judge.shown(batch.column("add"), adds)]] = True
    return keep


@attrs.frozen
class _Judge:
    """Decides adds: the policy once for each distinct combination of values, paths by the thousand."""

    grant: ViewGrant
    permits: Judge

    def shown(self, adds: pa.Array, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
        """For each of `rows`, whether its add is granted."""
        granted = self._permitted(_field(adds, "partitionValues"), rows)
        candidates = rows[granted]
        if len(candidates):
            paths = _field(adds, "path").take(pa.array(candidates))
            history = self.grant.histories(paths)
            if history.null_count:
                raise StaleIndex("the index does not know a file of this checkpoint yet")
            granted[granted] = history.to_numpy(zero_copy_only=False)
        return granted

    def _permitted(self, values: pa.Array, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
        if not pa.types.is_map(values.type):
            raise ViewError("the partition values of a checkpoint are no map")
        granted = np.zeros(len(rows), np.bool_)
        if not len(rows):
            return granted
        starts = values.offsets.to_numpy()
        lengths = np.diff(starts)[rows]
        valid = pc.is_valid(values).to_numpy(zero_copy_only=False)[rows]
        keys, items = _Codes.of(values.keys), _Codes.of(values.items)
        for length in np.unique(lengths[valid]):
            chosen = np.flatnonzero(valid & (lengths == length))
            spots = starts[:-1][rows[chosen]]
            first, which = _distinct(keys, items, spots, int(length))
            answers = [self._ask(pairs) for pairs in _maps(keys, items, spots[first], int(length))]
            granted[chosen] = np.array(answers, np.bool_)[which]
        return granted

    def _ask(self, pairs: _Pairs) -> bool:
        named = {name: value for name, value in pairs if name is not None}
        if len(named) != len(pairs):
            raise ViewError("the partition values of a checkpoint hold a key twice, or none")
        return self.permits(named)


@attrs.frozen
class _Codes:
    """Strings as numbers: equal strings have equal codes; null has a code too."""

    codes: npt.NDArray[np.int64]
    values: pa.Array

    @classmethod
    def of(cls, strings: pa.Array) -> _Codes:
        encoded = pc.dictionary_encode(_decoded(strings), null_encoding="encode")
        return cls(encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary)

    def texts(self, spots: npt.NDArray[np.integer[Any]]) -> list[str | None]:
        """The strings at some places."""
        if not _is_text(self.values.type):
            raise ViewError("a partition value of a checkpoint is no text")
        texts: list[str | None] = self.values.take(arrow(self.codes[spots])).to_pylist()
        return texts


def _is_text(kind: pa.DataType) -> bool:
    text: bool = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)
    return text


def _maps(keys: _Codes, items: _Codes, spots: npt.NDArray[np.integer[Any]], length: int) -> Iterator[_Pairs]:
    """The pairs of the maps of this length that start at these places."""
    if not length:
        return iter([()] * len(spots))
    names = [keys.texts(spots + step) for step in range(length)]
    texts = [items.texts(spots + step) for step in range(length)]
    pairs = (zip(*of_step, strict=True) for of_step in zip(names, texts, strict=True))
    return zip(*pairs, strict=True)


def _distinct(
    keys: _Codes, items: _Codes, spots: npt.NDArray[np.integer[Any]], length: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The first row of each distinct map, and for each row which of them it is. Maps start at `spots`."""
    combined = np.zeros(len(spots), np.int64)
    span = 1
    for step in range(length):
        for part in (keys, items):
            codes = part.codes[spots + step]
            size = len(part.values) + 1
            if span > (1 << 62) // size:
                combined = np.unique(combined, return_inverse=True)[1].astype(np.int64)
                span = len(spots) + 1
            combined = combined * size + codes
            span *= size
    _, first, which = np.unique(combined, return_index=True, return_inverse=True)
    return first, which


def _output(batch: pa.RecordBatch, schema: pa.Schema, effort: _Effort) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([_column(batch, field, effort) for field in schema], schema=schema)


def _column(batch: pa.RecordBatch, field: pa.Field, effort: _Effort) -> pa.Array:
    """A column of the rewritten file: what is kept of the action, null in every row that does not hold it."""
    if field.name not in _KEPT_WHOLE and field.name not in _KEPT_FIELDS:
        return _absent(batch.num_rows, field.type)
    column = batch.column(field.name)
    kept = _KEPT_FIELDS.get(field.name, frozenset(inner.name for inner in column.type))
    if field.name == "add" and not effort.stats:
        kept -= {"stats"}
    column = _reduced(column, kept, ~_present(column, field.name))
    return column if column.type == field.type else column.cast(field.type)


def _reduced(column: pa.Array, kept: frozenset[str], absent: npt.NDArray[np.bool_]) -> pa.Array:
    # A field as it lies there: below a null struct a required one must not become null.
    children = [
        column.field(place) if field.name in kept else _absent(len(column), field.type)
        for place, field in enumerate(column.type)
    ]
    return pa.StructArray.from_arrays(children, fields=list(column.type), mask=pa.array(absent))


def _absent(rows: int, kind: pa.DataType) -> pa.Array:
    """Nulls, of which the required fields within a struct hold empty values, as writers demand."""
    return pa.array([None], kind).take(pa.array(np.zeros(rows, np.int64)))


def _manifest(file: pq.ParquetFile) -> Manifest:
    columns: Columns | None = None
    sidecars: list[str] = []
    names = [name for name in ("metaData", "protocol", "sidecar") if name in file.schema_arrow.names]
    for batch in file.iter_batches(BATCH_ROWS, columns=names, use_threads=False) if names else ():
        for action in _actions(batch, "metaData"):
            if columns is not None:
                raise ViewError("a checkpoint holds two metaData actions")
            columns = partition_columns(action)
        for action in _actions(batch, "protocol"):
            check_protocol(action)
        sidecars += [sidecar_name(action["path"]) for action in _actions(batch, "sidecar")]
    return Manifest(columns, tuple(sidecars))


def _actions(batch: pa.RecordBatch, name: str) -> list[dict[str, Any]]:
    """The few actions of one kind in a batch, decoded as JSON would decode them."""
    if name not in batch.schema.names:
        return []
    column = batch.column(name)
    found = column.filter(pa.array(_present(column, name)))
    return [dict(action) for action in found.to_pylist(maps_as_pydicts="strict")]


def _target_schema(source: pathlib.Path, file: pq.ParquetFile) -> pa.Schema:
    """The schema to write: no dictionaries, INT96 as microseconds in UTC, no metadata."""
    columns = (file.schema.column(place) for place in range(len(file.schema)))
    if not any(column.physical_type == "INT96" for column in columns):
        return pa.schema([_plain_field(field, field) for field in file.schema_arrow])
    with pq.ParquetFile(source, coerce_int96_timestamp_unit="ns") as exact:
        pairs = zip(file.schema_arrow, exact.schema_arrow, strict=True)
        fields = [_plain_field(field, other) for field, other in pairs]
    return pa.schema(fields)


def _footer_keys(file: pq.ParquetFile) -> dict[bytes, bytes]:
    keys: dict[bytes, bytes] = file.metadata.metadata or {}
    return {
        key: value for key, value in keys.items() if key in _KEPT_FOOTER_KEYS and _SHORT_TEXT.fullmatch(value)
    }


def _plain_field(field: pa.Field, exact: pa.Field) -> pa.Field:
    ids = {key: value for key, value in (field.metadata or {}).items() if key == b"PARQUET:field_id"}
    return pa.field(field.name, _plain(field.type, exact.type), field.nullable, metadata=ids)


def _plain(kind: pa.DataType, exact: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type, exact.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(kind.storage_type, exact.storage_type)
    if pa.types.is_struct(kind):
        return pa.struct([_plain_field(inner, other) for inner, other in zip(kind, exact, strict=True)])
    if pa.types.is_map(kind):
        item = _plain_field(kind.item_field, exact.item_field)
        return pa.map_(_plain_field(kind.key_field, exact.key_field), item)
    if pa.types.is_list(kind):
        return pa.list_(_plain_field(kind.value_field, exact.value_field))
    # Only an INT96 column changes its type with the unit; INT96 is always an instant in UTC.
    return kind if kind == exact else pa.timestamp("us", "UTC")


@functools.lru_cache(maxsize=64)
def _dictionary_columns(schema: pa.Schema) -> list[str]:
    """The leaf columns worth a dictionary: all but those that hardly repeat."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema, store_schema=False):
        pass
    leaves = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    paths = [leaves.column(place).path for place in range(len(leaves))]
    return [path for path in paths if path not in {"add.path", "add.stats"}]


def _pad(target: pathlib.Path, padding: int) -> None:
    """Move the footer `padding` bytes on; every offset in it counts from the start of the file."""
    with target.open("r+b") as file:
        end = file.seek(-8, os.SEEK_END)
        length, magic = int.from_bytes(file.read(4), "little"), file.read(4)
        if magic != _MAGIC or length > end:
            raise ViewError("the rewritten checkpoint has no footer")
        start = file.seek(end - length)
        footer = file.read()
        # A hole reads as zeros, and takes neither room nor time.
        file.truncate(start)
        file.seek(start + padding)
        file.write(footer)
