"""What is remembered of the sidecars that checkpoints name."""

from __future__ import annotations

from delta_proxy.access.partitions import Column, ColumnType, Kind
from delta_proxy.delta.sidecars import ManifestId, SidecarNames

OLD, NEW = ((Column(name, name, ColumnType(Kind.STRING)),) for name in ("old", "new"))


def manifest(name: str, table: str = "t") -> ManifestId:
    return ManifestId(table, name, "etag")


def test_a_sidecar_is_of_the_columns_of_the_last_manifest_that_names_it() -> None:
    known = SidecarNames()
    known.take(manifest("1"), OLD, ["a", "b"])
    known.take(manifest("2"), NEW, ["b"])
    assert [known.columns("t", name) for name in ("a", "b", "c")] == [OLD, NEW, None]


def test_the_sidecars_of_two_tables_are_kept_apart() -> None:
    known = SidecarNames()
    known.take(manifest("1"), OLD, ["a"])
    assert known.columns("other", "a") is None
    assert not known.has_read(manifest("1", "other"))


def test_a_manifest_of_which_a_name_was_forgotten_is_read_again() -> None:
    known = SidecarNames(limit=3)
    known.take(manifest("1"), OLD, ["a", "b"])
    known.take(manifest("2"), NEW, ["c", "d"])
    assert [known.has_read(manifest(name)) for name in ("1", "2")] == [False, True]
    known.take(manifest("1"), OLD, ["a", "b"])
    assert [known.columns("t", name) for name in ("a", "b")] == [OLD, OLD]


def test_an_unpartitioned_table_names_sidecars_too() -> None:
    known = SidecarNames()
    known.take(manifest("1"), (), ["a"])
    assert known.columns("t", "a") == ()


def test_of_manifests_that_name_nothing_the_oldest_is_forgotten() -> None:
    known = SidecarNames(limit=2)
    for name in ("1", "2", "3"):
        known.take(manifest(name), OLD, [])
    assert [known.has_read(manifest(name)) for name in ("1", "2", "3")] == [False, True, True]
