"""A table as deltalake reads it: its versions, its files, and the rows of one partition.

What is read here is the other side of `verify`: it uses nothing of the proxy's own reading of the log.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Final

import attrs
import deltalake
import pyarrow as pa

from delta_proxy.access.partitions import Column, ColumnType, Kind, PartitionTuple
from delta_proxy.admin.errors import one_line

_TABLE: Final = "table_to_verify"
# deltalake tells a cause a line, behind a coloured arrow.
_DECORATION: Final = re.compile(r"\x1b\[[0-9;]*m|↳")
Files = Mapping[str, PartitionTuple]


@attrs.frozen
class Place:
    """A table at an S3 endpoint, with what deltalake needs to reach it."""

    uri: str
    options: Mapping[str, str] = attrs.field(repr=False)

    def open(self, version: int | None = None) -> deltalake.DeltaTable:
        """The table at a version, None for the newest. Raises whatever deltalake raises."""
        return deltalake.DeltaTable(self.uri, version=version, storage_options=dict(self.options))


def columns_of(table: deltalake.DeltaTable) -> tuple[Column, ...]:
    """The partition columns, keyed by their names: deltalake has translated physical ones."""
    fields = {field["name"]: field["type"] for field in json.loads(table.schema().to_json())["fields"]}
    names = table.metadata().partition_columns
    return tuple(Column(name, name, ColumnType.parse(fields[name])) for name in names)


def files_of(table: deltalake.DeltaTable) -> Files:
    """The partition values of every file of this version."""
    columns = columns_of(table)
    actions = pa.table(table.get_add_actions(flatten=True))
    values = [actions[f"partition.{column.name}"].to_pylist() for column in columns]
    return {
        path: PartitionTuple.of(
            columns, {column.name: raw(each) for column, each in zip(columns, row, strict=True)}
        )
        for path, *row in zip(actions["path"].to_pylist(), *values, strict=True)
    }


def raw(value: object) -> str | None:
    """A value as `partitionValues` of the log spells it (Delta protocol, Partition Value Serialization)."""
    text: str | None
    match value:
        case None:
            text = None
        case bool():
            text = "true" if value else "false"
        case datetime():
            text = value.replace(tzinfo=None).isoformat(" ", "microseconds")
        case date():
            text = value.isoformat()
        case Decimal():
            text = f"{value:f}"
        case bytes():
            text = value.decode("utf-8", "surrogateescape")
        case _:
            text = str(value)
    return text


@attrs.frozen
class Rows:
    """Counts rows of one version by really reading them."""

    _query: deltalake.QueryBuilder

    @classmethod
    def of(cls, table: deltalake.DeltaTable) -> Rows:
        """The rows of a table."""
        return cls(deltalake.QueryBuilder().register(_TABLE, table))

    def total(self) -> int:
        """How many rows there are, by the files' footers."""
        counted = pa.table(self._query.execute(f'SELECT count(*) AS n FROM "{_TABLE}"').read_all())  # noqa: S608
        return int(counted["n"][0].as_py())

    def within(self, partition: PartitionTuple) -> int:
        """How many rows one partition has, every column of which is read."""
        tests = [_test(column, dict(partition.values)[column.physical]) for column in partition.columns]
        where = f" WHERE {' AND '.join(tests)}" if tests else ""
        batches = self._query.execute(f'SELECT * FROM "{_TABLE}"{where}')  # noqa: S608
        return sum(pa.record_batch(batch).num_rows for batch in batches)


def _test(column: Column, value: str | None) -> str:
    name = '"' + column.name.replace('"', '""') + '"'
    return f"{name} IS NULL" if value is None else f"{name} = {_literal(column.type, value)}"


def _literal(kind: ColumnType, value: str) -> str:
    text = "'" + value.replace("'", "''") + "'"
    types: dict[Kind, str] = {
        Kind.BYTE: "Int8",
        Kind.SHORT: "Int16",
        Kind.INTEGER: "Int32",
        Kind.LONG: "Int64",
        Kind.FLOAT: "Float32",
        Kind.DOUBLE: "Float64",
        Kind.BOOLEAN: "Boolean",
        Kind.DATE: "Date32",
        Kind.TIMESTAMP: 'Timestamp(Microsecond, Some("UTC"))',
        Kind.TIMESTAMP_NTZ: "Timestamp(Microsecond, None)",
        Kind.DECIMAL: f"Decimal128({kind.precision}, {kind.scale})",
        Kind.BINARY: "Binary",
    }
    return text if kind.kind not in types else f"arrow_cast({text}, '{types[kind.kind]}')"


def reason(error: Exception) -> str:
    """What a reader says, in one line: its last words tell why (a certificate, a refused connection)."""
    lines = [_DECORATION.sub("", line).strip() for line in str(error).splitlines()]
    return one_line(": ".join(filter(None, lines)) or type(error).__name__)
