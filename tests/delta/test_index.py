"""What the index knows of a table, and what a grant sees through it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delta_proxy.access.policy import EVERYTHING
from delta_proxy.delta import build
from delta_proxy.delta.actions import LogError
from delta_proxy.delta.index import FileKind, TableIndex
from delta_proxy.delta.masks import GrantMasks, authorise
from delta_proxy.delta.rows import UNKNOWN_TUPLE
from delta_proxy.delta.segment import FORMAT
from delta_proxy.delta.visibility import ClosedLog, GrantedPaths
from delta_proxy.upstream.client import ListedObject

from .tables import (
    ANCHOR,
    NOW,
    PROTOCOL,
    Line,
    add,
    advanced,
    allowed,
    cdc,
    content,
    grant,
    index_of,
    metadata,
    place,
    remove,
)

HEAD: list[Line] = [PROTOCOL, metadata("p")]
A = grant({"p": "a"})
VECTOR = {"storageType": "u", "pathOrInlineDv": "^-aqEH.-t@S}K{vb[*k^", "offset": 4, "sizeInBytes": 40}
VECTOR_FILE = "deletion_vector_d2c639aa-8816-431a-aaf6-d3fe2512ff61.bin"


@pytest.fixture(params=["base", "overlay", "merged"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Makes an index of commits: all at once, commit by commit, or all of it merged into a new base."""

    def make_index(*commits: list[Line]) -> TableIndex:
        if request.param == "base":
            return index_of(tmp_path, *commits)
        index = index_of(tmp_path, commits[0])
        for commit in commits[1:]:
            index = advanced(tmp_path, index, commit)
        if request.param == "merged":
            index = build.rebased(place(tmp_path), index)
        return index

    return make_index


def test_a_file_is_judged_by_its_partition_values(make: Any) -> None:
    index = make([*HEAD, add("x", p="a"), add("y", p="b")], [add("z", p="a")])
    assert [allowed(index, A, path) for path in ("x", "y", "z", "unknown")] == [True, False, True, None]


def test_a_denied_file_stays_denied_when_it_is_re_added(make: Any) -> None:
    index = make([*HEAD, add("x", p="b")], [remove("x", p="b")], [add("x", p="a")])
    assert allowed(index, A, "x") is False
    assert allowed(index, grant({"p": ["a", "b"]}), "x") is True


def test_a_granted_file_is_denied_when_it_is_re_added_elsewhere(make: Any) -> None:
    assert allowed(make([*HEAD, add("x", p="a")], [add("x", p="b")]), A, "x") is False


def test_a_removed_file_keeps_its_values_for_time_travel(make: Any) -> None:
    index = make([*HEAD, add("x", p="a")], [remove("x")])
    assert allowed(index, A, "x") is True
    assert [entry.live for entry in index.lookup("x")] == [False]


def test_a_removed_file_whose_values_are_unknown_is_denied(make: Any) -> None:
    index = make([*HEAD, remove("x")], [remove("y")])
    assert allowed(index, A, "x") is False
    assert allowed(index, grant({"p": None}), "y") is False
    assert index.lookup("y")[0].tuple_id == UNKNOWN_TUPLE


def test_a_remove_whose_keys_are_of_other_columns_tells_nothing(make: Any) -> None:
    assert make([*HEAD, remove("x", other="a")], []).lookup("x")[0].tuple_id == UNKNOWN_TUPLE


def test_a_missing_value_is_denied_and_null_is_a_value(make: Any) -> None:
    index = make([*HEAD, add("x")], [add("y", p=None), add("z", p="")])
    null = grant({"p": None})
    assert [allowed(index, null, path) for path in ("x", "y", "z")] == [False, True, True]


def test_an_unrestricted_principal_is_allowed_whatever_the_values(make: Any) -> None:
    index = make([*HEAD, add("x")], [remove("y")])
    assert [allowed(index, EVERYTHING, path) for path in ("x", "y")] == [True, True]


def test_a_change_data_file_is_judged_by_its_own_values(make: Any) -> None:
    index = make(HEAD, [cdc("_change_data/x", p="a"), cdc("_change_data/y", p="b")])
    assert [allowed(index, A, f"_change_data/{name}") for name in "xy"] == [True, False]
    assert index.lookup("_change_data/x")[0].kind is FileKind.CDC


def test_a_deletion_vector_is_granted_with_its_data_file(make: Any) -> None:
    index = make([*HEAD, add("x", VECTOR, p="a")], [add("y", {**VECTOR, "offset": 50}, p="b")])
    entries = index.lookup(VECTOR_FILE)
    assert {(entry.offset, entry.size, entry.owner) for entry in entries} == {(4, 40, "x"), (50, 40, "y")}
    mask = GrantMasks().of(index, A, NOW)
    assert {entry.owner: mask.allows_vector(entry) for entry in entries} == {"x": True, "y": False}
    assert allowed(index, A, VECTOR_FILE) is True
    assert allowed(index, grant({"p": "c"}), VECTOR_FILE) is False


def test_every_size_that_a_deletion_vector_was_said_to_have_is_kept(make: Any) -> None:
    smaller = {**VECTOR, "sizeInBytes": 1}
    index = make([*HEAD, add("x", VECTOR, p="a")], [remove("x", p="a"), add("x", smaller, p="a")])
    assert sorted(entry.size for entry in index.lookup(VECTOR_FILE)) == [1, 40]


def test_a_deletion_vector_of_a_relabelled_file_is_denied(make: Any) -> None:
    index = make([*HEAD, add("x", VECTOR, p="a")], [add("x", p="b")])
    assert allowed(index, A, VECTOR_FILE) is False
    assert index.next_visible("", "", GrantMasks().of(index, A, NOW).bits) is None


def test_adds_are_under_the_metadata_of_their_own_commit_wherever_it_stands(make: Any) -> None:
    index = make([*HEAD, add("x", p="a")], [add("y", q="a"), remove("x", p="a"), metadata("q")])
    assert [column.name for column in index.metadata.columns] == ["q"]
    assert allowed(index, grant({"q": "a"}), "y") is True
    assert allowed(index, A, "y") is False
    assert allowed(index, A, "x") is True


def test_the_columns_before_a_version_are_not_those_it_brings(make: Any) -> None:
    index = make([*HEAD, add("x", p="a")], [add("y", p="a")], [metadata("q")], [add("z", q="a")])
    before = [index.columns_before(version) for version in range(5)]
    names = [None if columns is None else [column.name for column in columns] for columns in before]
    assert names == [None, ["p"], ["p"], ["q"], ["q"]]


def test_column_mapping_is_that_in_force(make: Any) -> None:
    index = make(
        [PROTOCOL, metadata("p", mapping={"p": "col-1"}), add("x", None, **{"col-1": "a"})], [add("y", p="a")]
    )
    assert [allowed(index, A, path) for path in ("x", "y")] == [True, False]


def test_paths_outside_the_table_are_not_in_the_index(make: Any) -> None:
    index = make(HEAD, [add("../x", p="a"), add("s3://other/x", p="a"), add("a%20b", p="a")])
    assert allowed(index, A, "a b") is True
    assert [allowed(index, A, path) for path in ("../x", "x", "a%20b")] == [None, None, None]
    assert index.outside == 2


def test_a_table_with_an_unknown_feature_is_closed_to_restricted_principals(make: Any) -> None:
    future = {"protocol": {"minReaderVersion": 3, "readerFeatures": ["fromTheFuture"]}}
    index = make([*HEAD, add("x", p="a")], [future])
    assert allowed(index, A, "x") is False
    assert allowed(index, EVERYTHING, "x") is True


def test_a_grant_on_a_column_that_is_no_partition_column_allows_nothing(make: Any) -> None:
    assert allowed(make([*HEAD, add("x", p="a")], []), grant({"q": "a"}), "x") is False


def test_an_unpartitioned_table_is_open_to_no_restricted_grant(make: Any) -> None:
    assert allowed(make([PROTOCOL, metadata(), add("x")], []), A, "x") is False


@pytest.mark.parametrize(
    "commit",
    [[b"{"], [{"add": {}}], [{"add": {"path": "x", "partitionValues": {"p": 1}}}], [{"metaData": {}}]],
)
def test_a_commit_that_cannot_be_understood_is_an_error(tmp_path: Path, commit: list[Line]) -> None:
    index = index_of(tmp_path, HEAD)
    with pytest.raises(LogError):
        advanced(tmp_path, index, commit)
    with pytest.raises(LogError):
        index_of(tmp_path, HEAD, commit)


@pytest.mark.parametrize("first", [[PROTOCOL, add("x")], [metadata("p")]])
def test_a_table_without_metadata_or_protocol_is_an_error(tmp_path: Path, first: list[Line]) -> None:
    with pytest.raises(LogError):
        index_of(tmp_path, first)


def test_a_snapshot_does_not_change_when_the_index_advances(tmp_path: Path) -> None:
    before = index_of(tmp_path, [*HEAD, add("x", p="a")])
    after = advanced(tmp_path, before, [add("x", p="b"), add("y", p="a")])
    assert allowed(before, A, "x") is True
    assert before.lookup("y") == ()
    assert (before.version, after.version, before.identity) == (0, 1, after.identity)


def test_an_index_is_loaded_as_it_was_written(tmp_path: Path) -> None:
    index = index_of(tmp_path, [*HEAD, add("x", VECTOR, p="a"), add("y", p="b")], [remove("y")])
    loaded = build.load(place(tmp_path))
    assert loaded is not None
    assert (loaded.version, loaded.metadata, loaded.partitions) == (1, index.metadata, index.partitions)
    for path in ("x", "y", VECTOR_FILE):
        assert loaded.lookup(path) == index.lookup(path) != ()


def damaged(body: bytes) -> Iterator[bytes]:
    yield b""
    yield b"not an index"
    yield body[: len(body) // 2]
    yield body[:-1]
    yield body.replace(FORMAT.encode(), FORMAT.encode()[::-1])
    yield body.replace(b"a test's table", b"another_table!")


def test_a_damaged_or_foreign_file_is_not_used(tmp_path: Path) -> None:
    index_of(tmp_path, [*HEAD, add("x", p="a")])
    file = place(tmp_path).file
    for body in damaged(file.read_bytes()):
        file.write_bytes(body)
        assert build.load(place(tmp_path)) is None
    file.unlink()
    assert build.load(place(tmp_path)) is None


def test_building_leaves_nothing_but_the_index(tmp_path: Path) -> None:
    index_of(tmp_path, [*HEAD, add("x", p="a")])
    assert list(tmp_path.iterdir()) == [place(tmp_path).file]


def test_history_adds_values_and_brings_nothing_to_life(tmp_path: Path) -> None:
    index = index_of(tmp_path, [*HEAD, add("x", p="a"), remove("z")])
    old = [content(-3, [*HEAD, add("x", p="b"), add("y", p="a"), add("z", p="a")])]
    complete = build.add_history(place(tmp_path), index, [], old)
    assert complete.complete
    assert [allowed(complete, A, path) for path in "xyz"] == [False, True, True]
    assert {path: any(entry.live for entry in complete.lookup(path)) for path in "xyz"} == {
        "x": True,
        "y": False,
        "z": False,
    }


def test_masks_grow_with_the_table_and_stay_bounded(tmp_path: Path) -> None:
    masks = GrantMasks(limit=2)
    index = index_of(tmp_path, [*HEAD, add("x", p="a")])
    assert masks.of(index, A, NOW).bits.tolist() == [False, True]
    index = advanced(tmp_path, index, [add("y", p="b"), add("z", p="a")])
    assert masks.of(index, A, NOW).bits.tolist() == [False, True, False]
    for value in "bcd":
        masks.of(index, grant({"p": value}), NOW)
    assert len(masks) == 2


PATHS = st.sampled_from(["a", "b", "b/c", "b/d", "é/x", "%41", "z", "𝄞"])
VALUES = st.sampled_from(["1", "2", None])
ACTION = st.one_of(
    st.builds(lambda path, value: add(path, p=value), PATHS, VALUES),
    st.builds(remove, PATHS),
    st.builds(lambda path, value: remove(path, p=value), PATHS, VALUES),
)
COMMITS = st.lists(
    st.lists(ACTION, max_size=4, unique_by=lambda line: next(iter(line.values()))["path"]), max_size=6
)


def model_of(commits: list[list[dict[str, Any]]]) -> dict[str, tuple[bool, set[str | None]]]:
    """Path to whether it is live and the values it ever had, the plain way."""
    model: dict[str, tuple[bool, set[str | None]]] = {}
    for commit in commits:
        for line in commit:
            ((kind, body),) = line.items()
            path = body["path"].replace("%41", "A")
            values = set(body.get("partitionValues", {}).values())
            model[path] = (kind == "add", model.get(path, (False, set()))[1] | values)
    return model


@settings(deadline=None, max_examples=60)
@given(commits=COMMITS, cut=st.integers(0, 6), granted=st.sets(VALUES, min_size=1))
def test_the_index_agrees_with_a_plain_model(
    tmp_path_factory: pytest.TempPathFactory, commits: list[list[Any]], cut: int, granted: set[str | None]
) -> None:
    directory = tmp_path_factory.mktemp("index")
    index = index_of(directory, HEAD, *commits[:cut])
    for commit in commits[cut:]:
        index = advanced(directory, index, commit)
    agrees(index, model_of(commits), granted)
    agrees(build.rebased(place(directory), index), model_of(commits), granted)


def agrees(
    index: TableIndex, model: dict[str, tuple[bool, set[str | None]]], granted: set[str | None]
) -> None:
    given = grant(*({"p": value} for value in granted))
    masks = GrantMasks()
    mask = masks.of(index, given, NOW)
    bits = mask.bits
    visible = {path for path, (_, values) in model.items() if values and values <= granted}
    live = {path for path in visible if model[path][0]}
    for path, (is_live, values) in model.items():
        assert allowed(index, given, path) is (path in visible)
        entries = index.lookup(path)
        assert masks.allows_data(index, given, entries, NOW) is (path in visible)
        assert any(entry.live for entry in entries) is is_live
        seen = {dict(index.partitions[entry.tuple_id].values).get("p") for entry in entries}
        assert seen - {None} == values - {None}
    for prefix in ("", "b", "b/", "é", "zz"):
        below = sorted(path for path in visible if path.startswith(prefix))
        assert list(listed(index, prefix, bits)) == below
        assert index.has_live_below(prefix, bits) is any(path.startswith(prefix) for path in live)
    assert index.count(bits) == len(live)
    objects = [ListedObject(path, 1, '"e"', "2026-01-02T03:04:05Z", "STANDARD") for path in model]
    assert GrantedPaths(mask, ClosedLog()).served(objects, frozenset()).keys() == visible


def listed(index: TableIndex, prefix: str, bits: Any) -> Iterator[str]:
    path = index.next_visible("", prefix, bits)
    while path is not None:
        yield path
        path = index.next_visible(path, prefix, bits)


def test_a_thousand_files_are_sorted_by_their_utf_8(tmp_path: Path) -> None:
    paths = [chr(0x20 + number % 300) + str(number) for number in range(1000)]
    lines = [add(path.replace("%", "%25"), p="a") for path in paths if path[0] not in "./"]
    index = index_of(tmp_path, [*HEAD, *lines])
    bits = np.ones(len(index.partitions), np.bool_)
    expected = sorted((path for path in paths if path[0] not in "./"), key=str.encode)
    assert list(listed(index, "", bits)) == expected


def test_runs_that_were_spilled_are_merged(tmp_path: Path) -> None:
    many: list[Line] = [add(f"f{number * 7919 % 3000:05d}", p=str(number % 5)) for number in range(3000)]
    again: list[Line] = [add(f"f{number:05d}", p="9") for number in range(0, 3000, 3)]
    contents = [content(0, [*HEAD, *many]), content(1, again), content(2, [remove("f00003")])]
    whole = build.build(place(tmp_path), None, contents, ANCHOR)
    spilled = build.build(place(tmp_path), None, contents, ANCHOR, run_bytes=20_000)
    assert whole.rows == spilled.rows == 4000
    for number in range(3000):
        path = f"f{number:05d}"
        assert set(spilled.lookup(path)) == set(whole.lookup(path)) != set()
        assert spilled.lookup(f"{path}x") == ()
    assert not any(entry.live for entry in spilled.lookup("f00003"))


def test_a_decision_tells_why(tmp_path: Path) -> None:
    index = index_of(tmp_path, [*HEAD, add("x", p="b"), add("y")])
    assert authorise(index, A, "unknown", NOW) is None
    assert str(authorise(index, A, "x", NOW)) != str(authorise(index, A, "y", NOW))
