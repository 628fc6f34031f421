"""Marks tell every process that a log was written to; what was remembered before does not hold then."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from delta_proxy.delta.catalog import LogCatalog
from delta_proxy.delta.directory import UnusableDirectory
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


def test_a_mark_stays_when_another_process_starts(directory: Path) -> None:
    marks = WriteMarks(directory)
    marks.set("one")
    before = marks.of("one")
    assert WriteMarks(directory).of("one") == marks.of("one") == before


def test_a_process_that_runs_already_sees_the_mark(directory: Path) -> None:
    marks = WriteMarks(directory)
    assert marks.of("one") == 0
    code = "import pathlib, sys; from delta_proxy.delta.write_marks import WriteMarks as W;"
    code += "W(pathlib.Path(sys.argv[1])).set('one')"
    subprocess.run([sys.executable, "-c", code, str(directory)], check=True)
    assert marks.of("one") > 0


def test_a_mark_that_cannot_be_set_is_told(directory: Path) -> None:
    marks = WriteMarks(directory)
    shutil.rmtree(directory / "writes")
    with pytest.raises(OSError, match="marks"):
        marks.set("one")


def test_a_file_that_cannot_be_made_is_told_in_one_line(directory: Path) -> None:
    (directory / "writes" / "marks").mkdir(parents=True)
    (directory / "writes").chmod(0o700)
    with pytest.raises(UnusableDirectory, match=r"cache\.directory: .*marks"):
        WriteMarks(directory)
