"""Views of tables that other implementations wrote, read by real readers.

Skipped with a visible line when the folder with the tables is not there.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import uuid
from collections import defaultdict
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import deltalake
import polars
import pytest

from delta_proxy.access.partitions import PartitionTuple
from delta_proxy.delta.deletion_vectors import mask, regions
from delta_proxy.delta.paths import TableRoot, deletion_vector_path

from .support import Model, Permits, actions, filtered, grant, has, lines, write_view

TABLES = pathlib.Path(os.environ.get("DELTA_TABLES", pathlib.Path(__file__).parents[4] / "shared" / "tables"))
NAMES = sorted(path.name for path in TABLES.iterdir() if path.is_dir()) if TABLES.is_dir() else []
pytestmark = pytest.mark.skipif(not NAMES, reason="the folder with Delta tables is not there")


def cases() -> Iterator[tuple[str, Permits, str]]:
    """Each table with all its combinations of partition values, with nothing and with everything."""
    for name in NAMES:
        yield name, lambda values: False, f"{name}-nothing"
        yield name, lambda values: True, f"{name}-everything"
        every = {values for each in Model.of(TABLES / name / "_delta_log").ever.values() for values in each}
        for place, wanted in enumerate(sorted((each.values for each in every if each.values), key=repr)):
            yield name, _exactly(wanted), f"{name}-{place}"


def _exactly(wanted: tuple[tuple[str, str | None], ...]) -> Permits:
    def permits(values: PartitionTuple) -> bool:
        return values.values == wanted

    return permits


CASES = list(cases())


def opened(root: pathlib.Path, version: int | None = None) -> deltalake.DeltaTable:
    return deltalake.DeltaTable(root, version=version)


def files(table: deltalake.DeltaTable) -> set[str]:
    """The paths of a version, decoded."""
    return {unquote(path) for path in table.get_add_actions().column("path").to_pylist()}


@pytest.mark.parametrize(("name", "permits"), [case[:2] for case in CASES], ids=[case[2] for case in CASES])
def test_each_version_of_a_view_is_the_granted_part_of_the_table(
    tmp_path: pathlib.Path, name: str, permits: Permits
) -> None:
    view = tmp_path / "view"
    source = TABLES / name
    model = Model.of(source / "_delta_log")
    view.mkdir()
    for entry in source.iterdir():
        if entry.name != "_delta_log":
            (view / entry.name).symlink_to(entry)
    write_view(source / "_delta_log", view / "_delta_log", model, permits)
    for version, direct in _direct(name).items():
        granted = model.visible(permits, version)
        assert granted <= direct
        assert files(opened(view, version)) == granted
    assert opened(view).schema() == opened(source).schema()
    assert len(opened(view).history()) == len(opened(source).history())


@functools.cache
def _direct(name: str) -> dict[int, set[str]]:
    """The files of each version that deltalake can read directly; some lack the commits before them."""
    found = {}
    for version in Model.of(TABLES / name / "_delta_log").live:
        with contextlib.suppress(Exception):
            found[version] = files(opened(TABLES / name, version))
    return found


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("basic_partitioned", "letter"),
        ("cdf-table-partitioned", "part"),
        ("app-txn-checkpoint", "modified"),
        ("dv-partitioned-with-checkpoint", "part"),
        ("v1-multi-part-partitioned-struct-stats-only", "part"),
    ],
)
def test_polars_reads_the_granted_rows_of_every_partition(
    tmp_path: pathlib.Path, name: str, column: str
) -> None:
    source = TABLES / name
    model = Model.of(source / "_delta_log")
    whole = polars.read_delta(str(source))
    for place, wanted in enumerate({values.values for each in model.ever.values() for values in each}):
        view = tmp_path / str(place)
        write_view(source / "_delta_log", view / "_delta_log", model, _exactly(wanted))
        for entry in source.iterdir():
            if entry.name != "_delta_log":
                (view / entry.name).symlink_to(entry)
        value = dict(wanted)[column]
        rows = whole.filter(polars.col(column).cast(polars.String).eq_missing(polars.lit(value)))
        read = polars.read_delta(str(view))
        assert read.sort(read.columns).equals(rows.select(read.columns).sort(read.columns))


def _gathered(source: pathlib.Path, root: pathlib.Path) -> dict[str, list[tuple[int, int]]]:
    """A copy of a table as one commit with all deletion vectors in one file; descriptors by partition."""
    state: dict[str, dict[str, Any]] = {}
    head: list[dict[str, Any]] = []
    for path in sorted((source / "_delta_log").glob("*.json")):
        for action in actions(path.read_bytes()):
            if action.get("metaData") or action.get("protocol"):
                head.append(action)
            if action.get("add"):
                state[action["add"]["path"]] = action["add"]
    vectors, name, found = bytearray(b"\x01"), uuid.UUID(int=7), defaultdict(list)
    for body in state.values():
        descriptor = body.get("deletionVector")
        if not descriptor:
            continue
        file = deletion_vector_path("u", descriptor["pathOrInlineDv"], TableRoot("b", "t"))
        assert file is not None
        start, size = descriptor["offset"], descriptor["sizeInBytes"]
        found[body["partitionValues"]["part"]].append((len(vectors), size))
        descriptor |= {"storageType": "p", "offset": len(vectors)}
        descriptor["pathOrInlineDv"] = (root / f"deletion_vector_{name}.bin").as_uri()
        vectors += (source / file).read_bytes()[start : start + 4 + size + 4]
    (root / "_delta_log").mkdir(parents=True)
    newest = {next(iter(action)): action for action in head}
    commit = lines(*newest.values(), *({"add": body} for body in state.values()))
    (root / "_delta_log" / "00000000000000000000.json").write_bytes(commit)
    (root / f"deletion_vector_{name}.bin").write_bytes(vectors)
    for entry in source.glob("part=*"):
        (root / entry.name).symlink_to(entry)
    return found


def test_a_shared_deletion_vector_file_serves_granted_partitions_and_hides_the_others(
    tmp_path: pathlib.Path,
) -> None:
    root, log = tmp_path / "table", tmp_path / "table" / "_delta_log"
    found = _gathered(TABLES / "dv-partitioned-with-checkpoint", root)
    (bin_file,) = root.glob("*.bin")
    commit, whole = log / "00000000000000000000.json", bin_file.read_bytes()
    content, rows = commit.read_bytes(), polars.read_delta(str(root))
    assert len(found) > 2
    for part, granted in found.items():
        denied = [each for other, all_of in found.items() if other != part for each in all_of]
        bin_file.write_bytes(mask(whole, 0, regions(granted, denied)))
        assert sum(map(bool, bin_file.read_bytes())) < len(whole) / 2
        commit.write_bytes(filtered(tmp_path, content, grant(has(part=part))))
        read = polars.read_delta(str(root))
        wanted = rows.filter(polars.col("part").cast(polars.String) == part)
        assert read.sort(read.columns).equals(wanted.sort(read.columns))
        commit.write_bytes(content)
        with pytest.raises(deltalake.exceptions.DeltaError):
            polars.read_delta(str(root))
