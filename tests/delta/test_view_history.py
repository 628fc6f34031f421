"""What a rewrite asks of the index: the whole history of a path, however the log spells it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from delta_proxy.delta.index import TableIndex
from delta_proxy.delta.masks import GrantMask, GrantMasks
from delta_proxy.delta.view_history import granted_histories, granted_history, lost

from .tables import NOW, PROTOCOL, ROOT, add, cdc, grant, index_of, metadata, remove

GREEN = grant({"p": "green"})


def mask_of(index: TableIndex) -> GrantMask:
    return GrantMasks().of(index, GREEN, NOW)


@pytest.fixture
def mask(tmp_path: Path) -> GrantMask:
    """A table with a path of each kind of history."""
    head = [PROTOCOL, metadata("p")]
    return mask_of(
        index_of(
            tmp_path,
            [*head, add("kept", p="green"), add("denied", p="red"), add("reopened", p="red")],
            [remove("reopened", p="red"), add("p=a%20b/reopened", p="red"), cdc("changes", p="green")],
            [add("reopened", p="green"), add("p=a%20b/reopened", p="green"), add("p=a%20b/kept", p="green")],
            [remove("kept"), add("both", p="green"), add("both", p="green")],
        )
    )


def answers(mask: GrantMask, paths: Sequence[str]) -> list[bool | None]:
    """The answers to an array of paths."""
    history = granted_history(mask, ROOT)
    found: list[bool | None] = granted_histories(mask, history)(pa.array(paths)).to_pylist()
    return found


@pytest.mark.parametrize(
    ("path", "granted"),
    [
        ("kept", True),
        ("both", True),
        ("changes", True),
        ("p=a%20b/kept", True),
        ("s3://bucket/some/table/kept", True),
        ("denied", False),
        ("reopened", False),
        ("p=a%20b/reopened", False),
        ("p%3Da%20b/reopened", False),
        ("s3://bucket/some/table/reopened", False),
        ("../table/reopened", False),
    ],
)
def test_a_path_is_granted_when_every_value_it_ever_had_is(mask: GrantMask, path: str, granted: bool) -> None:
    assert granted_history(mask, ROOT)(path) is granted


@pytest.mark.parametrize("path", ["never-heard-of", "p=a%20b/keptx"])
def test_of_a_path_that_the_log_does_not_name_nothing_is_known(mask: GrantMask, path: str) -> None:
    assert granted_history(mask, ROOT)(path) is None


@pytest.mark.parametrize("path", ["../elsewhere", "s3://other/some/table/kept", "a/../../../kept"])
def test_a_path_outside_the_table_is_not_granted(mask: GrantMask, path: str) -> None:
    assert granted_history(mask, ROOT)(path) is False
    assert answers(mask, ["kept", path]) == [True, False]


@pytest.mark.parametrize(
    "spelling",
    ["reopened", "./reopened", "s3://bucket/some/table/reopened", "p=a%20b/reopened", "p%3Da%20b/reopened"],
)
def test_among_many_paths_one_with_a_denied_past_is_found_however_it_is_spelled(
    mask: GrantMask, spelling: str
) -> None:
    assert answers(mask, ["kept", spelling, "p=a%20b/kept"]) == [True, False, True]


def test_an_escaped_path_of_a_table_without_a_past_is_granted(tmp_path: Path) -> None:
    index = index_of(tmp_path, [PROTOCOL, metadata("p"), add("p=a%20b/kept", p="green")])
    assert answers(mask_of(index), ["p=a%20b/kept"]) == [True]


def test_the_paths_that_old_versions_lose_are_those_with_granted_and_denied_values(mask: GrantMask) -> None:
    assert lost(mask) == ["p=a b/reopened", "reopened"]
