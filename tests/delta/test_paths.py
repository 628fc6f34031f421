"""What the paths of a log mean."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta_proxy.delta.paths import (
    LogKind,
    OutsideTable,
    TableRoot,
    classify_log_name,
    decode_z85,
    deletion_vector_path,
    object_path,
)

ROOT = TableRoot("bucket", "some/table")


@pytest.mark.parametrize(
    ("add_path", "expected"),
    [
        ("a=1/part.parquet", "a=1/part.parquet"),
        ("t=c%2520d/x", "t=c%20d/x"),
        ("test%25file", "test%file"),
        ("c2=+%20%253D/x", "c2=+ %3D/x"),
        ("100%/x%zz", "100%/x%zz"),
        ("a%C3%A9", "aé"),
        ("a//b", "a//b"),
        ("./a/./b/../c", "a/c"),
        ("t=10:00/x", "t=10:00/x"),
        ("..a/b..", "..a/b.."),
        ("s3://bucket/some/table/a/b%20c", "a/b c"),
        ("s3a://bucket/some/table/a", "a"),
        ("S3N://bucket/some/table/x/../a", "a"),
        ("/some/table/a", "a"),
    ],
)
def test_an_add_path_is_decoded_once_and_resolved(add_path: str, expected: str) -> None:
    assert object_path(add_path, ROOT) == expected


@pytest.mark.parametrize(
    "add_path",
    [
        "",
        ".",
        "a/",
        "../other/x",
        "a/../../x",
        "%2e%2e/x",
        "s3://bucket/some/table",
        "s3://bucket/some/table/",
        "s3://bucket/some/tablet/x",
        "s3://bucket/some/table/../other/x",
        "s3://other/some/table/x",
        "s3://bucket",
        "s3:/bucket/some/table/x",
        "file:///some/table/x",
        "https://bucket/some/table/x",
        "/other/x",
        "a%00b",
        "a%ff",
    ],
)
def test_a_path_outside_the_table_is_refused(add_path: str) -> None:
    with pytest.raises(OutsideTable):
        object_path(add_path, ROOT)


def test_a_table_may_be_a_whole_bucket() -> None:
    assert object_path("s3://bucket/a", TableRoot("bucket", "")) == "a"


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_no_path_leads_out_of_the_table(add_path: str) -> None:
    try:
        path = object_path(add_path, ROOT)
    except OutsideTable:
        return
    assert path
    assert not {".", ".."} & set(path.split("/"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("ab^-aqEH.-t@S}K{vb[*k^", "ab/deletion_vector_d2c639aa-8816-431a-aaf6-d3fe2512ff61.bin"),
        ("^-aqEH.-t@S}K{vb[*k^", "deletion_vector_d2c639aa-8816-431a-aaf6-d3fe2512ff61.bin"),
    ],
)
def test_a_deletion_vector_is_named_by_the_z85_of_its_uuid(value: str, expected: str) -> None:
    assert deletion_vector_path("u", value, ROOT) == expected


def test_an_absolute_deletion_vector_is_made_relative_and_an_inline_one_has_no_file() -> None:
    assert deletion_vector_path("p", "s3://bucket/some/table/dv.bin", ROOT) == "dv.bin"
    assert deletion_vector_path("i", "wi5b=000010000siXQKl0rr91000f55c8Xg0@@D72lkbi5=-{L", ROOT) is None


@pytest.mark.parametrize(
    ("storage", "value"),
    [
        ("u", "short"),
        ("u", "~" * 20),
        ("u", "#" * 20),
        ("u", "../^-aqEH.-t@S}K{vb[*k^"),
        ("p", "s3://other/dv.bin"),
        ("x", "^-aqEH.-t@S}K{vb[*k^"),
    ],
)
def test_a_deletion_vector_elsewhere_is_refused(storage: str, value: str) -> None:
    with pytest.raises(OutsideTable):
        deletion_vector_path(storage, value, ROOT)


def test_z85_decodes_the_published_example() -> None:
    assert decode_z85("HelloWorld") == bytes.fromhex("864FD26FB559F75B")


@pytest.mark.parametrize(
    ("name", "kind", "version"),
    [
        ("00000000000000000012.json", LogKind.COMMIT, 12),
        ("00000000000000000012.checkpoint.parquet", LogKind.CHECKPOINT, 12),
        ("00000000000000000012.checkpoint.0000000001.0000000003.parquet", LogKind.CHECKPOINT_PART, 12),
        (f"00000000000000000012.checkpoint.{uuid.UUID(int=1)}.json", LogKind.CHECKPOINT_V2, 12),
        (f"00000000000000000012.checkpoint.{uuid.UUID(int=1)}.parquet", LogKind.CHECKPOINT_V2, 12),
        ("00000000000000000012.crc", LogKind.CHECKSUM, 12),
        ("00000000000000000000.00000000000000000005.compacted.json", LogKind.COMPACTED, 0),
        ("_last_checkpoint", LogKind.LAST_CHECKPOINT, None),
        ("_sidecars/016ae953.parquet", LogKind.SIDECAR, None),
        (f"_staged_commits/00000000000000000012.{uuid.UUID(int=1)}.json", LogKind.STAGED_COMMIT, 12),
        ("_commit_1234.json.tmp", LogKind.TEMPORARY, None),
        (".00000000000000000012.crc.1234.tmp", LogKind.TEMPORARY, None),
        (".tmp/x", LogKind.TEMPORARY, None),
        ("_trino_meta/x", LogKind.OTHER, None),
        ("_last_vacuum_info", LogKind.OTHER, None),
        ("00000000000000000012.checkpoint.0000000004.0000000003.parquet", LogKind.OTHER, None),
        ("00000000000000000012.checkpoint.0000000000.0000000003.parquet", LogKind.OTHER, None),
        ("0000000000000000012.json", LogKind.OTHER, None),
        ("0000000000000000001٣.json", LogKind.OTHER, None),
        ("00000000000000000012.json\n", LogKind.OTHER, None),
    ],
)
def test_a_log_file_is_known_by_its_name(name: str, kind: LogKind, version: int | None) -> None:
    file = classify_log_name(name)
    assert (file.kind, file.version) == (kind, version)


@given(st.text())
def test_every_name_has_a_kind(name: str) -> None:
    assert classify_log_name(name).name == name
