"""`_last_checkpoint` as a grant sees it."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from delta_proxy.delta import last_checkpoint

CLASSIC = "00000000000000000004.checkpoint.parquet"
OLDER = "00000000000000000002.checkpoint.parquet"
PARTS = [f"00000000000000000004.checkpoint.{part:010d}.0000000002.parquet" for part in (1, 2)]
V2 = "00000000000000000004.checkpoint.2a15d0c6-8b11-4a98-bab4-957905d62f7f.json"
SCHEMA = {"type": "struct", "fields": []}


def hint(original: dict[str, Any] | bytes, *present: str) -> Any:
    """The hint of the view, decoded; its length is checked."""
    content = original if isinstance(original, bytes) else orjson.dumps(original)
    view = last_checkpoint.rewrite(content, present)
    if view is None:
        return None
    assert len(view) == len(content)
    return orjson.loads(view)


def test_counts_sizes_tags_and_the_checksum_are_left_out() -> None:
    original = {
        "version": 4,
        "size": 106,
        "sizeInBytes": 25454,
        "numOfAddFiles": 101,
        "checkpointSchema": SCHEMA,
        "checksum": "e47c82ad195e6ace22298af5ff68f1f5",
        "tags": {"a": "secret"},
        "anything": "else",
    }
    assert hint(original, CLASSIC) == {"version": 4, "size": -1, "checkpointSchema": SCHEMA}


def test_parts_are_named_when_all_are_there() -> None:
    original = {"version": 4, "size": 10, "parts": 2}
    assert hint(original, *PARTS) == {"version": 4, "size": -1, "parts": 2}
    assert hint(original, PARTS[0]) is None
    assert hint(original, PARTS[0], OLDER) == {"version": 2, "size": -1}


def test_a_v2_checkpoint_is_named_without_its_embedded_actions() -> None:
    v2 = {"path": V2, "sizeInBytes": 893, "modificationTime": 17}
    embedded = {"nonFileActions": [{"txn": {"appId": "a"}}], "sidecarFiles": [{"path": "s"}]}
    assert hint({"version": 4, "size": 3, "v2Checkpoint": {**v2, **embedded}}, V2) == {
        "version": 4,
        "size": -1,
        "v2Checkpoint": v2,
    }


def test_a_v2_checkpoint_without_its_size_is_not_named() -> None:
    assert hint({"version": 4, "size": 3, "v2Checkpoint": {"path": V2, "more": "text" * 9}}, V2) is None


def test_the_newest_complete_checkpoint_is_named_when_the_hinted_one_is_hidden() -> None:
    original = {"version": 9, "size": 106, "checkpointSchema": SCHEMA}
    assert hint(original, OLDER, CLASSIC) == {"version": 4, "size": -1}
    assert hint(original) is None
    assert hint(original, V2) is None


def test_a_hint_of_another_kind_than_the_file_of_its_version_is_not_believed() -> None:
    assert hint({"version": 4, "size": 106, "parts": 3}, CLASSIC) == {"version": 4, "size": -1}
    assert hint({"version": 4, "size": 106, "more": "text"}, *PARTS) == {"version": 4, "size": -1, "parts": 2}


def test_a_schema_that_does_not_fit_is_left_out() -> None:
    original = b'{"version":4,"size":7,"checkpointSchema":{"a":1e9}}'
    assert hint(original, CLASSIC) == {"version": 4, "size": -1}


@pytest.mark.parametrize(
    "original",
    [b"", b"nonsense", b"[]", b'{"size":1}', b'{"version":"4"}', b'{"version":true}', b'{"version":4}'],
)
def test_what_is_no_hint_or_too_short_has_no_counterpart(original: bytes) -> None:
    assert hint(original, CLASSIC) is None
