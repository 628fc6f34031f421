"""A log in which every denied thing carries a marker, and all that may be wrong with a view of it.

`failures` is a plain function of the filter, so that the tests can hand it a filter with one rule removed.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pyarrow as pa

from delta_proxy.delta.view_grant import ViewError

from .support import (
    CHECKPOINT_SCHEMA,
    COLUMNS,
    PROTOCOL,
    REAL,
    Filter,
    actions,
    add,
    bytes_within,
    checkpoint_rows,
    filtered,
    grant,
    lines,
    metadata,
    remove,
    rewritten,
    write_checkpoint,
)

MARK = "HIDDEN"
GREEN, RED = {"p": "green"}, {"p": f"{MARK}-value"}
GRANT = grant(columns=COLUMNS, denied=[f"{MARK}-relabelled"], unknown=[f"{MARK}-unknown"])

_INFO = {
    "timestamp": 1700000000000,
    "userId": f"{MARK}-user",
    "userName": f"{MARK}-user",
    "operation": "MERGE",
    "operationParameters": {"predicate": f"p = '{MARK}-value'"},
    "notebook": {"notebookId": f"{MARK}-notebook"},
    "job": {"jobName": f"{MARK}-job"},
    "operationMetrics": {"numOutputRows": f"{MARK}-metric"},
    "userMetadata": f"{MARK}-note",
    "tags": {"tag": f"{MARK}-tag"},
    "engineInfo": f"{MARK}-engine",
    "readVersion": f"{MARK}-read",
}
_STATS = {"stats": f'{{"minValues":{{"x":"{MARK}-min"}}}}', "tags": {"t": f"{MARK}-tag"}}
_CLUSTERING = {"domainMetadata": {"domain": "delta.clustering", "configuration": "{}", "removed": False}}
_FOREIGN = {"domainMetadata": {"domain": f"{MARK}-domain", "configuration": f"{MARK}-configuration"}}
_TXN = {"txn": {"appId": f"{MARK}-app", "version": 1}}

COMMIT: list[dict[str, Any]] = [
    {"commitInfo": _INFO},
    {"protocol": PROTOCOL},
    {"metaData": metadata()},
    {"add": add("kept-a", GREEN)},
    {"add": add(f"p={MARK}-path/b", RED, **_STATS)},
    {"add": add(f"{MARK}-missing", {}, **_STATS)},
    {"add": add(f"{MARK}-relabelled", GREEN, **_STATS)},
    {"remove": remove("kept-r", GREEN)},
    {"remove": remove("kept-s")},
    {"remove": remove(f"{MARK}-removed", RED, **_STATS)},
    {"remove": remove(f"{MARK}-unknown")},
    {"remove": remove(f"{MARK}-relabelled")},
    {"remove": remove(f"{MARK}-relabelled", GREEN)},
    {"cdc": {"path": f"{MARK}-change", "partitionValues": RED, "size": 1, "dataChange": False}},
    _CLUSTERING,
    _FOREIGN,
    _TXN,
    {"commitInfo": {"operation": f"{MARK}-second"}},
    {"somethingNew": {"text": f"{MARK}-new"}},
    {"sidecar": {"path": f"{MARK}.parquet", "sizeInBytes": 1, "modificationTime": 1}},
    {"checkpointMetadata": {"version": 1, "tags": {"t": f"{MARK}-tag"}}},
]
_COMMIT_VIEW = ["commitInfo", "protocol", "metaData", "kept-a", "kept-r", "kept-s", "domainMetadata"]

MANIFEST: list[dict[str, Any]] = [
    {"checkpointMetadata": {"version": 1, "tags": {"t": f"{MARK}-tag"}}},
    {"protocol": PROTOCOL},
    {"metaData": metadata()},
    {"sidecar": {"path": "s.parquet", "sizeInBytes": 1, "modificationTime": 1, "tags": {"t": f"{MARK}-tag"}}},
    {"add": add("kept-a", GREEN)},
    {"add": add(f"{MARK}-b", RED, **_STATS)},
    {"add": add(f"{MARK}-relabelled", GREEN, **_STATS)},
    {"remove": remove(f"{MARK}-removed", RED)},
    {"remove": remove("tombstone", GREEN)},
    _CLUSTERING,
    _FOREIGN,
    _TXN,
]
_MANIFEST_VIEW = ["checkpointMetadata", "protocol", "metaData", "sidecar", "kept-a", "domainMetadata"]

# Lines of which parsers may read one thing and judge another.
REFUSED: list[bytes] = [
    lines({"add": add("a", GREEN), "remove": remove(f"{MARK}-b")}),
    lines({"add": {"path": f"{MARK}", "partitionValues": RED}})[:-2]
    + b","
    + lines({"add": add("a", GREEN)})[1:],
    b'{"add":{"path":"a","partitionValues":{"p":"HIDDEN","p":"green"}}}\n',
    b'{"add":{"path":"HIDDEN","path":"a","partitionValues":{"p":"green"}}}\n',
    b"HIDDEN\n",
    b'["HIDDEN"]\n',
    lines({"metaData": metadata()}, {"metaData": metadata()}),
    lines({"protocol": {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": ["HIDDEN"]}}),
    lines({"add": add(f"{MARK}-unknown", GREEN)}),
]


def failures(folder: pathlib.Path, using: Filter = REAL, of: str = "") -> list[str]:
    """What a filter gets wrong; empty for one that keeps every rule. `of`: look at one of its modules."""
    found: list[str] = []
    for module, check in _CHECKS:
        if of not in {"", module}:
            continue
        try:
            found += check(folder, using)
        except (AssertionError, ViewError, ValueError, KeyError, IndexError, pa.ArrowException) as error:
            found.append(f"{check.__name__}: {error!r}")
    return found


def _names(found: list[dict[str, Any]]) -> list[str]:
    """File actions by their path, others by their kind."""
    return [
        body["path"] if kind in {"add", "remove", "cdc"} else kind
        for each in found
        for kind, body in each.items()
    ]


def _commit(folder: pathlib.Path, using: Filter) -> Iterator[str]:
    content = lines(*COMMIT)
    view = filtered(folder, content, GRANT, using=using)
    if MARK.encode() in view:
        yield "a commit tells what is hidden"
    if _names(actions(view)) != _COMMIT_VIEW:
        yield f"a commit holds {_names(actions(view))}"
    if set(actions(view)[0]["commitInfo"]) != {"timestamp", "operation", "operationParameters", "engineInfo"}:
        yield "the commit info lost what readers need"
    late = [*COMMIT[3:5], {"metaData": metadata(["q"])}, {"add": add("kept-q", {"q": "green"})}]
    by_q = grant(lambda values: dict(values.values).get(values.columns[0].name) == "green", columns=COLUMNS)
    if _names(actions(filtered(folder, lines(*late), by_q, using=using))) != ["metaData", "kept-q"]:
        yield "files are judged by another metaData than that of their commit"
    leaving = [{"metaData": metadata(["q"])}, {"remove": remove("kept-r", GREEN)}]
    if _names(actions(filtered(folder, lines(*leaving), by_q, using=using))) != ["metaData", "kept-r"]:
        yield "a file that leaves while the columns change stays in the view"


def _silenced_commit(folder: pathlib.Path, using: Filter) -> Iterator[str]:
    for view in (lines(*COMMIT), lines(*COMMIT[3:4] * 200, *COMMIT[13:14])):
        for action in actions(filtered(folder, view, GRANT, using=using)):
            for kind in ("add", "remove"):
                if action.get(kind, {}).get("dataChange"):
                    yield "a reader of changes sees changes that never were"


def _emptied_commit(folder: pathlib.Path, using: Filter) -> Iterator[str]:
    view = filtered(folder, lines(*COMMIT[4:7]), GRANT, using=using)
    if view.split() != [b'{"commitInfo":{}}']:
        yield "a commit without anything granted holds no action"


def _manifest(folder: pathlib.Path, using: Filter) -> Iterator[str]:
    view = filtered(folder, lines(*MANIFEST), GRANT, "MANIFEST", using=using)
    if MARK.encode() in view:
        yield "a manifest tells what is hidden"
    if _names(actions(view)) != _MANIFEST_VIEW:
        yield f"a manifest holds {_names(actions(view))}"


def _refused(folder: pathlib.Path, using: Filter) -> Iterator[str]:
    for content in REFUSED:
        try:
            filtered(folder, lines(COMMIT[0]) + content, GRANT, using=using)
        except ViewError as error:
            if "size" not in str(error):
                continue
        yield f"a commit is not refused: {content!r}"


def _checkpoint(folder: pathlib.Path, using: Filter) -> Iterator[str]:
    inner = [*CHECKPOINT_SCHEMA.field("add").type, pa.field("kind", pa.dictionary(pa.int32(), pa.string()))]
    schema = CHECKPOINT_SCHEMA.set(
        CHECKPOINT_SCHEMA.get_field_index("add"), pa.field("add", pa.struct(inner))
    )
    schema = schema.append(pa.field("news", pa.struct({"text": pa.string()})))
    schema = schema.with_metadata({"note": f"{MARK}-footer", "org.apache.spark.version": f"{MARK}:"})
    rows = [dict(row) for row in MANIFEST]
    for row in rows:
        if "add" in row:
            row["add"] = {**row["add"], "kind": row["add"]["path"]}
    rows[4]["news"] = {"text": f"{MARK}-news"}
    rows.append({"news": {"text": f"{MARK}-news"}})
    source = write_checkpoint(folder / "source.parquet", rows, schema, store_schema=True)
    view = rewritten(folder, source, GRANT, using)
    if MARK.encode() in bytes_within(view) or MARK in repr(checkpoint_rows(view)):
        yield "a checkpoint tells what is hidden"
    if [len(row) for row in checkpoint_rows(view)] != [1] * len(_MANIFEST_VIEW):
        yield "a checkpoint holds rows without an action"
    if _names(checkpoint_rows(view)) != _MANIFEST_VIEW:
        yield f"a checkpoint holds {_names(checkpoint_rows(view))}"
    by_q = grant(lambda values: dict(values.values).get(values.columns[0].name) == "green", columns=COLUMNS)
    rows = [{"metaData": metadata(["q"])}, {"add": add("kept-q", {"q": "green"})}, {"add": add("b", GREEN)}]
    view = rewritten(folder, write_checkpoint(folder / "source.parquet", rows), by_q, using)
    if _names(checkpoint_rows(view)) != ["metaData", "kept-q"]:
        yield "a checkpoint is judged by another metaData than its own"


_HEAD: list[dict[str, Any]] = [{"protocol": PROTOCOL}, {"metaData": metadata()}]
_REFUSED_ROWS: list[list[dict[str, Any]]] = [
    [*_HEAD, {"add": add("a", GREEN), "remove": remove(f"{MARK}-b")}],
    [*_HEAD, {"metaData": metadata()}],
    [{"protocol": {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": [MARK]}}],
    [*_HEAD, {"add": add(f"{MARK}-unknown", GREEN)}],
    [*_HEAD, {"add": {**add(MARK, {}), "partitionValues": [("p", MARK), ("p", "green")]}}],
    [*_HEAD, {"sidecar": {"path": f"../../{MARK}.parquet", "sizeInBytes": 1, "modificationTime": 1}}],
]


def _refused_checkpoints(folder: pathlib.Path, using: Filter) -> Iterator[str]:
    for rows in _REFUSED_ROWS:
        source = write_checkpoint(folder / "source.parquet", rows)
        try:
            rewritten(folder, source, GRANT, using)
        except ViewError as error:
            if "size" not in str(error):
                continue
        yield f"a checkpoint is not refused: {rows[-1]!r}"


def _hint(folder: pathlib.Path, using: Filter) -> Iterator[str]:
    name = "00000000000000000004.checkpoint.2a15d0c6-8b11-4a98-bab4-957905d62f7f.json"
    hidden = {"nonFileActions": [_TXN], "sidecarFiles": [{"path": MARK}], "tags": {"t": MARK}}
    v2 = {"path": name, "sizeInBytes": 10, "modificationTime": 5}
    original = {
        "version": 4,
        "size": 424242,
        "sizeInBytes": 424242,
        "numOfAddFiles": 424242,
        "tags": {"t": MARK},
        "checksum": MARK,
        "v2Checkpoint": {**v2, **hidden},
    }
    view = using.last_checkpoint.rewrite(orjson.dumps(original), [name])
    if view is None or orjson.loads(view) != {"version": 4, "size": -1, "v2Checkpoint": v2}:
        yield f"the hint is {view!r}"
    if using.last_checkpoint.rewrite(orjson.dumps(original), []) is not None:
        yield "the hint names a hidden checkpoint"


_CHECKS: tuple[tuple[str, Callable[[pathlib.Path, Filter], Iterator[str]]], ...] = (
    ("commits", _commit),
    ("commits", _silenced_commit),
    ("commits", _emptied_commit),
    ("commits", _manifest),
    ("commits", _refused),
    ("checkpoints", _checkpoint),
    ("checkpoints", _refused_checkpoints),
    ("last_checkpoint", _hint),
)
