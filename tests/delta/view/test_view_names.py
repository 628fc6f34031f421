"""Which log files exist in a view."""

from __future__ import annotations

import pytest

from delta_proxy.delta.view_names import Checkpoint, complete_checkpoints, view_file

UUID = "2a15d0c6-8b11-4a98-bab4-957905d62f7f"


@pytest.mark.parametrize(
    "name",
    [
        "00000000000000000010.json",
        "00000000000000000010.checkpoint.parquet",
        "00000000000000000010.checkpoint.0000000001.0000000003.parquet",
        f"00000000000000000010.checkpoint.{UUID}.json",
        f"00000000000000000010.checkpoint.{UUID}.parquet",
        "_sidecars/a.parquet",
        "_last_checkpoint",
    ],
)
def test_commits_checkpoints_sidecars_and_the_hint_exist(name: str) -> None:
    assert view_file(name) is not None


@pytest.mark.parametrize(
    "name",
    [
        "",
        "00000000000000000010.crc",
        "00000000000000000000.00000000000000000005.compacted.json",
        f"_staged_commits/00000000000000000010.{UUID}.json",
        f"_commit_{UUID}.json.tmp",
        f".00000000000000000010.crc.{UUID}.tmp",
        ".tmp/00000000000000000010.json",
        "_last_vacuum_info",
        "_trino_meta/x.json",
        "_copy_into_log/x",
        "10.json",
        "000000000000000000010.json",
        "99999999999999999999.json",
        "00000000000000000010.json/",
        "00000000000000000010.json\n",
        "00000000000000000010.JSON",
        "00000000000000000010.checkpoint.0000000004.0000000003.parquet",
        "00000000000000000010.checkpoint.0000000000.0000000003.parquet",
        "00000000000000000010.checkpoint.parquet.tmp",
        "_sidecars/",
        "_sidecars/a/b.parquet",
        "_sidecars/a.json",
        "_sidecars/a\n.parquet",
        "../_delta_log/00000000000000000010.json",
        "\u0660" * 20 + ".json",
    ],
)
def test_every_other_name_does_not_exist(name: str) -> None:
    assert view_file(name) is None


def test_a_checkpoint_is_complete_with_all_of_its_parts() -> None:
    parts = [f"00000000000000000004.checkpoint.{part:010d}.0000000002.parquet" for part in (1, 2)]
    classic, v2 = "00000000000000000003.checkpoint.parquet", f"00000000000000000005.checkpoint.{UUID}.json"
    assert complete_checkpoints(
        [v2, *parts, classic, "_sidecars/a.parquet", "00000000000000000003.json"]
    ) == (
        Checkpoint(3, (classic,)),
        Checkpoint(4, tuple(parts), 2),
        Checkpoint(5, (v2,), v2=True),
    )
    assert complete_checkpoints(parts[:1]) == ()
