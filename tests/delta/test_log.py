"""Which files make up a version of a log."""

from __future__ import annotations

import uuid

import pytest

from delta_proxy.delta.actions import LogError
from delta_proxy.delta.log import NotATable, select_history, select_segment

V2 = f"checkpoint.{uuid.UUID(int=7)}.json"


def commits(*versions: int) -> list[str]:
    return [f"{version:020d}.json" for version in versions]


def file(version: int, rest: str) -> str:
    return f"{version:020d}.{rest}"


def test_a_log_without_checkpoint_is_its_commits_from_zero() -> None:
    segment = select_segment(commits(2, 0, 1))
    assert segment.checkpoint is None
    assert ([commit.version for commit in segment.commits], segment.version) == ([0, 1, 2], 2)


def test_the_newest_checkpoint_and_the_commits_after_it_are_taken() -> None:
    names = [*commits(3, 4, 5, 6), file(3, "checkpoint.parquet"), file(5, "checkpoint.parquet")]
    segment = select_segment(names)
    assert segment.checkpoint is not None
    assert (segment.checkpoint.version, [commit.version for commit in segment.commits]) == (5, [6])


def test_a_checkpoint_with_a_missing_part_is_ignored() -> None:
    parts = [file(2, f"checkpoint.{part:010d}.0000000003.parquet") for part in (1, 3)]
    assert select_segment([*commits(0, 1, 2), *parts]).checkpoint is None
    whole = select_segment([*commits(0, 1, 2), *parts, file(2, "checkpoint.0000000002.0000000003.parquet")])
    assert whole.checkpoint is not None
    assert [part.part for part in whole.checkpoint.files] == [1, 2, 3]


def test_a_checkpoint_named_by_uuid_is_taken() -> None:
    segment = select_segment([*commits(1), file(1, V2)])
    assert segment.checkpoint is not None
    assert (segment.checkpoint.files[0].name, segment.commits) == (file(1, V2), ())


def test_a_table_may_consist_of_a_checkpoint_alone() -> None:
    assert select_segment([file(7, "checkpoint.parquet")]).version == 7


@pytest.mark.parametrize(
    "names",
    [commits(1, 2), commits(0, 2), [file(3, "checkpoint.parquet"), *commits(5)]],
)
def test_a_hole_in_the_commits_is_an_error(names: list[str]) -> None:
    with pytest.raises(LogError, match="missing"):
        select_segment(names)


@pytest.mark.parametrize(
    "names", [[], ["_last_checkpoint", file(0, "crc"), file(0, "00000000000000000003.compacted.json")]]
)
def test_a_place_without_a_log_is_no_table(names: list[str]) -> None:
    with pytest.raises(NotATable):
        select_segment(names)


def test_the_history_of_a_whole_log_is_its_commits() -> None:
    names = [*commits(*range(11)), file(5, "checkpoint.parquet"), file(10, "checkpoint.parquet")]
    history = select_history(names, 10)
    assert [commit.version for commit in history.commits] == list(range(11))
    assert history.checkpoints == ()


def test_the_history_of_a_cut_log_begins_with_its_oldest_checkpoint() -> None:
    names = [*commits(*range(4, 21)), *(file(version, "checkpoint.parquet") for version in (5, 10, 20))]
    history = select_history(names, 20)
    assert [commit.version for commit in history.commits] == list(range(4, 21))
    assert [checkpoint.version for checkpoint in history.checkpoints] == [5]


def test_a_checkpoint_inside_a_hole_is_read_too() -> None:
    names = [*commits(0, 1, 9), *(file(version, "checkpoint.parquet") for version in (4, 8, 10))]
    assert [checkpoint.version for checkpoint in select_history(names, 10).checkpoints] == [4, 8]


def test_without_a_checkpoint_there_is_no_history() -> None:
    assert select_history(commits(0, 1), -1).commits == ()
