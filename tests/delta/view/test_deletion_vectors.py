"""A deletion vector file as a grant sees it."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from delta_proxy.delta.deletion_vectors import VERSION, Region, mask, region, regions

CONTENT = bytes(range(1, 101))


def test_only_the_version_byte_and_granted_vectors_are_shown() -> None:
    shown = regions([(1, 10), (60, 4)], [(19, 33)])
    assert shown == (VERSION, Region(1, 19), Region(60, 72))
    expected = CONTENT[:19] + bytes(41) + CONTENT[60:72] + bytes(28)
    assert mask(CONTENT, 0, shown) == expected


def test_nothing_granted_leaves_the_version_byte() -> None:
    assert mask(CONTENT, 0, regions([], [(1, 10)])) == CONTENT[:1] + bytes(99)


def test_a_granted_descriptor_cannot_claim_the_bytes_of_a_denied_one() -> None:
    assert regions([(1, 90)], [(20, 10)]) == (VERSION, Region(1, 20), Region(38, 99))
    assert regions([(20, 10)], [(20, 10)]) == (VERSION,)


def test_a_region_is_size_data_and_checksum() -> None:
    assert region(10, 34) == Region(10, 52)


def test_a_descriptor_without_offset_is_the_first_vector() -> None:
    assert region(None, 34) == region(1, 34)


def test_a_descriptor_that_cannot_be_one_shows_nothing() -> None:
    for offset, size in ((-5, 20), (0, 20), (10, -1)):
        assert regions([(offset, size)], []) in {(VERSION,), (VERSION, Region(1, 1))}
        assert mask(CONTENT, 0, regions([(offset, size)], [])) == CONTENT[:1] + bytes(99)


_DESCRIPTORS = st.lists(st.tuples(st.integers(1, 90), st.integers(0, 20)), max_size=5)


@given(granted=_DESCRIPTORS, denied=_DESCRIPTORS, cuts=st.sets(st.integers(0, 100)))
def test_any_chunks_of_any_descriptors_show_what_is_granted_and_not_denied(
    granted: list[tuple[int, int]], denied: list[tuple[int, int]], cuts: set[int]
) -> None:
    shown = regions(granted, denied)
    edges = sorted({0, 100, *cuts})
    view = b"".join(mask(CONTENT[start:stop], start, shown) for start, stop in pairwise(edges))
    covered = {place for offset, size in granted for place in range(offset, offset + size + 8)}
    hidden = {place for offset, size in denied for place in range(offset, offset + size + 8)}
    assert view == bytes(
        byte if place == 0 or place in covered - hidden else 0 for place, byte in enumerate(CONTENT)
    )
    assert list(shown[1:]) == sorted(shown[1:])
