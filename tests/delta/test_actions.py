"""How lines of a commit are parsed: strictly, and failing closed."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta_proxy.access.partitions import Kind
from delta_proxy.delta.actions import (
    Add,
    Cdc,
    DeletionVector,
    LogError,
    Metadata,
    Protocol,
    Remove,
    Sidecar,
    TableMetadata,
    parse_line,
)

from .tables import PROTOCOL, content, metadata


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"add":{"path":"a","partitionValues":{"p":"1","q":null}}}', Add("a", {"p": "1", "q": None})),
        (b'{"add":{"path":"a"}}', Add("a", {})),
        (b'{"remove":{"path":"a"}}', Remove("a", None)),
        (b'{"remove":{"path":"a","partitionValues":{"p":"1"}}}', Remove("a", {"p": "1"})),
        (b'{"cdc":{"path":"a","partitionValues":{"p":"1"}}}', Cdc("a", {"p": "1"})),
        (b'{"sidecar":{"path":"a.parquet"}}', Sidecar("a.parquet")),
        (b'{"protocol":{"minReaderVersion":3,"readerFeatures":["x"]}}', Protocol(3, frozenset({"x"}))),
        (
            b'{"add":{"path":"a","deletionVector":{"storageType":"u","pathOrInlineDv":"x","offset":1}}}',
            Add("a", {}, DeletionVector("u", "x", 1, None)),
        ),
    ],
)
def test_an_action_is_parsed(line: bytes, expected: object) -> None:
    assert parse_line(line, "f", 1) == (expected,)


@pytest.mark.parametrize(
    "line", [b"", b" \n", b'{"commitInfo":{}}', b'{"txn":{"appId":"a"}}', b"{}", b'{"add":null}']
)
def test_lines_without_files_are_passed_over(line: bytes) -> None:
    assert parse_line(line, "f", 1) == ()


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b"1",
        b'"add"',
        b'\xff{"add":{"path":"a"}}',
        b'{"add":{"path":"a"}}{"add":{"path":"b"}}',
        b'{"add":[]}',
        b'{"add":{}}',
        b'{"add":{"path":""}}',
        b'{"add":{"path":1}}',
        b'{"add":{"path":"a","partitionValues":[]}}',
        b'{"add":{"path":"a","partitionValues":{"p":1}}}',
        b'{"add":{"path":"a","deletionVector":"x"}}',
        b'{"add":{"path":"a","deletionVector":{"storageType":"u"}}}',
        b'{"add":{"path":"a","deletionVector":{"storageType":"u","pathOrInlineDv":"x","offset":-1}}}',
        b'{"remove":{"partitionValues":{}}}',
        b'{"cdc":{"path":null}}',
        b'{"sidecar":{}}',
        b'{"protocol":{}}',
        b'{"protocol":{"minReaderVersion":"1"}}',
        b'{"protocol":{"minReaderVersion":3,"readerFeatures":"columnMapping"}}',
        b'{"metaData":{"id":"t"}}',
        b'{"metaData":{"id":"t","schemaString":"{"}}',
        b'{"metaData":{"id":"t","schemaString":"{}","partitionColumns":[]}}',
        b'{"metaData":{"id":"t","schemaString":"{\\"fields\\":[]}","partitionColumns":["p"]}}',
    ],
)
def test_what_is_not_understood_is_an_error_that_names_the_line(line: bytes) -> None:
    with pytest.raises(LogError) as caught:
        parse_line(line, "00000000000000000003.json", 7)
    assert str(caught.value).startswith("00000000000000000003.json:7: ")


@given(st.binary(max_size=200))
def test_random_bytes_are_actions_or_an_error(line: bytes) -> None:
    with contextlib.suppress(LogError):
        assert isinstance(parse_line(line, "f", 1), tuple)


def parsed(line: dict[str, object]) -> object:
    body = content(0, [line]).body
    assert isinstance(body, bytes)
    return parse_line(body, "f", 1)[0]


def test_partition_columns_have_their_types_and_physical_names() -> None:
    found = parsed(metadata("p", "q", mapping={"p": "col-1", "q": "col-2"}))
    assert isinstance(found, Metadata)
    assert [(column.name, column.physical) for column in found.columns] == [("p", "col-1"), ("q", "col-2")]
    assert found.columns[0].type.kind is Kind.STRING


def test_without_column_mapping_a_leftover_physical_name_means_nothing() -> None:
    line = metadata("p", mapping={"p": "col-1"})
    line["metaData"]["configuration"] = {}
    found = parsed(line)
    assert isinstance(found, Metadata)
    assert found.columns[0].physical == "p"


def test_a_mapped_column_without_physical_name_is_an_error() -> None:
    line = metadata("p")
    line["metaData"]["configuration"] = {"delta.columnMapping.mode": "id"}
    with pytest.raises(LogError):
        parsed(line)


@pytest.mark.parametrize("mode", ["NAME", "", ["name"], {"name": 1}, None])
def test_a_column_mapping_that_is_not_known_is_an_error(mode: object) -> None:
    line = metadata("p", mapping={"p": "col-1"})
    line["metaData"]["configuration"] = {"delta.columnMapping.mode": mode}
    with pytest.raises(LogError):
        parsed(line)


def test_features_and_reader_versions_beyond_those_known_are_unknown() -> None:
    known = parsed(PROTOCOL)
    columns = parsed(metadata())
    assert isinstance(known, Protocol)
    assert isinstance(columns, Metadata)
    assert not TableMetadata.of(columns, known).unknown_features
    mapped = Protocol(3, frozenset({"columnMapping", "catalogManaged"}))
    assert TableMetadata.of(columns, mapped).unknown_features == {"catalogManaged"}
    assert TableMetadata.of(columns, Protocol(4, frozenset())).unknown_features == {"minReaderVersion 4"}
