"""Delta logs made by hand, and indexes built from them without a reactor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from delta_proxy.access.policy import Allowed, Grant, parse_filters
from delta_proxy.delta import build
from delta_proxy.delta.build import CheckpointContent, Place
from delta_proxy.delta.index import Anchor, TableIndex
from delta_proxy.delta.log import select_history, select_segment
from delta_proxy.delta.masks import GrantMasks, authorise
from delta_proxy.delta.paths import LogFile, TableRoot, classify_log_name, commit_name
from delta_proxy.delta.scan import LogContent

NOW = datetime(2026, 11, 22, tzinfo=UTC)
ROOT = TableRoot("bucket", "some/table")
ANCHOR = Anchor("anchor", "etag")

Line = Mapping[str, Any] | bytes


def metadata(*columns: str, identity: str = "t", mapping: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A metaData line of a table with these string partition columns; `mapping` gives physical names."""
    fields = [
        {
            "name": name,
            "type": "string",
            "nullable": True,
            "metadata": {"delta.columnMapping.physicalName": mapping[name]} if mapping else {},
        }
        for name in columns
    ]
    return {
        "metaData": {
            "id": identity,
            "schemaString": orjson.dumps({"type": "struct", "fields": fields}).decode(),
            "partitionColumns": list(columns),
            "configuration": {"delta.columnMapping.mode": "name"} if mapping else {},
        }
    }


PROTOCOL: dict[str, Any] = {"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}}


def add(path: str, vector: Mapping[str, Any] | None = None, **values: str | None) -> dict[str, Any]:
    """An add line."""
    body: dict[str, Any] = {"path": path, "partitionValues": values, "size": 1, "dataChange": True}
    return {"add": body | ({"deletionVector": vector} if vector else {})}


def remove(path: str, **values: str | None) -> dict[str, Any]:
    """A remove line, with partition values when there are any."""
    return {"remove": {"path": path, "dataChange": True} | ({"partitionValues": values} if values else {})}


def cdc(path: str, **values: str | None) -> dict[str, Any]:
    """A cdc line."""
    return {"cdc": {"path": path, "partitionValues": values, "size": 1, "dataChange": False}}


def content(version: int, lines: Iterable[Line]) -> LogContent:
    """A commit."""
    body = b"\n".join(line if isinstance(line, bytes) else orjson.dumps(line) for line in lines)
    return LogContent(commit_name(version), version, body)


def place(directory: Path, root: TableRoot = ROOT) -> Place:
    """Where the index of a test's table is kept."""
    return Place("a test's table", root, directory)


def index_of(directory: Path, *commits: Iterable[Line]) -> TableIndex:
    """The index of a log that has these commits from version 0 on."""
    contents = [content(version, lines) for version, lines in enumerate(commits)]
    return build.build(place(directory), None, contents, ANCHOR)


def advanced(directory: Path, index: TableIndex, *commits: Iterable[Line]) -> TableIndex:
    """The index with more commits."""
    contents = [content(version, lines) for version, lines in enumerate(commits, index.version + 1)]
    return build.advance(place(directory), index, contents, ANCHOR)


def index_of_folder(directory: Path, table: Path, *, history: bool = True) -> TableIndex:
    """The index of a table in a local folder."""
    log = table / "_delta_log"
    names = [file.relative_to(log).as_posix() for file in log.rglob("*") if file.is_file()]
    segment = select_segment(names)

    def at(file: LogFile) -> LogContent:
        return LogContent(file.name, file.version or 0, log / file.name)

    def checkpoint_content(files: Iterable[LogFile], version: int) -> CheckpointContent:
        own = tuple(at(file) for file in files)
        sidecars = tuple(at(classify_log_name(name)) for name in build.sidecar_names(ROOT, own))
        return CheckpointContent(version, own, sidecars)

    checkpoint = segment.checkpoint
    found = checkpoint_content(checkpoint.files, checkpoint.version) if checkpoint else None
    index = build.build(place(directory), found, [at(file) for file in segment.commits], ANCHOR)
    if not history or index.complete:
        return index
    older = select_history(names, index.since)
    checkpoints = [checkpoint_content(one.files, one.version) for one in older.checkpoints]
    return build.add_history(place(directory), index, checkpoints, [at(file) for file in older.commits])


def grant(*alternatives: Mapping[str, Any]) -> Grant:
    """A grant, as it would stand in the configuration."""
    return parse_filters(list(alternatives))


def allowed(index: TableIndex, granted: Grant, path: str) -> bool | None:
    """Whether the path is granted, None when it is not in the index. The mask must say the same."""
    decision = authorise(index, granted, path, NOW)
    entries = index.lookup(path)
    assert GrantMasks().of(index, granted, NOW).allows(entries) is isinstance(decision, Allowed)
    return None if decision is None else isinstance(decision, Allowed)
