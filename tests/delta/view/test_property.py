"""Random logs under random grants: deltalake reads of a view what the simplest reading of the log allows."""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, unquote

import attrs
import deltalake
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from delta_proxy.access.partitions import PartitionTuple

from .support import PROTOCOL, Model, add, lines, metadata, remove, write_checkpoint, write_view

VALUES = ("a", "b", "c d/é%", "2024-01-01", "", None)
EXAMPLES = int(os.environ.get("VIEW_EXAMPLES", "250"))


@attrs.frozen
class Step:
    """What one random commit does."""

    added: Sequence[tuple[str | None, str | None]]
    removed: Sequence[tuple[int, bool]]
    relabelled: Sequence[tuple[int, str | None]]
    extras: Sequence[str]
    spaced: bool
    checkpoint: (
        int  # 0: none; 1: one file; 2: two parts; 3: one named by UUID; 4: the same with a JSON manifest
    )


_value = st.sampled_from(VALUES)
STEPS = st.builds(
    Step,
    added=st.lists(st.tuples(_value, _value), max_size=5),
    removed=st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=3),
    relabelled=st.lists(st.tuples(st.integers(0, 30), _value), max_size=1),
    extras=st.lists(st.sampled_from(["commitInfo", "txn", "domain", "cdc", "unknown"]), unique=True),
    spaced=st.booleans(),
    checkpoint=st.sampled_from([0, 0, 0, 1, 2, 3, 4]),
)
_NAMES = ("p", "q")
_EXTRAS: dict[str, dict[str, Any]] = {
    "commitInfo": {"commitInfo": {"timestamp": 1, "operation": "X", "operationParameters": {"a": "b"}}},
    "txn": {"txn": {"appId": "app", "version": 1}},
    "domain": {"domainMetadata": {"domain": "mine", "configuration": "{}", "removed": False}},
    "unknown": {"unknown": {"a": 1}},
}
_UUID = "2a15d0c6-8b11-4a98-bab4-957905d62f7f"


def write_log(log: pathlib.Path, steps: Sequence[Step]) -> None:
    """The commits and checkpoints of random steps; a checkpoint does not remove the commits before it."""
    log.mkdir(parents=True)
    v2 = {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": ["v2Checkpoint"]}
    protocol = (
        {**v2, "writerFeatures": ["v2Checkpoint"]} if any(s.checkpoint > 2 for s in steps) else PROTOCOL
    )
    head: list[dict[str, Any]] = [{"protocol": protocol}, {"metaData": metadata(_NAMES)}]
    live: dict[str, dict[str, Any]] = {}
    for version, step in enumerate(steps):
        found = [*(head if version == 0 else []), *_file_actions(version, step, live)]
        extra = [
            {"cdc": {"path": f"_change_data/{version}", "partitionValues": _pair("a", "b"), "size": 1}}
            if name == "cdc"
            else _EXTRAS[name]
            for name in sorted(step.extras)
        ]
        content = lines(*extra, *found)
        if step.spaced:
            content = content.replace(b'"partitionValues":{', b'"partitionValues": { ')
        (log / f"{version:020d}.json").write_bytes(content)
        rows = [*head, *({"add": body} for body in live.values()), {"remove": remove("gone")}]
        _write_checkpoint(log, version, step.checkpoint, rows)


def _pair(p: str | None, q: str | None) -> dict[str, str | None]:
    return dict(zip(_NAMES, (p, q), strict=True))


def _file_actions(version: int, step: Step, live: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    touched: set[str] = set()
    for place, with_values in step.removed:
        if live:
            path = sorted(live)[place % len(live)]
            body = live.pop(path)
            touched.add(path)
            found.append({"remove": remove(path, body["partitionValues"] if with_values else None)})
    for place, p in step.relabelled:
        path = sorted(live)[place % len(live)] if live else ""
        if live and path not in touched:
            live[path] = add(path, _pair(p, "a"))
            found.append({"add": live[path]})
    for number, (p, q) in enumerate(step.added):
        path = f"p={quote(p or '')}/part-{version}-{number}"
        live[path] = add(path, _pair(p, q))
        found.append({"add": live[path]})
    return found


def _write_checkpoint(log: pathlib.Path, version: int, kind: int, rows: list[dict[str, Any]]) -> None:
    stem = f"{version:020d}.checkpoint"
    if kind == 1:
        write_checkpoint(log / f"{stem}.parquet", rows)
    elif kind == 2:
        for part in (1, 2):
            write_checkpoint(log / f"{stem}.{part:010d}.0000000002.parquet", rows[part - 1 :: 2])
    elif kind > 2:
        sidecar = log / "_sidecars" / f"{version}.parquet"
        sidecar.parent.mkdir(exist_ok=True)
        write_checkpoint(sidecar, rows[2:])
        named = {"path": sidecar.name, "sizeInBytes": sidecar.stat().st_size, "modificationTime": 1}
        top = [{"checkpointMetadata": {"version": version}}, *rows[:2], {"sidecar": named}]
        if kind == 3:
            write_checkpoint(log / f"{stem}.{_UUID}.parquet", top)
        else:
            (log / f"{stem}.{_UUID}.json").write_bytes(lines(*top))


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    steps=st.lists(STEPS, min_size=1, max_size=6),
    granted=st.sets(st.sampled_from(VALUES)),
    column=st.sampled_from(_NAMES),
)
def test_deltalake_reads_of_a_view_what_the_log_grants(
    steps: list[Step], granted: set[str | None], column: str
) -> None:
    def permits(values: PartitionTuple) -> bool:
        return dict(values.values)[column] in granted

    with tempfile.TemporaryDirectory() as folder:
        log, view = pathlib.Path(folder, "table", "_delta_log"), pathlib.Path(folder, "view")
        write_log(log, steps)
        model = Model.of(log)
        write_view(log, view / "_delta_log", model, permits)
        for version in model.live:
            table = deltalake.DeltaTable(view, version=version)
            read = {unquote(path) for path in table.get_add_actions().column("path").to_pylist()}
            assert read == model.visible(permits, version)
        assert deltalake.DeltaTable(view).version() == max(model.live)
