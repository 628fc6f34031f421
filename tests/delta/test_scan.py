"""Files of the log as rows of the index: a path is the same object however it is spelled."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from delta_proxy.delta.actions import LogError
from delta_proxy.delta.index import TupleTable
from delta_proxy.delta.paths import OutsideTable, TableRoot, object_path
from delta_proxy.delta.rows import FileKind
from delta_proxy.delta.scan import InForce, LogContent, Moment, Scanner
from tests.delta.view import support

from .tables import ROOT, add, content

SEGMENTS = st.sampled_from(
    ["", ".", "..", "a", "b%20c", "%2e", "%2E%2e", "a%2Fb", "%zz", "%ff", "a:b", "some", "table", "é", " "]
)
SPELLINGS = st.builds(
    "{}{}".format,
    st.sampled_from(
        ["", "/", "s3://bucket/", "s3://other/", "s3:/", "/some/table/", "S3A://bucket/some/table/"]
    ),
    st.lists(SEGMENTS, min_size=1, max_size=4).map("/".join),
)
BUCKET = TableRoot("bucket", "")
NOTHING_IN_FORCE = InForce((), ())


def meant(spellings: list[str], root: TableRoot) -> list[str]:
    """The paths of those that name an object below the root."""
    found = []
    for spelling in spellings:
        try:
            found.append(object_path(spelling, root))
        except OutsideTable:
            continue
    return found


def told(file: LogContent, root: TableRoot) -> list[str]:
    """The paths of the rows that a file makes."""
    batches = Scanner(TupleTable(), root).rows(file, NOTHING_IN_FORCE, Moment(0))
    return [row["path"] for batch in batches for row in batch.to_pylist() if row["kind"] == FileKind.DATA]


def checkpoint(spellings: list[str]) -> LogContent:
    """A checkpoint that adds these."""
    rows = [{"path": spelling, "partitionValues": []} for spelling in spellings]
    return of_kind(pa.string(), pa.string(), rows)


TEXTS = [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]


def of_kind(path: pa.DataType, value: pa.DataType, rows: Sequence[dict[str, Any] | None]) -> LogContent:
    """A checkpoint whose adds have paths and partition values of these types."""
    kind = pa.struct({"path": path, "partitionValues": pa.map_(pa.string(), value)})
    out = io.BytesIO()
    pq.write_table(pa.table({"add": pa.array(rows, kind)}), out)
    return LogContent(f"{0:020d}.checkpoint.parquet", 0, out.getvalue())


@pytest.mark.parametrize("text", TEXTS, ids=str)
def test_text_is_text_however_arrow_holds_it(text: pa.DataType) -> None:
    value = pa.large_string() if text == pa.large_string() else pa.string()
    rows = [{"path": "a", "partitionValues": [("p", "green")]}, None]
    assert told(of_kind(text, value, rows), ROOT) == ["a"]


@pytest.mark.parametrize(
    ("path", "value"), [(pa.binary(), pa.string()), (pa.string(), pa.binary()), (pa.string(), pa.int64())]
)
def test_a_checkpoint_with_something_else_than_text_is_not_understood(
    path: pa.DataType, value: pa.DataType
) -> None:
    with pytest.raises(LogError):
        told(of_kind(path, value, [{"path": "a", "partitionValues": []}]), ROOT)


def test_a_checkpoint_that_gives_a_column_two_values_is_not_understood() -> None:
    rows = [{"path": "a", "partitionValues": [("p", "red"), ("p", "green")]}]
    with pytest.raises(LogError):
        told(of_kind(pa.string(), pa.string(), rows), ROOT)


def test_a_struct_that_is_there_but_empty_is_no_action(tmp_path: pathlib.Path) -> None:
    nothing: dict[str, Any] = {name: {"path": None} for name in ("add", "remove", "sidecar")}
    empty: dict[str, Any] = {"id": None, "partitionColumns": [], "configuration": {}}
    nothing |= {"metaData": empty, "protocol": {"minReaderVersion": None, "readerFeatures": []}}
    rows: list[dict[str, Any]] = [{"protocol": support.PROTOCOL}]
    rows += [{"metaData": support.metadata()}, {"add": support.add("a", {})}]
    path = support.write_checkpoint(tmp_path / "c.parquet", [nothing | row for row in rows])
    file = LogContent(f"{0:020d}.checkpoint.parquet", 0, path)
    header = Scanner(TupleTable(), ROOT).header(file)
    assert header.metadata is not None
    assert header.protocol is not None
    assert (header.sidecars, told(file, ROOT)) == ((), ["a"])


@given(root=st.sampled_from([ROOT, BUCKET]), spellings=st.lists(SPELLINGS.filter(bool), max_size=6))
@example(ROOT, ["./b", "x/../b", "/some/table/b", "b"])
@example(BUCKET, ["./b", "/b", "x/../b"])
def test_every_spelling_of_a_path_is_taken_for_the_object_it_names(
    root: TableRoot, spellings: list[str]
) -> None:
    expected = meant(spellings, root)
    assert told(content(0, [add(spelling) for spelling in spellings]), root) == expected
    assert told(checkpoint(spellings), root) == expected
