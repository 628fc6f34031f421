"""Views of tables that deltalake writes: appends, deletes, checkpoints, change data."""

from __future__ import annotations

import pathlib
from typing import Any

import deltalake
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from delta_proxy.access.partitions import PartitionTuple

from .support import Model, actions, has, lines, remove, write_view

# deltalake cannot read change data of partitions whose names it escapes.
PARTITIONS = ("a", "b", "c", "d")


@pytest.fixture
def table(tmp_path: pathlib.Path) -> pathlib.Path:
    """Three appends, a delete, an update, a checkpoint, one more append; all with change data."""
    root = tmp_path / "table"
    for step in range(3):
        data = {"p": list(PARTITIONS) * 3, "x": list(range(step * 12, step * 12 + 12))}
        deltalake.write_deltalake(
            root,
            pa.table(data),
            partition_by=["p"],
            mode="append",
            configuration={"delta.enableChangeDataFeed": "true"},
        )
    opened = deltalake.DeltaTable(root)
    opened.delete("x % 12 < 3")
    opened.update(updates={"x": "x + 100"}, predicate="p = 'a'")
    opened.create_checkpoint()
    deltalake.write_deltalake(root, pa.table({"p": ["a", "b"], "x": [7, 8]}), mode="append")
    return root


def view_of(table: pathlib.Path, tmp_path: pathlib.Path, value: str) -> pathlib.Path:
    """The view of one partition, with the data files of the table."""
    view = tmp_path / "view"
    log = table / "_delta_log"
    write_view(log, view / "_delta_log", Model.of(log), has(p=value))
    for entry in table.iterdir():
        if entry.name != "_delta_log":
            (view / entry.name).symlink_to(entry)
    return view


def changes(root: pathlib.Path) -> list[dict[str, Any]]:
    """All changes of a table, in one order, without the time of the commit."""
    read = pa.table(deltalake.DeltaTable(root).load_cdf(starting_version=0))
    rows = read.drop_columns(["_commit_timestamp"]).to_pylist()
    return sorted(rows, key=lambda row: (row["_commit_version"], row["_change_type"], row["p"], row["x"]))


@pytest.mark.parametrize("value", PARTITIONS)
def test_every_version_reads_as_the_partition_directly(
    table: pathlib.Path, tmp_path: pathlib.Path, value: str
) -> None:
    view = view_of(table, tmp_path, value)
    for version in range(deltalake.DeltaTable(table).version() + 1):
        direct = deltalake.DeltaTable(table, version=version).to_pyarrow_table(filters=[("p", "=", value)])
        seen = deltalake.DeltaTable(view, version=version).to_pyarrow_table()
        assert seen.sort_by("x").equals(direct.select(seen.column_names).sort_by("x"))
    rows = polars.read_delta(str(table)).filter(polars.col("p") == value)
    assert polars.read_delta(str(view)).sort("x").equals(rows.sort("x"))


@pytest.mark.parametrize("value", PARTITIONS)
def test_the_change_data_feed_reads_as_that_of_the_partition(
    table: pathlib.Path, tmp_path: pathlib.Path, value: str
) -> None:
    direct = [row for row in changes(table) if row["p"] == value]
    assert changes(view_of(table, tmp_path, value)) == direct


def test_the_history_keeps_versions_operations_and_times(table: pathlib.Path, tmp_path: pathlib.Path) -> None:
    seen = deltalake.DeltaTable(view_of(table, tmp_path, "b")).history()
    direct = deltalake.DeltaTable(table).history()
    kept = ("version", "operation", "timestamp")
    assert [[entry[name] for name in kept] for entry in seen] == [
        [entry[name] for name in kept] for entry in direct
    ]


def test_fields_that_a_writer_requires_stay_required(table: pathlib.Path, tmp_path: pathlib.Path) -> None:
    view = view_of(table, tmp_path, "b")
    (original,) = (table / "_delta_log").glob("*.checkpoint.parquet")
    rewritten = pq.read_schema(view / "_delta_log" / original.name)
    assert not rewritten.field("add").type.field("path").nullable
    assert rewritten.remove_metadata().equals(pq.read_schema(original).remove_metadata())


def test_a_view_of_nothing_opens_and_has_no_rows(table: pathlib.Path, tmp_path: pathlib.Path) -> None:
    def nothing(_: PartitionTuple) -> bool:
        return False

    view = tmp_path / "view"
    write_view(table / "_delta_log", view / "_delta_log", Model.of(table / "_delta_log"), nothing)
    assert deltalake.DeltaTable(view).to_pyarrow_table().num_rows == 0
    assert polars.read_delta(str(view)).is_empty()
    assert changes(view) == []


def test_a_rewrite_beside_denied_changes_is_no_change(tmp_path: pathlib.Path) -> None:
    root = tmp_path / "table"
    configuration = {"delta.enableChangeDataFeed": "true"}
    data = pa.table({"p": ["a", "b"], "x": [1, 2]})
    deltalake.write_deltalake(root, data, partition_by=["p"], configuration=configuration)
    deltalake.DeltaTable(root).update(updates={"x": "x + 100"}, predicate="p = 'a'")
    log = root / "_delta_log"
    found = actions((log / f"{0:020d}.json").read_bytes())
    (old,) = [action["add"] for action in found if action.get("add", {}).get("path", "").startswith("p=b/")]
    new = old["path"].replace("part-", "part-compacted-")
    (root / new).write_bytes((root / old["path"]).read_bytes())
    with (log / f"{1:020d}.json").open("ab") as commit:
        commit.write(
            b"\n" + lines({"remove": remove(old["path"], {"p": "b"})}, {"add": {**old, "path": new}})
        )
    direct = [row for row in changes(root) if row["p"] == "b"]
    assert [row["_change_type"] for row in direct] == ["insert"]
    view = view_of(root, tmp_path, "b")
    assert changes(view) == direct
    assert deltalake.DeltaTable(view).to_pyarrow_table().column("x").to_pylist() == [2]
