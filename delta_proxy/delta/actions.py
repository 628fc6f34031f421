"""The few actions of a Delta log that the proxy understands, parsed strictly.

Shapes as in the Delta protocol, "Actions". Everything that decides what a file is must be understood: what is
not raises LogError, and the table stays closed to restricted principals. Actions that name no file are passed
over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs
import orjson

from delta_proxy.access.partitions import Column, ColumnType


class LogError(Exception):
    """A file of the log that cannot be understood. `line` counts from 1; None when the file has no lines."""

    def __init__(self, file: str, line: int | None, problem: str) -> None:
        self.file = file
        self.line = line
        self.problem = problem
        super().__init__(f"{file}:{line}: {problem}" if line else f"{file}: {problem}")


@attrs.frozen
class DeletionVector:
    """A deletion vector descriptor. `offset` and `size` are bytes, as in the log (sizeInBytes)."""

    storage: str
    value: str
    offset: int | None
    size: int | None


Values = Mapping[str, str | None]


@attrs.frozen
class Add:
    """A file that a version adds; `values` is keyed by physical column names."""

    path: str
    values: Values
    deletion_vector: DeletionVector | None = None


@attrs.frozen
class Remove:
    """A file that a version removes; `values` is None when the writer left them out."""

    path: str
    values: Values | None
    deletion_vector: DeletionVector | None = None


@attrs.frozen
class Cdc:
    """A change data file of a version."""

    path: str
    values: Values


@attrs.frozen
class Metadata:
    """The table's id and partition columns as of a version."""

    id: str
    columns: tuple[Column, ...]


@attrs.frozen
class Protocol:
    """What a reader must know to read the table."""

    min_reader: int
    reader_features: frozenset[str]


@attrs.frozen
class Sidecar:
    """A sidecar of a V2 checkpoint: a name below `_delta_log/_sidecars/`."""

    name: str


Action = Add | Remove | Cdc | Metadata | Protocol | Sidecar

KNOWN_READER_FEATURES: Final = frozenset(
    {
        "columnMapping",
        "deletionVectors",
        "timestampNtz",
        "v2Checkpoint",
        "vacuumProtocolCheck",
        "typeWidening",
        "typeWidening-preview",
        "variantType",
        "variantType-preview",
        "variantShredding",
        "variantShredding-preview",
    }
)
_NEWEST_READER: Final = 3
_MAPPING_MODES: Final = ("none", "name", "id")


@attrs.frozen
class TableMetadata:
    """What is in force at a version of a table: its partition columns and its reader protocol."""

    id: str
    columns: tuple[Column, ...]
    min_reader: int
    reader_features: frozenset[str]

    @classmethod
    def of(cls, metadata: Metadata, protocol: Protocol) -> TableMetadata:
        """The two actions joined."""
        return cls(metadata.id, metadata.columns, protocol.min_reader, protocol.reader_features)

    @property
    def unknown_features(self) -> frozenset[str]:
        """What the proxy does not know of the reader protocol. The table is closed to restricted
        principals.
        """
        unknown = self.reader_features - KNOWN_READER_FEATURES
        if self.min_reader > _NEWEST_READER:
            return unknown | {f"minReaderVersion {self.min_reader}"}
        return unknown


class _Malformed(ValueError):
    """An action whose shape is wrong."""


def parse_line(line: bytes, file: str, number: int) -> tuple[Action, ...]:
    """The actions of one line of a commit, almost always one; none for a blank line and for other actions.

    Raises LogError when the line is no JSON object or holds an action of a shape the protocol does not allow.
    """
    try:
        parsed = orjson.loads(line)
    except orjson.JSONDecodeError:
        if not line.strip():
            return ()
        raise LogError(file, number, "a line that is not JSON") from None
    if type(parsed) is not dict:
        raise LogError(file, number, "a line that is not a JSON object")
    try:
        return tuple(
            _PARSERS[name](body) for name, body in parsed.items() if name in _PARSERS and body is not None
        )
    except _Malformed as error:
        raise LogError(file, number, str(error)) from None


def _object(body: object, what: str) -> dict[str, Any]:
    if type(body) is not dict:
        raise _Malformed(f"{what} is not an object")
    return body


def _text(body: dict[str, Any], key: str, what: str) -> str:
    value = body.get(key)
    if type(value) is not str or not value:
        raise _Malformed(f"{what} without {key}")
    return value


def _values(body: dict[str, Any], what: str) -> Values | None:
    values = body.get("partitionValues")
    if values is None:
        return None
    if type(values) is not dict:
        raise _Malformed(f"{what}.partitionValues is not an object")
    for value in values.values():
        if value is not None and type(value) is not str:
            raise _Malformed(f"{what}.partitionValues holds something else than strings")
    return values


def _integer(body: dict[str, Any], key: str, what: str) -> int | None:
    value = body.get(key)
    if value is not None and (type(value) is not int or not 0 <= value < 1 << 31):
        raise _Malformed(f"{what}.{key} is not a 32 bit size")
    return value


def _deletion_vector(body: dict[str, Any], what: str) -> DeletionVector | None:
    descriptor = body.get("deletionVector")
    if descriptor is None:
        return None
    what = f"{what}.deletionVector"
    descriptor = _object(descriptor, what)
    return DeletionVector(
        _text(descriptor, "storageType", what),
        _text(descriptor, "pathOrInlineDv", what),
        _integer(descriptor, "offset", what),
        _integer(descriptor, "sizeInBytes", what),
    )


def _add(body: object) -> Add:
    add = _object(body, "add")
    return Add(_text(add, "path", "add"), _values(add, "add") or {}, _deletion_vector(add, "add"))


def _remove(body: object) -> Remove:
    remove = _object(body, "remove")
    return Remove(
        _text(remove, "path", "remove"), _values(remove, "remove"), _deletion_vector(remove, "remove")
    )


def _cdc(body: object) -> Cdc:
    cdc = _object(body, "cdc")
    return Cdc(_text(cdc, "path", "cdc"), _values(cdc, "cdc") or {})


def _sidecar(body: object) -> Sidecar:
    return Sidecar(_text(_object(body, "sidecar"), "path", "sidecar"))


def _protocol(body: object) -> Protocol:
    protocol = _object(body, "protocol")
    minimum = protocol.get("minReaderVersion")
    features = protocol.get("readerFeatures")
    if type(minimum) is not int:
        raise _Malformed("protocol without minReaderVersion")
    if features is None:
        features = []
    if type(features) is not list or not all(type(feature) is str for feature in features):
        raise _Malformed("protocol.readerFeatures is not a list of names")
    return Protocol(minimum, frozenset(features))


def _metadata(body: object) -> Metadata:
    metadata = _object(body, "metaData")
    return parse_metadata(
        metadata.get("id"),
        metadata.get("schemaString"),
        metadata.get("partitionColumns"),
        metadata.get("configuration"),
    )


def parse_metadata(identity: object, schema: object, names: object, configuration: object) -> Metadata:
    """The Metadata of the fields of a metaData action, decoded from JSON or Parquet. Raises ValueError."""
    if type(identity) is not str or type(schema) is not str:
        raise _Malformed("metaData without id or schemaString")
    configuration = _object({} if configuration is None else configuration, "metaData.configuration")
    names = [] if names is None else names
    if type(names) is not list or not all(type(name) is str for name in names):
        raise _Malformed("metaData.partitionColumns is not a list of names")
    fields = _fields(schema)
    mode = configuration.get("delta.columnMapping.mode", "none")
    if mode not in _MAPPING_MODES:
        raise _Malformed("metaData.configuration has a column mapping mode that is not known")
    return Metadata(identity, tuple(_column(name, fields, mode != "none") for name in names))


def _fields(schema: str) -> dict[str, dict[str, Any]]:
    try:
        parsed = _object(orjson.loads(schema), "metaData.schemaString")
    except orjson.JSONDecodeError:
        raise _Malformed("metaData.schemaString is not JSON") from None
    fields = parsed.get("fields")
    if type(fields) is not list:
        raise _Malformed("metaData.schemaString without fields")
    return {_text(_object(field, "a field"), "name", "a field"): field for field in fields}


def _column(name: str, fields: dict[str, dict[str, Any]], mapped: bool) -> Column:
    if name not in fields:
        raise _Malformed("a partition column that is not in the schema")
    field = fields[name]
    physical = name
    if mapped:
        hints = _object(field.get("metadata") or {}, "a field's metadata")
        physical = _text(hints, "delta.columnMapping.physicalName", "a mapped partition column")
    return Column(name, physical, ColumnType.parse(field.get("type")))


_PARSERS: Final[Mapping[str, Callable[[object], Action]]] = {
    "add": _add,
    "remove": _remove,
    "cdc": _cdc,
    "metaData": _metadata,
    "protocol": _protocol,
    "sidecar": _sidecar,
}
