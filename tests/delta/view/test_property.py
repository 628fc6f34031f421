"""Random logs under random grants: deltalake reads of a view what the simplest reading of the log allows."""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Callable, Sequence, Set
from typing import Any
from urllib.parse import quote, unquote

import attrs
import deltalake
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from delta_proxy.access.partitions import PartitionTuple

from .support import PROTOCOL, Model, add, lines, metadata, remove, write_checkpoint, write_view

VALUES = ("a", "b", "c d/é%", "2024-01-01", "", None)


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
    checkpoint=st.sampled_from([0] * 16 + [1, 2, 3, 4]),
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


GRANTS = st.tuples(st.sampled_from(_NAMES), st.frozensets(st.sampled_from(VALUES)))


def read_by_deltalake(table: pathlib.Path, version: int) -> set[str]:
    """The decoded paths of a version's files."""
    opened = deltalake.DeltaTable(table, version=version)
    return {unquote(path) for path in opened.get_add_actions().column("path").to_pylist()}


def check(
    table: pathlib.Path, view: pathlib.Path, column: str, granted: Set[str | None], *, all_by: bool
) -> None:
    """Every version of the view holds what the log grants: by the plainest reading of its commits, and by
    deltalake, which begins at checkpoints, in the newest version or in all.
    """

    def permits(values: PartitionTuple) -> bool:
        return dict(values.values)[column] in granted

    log = Model.of(table / "_delta_log")
    write_view(table / "_delta_log", view / "_delta_log", log, permits)
    read = Model.of(view / "_delta_log")
    newest = max(log.live)
    for version in log.live:
        visible = log.visible(permits, version)
        assert {unquote(path) for path in read.live[version]} == visible
        if all_by or version == newest:
            assert read_by_deltalake(view, version) == visible
    assert max(read.live) == newest


# Each log is seen through eight grants, so that a part has 1,000 cases; the quick run leaves one out.
@pytest.mark.parametrize("part", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_deltalake_reads_of_a_view_what_the_log_grants(part: int, cases: Callable[[int], int]) -> None:
    @seed(part)
    @settings(max_examples=cases(125), deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(
        steps=st.lists(STEPS, min_size=1, max_size=6),
        grants=st.lists(GRANTS, min_size=8, max_size=8),
    )
    def holds(steps: list[Step], grants: list[tuple[str, frozenset[str | None]]]) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            write_log(folder / "table" / "_delta_log", steps)
            model = Model.of(folder / "table" / "_delta_log")
            for version, live in model.live.items():
                assert read_by_deltalake(folder / "table", version) == set(map(unquote, live))
            for number, (column, granted) in enumerate(grants):
                check(folder / "table", folder / f"view-{number}", column, granted, all_by=number == 0)

    holds()
