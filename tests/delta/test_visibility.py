"""What a listing shows of a table: what GET would serve, and nothing that tells of more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from delta_proxy.delta.deletion_vectors import VERSION, Region
from delta_proxy.delta.masks import GrantMasks
from delta_proxy.delta.views import derived_etag
from delta_proxy.delta.visibility import (
    ClosedLog,
    GrantedPaths,
    LogOfView,
    OpenLog,
    Visibility,
    WholeTable,
    shown_regions,
)
from delta_proxy.upstream.client import ListedObject
from tests.helpers import result_of

from .tables import NOW, PROTOCOL, Line, add, cdc, grant, index_of, metadata, remove

COMMIT = f"_delta_log/{0:020d}.json"
HINT = "_delta_log/_last_checkpoint"
NOTHING: frozenset[str] = frozenset()


async def hint_is_wrong(_: Sequence[ListedObject]) -> frozenset[str]:
    return frozenset({HINT})


LOG = LogOfView("key", hint_is_wrong)


def listed(*paths: str) -> list[ListedObject]:
    return [ListedObject(path, 1, f'"{path}"', "2026-11-22T10:00:00.000Z", "STANDARD") for path in paths]


def vector(offset: int, size: int = 5) -> dict[str, object]:
    file = "s3://bucket/some/table/dv.bin"
    return {"storageType": "p", "pathOrInlineDv": file, "offset": offset, "sizeInBytes": size}


@pytest.fixture
def granted(tmp_path: Path) -> GrantedPaths:
    """Green files live and removed, red ones, and a deletion vector file with a vector of each."""
    index = index_of(
        tmp_path,
        [
            PROTOCOL,
            metadata("p"),
            add("g/live", vector(1), p="green"),
            add("g2/gone", p="green"),
            add("r/live", vector(11), p="red"),
        ],
        [remove("g2/gone", p="green")],
    )
    return GrantedPaths(GrantMasks().of(index, grant({"p": "green"}), NOW), LOG)


def test_an_unrestricted_principal_sees_every_path_that_has_a_get(granted: GrantedPaths) -> None:
    table = WholeTable()
    assert table.served(listed("a", COMMIT, "../b"), NOTHING) == {"a": '"a"', COMMIT: f'"{COMMIT}"'}
    assert result_of(table.unserved(listed("a"))) == NOTHING
    assert (table.below("a/"), table.below("../"), table.next_after("a", "")) == (True, None, "a")


def test_granted_data_is_listed_and_nothing_else(granted: GrantedPaths) -> None:
    shown = granted.served(listed("g/live", "g2/gone", "r/live", "stray"), NOTHING)
    assert shown == {"g/live": '"g/live"', "g2/gone": '"g2/gone"'}


def test_only_the_store_can_tell_whether_change_data_still_exists(tmp_path: Path) -> None:
    changes = [cdc("_change_data/g", p="green"), cdc("_change_data/r", p="red")]
    index = index_of(tmp_path, [PROTOCOL, metadata("p"), add("a", p="green")], changes)
    view = GrantedPaths(GrantMasks().of(index, grant({"p": "green"}), NOW), LOG)
    assert view.below("_change_data/") is None
    assert not view.surely_after("_change_data/a", "_change_data/")
    assert view.next_after("_change_data/a", "_change_data/") == "_change_data/g"
    assert view.served(listed("_change_data/g", "_change_data/r"), NOTHING).keys() == {"_change_data/g"}


def test_names_beyond_ascii_are_listed_by_their_grants(tmp_path: Path) -> None:
    paths = ["g/é", "g/\U0001f389", "r/日本"]
    files = [add(path, p="red" if path[0] == "r" else "green") for path in paths]
    index = index_of(tmp_path, [PROTOCOL, metadata("p"), *files])
    view = GrantedPaths(GrantMasks().of(index, grant({"p": "green"}), NOW), LOG)
    assert view.served(listed(*paths), NOTHING).keys() == set(paths[:2])


def test_what_get_does_not_show_as_it_is_has_an_etag_of_its_own(granted: GrantedPaths) -> None:
    shown = granted.served(listed("dv.bin", COMMIT), NOTHING)
    assert shown.keys() == {"dv.bin", COMMIT}
    assert shown["dv.bin"] != '"dv.bin"'
    assert shown[COMMIT] == derived_etag(f'"{COMMIT}"', "key")


def test_of_the_log_only_the_files_of_the_view_are_listed() -> None:
    hidden = f"_delta_log/{0:020d}.crc"
    assert LOG.served(listed(COMMIT, hidden, HINT, "data"), NOTHING).keys() == {COMMIT, HINT}


def test_what_get_does_not_serve_is_not_listed(granted: GrantedPaths) -> None:
    page = listed(HINT, COMMIT)
    for view in (LOG, granted):
        assert view.served(page, result_of(view.unserved(page))).keys() == {COMMIT}


@pytest.mark.parametrize(
    ("prefix", "below"),
    [
        ("g/", True),
        ("g2/", None),
        ("r/", False),
        ("x/", False),
        ("_delta_log/", True),
        ("_delta_log/x/", None),
    ],
)
def test_a_common_prefix_of_nothing_granted_is_not_shown(
    granted: GrantedPaths, prefix: str, below: bool | None
) -> None:
    assert granted.below(prefix) is below


def test_a_page_goes_on_at_the_next_path_that_may_be_shown(granted: GrantedPaths) -> None:
    assert granted.next_after("", "") == "_delta_log/"
    assert granted.next_after(f"{COMMIT}", "") == "_delta_log/"
    assert granted.next_after("_delta_log0", "") == "dv.bin"
    assert granted.next_after("dv.bin", "") == "g/live"
    assert granted.next_after("g/live", "g/") is None
    assert granted.next_after("g2/gone", "") is None


@pytest.mark.parametrize(
    ("after", "prefix", "follows"),
    [
        ("", "", True),
        ("_delta_log/x", "", True),
        ("_delta_log/x", "_delta_log/", False),
        ("dv.bin", "g", True),
        ("g/live", "g", False),
    ],
)
def test_what_is_live_surely_follows_and_what_was_removed_may(
    granted: GrantedPaths, after: str, prefix: str, follows: bool
) -> None:
    assert granted.surely_after(after, prefix) is follows


def test_the_log_surely_follows_what_comes_before_it_where_it_is_there() -> None:
    assert [log.surely_after("MIC=XLON/a", "") for log in (LOG, OpenLog(), ClosedLog())] == [
        True,
        True,
        False,
    ]
    assert not LOG.surely_after("MIC=XLON/a", "MIC=XLON/")
    assert WholeTable().surely_after("a", "")


@pytest.mark.parametrize(("log", "count"), [(OpenLog(), 3), (ClosedLog(), 0)])
def test_a_log_that_is_passed_through_is_open_as_it_is_or_not_there(log: Visibility, count: int) -> None:
    page = listed(COMMIT, HINT, "_delta_log/x")
    shown = log.served(page, result_of(log.unserved(page)))
    assert shown == {item.path: item.etag for item in page[:count]}
    assert bool(log.below("_delta_log/")) is bool(count)
    assert (log.next_after("", "") is not None) is bool(count)


@pytest.mark.parametrize(
    ("later", "shown"),
    [
        ([], (VERSION, Region(1, 11), Region(24, 109))),
        ([remove("r", p="red"), add("r", vector(11, 1), p="red")], (VERSION, Region(1, 11), Region(24, 109))),
        ([add("r", {**vector(11), "sizeInBytes": None}, p="red")], (VERSION, Region(1, 11))),
    ],
)
def test_a_byte_that_a_denied_vector_may_have_is_not_shown_whatever_a_granted_one_claims(
    tmp_path: Path, later: list[Line], shown: tuple[Region, ...]
) -> None:
    first = [PROTOCOL, metadata("p"), add("g", vector(1, 100), p="green"), add("r", vector(11), p="red")]
    index = index_of(tmp_path, first, later)
    mask = GrantMasks().of(index, grant({"p": "green"}), NOW)
    assert shown_regions(mask, index.lookup("dv.bin")) == shown
