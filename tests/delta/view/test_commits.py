"""A commit as a grant sees it."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import orjson
import pytest

from delta_proxy.delta import commits
from delta_proxy.delta.view_grant import StaleIndex, ViewError

from .support import COLUMNS, PROTOCOL, actions, add, filtered, grant, has, lines, metadata, remove

GREEN = {"p": "green"}
RED = {"p": "red"}
INFO = {"timestamp": 1700000000000, "operation": "WRITE", "engineInfo": "someone's engine"}


def paths(content: bytes, kind: str = "add") -> list[str]:
    return [action[kind]["path"] for action in actions(content) if kind in action]


def test_granted_lines_are_kept_byte_for_byte(tmp_path: pathlib.Path) -> None:
    kept = b'{"add": {"path":"a", "partitionValues":{"p":"green"},"size":1.50,"x":"\\u00e9\\/"}}\r'
    content = lines({"add": add("b", RED)}) + kept + b"\n" + lines({"add": add("c", RED)})
    assert filtered(tmp_path, content, grant(columns=COLUMNS)).rstrip(b" \n") == kept.rstrip(b"\r") + b"\r"


def test_denied_adds_removes_and_change_files_are_left_out(tmp_path: pathlib.Path) -> None:
    content = lines(
        {"add": add("a", GREEN)},
        {"add": add("b", RED)},
        {"remove": remove("c", RED)},
        {"cdc": {"path": "d", "partitionValues": RED, "size": 1, "dataChange": False}},
        {"cdc": {"path": "e", "partitionValues": GREEN, "size": 1, "dataChange": False}},
    )
    view = filtered(tmp_path, content, grant(columns=COLUMNS))
    assert [next(iter(action.values()))["path"] for action in actions(view)] == ["a", "e"]


@pytest.mark.parametrize(
    "values",
    [None, {}, {"q": "green"}, {"p": 1}, {"p": ["green"]}, {"p": {"x": "green"}}, ["green"], "green"],
)
def test_an_add_without_readable_values_is_denied(tmp_path: pathlib.Path, values: object) -> None:
    content = lines({"add": add("a", GREEN)}, {"add": {**add("b", GREEN), "partitionValues": values}})
    assert paths(filtered(tmp_path, content, grant(columns=COLUMNS))) == ["a"]


def test_a_path_that_once_had_a_denied_value_stays_denied(tmp_path: pathlib.Path) -> None:
    content = lines({"add": add("a", GREEN)}, {"add": add("b", GREEN)})
    assert paths(filtered(tmp_path, content, grant(columns=COLUMNS, denied=["b"]))) == ["a"]


def test_a_granted_file_that_the_index_does_not_know_is_no_answer_yet(tmp_path: pathlib.Path) -> None:
    for action in ({"add": add("a", GREEN)}, {"cdc": {"path": "a", "partitionValues": GREEN, "size": 1}}):
        with pytest.raises(StaleIndex):
            filtered(tmp_path, lines(action), grant(columns=COLUMNS, unknown=["a"]))


def test_a_denied_file_need_not_be_known_to_the_index(tmp_path: pathlib.Path) -> None:
    content = lines({"commitInfo": INFO}, {"add": add("a", RED)})
    assert paths(filtered(tmp_path, content, grant(columns=COLUMNS, unknown=["a"]))) == []


def test_a_remove_without_values_is_kept_when_all_known_values_are_granted(tmp_path: pathlib.Path) -> None:
    content = lines({"remove": remove("known")}, {"remove": remove("red")}, {"remove": remove("unknown")})
    view = filtered(tmp_path, content, grant(columns=COLUMNS, denied=["red"], unknown=["unknown"]))
    assert paths(view, "remove") == ["known"]


def test_a_remove_with_values_needs_granted_values_and_a_granted_history(tmp_path: pathlib.Path) -> None:
    content = lines(
        {"remove": remove("a", GREEN)}, {"remove": remove("b", RED)}, {"remove": remove("c", GREEN)}
    )
    assert paths(filtered(tmp_path, content, grant(columns=COLUMNS, denied=["c"])), "remove") == ["a"]


def test_files_are_judged_by_the_metadata_of_their_own_commit_wherever_it_stands(
    tmp_path: pathlib.Path,
) -> None:
    before = grant(has(q="green"), columns=COLUMNS)
    files = [{"add": add("a", {"q": "green"})}, {"add": add("b", {"q": "red"})}]
    for ordered in ([{"metaData": metadata(["q"])}, *files], [*files, {"metaData": metadata(["q"])}]):
        assert paths(filtered(tmp_path, lines(*ordered), before)) == ["a"]
        assert paths(filtered(tmp_path, lines(*ordered), grant(has(q="green"), columns=None))) == ["a"]


def test_a_file_that_leaves_while_the_partition_columns_change_is_judged_by_those_it_had(
    tmp_path: pathlib.Path,
) -> None:
    def by_its_own_column(values: Any) -> bool:
        return [column.name for column in values.columns] == ["p"] and dict(values.values).get("p") == "green"

    content = lines(
        {"metaData": metadata(["q"])}, {"remove": remove("a", GREEN)}, {"remove": remove("b", RED)}
    )
    assert paths(filtered(tmp_path, content, grant(by_its_own_column, columns=COLUMNS)), "remove") == ["a"]


def test_files_without_any_metadata_in_force_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ViewError, match="metaData"):
        filtered(tmp_path, lines({"add": add("a", GREEN)}), grant(columns=None))


def test_metadata_and_protocol_are_kept_byte_for_byte(tmp_path: pathlib.Path) -> None:
    content = lines({"protocol": PROTOCOL}, {"metaData": metadata(configuration={"a": "b"})})
    assert filtered(tmp_path, content, grant()) == content


def test_the_commit_info_keeps_what_readers_need_and_nothing_else(tmp_path: pathlib.Path) -> None:
    info = {
        "inCommitTimestamp": 1700000000001,
        "timestamp": 1700000000000,
        "userId": "u",
        "userName": "alice",
        "operation": "WRITE",
        "operationParameters": {"predicate": "p = 'red'"},
        "job": {"jobId": "1"},
        "notebook": {"notebookId": "2"},
        "clusterId": "c",
        "readVersion": 3,
        "isolationLevel": "Serializable",
        "isBlindAppend": True,
        "operationMetrics": {"numFiles": "7"},
        "userMetadata": "secret",
        "tags": {"a": "b"},
        "engineInfo": "alice's engine",
        "txnId": "b496350c-3b26-4f55-8340-d668a11556de",
    }
    view = filtered(tmp_path, lines({"commitInfo": info}, {"add": add("a", RED)}), grant(columns=COLUMNS))
    assert actions(view) == [
        {
            "commitInfo": {
                "inCommitTimestamp": 1700000000001,
                "timestamp": 1700000000000,
                "operation": "WRITE",
                "operationParameters": {},
                "isBlindAppend": True,
                "engineInfo": "",
                "txnId": "b496350c-3b26-4f55-8340-d668a11556de",
            }
        }
    ]


def test_the_commit_info_loses_fields_of_another_type(tmp_path: pathlib.Path) -> None:
    info = {"timestamp": {"a": 1}, "operation": ["x"], "txnId": {"y": 1}, "isBlindAppend": "z"}
    assert actions(filtered(tmp_path, lines({"commitInfo": info}), grant())) == [{"commitInfo": {}}]


def test_the_commit_info_stays_the_first_line(tmp_path: pathlib.Path) -> None:
    content = lines({"commitInfo": INFO}, {"add": add("a", RED)}, {"add": add("b", GREEN)})
    view = filtered(tmp_path, content, grant(columns=COLUMNS))
    assert [next(iter(action)) for action in actions(view)] == ["commitInfo", "add"]


def test_a_second_commit_info_is_left_out(tmp_path: pathlib.Path) -> None:
    content = lines({"commitInfo": INFO}, {"commitInfo": {"operation": "OTHER"}})
    assert [
        action["commitInfo"]["operation"] for action in actions(filtered(tmp_path, content, grant()))
    ] == ["WRITE"]


def test_a_commit_of_which_nothing_is_left_still_holds_an_action(tmp_path: pathlib.Path) -> None:
    content = lines({"add": add("a", RED)})
    view = filtered(tmp_path, content, grant(columns=COLUMNS))
    assert view.rstrip() == commits.NOTHING
    assert view.endswith(b" \n")


def test_an_empty_commit_stays_empty(tmp_path: pathlib.Path) -> None:
    assert filtered(tmp_path, b"", grant()) == b""


def test_a_commit_too_short_for_any_action_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ViewError, match="size"):
        filtered(tmp_path, b'{"x":1}\n', grant())


@pytest.mark.parametrize(
    ("domain", "stays"),
    [
        ("delta.clustering", True),
        ("delta.rowTracking", True),
        ("delta.other", False),
        ("mine", False),
        (None, False),
    ],
)
def test_only_domains_that_readers_need_are_kept(
    tmp_path: pathlib.Path, domain: str | None, stays: bool
) -> None:
    content = lines(
        {"commitInfo": INFO}, {"domainMetadata": {"domain": domain, "configuration": "{}", "removed": False}}
    )
    kept = [next(iter(action)) for action in actions(filtered(tmp_path, content, grant()))]
    assert ("domainMetadata" in kept) is stays


def test_transactions_and_unknown_actions_are_left_out(tmp_path: pathlib.Path) -> None:
    content = lines(
        {"commitInfo": INFO},
        {"txn": {"appId": "a", "version": 1}},
        {"somethingNew": {"path": "a"}},
        {"checkpointMetadata": {"version": 1}},
        {"sidecar": {"path": "a.parquet", "sizeInBytes": 1, "modificationTime": 1}},
    )
    assert [next(iter(action)) for action in actions(filtered(tmp_path, content, grant()))] == ["commitInfo"]


def test_null_actions_beside_one_do_not_count(tmp_path: pathlib.Path) -> None:
    content = lines({"add": add("a", GREEN), "remove": None}, {"add": None})
    assert paths(filtered(tmp_path, content, grant(columns=COLUMNS))) == ["a"]


_ADD = json.dumps(add("a", GREEN))


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        '{"add":' + _ADD,
        "[]",
        "1",
        "null",
        '{"add":' + _ADD + "} {}",
        '{"add":' + _ADD + "}\r" + '{"add":' + _ADD + "}",
        '{"add":' + _ADD + ',"remove":{"path":"b"}}',
        '{"add":' + _ADD + ',"unknown":{"path":"b"}}',
        '{"add":{"path":"b","partitionValues":{"p":"red"}},"add":' + _ADD + "}",
        '{"add":{"path":"b","path":"a","partitionValues":{"p":"green"}}}',
        '{"add":{"path":"a","partitionValues":{"p":"red","p":"green"}}}',
        '{"add":{"path":"a","partitionValues":{"\\u0070":"red","p":"green"}}}',
        '{"\\u0061dd":{"path":"b","partitionValues":{"p":"red"}},"add":' + _ADD + "}",
        '{"add":{"path":"a","partitionValues":{"p":"red"},"partitionValues":{"p":"green"}}}',
        '{"add":"a"}',
        '{"add":{"partitionValues":{"p":"green"}}}',
        '{"add":{"path":"","partitionValues":{"p":"green"}}}',
        '{"add":{"path":1,"partitionValues":{"p":"green"}}}',
        '{"remove":{"path":null}}',
        '{"cdc":{"path":{}}}',
        '{"commitInfo":[]}',
        '{"metaData":{}}',
        '{"protocol":{"minReaderVersion":9,"minWriterVersion":9}}',
        '{"protocol":{"minReaderVersion":3,"minWriterVersion":7,"readerFeatures":["fromTheFuture"]}}',
        '{"protocol":{"minReaderVersion":"1"}}',
        '{"add":{"path":"a\\ud800","partitionValues":{"p":"green"}}}',
        '{"add":{"path":"a","size":NaN,"partitionValues":{"p":"green"}}}',
        "\ufeff{}",
        "[" * 5000,
    ],
)
def test_a_line_that_is_not_understood_closes_the_file(tmp_path: pathlib.Path, line: str) -> None:
    content = lines({"commitInfo": INFO}) + line.encode() + b"\n"
    with pytest.raises(ViewError):
        filtered(tmp_path, content, grant(columns=COLUMNS))


def test_invalid_utf_8_closes_the_file(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ViewError):
        filtered(tmp_path, b'{"commitInfo":{"operation":"\xff"}}\n', grant())


def test_two_metadata_actions_close_the_file(tmp_path: pathlib.Path) -> None:
    for between in ([], [{"add": add("a", GREEN)}]):
        content = lines({"metaData": metadata()}, *between, {"metaData": metadata(["q"])})
        with pytest.raises(ViewError, match="two metaData"):
            filtered(tmp_path, content, grant(columns=COLUMNS))


def test_a_line_beyond_the_limit_closes_the_file(tmp_path: pathlib.Path) -> None:
    source = tmp_path / "source.json"
    with source.open("wb") as file:
        file.seek(commits.MAX_LINE_BYTES + 10)
        file.write(b"\n")
    with pytest.raises(ViewError, match="64 MiB"):
        commits.scan(source, grant())


def test_the_room_of_dropped_lines_is_spaces_on_the_last_kept_one(tmp_path: pathlib.Path) -> None:
    content = lines({"add": add("a", GREEN)}, {"add": add("b", RED)})
    view = filtered(tmp_path, content, grant(columns=COLUMNS))
    first = lines({"add": add("a", GREEN)})
    assert view == first[:-1].ljust(len(content) - 1) + b"\n"


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_a_file_without_a_last_newline_keeps_its_length(
    tmp_path: pathlib.Path, order: tuple[str, str]
) -> None:
    values = {"a": GREEN, "b": RED}
    content = lines(*({"add": add(path, values[path])} for path in order))[:-1]
    view = filtered(tmp_path, content, grant(columns=COLUMNS))
    assert paths(view) == ["a"]
    assert not view.endswith(b"\n")


def test_blank_lines_do_not_reach_readers(tmp_path: pathlib.Path) -> None:
    content = b"\n" + lines({"add": add("a", GREEN)}) + b"  \n\n" + lines({"add": add("b", GREEN)}) + b"\n"
    view = filtered(tmp_path, content, grant(columns=COLUMNS))
    assert len(view.splitlines()) == 2
    assert paths(view) == ["a", "b"]


def test_much_padding_comes_in_chunks(tmp_path: pathlib.Path) -> None:
    content = lines({"add": add("a", GREEN)}, {"add": add("b", RED, stats="x" * 3 * commits.CHUNK_BYTES)})
    source = tmp_path / "source.json"
    source.write_bytes(content)
    facts = commits.scan(source, grant(columns=COLUMNS))
    chunks = list(commits.emit(source, facts))
    assert sum(map(len, chunks)) == len(content) == facts.size
    assert max(map(len, chunks)) <= 2 * commits.CHUNK_BYTES


def test_a_file_that_changed_after_the_scan_is_not_emitted_as_if_whole(tmp_path: pathlib.Path) -> None:
    source = tmp_path / "source.json"
    source.write_bytes(lines({"add": add("a", GREEN)}, {"add": add("b", GREEN)}))
    facts = commits.scan(source, grant(columns=COLUMNS))
    for changed in (lines({"add": add("a", GREEN)}), lines({"x": {}}, {"x": {}}, {"x": {}})):
        source.write_bytes(changed)
        with pytest.raises(ViewError, match="changed"):
            list(commits.emit(source, facts))


def cdc(path: str, values: dict[str, str]) -> dict[str, Any]:
    return {"cdc": {"path": path, "partitionValues": values, "size": 1, "dataChange": False}}


def test_kept_lines_of_a_commit_whose_change_files_are_all_denied_change_no_data(
    tmp_path: pathlib.Path,
) -> None:
    content = lines({"add": add("a", GREEN)}, {"remove": remove("b", GREEN)}, cdc("c", RED))
    view = filtered(tmp_path, content, grant(columns=COLUMNS))
    assert [next(iter(action.values()))["dataChange"] for action in actions(view)] == [False, False]
    assert [next(iter(action.values())).get("stats") for action in actions(view)] == [
        '{"numRecords":1}',
        None,
    ]


def test_nothing_is_silenced_while_a_change_file_is_granted_or_there_is_none(tmp_path: pathlib.Path) -> None:
    for extra in ([cdc("c", RED), cdc("d", GREEN)], []):
        content = lines({"add": add("a", GREEN)}, *extra)
        assert actions(filtered(tmp_path, content, grant(columns=COLUMNS)))[0]["add"]["dataChange"] is True


def test_a_missing_data_change_counts_as_true_and_is_silenced(tmp_path: pathlib.Path) -> None:
    action = add("a", GREEN)
    del action["dataChange"]
    content = lines({"add": action}, cdc("c", RED))
    assert actions(filtered(tmp_path, content, grant(columns=COLUMNS)))[0]["add"]["dataChange"] is False


def test_silencing_keeps_the_other_bytes_of_a_line(tmp_path: pathlib.Path) -> None:
    line = b'{"add":{"path":"a","partitionValues":{"p":"green"},"dataChange":true,"size":1.50,"t":"\\u00e9"}}'
    view = filtered(tmp_path, line + b"\n" + lines(cdc("c", RED)), grant(columns=COLUMNS))
    assert view.rstrip() == line.replace(b"true", b"false")


@pytest.mark.parametrize("spelling", ['"dataChange" : true', '"data\\u0043hange":true'])
def test_silencing_understands_other_spellings(tmp_path: pathlib.Path, spelling: str) -> None:
    line = (
        '{"add":{"path":"a","partitionValues":{"p":"green"},' + spelling + ',"tags":{"dataChange":"true"}}}'
    )
    view = filtered(tmp_path, line.encode() + b"\n" + lines(cdc("c", RED)), grant(columns=COLUMNS))
    found = actions(view)[0]["add"]
    assert (found["dataChange"], found["tags"]) == (False, {"dataChange": "true"})


def test_silencing_does_not_touch_text_that_looks_like_the_field(tmp_path: pathlib.Path) -> None:
    tags = {"dataChange": True}
    action = {"path": "a", "partitionValues": GREEN, "tags": tags, "dataChange": True}
    view = filtered(tmp_path, lines({"add": action}, cdc("c", RED)), grant(columns=COLUMNS))
    assert actions(view)[0]["add"] == {**action, "dataChange": False}


def test_statistics_make_room_when_silenced_lines_do_not_fit(tmp_path: pathlib.Path) -> None:
    files = [{"add": add(f"a{number}", GREEN)} for number in range(200)]
    view = actions(filtered(tmp_path, lines(*files, cdc("c", RED)), grant(columns=COLUMNS)))
    assert [action["add"]["path"] for action in view] == [f"a{number}" for number in range(200)]
    assert not any(action["add"]["dataChange"] for action in view)
    without = sum("stats" not in action["add"] for action in view)
    assert 0 < without < 20


def test_silenced_lines_that_cannot_fit_close_the_file(tmp_path: pathlib.Path) -> None:
    files = [{"add": add(f"a{number}", GREEN)} for number in range(200)]
    for action in files:
        del action["add"]["stats"]
    with pytest.raises(ViewError, match="size"):
        filtered(tmp_path, lines(*files, cdc("c", RED)), grant(columns=COLUMNS))


MANIFEST: list[dict[str, Any]] = [
    {"checkpointMetadata": {"version": 1, "tags": {"a": "secret"}}},
    {"sidecar": {"path": "s.parquet", "sizeInBytes": 10, "modificationTime": 5, "tags": {"a": "secret"}}},
    {"protocol": PROTOCOL},
    {"metaData": metadata()},
]


def test_a_manifest_keeps_sidecars_and_granted_adds_without_tags_or_tombstones(
    tmp_path: pathlib.Path,
) -> None:
    content = lines(
        *MANIFEST,
        {"add": add("a", GREEN)},
        {"add": add("b", RED)},
        {"remove": remove("c", GREEN)},
        {"txn": {"appId": "t", "version": 1}},
        {"commitInfo": INFO},
        cdc("d", GREEN),
    )
    assert actions(filtered(tmp_path, content, grant(), "MANIFEST")) == [
        {"checkpointMetadata": {"version": 1}},
        {"sidecar": {"path": "s.parquet", "sizeInBytes": 10, "modificationTime": 5}},
        {"protocol": PROTOCOL},
        {"metaData": metadata()},
        {"add": add("a", GREEN)},
    ]


def test_a_manifest_tells_its_sidecars_and_columns(tmp_path: pathlib.Path) -> None:
    source = tmp_path / "source.json"
    source.write_bytes(lines(*MANIFEST))
    facts = commits.scan(source, grant(), commits.FileRole.MANIFEST)
    assert facts.sidecars == ("s.parquet",)
    assert facts.columns == COLUMNS


@pytest.mark.parametrize(
    "path", ["../a.parquet", "s3://other/a.parquet", "/a.parquet", "a%2Fb.parquet", "a.json", 1]
)
def test_a_sidecar_outside_its_folder_closes_the_manifest(tmp_path: pathlib.Path, path: object) -> None:
    content = lines({"sidecar": {"path": path, "sizeInBytes": 10, "modificationTime": 5}}, *MANIFEST)
    with pytest.raises(ViewError, match="sidecar"):
        filtered(tmp_path, content, grant(), "MANIFEST")


def test_a_manifest_of_which_nothing_is_left_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ViewError, match="manifest"):
        filtered(tmp_path, lines({"txn": {"appId": "t", "version": 1}}), grant(), "MANIFEST")


def test_the_policy_is_asked_once_for_each_combination_of_values(tmp_path: pathlib.Path) -> None:
    asked: list[Any] = []

    def permits(values: Any) -> bool:
        asked.append(values)
        return True

    filtered(
        tmp_path, lines(*({"add": add(str(n), GREEN)} for n in range(50))), grant(permits, columns=COLUMNS)
    )
    assert len(asked) == 1


def test_errors_hold_nothing_of_the_file(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ViewError) as raised:
        filtered(tmp_path, orjson.dumps({"add": {"path": ["secret"]}}) + b"\n", grant(columns=COLUMNS))
    assert "secret" not in str(raised.value)
