"""GetObject and HeadObject where the store has the answer."""

from __future__ import annotations

import pathlib

import pytest

from delta_proxy.config import GetMode
from tests.memory import MemoryProxy, md5


@pytest.mark.parametrize(
    ("etag", "answer"), [(md5(b"new one"), (206, b"one")), (md5(b"old"), (200, b"new one"))]
)
def test_a_range_of_a_streamed_object_is_of_the_version_that_the_client_has(
    tmp_path: pathlib.Path, etag: str, answer: tuple[int, bytes]
) -> None:
    made = MemoryProxy(tmp_path / "cache", {"t": None})
    made.store.put("t/k", b"new one")
    got = made.get("t/k", {"Range": "bytes=4-", "If-Range": etag})
    assert (got.status, got.body) == answer


@pytest.mark.parametrize(("path", "status"), [("a/b", 307), ("a/./b", 200), ("x/../a", 200)])
def test_no_client_is_redirected_to_a_key_with_dot_segments_which_it_would_walk(
    tmp_path: pathlib.Path, path: str, status: int
) -> None:
    made = MemoryProxy(tmp_path / "cache", {"t": None}, get_mode=GetMode.PRESIGNED_URL)
    made.store.put(f"t/{path}", b"body")
    assert made.get(f"t/{path}").status == status
