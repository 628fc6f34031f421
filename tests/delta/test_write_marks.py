"""Marks tell every process that a log was written to; what was remembered before does not hold then."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from delta_proxy.delta.catalog import LogCatalog
from delta_proxy.delta.write_marks import WriteMarks, is_of_the_log
from delta_proxy.upstream.client import ObjectStat

COMMIT = "_delta_log/00000000000000000001.json"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A cache directory."""
    tmp_path.chmod(0o700)
    return tmp_path


def test_each_write_changes_the_mark_of_its_table_alone(directory: Path) -> None:
    marks, seen = WriteMarks(directory), []
    for _ in range(50):
        seen.append(marks.of("one"))
        marks.set("one")
    assert seen == sorted(set(seen))
    assert (seen[0], marks.of("other")) == (0, 0)


def test_another_process_sees_the_mark(directory: Path) -> None:
    WriteMarks(directory).set("one")
    assert WriteMarks(directory).of("one") > 0


def test_a_catalog_forgets_what_it_knew_before_a_write(directory: Path) -> None:
    marks = WriteMarks(directory)
    catalog = LogCatalog(Clock(), 120, lambda: marks.of("one"))
    catalog.learn(COMMIT, ObjectStat(1, '"a"', ""))
    assert catalog.find(COMMIT) is not None
    marks.set("one")
    assert catalog.find(COMMIT) is None
    catalog.learn(COMMIT, ObjectStat(2, '"b"', ""))
    assert catalog.find(COMMIT) == ObjectStat(2, '"b"', "")


@pytest.mark.parametrize(
    ("path", "is_log"),
    [
        (COMMIT, True),
        ("part-0.parquet", False),
        ("p=1/part-0.parquet", False),
        ("a/../_delta_log/1.json", True),
        ("/_delta_log/1.json", True),
        ("a/..//_delta_log/1.json", True),
        ("_delta_log//1.json", True),
        ("a//b", True),
        ("_delta_log", False),
    ],
)
def test_writes_that_may_reach_the_log_are_known(path: str, is_log: bool) -> None:
    assert is_of_the_log(path) is is_log


def test_a_mark_that_is_looked_for_before_the_first_write_is_nothing_and_hides_no_write(
    directory: Path,
) -> None:
    here, elsewhere = WriteMarks(directory), WriteMarks(directory)
    assert (here.of("one"), here.of("one"), elsewhere.of("one")) == (0, 0, 0)
    elsewhere.set("one")
    assert here.of("one") == elsewhere.of("one") > 0


def test_a_mark_set_between_a_look_and_its_beginning_stays(directory: Path) -> None:
    marks = WriteMarks(directory)
    marks.set("one")
    before = marks.of("one")
    marks._begin(marks._file("one"))
    assert marks.of("one") == before


def test_where_no_file_can_be_made_nothing_counts_as_written(directory: Path) -> None:
    marks = WriteMarks(directory)
    shutil.rmtree(directory / "writes")
    assert marks.of("one") == 0
