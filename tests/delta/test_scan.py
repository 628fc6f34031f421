"""Files of the log as rows of the index: a path is the same object however it is spelled."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import example, given
from hypothesis import strategies as st

from delta_proxy.delta.index import TupleTable
from delta_proxy.delta.paths import OutsideTable, TableRoot, object_path
from delta_proxy.delta.rows import FileKind
from delta_proxy.delta.scan import InForce, LogContent, Moment, Scanner

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
    kind = pa.struct({"path": pa.string(), "partitionValues": pa.map_(pa.string(), pa.string())})
    rows = [{"path": spelling, "partitionValues": []} for spelling in spellings]
    out = io.BytesIO()
    pq.write_table(pa.table({"add": pa.array(rows, kind)}), out)
    return LogContent(f"{0:020d}.checkpoint.parquet", 0, out.getvalue())


@given(root=st.sampled_from([ROOT, BUCKET]), spellings=st.lists(SPELLINGS.filter(bool), max_size=6))
@example(ROOT, ["./b", "x/../b", "/some/table/b", "b"])
@example(BUCKET, ["./b", "/b", "x/../b"])
def test_every_spelling_of_a_path_is_taken_for_the_object_it_names(
    root: TableRoot, spellings: list[str]
) -> None:
    expected = meant(spellings, root)
    assert told(content(0, [add(spelling) for spelling in spellings]), root) == expected
    assert told(checkpoint(spellings), root) == expected
