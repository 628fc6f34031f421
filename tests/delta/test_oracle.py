"""Tables that other implementations wrote: the index must agree with deltalake about every partition
value.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import deltalake
import numpy as np
import pytest

from delta_proxy.access.partitions import Kind
from delta_proxy.access.policy import EVERYTHING
from delta_proxy.delta.index import FileKind, TableIndex
from delta_proxy.delta.masks import GrantMasks

from .tables import NOW, allowed, grant, index_of_folder

TABLES = Path(__file__).parents[3] / "shared" / "tables"
FOLDERS = sorted(folder for folder in TABLES.glob("*") if (folder / "_delta_log").is_dir())

pytestmark = pytest.mark.skipif(not FOLDERS, reason="the folder of tables by other implementations is absent")


@pytest.fixture(params=FOLDERS, ids=lambda folder: str(folder.name))
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


def all_paths(index: TableIndex) -> list[str]:
    """Every path, in order."""
    bits = np.ones(len(index.partitions), np.bool_)
    found: list[str] = []
    path = index.next_visible("", "", bits)
    while path is not None:
        found.append(path)
        path = index.next_visible(path, "", bits)
    return found


def live_paths(index: TableIndex) -> set[str]:
    """The paths of the newest version."""
    entries = ((path, entry) for path in all_paths(index) for entry in index.lookup(path))
    return {path for path, entry in entries if entry.live and entry.kind is FileKind.DATA}


def allowed_below(index: TableIndex, prefix: str, conditions: dict[str, str]) -> set[str]:
    """The first segments of the granted paths with the prefix."""
    granted = grant(conditions)
    paths = [path for path in all_paths(index) if path.startswith(prefix)]
    return {path.partition("/")[0] for path in paths if allowed(index, granted, path)}


def relative(folder: Path) -> list[str]:
    """The live files as deltalake resolves their paths."""
    prefix = len(str(folder.resolve())) + 1
    return [uri.removeprefix("file://")[prefix:] for uri in deltalake.DeltaTable(folder).file_uris()]


def test_the_live_files_are_those_of_deltalake(folder: Path, tmp_path: Path) -> None:
    index = index_of_folder(tmp_path, folder)
    table = deltalake.DeltaTable(folder)
    assert index.version == table.version()
    assert [column.name for column in index.metadata.columns] == table.metadata().partition_columns
    assert live_paths(index) == set(relative(folder))


@pytest.mark.filterwarnings("ignore:.partition_filters. is deprecated:DeprecationWarning")
def test_each_partition_value_grants_the_files_that_deltalake_filters(folder: Path, tmp_path: Path) -> None:
    index = index_of_folder(tmp_path, folder)
    prefix = len(str(folder.resolve())) + 1
    table = deltalake.DeltaTable(folder)
    for column in index.metadata.columns:
        if column.type.kind in {Kind.TIMESTAMP, Kind.TIMESTAMP_NTZ, Kind.BINARY}:
            continue
        by_value: defaultdict[str, set[str]] = defaultdict(set)
        raws = {
            dict(one.values).get(column.physical) for one in index.partitions[1:] if column in one.columns
        }
        for raw in raws - {None, ""}:
            assert raw is not None
            uris = table.file_uris([(column.name, "=", raw)])
            by_value[raw] = {uri.removeprefix("file://")[prefix:] for uri in uris}
        for raw, files in by_value.items():
            granted = grant({column.name: raw})
            bits = GrantMasks().of(index, granted, NOW).bits
            assert {path for path in live_paths(index) if allowed(index, granted, path)} == files
            assert index.count(bits) == len(files)


def test_every_file_of_every_version_is_known(folder: Path, tmp_path: Path) -> None:
    index = index_of_folder(tmp_path, folder)
    prefix = len(str(folder.resolve())) + 1
    for version in range(index.version + 1):
        try:
            old = deltalake.DeltaTable(folder, version=version)
        except Exception:  # noqa: BLE001
            continue
        for uri in old.file_uris():
            assert allowed(index, EVERYTHING, uri.removeprefix("file://")[prefix:]) is True


def test_deletion_vector_files_are_known_by_their_names(folder: Path, tmp_path: Path) -> None:
    index = index_of_folder(tmp_path, folder)
    named = {path for path in all_paths(index) if path.startswith("deletion_vector_")}
    there = {file.name for file in folder.glob("deletion_vector_*.bin")}
    assert named <= there
    assert bool(named) is bool(there)
    for entry in (entry for path in named for entry in index.lookup(path)):
        assert entry.kind is FileKind.DELETION_VECTOR
        assert index.lookup(str(entry.owner))


def test_change_data_files_are_known(folder: Path, tmp_path: Path) -> None:
    index = index_of_folder(tmp_path, folder)
    for file in (folder / "_change_data").rglob("*.parquet"):
        kinds = {entry.kind for entry in index.lookup(file.relative_to(folder).as_posix())}
        assert kinds <= {FileKind.CDC}


def test_values_of_a_repartitioned_table_are_kept_under_the_columns_of_their_time(tmp_path: Path) -> None:
    index = index_of_folder(tmp_path, TABLES / "time-travel-partition-changes-b")
    assert allowed_below(index, "part5=", {"part5": "0"}) == {"part5=0"}
    assert allowed_below(index, "part2=", {"part2": "0"}) == {"part2=0"}
