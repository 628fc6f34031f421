"""Rows of the index while it is built: columnar, and reconciled without a Python object for each row.

A row says: this path had these partition values, as of this moment of the log. Within a path the row with the
highest `seq` tells whether the path is live (Delta protocol, "Action Reconciliation"); every distinct tuple
is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]


class FileKind(IntEnum):
    """What a path of the index is."""

    DATA = 0
    CDC = 1
    DELETION_VECTOR = 2


UNKNOWN_TUPLE: Final = 0
"""The tuple of a removed path whose values no action tells: denied, until an add of the path is found."""

NONE: Final = -1
"""The offset or size of a row that has none."""

ROW_SCHEMA: Final = pa.schema(
    [
        ("path", pa.large_string()),
        ("kind", pa.uint8()),
        ("tuple", pa.int32()),
        ("live", pa.uint8()),
        ("offset", pa.int32()),
        ("size", pa.int32()),
        ("owner", pa.large_string()),
        ("seq", pa.int64()),
    ]
)
SLICE: Final = 65_536
_OLDEST: Final = np.iinfo(np.int64).min


def arrow(values: npt.NDArray[Any]) -> pa.Array:
    """Numbers as an Arrow array, without a copy. pa.array would import pandas first, where there is one."""
    values = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def numbers(values: pa.Array) -> npt.NDArray[Any]:
    """The numbers of an Arrow array, not copied; where there is a null, any number. Array.to_numpy would
    import pandas as well, which keeps other threads waiting.
    """
    signed = pa.types.is_signed_integer(values.type)
    kind = np.dtype(f"{'i' if signed else 'u'}{values.type.bit_width // 8}")
    buffer = values.buffers()[1]
    if buffer is None:
        return np.zeros(len(values), kind)
    return np.frombuffer(buffer, kind, len(values), values.offset * kind.itemsize)


def numbers_or(values: pa.Array, nothing: int) -> npt.NDArray[Any]:
    """The numbers of an Arrow array, and `nothing` for each null."""
    if not values.null_count:
        return numbers(values)
    return np.where(flags(values.is_valid()), numbers(values), nothing)


def flags(values: pa.BooleanArray) -> npt.NDArray[np.bool_]:
    """An Arrow array of booleans without nulls, as numpy's."""
    if not len(values):
        return np.zeros(0, np.bool_)
    bits = np.frombuffer(values.buffers()[1], np.uint8)
    return np.unpackbits(bits, count=values.offset + len(values), bitorder="little")[values.offset :].view(
        np.bool_
    )


def from_flags(values: npt.NDArray[np.bool_]) -> pa.BooleanArray:
    """numpy's booleans as an Arrow array."""
    bits = pa.py_buffer(np.packbits(values, bitorder="little"))
    return pa.Array.from_buffers(pa.bool_(), len(values), [None, bits])


def make_rows(
    paths: pa.Array,
    kind: FileKind,
    tuples: Int32s,
    *,
    live: bool | Bytes,
    seq: int,
    offsets: Int32s | None = None,
    sizes: Int32s | None = None,
    owners: pa.Array | None = None,
) -> pa.RecordBatch:
    """Rows of one kind from one file of the log. `paths` and `owners` are large_string arrays."""
    count = len(paths)
    nothing = np.full(count, NONE, np.int32)
    columns = [
        paths,
        arrow(np.full(count, int(kind), np.uint8)),
        arrow(tuples),
        arrow(np.full(count, int(live), np.uint8) if isinstance(live, bool) else live),
        arrow(nothing if offsets is None else offsets),
        arrow(nothing if sizes is None else sizes),
        pa.nulls(count, pa.large_string()) if owners is None else owners,
        arrow(np.full(count, seq, np.int64)),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=ROW_SCHEMA)


def column(rows: pa.RecordBatch, name: str) -> Any:
    """A numeric column as numpy."""
    return numbers(rows.column(name))


def sorted_slices(batches: list[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The rows in the order of their paths, in slices of about SLICE rows that never split the rows of a
    path. The list is emptied.
    """
    table = pa.Table.from_batches(batches, schema=ROW_SCHEMA)
    order = numbers(pc.sort_indices(table.column("path")))
    columns = [_column_taker(table.column(name)) for name in ROW_SCHEMA.names]
    del table
    # Memory is given back a batch at a time: all at once would keep other threads waiting.
    while batches:
        batches.pop()
    position, width = 0, SLICE
    while position < len(order):
        chosen = order[position : position + width]
        rows = pa.RecordBatch.from_arrays([take(chosen) for take in columns], schema=ROW_SCHEMA)
        whole = len(rows) if position + width >= len(order) else _last_group(rows)
        if whole == 0:
            width *= 2
            continue
        yield rows.slice(0, whole)
        position, width = position + whole, SLICE


def _column_taker(values: pa.ChunkedArray) -> Any:
    """A function that takes rows of a column by their numbers."""
    if values.null_count == len(values):
        return lambda chosen: pa.nulls(len(chosen), values.type)
    if pa.types.is_large_string(values.type):
        # From chunks it takes four times as long.
        texts = pa.concat_arrays(values.chunks)
        return lambda chosen: texts.take(arrow(chosen))
    whole = np.concatenate([numbers(chunk) for chunk in values.chunks])
    return lambda chosen: arrow(whole[chosen])


def _last_group(rows: pa.RecordBatch) -> int:
    """Where the rows of the last path begin."""
    different = np.flatnonzero(~_same_as_before(rows.column("path")))
    return int(different[-1]) + 1 if len(different) else 0


def _same_as_before(paths: pa.Array) -> npt.NDArray[np.bool_]:
    same = pc.equal(paths.slice(1), paths.slice(0, max(0, len(paths) - 1)))
    return flags(same)


def reconcile(rows: pa.RecordBatch) -> tuple[pa.RecordBatch, Bytes]:
    """Sorted rows with each distinct statement about a path kept once, and which of them are compound.

    Of a path's data rows those of the highest `seq` decide whether it is live, and all get that `seq`, so
    that the result can be reconciled again. A row of UNKNOWN values is dropped once the path has a known one.
    A compound row (1) is judged together with others: it shares its path or is a deletion vector.
    """
    same = _same_as_before(rows.column("path"))
    vectors = column(rows, "kind") == FileKind.DELETION_VECTOR
    if not same.any():
        return rows, vectors.astype(np.uint8)
    first = np.concatenate(([True], ~same))
    crowded = ~first
    crowded[:-1] |= same
    kept = _settle(rows, np.flatnonzero(crowded), first)
    chosen = np.sort(np.concatenate((np.flatnonzero(~crowded), kept.rows)))
    live, seq = column(rows, "live").copy(), column(rows, "seq").copy()
    live[kept.rows], seq[kept.rows] = kept.live, kept.seq
    result = rows.set_column(3, "live", arrow(live)).set_column(7, "seq", arrow(seq)).take(arrow(chosen))
    group = np.cumsum(first)[chosen]
    shares = np.concatenate((group[1:] == group[:-1], [False]))
    shares[1:] |= shares[:-1].copy()
    return result.cast(ROW_SCHEMA), (shares | vectors[chosen]).astype(np.uint8)


class _Kept:
    """The rows to keep of paths that have several, and their settled columns."""

    def __init__(self, rows: Int64s, live: Bytes, seq: Int64s) -> None:
        self.rows = rows
        self.live = live
        self.seq = seq


def _settle(rows: pa.RecordBatch, crowded: Int64s, first: npt.NDArray[np.bool_]) -> _Kept:
    begins = np.flatnonzero(first[crowded])
    group = np.cumsum(first[crowded]) - 1
    kind, tuples, live, seq, offset, size = (
        column(rows, name)[crowded] for name in ("kind", "tuple", "live", "seq", "offset", "size")
    )
    codes = rows.column("owner").take(arrow(crowded)).dictionary_encode().indices
    owner = numbers_or(codes, NONE)
    is_data = kind == FileKind.DATA
    latest = np.maximum.reduceat(np.where(is_data, seq, _OLDEST), begins)[group]
    known = np.logical_or.reduceat(is_data & (tuples != UNKNOWN_TUPLE), begins)[group]
    order = np.lexsort((live, seq, owner, size, offset, tuples, kind, group))
    identity = np.stack([values[order] for values in (group, kind, tuples, offset, size, owner)])
    last = np.concatenate(((identity[:, 1:] != identity[:, :-1]).any(axis=0), [True]))
    keep = order[last]
    keep = keep[~(is_data & (tuples == UNKNOWN_TUPLE) & known)[keep]]
    settled_live = np.where(is_data, (live != 0) & (seq == latest), live != 0)
    settled_seq = np.where(is_data, latest, seq)
    return _Kept(crowded[keep], settled_live[keep].astype(np.uint8), settled_seq[keep])
