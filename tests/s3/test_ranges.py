"""Ranges of an object."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta_proxy.s3.errors import InvalidRange
from delta_proxy.s3.ranges import ByteRange, parse_range


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", (0, 0)),
        ("bytes=0-9", (0, 9)),
        ("bytes=4-", (4, 99)),
        ("bytes=90-1000", (90, 99)),
        ("bytes=-8", (92, 99)),
        ("bytes=-1000", (0, 99)),
        ("Bytes=1-2", (1, 2)),
        ("bytes=0-" + "9" * 5000, (0, 99)),
        ("bytes=" + "0" * 5000 + "1-2", (1, 2)),
    ],
)
def test_a_range_is_cut_to_the_object(header: str, expected: tuple[int, int]) -> None:
    assert parse_range(header, 100) == ByteRange(*expected)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "bytes=",
        "bytes=-",
        "bytes=5-4",
        "bytes=a-b",
        "bytes=0-1,3-4",
        "items=0-1",
        "bytes=0",
        "bytes=1 -2",
    ],
)
def test_what_is_no_single_range_asks_for_the_whole_object(header: str | None) -> None:
    assert parse_range(header, 100) is None


@pytest.mark.parametrize(
    ("header", "size"),
    [("bytes=100-", 100), ("bytes=100-200", 100), ("bytes=-0", 100), ("bytes=0-", 0), ("bytes=-5", 0)],
)
def test_a_range_beyond_the_object_is_refused(header: str, size: int) -> None:
    with pytest.raises(InvalidRange) as caught:
        parse_range(header, size)
    assert caught.value.fields == {"RangeRequested": header, "ActualObjectSize": str(size)}
    assert caught.value.headers == (("content-range", f"bytes */{size}"),)


@given(st.text(max_size=30) | st.from_regex(r"bytes=\d{0,6}-\d{0,6}"), st.integers(0, 1000))
def test_a_range_lies_within_the_object(header: str, size: int) -> None:
    try:
        found = parse_range(header, size)
    except InvalidRange:
        return
    assert found is None or 0 <= found.first <= found.last < size


def test_a_range_knows_its_length_and_its_header() -> None:
    assert ByteRange(10, 19).length == 10
    assert ByteRange(10, 19).content_range(100) == "bytes 10-19/100"
