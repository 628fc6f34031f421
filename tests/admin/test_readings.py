"""What deltalake reads of every shared table with partitions is what the proxy's own index knows."""

from __future__ import annotations

import pathlib

import deltalake
import pytest

from delta_proxy.access.partitions import parse_value
from delta_proxy.access.policy import EVERYTHING
from delta_proxy.admin.readings import Place, Rows, columns_of, files_of, reason
from delta_proxy.admin.tables import Coverage
from tests.delta.tables import index_of_folder
from tests.integration.servers import SHARED_TABLES

from .conftest import MICS, NOW

NAMES = (
    "basic_partitioned",
    "basic-decimal-table",
    "data-reader-partition-values",
    "dv-partitioned-with-checkpoint",
    "dv-with-columnmapping",
    "kernel-timestamp-partition-col-ISO8601",
    "mixed-nulls",
    "timestamp-partitioned-table",
    "v2-checkpoints-parquet-with-sidecars",
)


def table_root(name: str) -> pathlib.Path:
    found = sorted((SHARED_TABLES / name).rglob("_delta_log"))
    if not found:
        pytest.skip(f"the shared table {name} is not here")
    return found[0].parent


@pytest.mark.parametrize("name", NAMES)
def test_the_rows_of_all_partitions_are_the_rows_of_the_table(name: str) -> None:
    table = Place(str(table_root(name)), {}).open()
    rows, partitions = Rows.of(table), dict.fromkeys(files_of(table).values())
    assert partitions
    assert sum(rows.within(partition) for partition in partitions) == rows.total()


@pytest.mark.parametrize("name", NAMES)
def test_every_value_is_spelled_so_that_the_policy_can_read_it(name: str) -> None:
    table = Place(str(table_root(name)), {}).open()
    for column in columns_of(table):
        for partition in files_of(table).values():
            value = dict(partition.values)[column.physical]
            assert value is None or parse_value(column.type, value) is not None


@pytest.mark.parametrize("name", NAMES)
def test_the_index_counts_the_files_and_partitions_that_deltalake_sees(
    name: str, tmp_path: pathlib.Path
) -> None:
    root = table_root(name)
    covered = Coverage.of(index_of_folder(tmp_path, root), EVERYTHING, NOW)
    files = files_of(Place(str(root), {}).open())
    assert covered.of_files == covered.files == len(files)
    assert covered.of_partitions == covered.partitions == len(set(files.values()))


def test_newer_commits_count_in_the_coverage(table: pathlib.Path, tmp_path: pathlib.Path) -> None:
    deltalake.DeltaTable(table).delete("MIC = 'XLON'")
    covered = Coverage.of(index_of_folder(tmp_path, table), EVERYTHING, NOW)
    assert covered.of_partitions == 3 * (len(MICS) - 1)


def test_what_a_reader_says_ends_with_the_cause() -> None:
    said = (
        "Generic S3 error\n    \x1b[31m↳\x1b[0m Error performing GET\n     \x1b[31m↳\x1b[0m UnknownIssuer\n"
    )
    assert reason(OSError(said)) == "Generic S3 error: Error performing GET: UnknownIssuer"
    assert reason(ValueError()) == "ValueError"
