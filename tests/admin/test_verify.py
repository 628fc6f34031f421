"""`verify`: it finds every difference there can be, and none between a proxy and its table."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import deltalake
import pytest

from delta_proxy.access.policy import Grant, parse_filters
from delta_proxy.admin.output import Output
from delta_proxy.admin.readings import Place
from delta_proxy.admin.verify import Pair, Report

from .conftest import NOW, Cli, one_file, write_table

LONDON = parse_filters([{"MIC": "XLON"}])


def compared(direct: pathlib.Path, seen: pathlib.Path, grant: Grant, limit: int | None = None) -> Report:
    pair = Pair(Place(str(direct), {}), Place(str(seen), {}), grant, NOW)
    with Output().progress("", 0) as steps:
        return pair.compare(steps, limit)


def edited(folder: pathlib.Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Drop the lines of the log that are not kept."""
    for commit in (folder / "_delta_log").glob("*.json"):
        lines = [line for line in commit.read_text().splitlines() if keep(json.loads(line))]
        commit.write_text("\n".join(lines) + "\n")


def is_london(action: dict[str, Any]) -> bool:
    return "add" not in action or action["add"]["partitionValues"]["MIC"] == "XLON"


@pytest.fixture
def view(table: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """The table as somebody sees it to whom XLON is granted."""
    folder = tmp_path / "view"
    shutil.copytree(table, folder)
    edited(folder, is_london)
    return folder


def test_a_right_view_is_the_same(table: pathlib.Path, view: pathlib.Path) -> None:
    report = compared(table, view, LONDON)
    assert report.differences == []
    assert (report.versions, report.oldest, report.newest) == (3, 0, 2)
    assert (report.files, report.partitions, report.rows) == (1 + 2 + 3, 3, 3)


def test_a_file_that_is_not_granted_but_seen_is_a_difference(table: pathlib.Path, view: pathlib.Path) -> None:
    report = compared(table, table, LONDON)
    assert (
        len([line for line in report.differences if "is seen through the proxy, but not granted" in line])
        == 12
    )
    assert "the proxy shows 18 rows, of which 3 are granted" in report.differences


def test_a_granted_file_that_is_not_seen_is_a_difference(table: pathlib.Path, view: pathlib.Path) -> None:
    lost = one_file(table, "XLON")
    edited(view, lambda action: "add" not in action or action["add"]["path"] != lost)
    report = compared(table, view, LONDON)
    assert f"version 0: {lost} is granted, but not seen through the proxy" in report.differences
    assert any("0 rows through the proxy, 1 directly" in line for line in report.differences)


def test_other_partition_values_are_a_difference(table: pathlib.Path, view: pathlib.Path) -> None:
    commit = view / "_delta_log" / f"{0:020}.json"
    commit.write_text(commit.read_text().replace('"day":"2026-01-01"', '"day":"2026-01-09"'))
    assert any("has other partition values" in line for line in compared(table, view, LONDON).differences)


def test_a_version_that_cannot_be_read_through_the_proxy_is_a_difference(
    table: pathlib.Path, view: pathlib.Path
) -> None:
    deltalake.DeltaTable(view).create_checkpoint()
    (view / "_delta_log" / f"{0:020}.json").unlink()
    report = compared(table, view, LONDON)
    assert any(line.startswith("version 0 cannot be read through the proxy") for line in report.differences)
    assert not any(line.startswith("version 2 ") for line in report.differences)


def test_a_version_that_is_gone_directly_too_is_none(table: pathlib.Path, view: pathlib.Path) -> None:
    for folder in (table, view):
        deltalake.DeltaTable(folder).create_checkpoint()
        for version in (0, 1):
            (folder / "_delta_log" / f"{version:020}.json").unlink()
    report = compared(table, view, LONDON)
    assert (report.differences, report.versions, report.oldest) == ([], 1, 2)


def test_a_data_file_that_is_refused_is_a_difference_and_the_others_are_read(
    table: pathlib.Path, view: pathlib.Path
) -> None:
    (view / one_file(view, "XLON")).unlink()
    report = compared(table, view, LONDON)
    assert report.rows == 2
    assert any("cannot be read through the proxy" in line for line in report.differences)


def test_only_the_newest_versions_are_read_when_asked(table: pathlib.Path, view: pathlib.Path) -> None:
    report = compared(table, view, LONDON, 2)
    assert (report.differences, report.versions, report.oldest) == ([], 2, 1)


def test_a_closed_table_must_not_open(table: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for seen, differences in ((tmp_path / "nothing", 0), (table, 1)):
        pair = Pair(Place(str(table), {}), Place(str(seen), {}), parse_filters([]), NOW, admitted=False)
        with Output().progress("", 0) as steps:
            assert len(pair.compare(steps, None).differences) == differences


def test_a_table_of_which_nothing_is_granted_opens_and_is_empty(tmp_path: pathlib.Path) -> None:
    write_table(tmp_path / "table")
    shutil.copytree(tmp_path / "table", tmp_path / "seen")
    edited(tmp_path / "seen", lambda action: "add" not in action)
    report = compared(tmp_path / "table", tmp_path / "seen", parse_filters([]))
    assert (report.differences, report.files, report.rows) == ([], 0, 0)


@pytest.mark.parametrize(
    ("settings_of_the_case", "line"),
    [
        ({"defaultAuthMode": "forward"}, "defaultAuthMode is forward"),
        ({"logView": "passthrough"}, "logView is passthrough"),
        ({}, "the table cannot be read directly"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    plain: Cli, monkeypatch: pytest.MonkeyPatch, settings_of_the_case: dict[str, Any], line: str
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-access-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret-key")
    plain.config |= {"allowedPartitions": {"trades": [{"MIC": "XLON"}]}, **settings_of_the_case}
    assert line in plain.refused("verify", "--table", "trades")


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_disabled_user_is_one_line(cli: Cli) -> None:
    cli.ok("user", "add", "alice")
    cli.ok("user", "disable", "alice")
    assert "alice is disabled" in cli.refused("verify", "--user", "alice", "--table", "trades")
