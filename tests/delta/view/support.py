"""A naive grant, a naive driver of the log filter, and ways to look into what it wrote."""

from __future__ import annotations

import pathlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any
from urllib.parse import unquote

import attrs
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from delta_proxy.access.partitions import PartitionTuple
from delta_proxy.delta import checkpoints, commits, last_checkpoint
from delta_proxy.delta.paths import LogKind
from delta_proxy.delta.view_grant import Columns, ViewGrant, partition_columns
from delta_proxy.delta.view_names import view_file

Permits = Callable[[PartitionTuple], bool]


@attrs.frozen
class Filter:
    """The modules that filter; a test of the tests passes altered ones."""

    commits: ModuleType = commits
    checkpoints: ModuleType = checkpoints
    last_checkpoint: ModuleType = last_checkpoint


REAL = Filter()


def metadata(
    columns: Sequence[str] = ("p",), types: Mapping[str, str] | None = None, **more: object
) -> dict[str, object]:
    """A metaData action of a table with these partition columns and a column x."""
    fields = [
        {"name": name, "type": (types or {}).get(name, "string"), "nullable": True, "metadata": {}}
        for name in (*columns, "x")
    ]
    return {
        "id": "5fba94ed-9794-4965-ba6e-6ee3c0d22af9",
        "format": {"provider": "parquet", "options": {}},
        "schemaString": orjson.dumps({"type": "struct", "fields": fields}).decode(),
        "partitionColumns": list(columns),
        "configuration": {},
        "createdTime": 1700000000000,
        **more,
    }


PROTOCOL = {"minReaderVersion": 1, "minWriterVersion": 2}


def add(path: str, values: Mapping[str, str | None], **more: object) -> dict[str, Any]:
    """An add action."""
    return {
        "path": path,
        "partitionValues": dict(values),
        "size": 100,
        "modificationTime": 1700000000000,
        "dataChange": True,
        "stats": '{"numRecords":1}',
        **more,
    }


def remove(path: str, values: Mapping[str, str | None] | None = None, **more: object) -> dict[str, Any]:
    """A remove action, with partitionValues when they are given."""
    extended = (
        {} if values is None else {"extendedFileMetadata": True, "partitionValues": dict(values), "size": 1}
    )
    return {"path": path, "deletionTimestamp": 4000000000000, "dataChange": True, **extended, **more}


def lines(*actions: Mapping[str, object]) -> bytes:
    """Actions as a commit holds them."""
    return b"".join(orjson.dumps(action) + b"\n" for action in actions)


def grant(
    permits: Permits | None = None,
    *,
    denied: Iterable[str] = (),
    unknown: Iterable[str] = (),
    columns: Columns | None = None,
) -> ViewGrant:
    """A grant by p = "green", with paths that once had a denied value and paths unknown to the index."""
    denied, unknown = frozenset(denied), frozenset(unknown)

    def history(path: str) -> bool | None:
        return None if path in unknown else path not in denied

    return ViewGrant(columns, permits or has(p="green"), history)


def has(**wanted: str | None) -> Permits:
    """Permits exactly these values of partition columns."""
    return lambda values: wanted.items() <= dict(values.values).items()


COLUMNS = partition_columns(metadata())


def filtered(
    folder: pathlib.Path, content: bytes, by: ViewGrant, role: str = "COMMIT", using: Filter = REAL
) -> bytes:
    """A commit or manifest through the filter; its length is checked."""
    path = folder / "source.json"
    path.write_bytes(content)
    facts = using.commits.scan(path, by, using.commits.FileRole[role])
    written = b"".join(using.commits.emit(path, facts))
    assert len(written) == len(content)
    return written


def actions(content: bytes) -> list[dict[str, Any]]:
    """The actions of a commit, in order."""
    return [orjson.loads(line) for line in content.splitlines() if line.strip()]


def rewritten(
    folder: pathlib.Path, source: pathlib.Path, by: ViewGrant, using: Filter = REAL
) -> pathlib.Path:
    """A checkpoint through the filter; its length is checked."""
    target = folder / "rewritten.parquet"
    using.checkpoints.rewrite(source, target, by)
    assert target.stat().st_size == source.stat().st_size
    return target


_STRINGS = pa.map_(pa.string(), pa.string())
CHECKPOINT_SCHEMA = pa.schema(
    {
        "txn": pa.struct({"appId": pa.string(), "version": pa.int64()}),
        "add": pa.struct(
            {
                "path": pa.string(),
                "partitionValues": _STRINGS,
                "size": pa.int64(),
                "modificationTime": pa.int64(),
                "dataChange": pa.bool_(),
                "stats": pa.string(),
                "tags": _STRINGS,
            }
        ),
        "remove": pa.struct({"path": pa.string(), "deletionTimestamp": pa.int64(), "dataChange": pa.bool_()}),
        "metaData": pa.struct(
            {
                "id": pa.string(),
                "format": pa.struct({"provider": pa.string(), "options": _STRINGS}),
                "schemaString": pa.string(),
                "partitionColumns": pa.list_(pa.string()),
                "configuration": _STRINGS,
                "createdTime": pa.int64(),
            }
        ),
        "protocol": pa.struct(
            {
                "minReaderVersion": pa.int32(),
                "minWriterVersion": pa.int32(),
                "readerFeatures": pa.list_(pa.string()),
                "writerFeatures": pa.list_(pa.string()),
            }
        ),
        "domainMetadata": pa.struct(
            {"domain": pa.string(), "configuration": pa.string(), "removed": pa.bool_()}
        ),
        "checkpointMetadata": pa.struct({"version": pa.int64(), "tags": _STRINGS}),
        "sidecar": pa.struct(
            {
                "path": pa.string(),
                "sizeInBytes": pa.int64(),
                "modificationTime": pa.int64(),
                "tags": _STRINGS,
            }
        ),
    }
)


def write_checkpoint(
    path: pathlib.Path,
    rows: Sequence[Mapping[str, Any]],
    schema: pa.Schema = CHECKPOINT_SCHEMA,
    **options: Any,
) -> pathlib.Path:
    """A checkpoint of actions as JSON has them; maps are given as mappings."""
    table = pa.Table.from_pylist([_pairs(row) for row in rows], schema)
    pq.write_table(table, path, **({"compression": "snappy", "store_schema": False} | options))
    return path


_MAPS = {"partitionValues", "tags", "options", "configuration"}


def _pairs(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {
        name: list(inner.items()) if name in _MAPS and isinstance(inner, Mapping) else _pairs(inner)
        for name, inner in value.items()
    }


def checkpoint_rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """The non-null actions of each row of a checkpoint."""
    table = pq.read_table(path)
    decoded = table.to_pylist(maps_as_pydicts="strict")
    return [{name: action for name, action in row.items() if action is not None} for row in decoded]


def adds_of(path: pathlib.Path) -> list[str]:
    """The paths that a checkpoint adds."""
    return [row["add"]["path"] for row in checkpoint_rows(path) if "add" in row]


def bytes_within(path: pathlib.Path) -> bytes:
    """All that a Parquet file can tell: bytes, decompressed pages, the footer."""
    raw = path.read_bytes()
    return b"\n".join([raw, *_zstd_frames(raw), repr(pq.ParquetFile(path).metadata.to_dict()).encode()])


_FRAME = b"\x28\xb5\x2f\xfd"


def _zstd_frames(raw: bytes) -> Iterator[bytes]:
    start = raw.find(_FRAME)
    while start >= 0:
        try:
            yield zstandard.ZstdDecompressor().decompressobj().decompress(raw[start:])
        except zstandard.ZstdError:
            yield b""
        start = raw.find(_FRAME, start + 4)


@attrs.frozen
class Model:
    """A table's log read the simplest way: what each version holds, and every value a path ever had."""

    live: Mapping[int, Mapping[str, PartitionTuple]]
    ever: Mapping[str, frozenset[PartitionTuple]]
    columns: Mapping[int, Columns]

    @classmethod
    def of(cls, log: pathlib.Path) -> Model:
        """The model of a local log whose commits are all there."""
        live: dict[int, Mapping[str, PartitionTuple]] = {}
        ever: dict[str, set[PartitionTuple]] = defaultdict(set)
        columns: dict[int, Columns] = {}
        state: dict[str, PartitionTuple] = {}
        current: Columns = ()
        for path in sorted(log.glob("*.json")):
            file = view_file(path.name)
            if file is None or file.kind is not LogKind.COMMIT or file.version is None:
                continue
            found = actions(path.read_bytes())
            for action in found:
                if action.get("metaData"):
                    current = partition_columns(action["metaData"])
            for action in found:
                for name in ("add", "cdc"):
                    if body := action.get(name):
                        values = PartitionTuple.of(current, body["partitionValues"])
                        ever[body["path"]].add(values)
                        if name == "add":
                            state[body["path"]] = values
            added = {action["add"]["path"] for action in found if action.get("add")}
            for action in found:
                body = action.get("remove")
                if body and body["path"] not in added:
                    state.pop(body["path"], None)
            live[file.version], columns[file.version] = dict(state), current
        return cls(live, {path: frozenset(values) for path, values in ever.items()}, columns)

    def grant(self, permits: Permits, version: int) -> ViewGrant:
        """The grant for a commit that follows a version, or for a checkpoint of it."""

        def history(path: str) -> bool | None:
            values = self.ever.get(path)
            return all(permits(each) for each in values) if values else None

        return ViewGrant(self.columns.get(version), permits, history)

    def visible(self, permits: Permits, version: int) -> set[str]:
        """The decoded paths that a view must show at a version."""
        return {
            unquote(path) for path in self.live[version] if all(permits(values) for values in self.ever[path])
        }


def write_view(log: pathlib.Path, view: pathlib.Path, model: Model, permits: Permits) -> None:
    """Write the view of a log, file by file; what the view does not hold is not written."""
    (view / "_sidecars").mkdir(parents=True)
    names = [path.relative_to(log).as_posix() for path in sorted(log.rglob("*")) if path.is_file()]
    shown = [name for name in names if view_file(name) is not None]
    for name in shown:
        _write_one(log / name, view / name, name, model, permits)
    if "_last_checkpoint" in shown:
        hint = last_checkpoint.rewrite((log / "_last_checkpoint").read_bytes(), shown)
        if hint is not None:
            (view / "_last_checkpoint").write_bytes(hint)


def _write_one(source: pathlib.Path, target: pathlib.Path, name: str, model: Model, permits: Permits) -> None:
    file = view_file(name)
    if file is None or file.kind is LogKind.LAST_CHECKPOINT:
        return
    if file.kind is LogKind.COMMIT:
        by, role = model.grant(permits, (file.version or 0) - 1), commits.FileRole.COMMIT
    else:
        newest = max(model.columns) if file.version is None else file.version
        by, role = model.grant(permits, newest), commits.FileRole.MANIFEST
    if name.endswith(".json"):
        target.write_bytes(b"".join(commits.emit(source, commits.scan(source, by, role))))
    else:
        checkpoints.rewrite(source, target, by)
    assert target.stat().st_size == source.stat().st_size
