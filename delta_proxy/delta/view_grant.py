"""What a rewrite of the log asks about a principal's grant.

The log filter knows JSON and Parquet, not policies: each question it has is a function of this value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import attrs
import pyarrow as pa

from delta_proxy.access.partitions import Column, PartitionTuple

from .actions import TableMetadata, parse_metadata

Columns: TypeAlias = tuple[Column, ...]
Values: TypeAlias = Mapping[str, str | None]
Judge: TypeAlias = Callable[[Values], bool]

# Readers act on these domains; any other may hold what its writer liked (Delta PROTOCOL, "Domain Metadata").
KEPT_DOMAINS = frozenset({"delta.clustering", "delta.rowTracking"})
_REMEMBERED = 100_000


class ViewError(Exception):
    """A log file that cannot be shown filtered, and so is not shown. str() says why, without its contents."""


class StaleIndex(ViewError):
    """The file adds a path that the index has not seen: the index must take this file in first."""


@attrs.frozen
class ViewGrant:
    """One grant as the log filter sees it. The functions answer the same while a file is being rewritten.

    `columns`: the partition columns of the `metaData` in force before the file; None when there is none
    (version 0). `permits`: whether the grant allows a tuple. `history`: for `add.path` as the log spells it,
    True when every value the path ever had is granted, False when one is not, None when the index does not
    know it. `histories`: the same for an array of strings, giving a boolean array with nulls; it is asked for
    at most 65,536 paths at a time.
    """

    columns: Columns | None
    permits: Callable[[PartitionTuple], bool]
    history: Callable[[str], bool | None]
    histories: Callable[[pa.Array], pa.Array] = attrs.field(
        default=attrs.Factory(lambda self: one_by_one(self.history), takes_self=True)
    )

    def judge(self, columns: Columns | None) -> Judge:
        """Whether `partitionValues` are granted under these columns; each combination is asked about once.

        Values are denied unless they are strings or null under string keys, as the protocol has them. The
        judge raises ViewError when there are no columns to judge by.
        """
        known: dict[tuple[tuple[str, str | None], ...], bool] = {}

        def decide(values: Values) -> bool:
            if columns is None:
                raise ViewError("no metaData is in force for the files of the log file")
            if not all(value is None or isinstance(value, str) for value in values.values()):
                return False
            if len(known) >= _REMEMBERED:
                known.clear()
            answer = known[tuple(values.items())] = self.permits(PartitionTuple.of(columns, values))
            return answer

        def ask(values: Values) -> bool:
            try:
                return known[tuple(values.items())]
            except (KeyError, TypeError):
                return decide(values)

        return ask


def one_by_one(history: Callable[[str], bool | None]) -> Callable[[pa.Array], pa.Array]:
    """`histories` out of `history`: right but slow."""

    def ask(paths: pa.Array) -> pa.Array:
        return pa.array([history(path) for path in paths.to_pylist()], pa.bool_())

    return ask


def partition_columns(metadata: Mapping[str, Any]) -> Columns:
    """The partition columns of a `metaData` action decoded from JSON or Parquet. Raises ViewError."""
    fields = (metadata.get(name) for name in ("id", "schemaString", "partitionColumns", "configuration"))
    try:
        return parse_metadata(*fields).columns
    except ValueError as error:
        raise ViewError(f"the metaData of a log file is not understood: {error}") from error


def check_protocol(protocol: Mapping[str, Any]) -> None:
    """Raise ViewError unless every reader feature of a `protocol` action is known."""
    version, features = protocol.get("minReaderVersion"), protocol.get("readerFeatures") or []
    if type(version) is not int or not isinstance(features, list):
        raise ViewError("the protocol of a log file is not understood")
    names = frozenset(name if isinstance(name, str) else "?" for name in features)
    if TableMetadata("", (), version, names).unknown_features:
        raise ViewError("the table needs a reader feature that is not known")
