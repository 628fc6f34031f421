"""The files of a view: what tells one from another, which exist, and which are refused."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import orjson
import pytest
from twisted.internet.defer import Deferred

from delta_proxy.access.policy import Grant, Reason
from delta_proxy.delta.deletion_vectors import Region
from delta_proxy.delta.views import RefusedView, ViewedFile, derived_etag, vector_key, view_key
from delta_proxy.s3.errors import NoSuchKey
from tests.delta.view import support
from tests.helpers import result_of, start
from tests.leaky import leaky_table
from tests.memory import MemoryProxy

from .tables import NOW, PROTOCOL, add, grant, index_of, metadata

COMMIT = f"_delta_log/{0:020d}.json"
GREEN = grant({"p": "green"})
RED = grant({"p": "red"})


@pytest.fixture
def made(tmp_path: pathlib.Path) -> MemoryProxy:
    """A table with a green and a red file in its only commit."""
    made = MemoryProxy(tmp_path / "cache", {"t": GREEN, "other": GREEN})
    lines = (PROTOCOL, metadata("p"), add("a", p="green"), add("b", p="red"))
    for alias in ("t", "other"):
        made.store.put(f"{alias}/{COMMIT}", b"\n".join(map(orjson.dumps, lines)))
    return made


def read(made: MemoryProxy, alias: str, granted: Grant, path: str) -> ViewedFile:
    """A file of a view; the index looks at the log again, which takes its time."""
    reading: Deferred[ViewedFile] = start(made.views.log_file(alias, granted, path))
    made.clock.pump([1.0] * 5)
    return result_of(reading)


def body(file: ViewedFile) -> bytes:
    """The bytes of a small file."""
    assert isinstance(file.content, bytes)
    assert len(file.content) == file.size
    return file.content


def test_an_etag_tells_of_original_and_view_and_is_never_taken_for_an_md5() -> None:
    etags = {derived_etag(etag, view) for etag in ('"a"', '"b"') for view in ("x", "y")}
    assert len(etags) == 4
    assert derived_etag('"a"', "x") in etags
    assert not any(re.fullmatch(r'"[0-9a-f]{32}"', etag) for etag in etags)


def test_vector_files_are_told_apart_by_what_is_shown() -> None:
    assert vector_key([Region(0, 1)]) != vector_key([Region(0, 1), Region(5, 9)]) != vector_key([])


def test_grants_that_lose_different_files_have_different_views(tmp_path: pathlib.Path) -> None:
    def key(folder: str, *later: dict[str, object]) -> str:
        (tmp_path / folder).mkdir()
        index = index_of(tmp_path / folder, [PROTOCOL, metadata("p"), add("a", p="green"), *later])
        return view_key(GREEN, MemoryProxy(tmp_path / folder, {}).masks.of(index, GREEN, NOW))

    same = {key("0"), key("1", add("b", p="red")), key("2", add("b", p="green"))}
    lost = {key("3", add("a", p="red")), key("4", add("b", p="green"), add("b", p="red"))}
    assert same == {GREEN.fingerprint}
    assert len(lost) == 2
    assert not same & lost


def test_two_grants_have_two_views_and_one_original(made: MemoryProxy) -> None:
    green, red = (read(made, "t", each, COMMIT) for each in (GREEN, RED))
    assert (b'"a"' in body(green), b'"b"' in body(green)) == (True, False)
    assert (b'"a"' in body(red), b'"b"' in body(red)) == (False, True)
    assert green.size == red.size == len(body(result_of(made.views.original("t", COMMIT))))
    assert len({green.etag, red.etag, result_of(made.views.original("t", COMMIT)).etag}) == 3
    assert made.made == {"log": 1, "view": 2}


def test_principals_who_see_the_same_share_a_view(made: MemoryProxy) -> None:
    for each in (GREEN, grant({"p": ["green"]}), GREEN):
        read(made, "t", each, COMMIT)
    assert made.made["view"] == 1


def test_the_views_of_two_tables_are_kept_apart(made: MemoryProxy) -> None:
    for alias in ("t", "other"):
        read(made, alias, GREEN, COMMIT)
    assert made.made["view"] == 2


@pytest.mark.parametrize(
    "name", [f"{0:020d}.crc", f"{1:020d}.json", "_last_checkpoint", "_sidecars/x.parquet"]
)
def test_a_file_that_is_not_there_or_of_no_view_is_absent(made: MemoryProxy, name: str) -> None:
    made.store.put(f"t/_delta_log/{0:020d}.crc", b"{}")
    with pytest.raises(NoSuchKey):
        read(made, "t", GREEN, f"_delta_log/{name}")


def test_a_hint_at_a_checkpoint_that_is_not_there_is_neither_served_nor_listed(made: MemoryProxy) -> None:
    hint = "_delta_log/_last_checkpoint"
    made.store.put(f"t/{hint}", b'{"version":7,"size":3}')
    with pytest.raises(NoSuchKey):
        read(made, "t", GREEN, hint)
    listed = result_of(made.views.listable("t").list("_delta_log/")).objects
    assert result_of(made.views.unserved("t", listed)) == {hint}


def test_a_sidecar_that_a_checkpoint_names_is_served_and_another_is_not_listed(
    tmp_path: pathlib.Path,
) -> None:
    made = MemoryProxy(tmp_path / "cache", {"t": GREEN})
    for path, content in leaky_table().items():
        made.store.put(f"t/{path}", content)
    made.store.put("t/_delta_log/_sidecars/stray.parquet", b"PAR1")
    listed = result_of(made.views.listable("t").list("_delta_log/_sidecars/")).objects
    hidden = result_of(made.views.unserved("t", listed))
    assert "_delta_log/_sidecars/stray.parquet" in hidden
    assert len(hidden) < len(listed)


def test_a_sidecar_of_a_v2_checkpoint_with_the_classic_name_is_served(tmp_path: pathlib.Path) -> None:
    made = MemoryProxy(tmp_path / "cache", {"t": GREEN})
    sidecar = "_sidecars/016ae953-37a9-438e-8683-9a9a4a79a395.parquet"
    named = {"path": sidecar.partition("/")[2], "sizeInBytes": 1, "modificationTime": 1}
    head: list[dict[str, Any]] = [{"protocol": support.PROTOCOL}, {"metaData": support.metadata()}]
    adds = [{"add": support.add("a", {"p": "green"})}, {"add": support.add("b", {"p": "red"})}]
    made.store.put(f"t/{COMMIT}", support.lines(*head))
    made.store.put(f"t/_delta_log/{1:020d}.json", support.lines(*adds))
    made.store.put(f"t/_delta_log/{0:020d}.checkpoint.parquet", b"of a writer that died")
    manifest = [*head, {"sidecar": named}]
    for name, content in ((f"{1:020d}.checkpoint.parquet", manifest), (sidecar, adds)):
        path = support.write_checkpoint(tmp_path / "written.parquet", content)
        made.store.put(f"t/_delta_log/{name}", path.read_bytes())
    shown = tmp_path / "shown.parquet"
    shown.write_bytes(made.get(f"t/_delta_log/{sidecar}").body)
    assert [row["add"]["path"] for row in support.checkpoint_rows(shown)] == ["a"]
    assert f"t/_delta_log/{sidecar}" in made.list("t/")


def test_a_file_that_cannot_be_filtered_is_refused_and_not_kept(made: MemoryProxy) -> None:
    made.store.put(f"t/_delta_log/{1:020d}.json", b'{"add":{"path":"c"},"remove":{"path":"d"}}')
    for _ in range(2):
        with pytest.raises(RefusedView) as refused:
            read(made, "t", GREEN, f"_delta_log/{1:020d}.json")
        assert refused.value.reason is Reason.UNREADABLE_LOG


def test_a_grant_of_another_column_is_refused_with_the_reason(made: MemoryProxy) -> None:
    with pytest.raises(RefusedView) as refused:
        result_of(made.views.key("t", grant({"q": "x"})))
    assert refused.value.reason is Reason.NOT_A_PARTITION_COLUMN
