"""What a key is for a principal, row by row of the table in the design, and what its files look like."""

from __future__ import annotations

import pathlib

import orjson
import pytest

from delta_proxy.config import GetMode
from tests.delta.view import support
from tests.leaky import FORBIDDEN, SERVED, VECTORS, leaky_table
from tests.memory import MemoryProxy

from .tables import PROTOCOL, Line, add, grant, metadata

COMMIT = f"t/_delta_log/{0:020d}.json"
GREEN = grant({"p": "green"})
UNCOMPARABLE = metadata("p")
UNCOMPARABLE["metaData"]["schemaString"] = UNCOMPARABLE["metaData"]["schemaString"].replace(
    "string", "interval"
)


def put(made: MemoryProxy, version: int, *lines: Line, alias: str = "t") -> None:
    """A commit in the store; version 0 begins with protocol and metaData."""
    whole = [PROTOCOL, metadata("p"), *lines] if version == 0 else lines
    body = b"\n".join(line if isinstance(line, bytes) else orjson.dumps(line) for line in whole)
    made.store.put(f"{alias}/_delta_log/{version:020d}.json", body)


@pytest.fixture
def leaky(tmp_path: pathlib.Path) -> MemoryProxy:
    """A restricted and an open alias over the table with markers."""
    made = MemoryProxy(tmp_path / "cache", {"t": GREEN, "open": None})
    for path, body in leaky_table().items():
        made.store.put(f"t/{path}", body)
        made.store.put(f"open/{path}", body)
    return made


@pytest.fixture
def small(tmp_path: pathlib.Path) -> MemoryProxy:
    """A table with a granted and a denied file."""
    made = MemoryProxy(tmp_path / "cache", {"t": GREEN})
    put(made, 0, add("a", p="green"), add("b", p="red"))
    for path in ("a", "b", "stray"):
        made.store.put(f"t/{path}", path.encode())
    return made


@pytest.mark.parametrize("path", sorted(leaky_table()))
def test_a_restricted_principal_is_served_what_the_table_of_the_design_says(
    leaky: MemoryProxy, path: str
) -> None:
    answer = leaky.get(f"t/{path}")
    expected = 200 if path in SERVED else 403 if path in FORBIDDEN else 404
    assert (answer.status, answer.decision) == (
        expected,
        {200: "allowed", 403: "not_granted", 404: "absent"}[expected],
    )


@pytest.mark.parametrize("path", sorted(leaky_table()))
def test_an_unrestricted_principal_gets_the_table_as_it_is(leaky: MemoryProxy, path: str) -> None:
    assert leaky.get(f"open/{path}").body == leaky_table()[path]


@pytest.mark.parametrize("path", sorted(path for path in SERVED if "_delta_log" in path or path == VECTORS))
def test_head_get_list_ranges_and_conditions_tell_of_one_object(leaky: MemoryProxy, path: str) -> None:
    key = f"t/{path}"
    size, etag = leaky.list(key)[key]
    got, head = leaky.get(key), leaky.head(key)
    assert (len(got.body), got.headers["etag"]) == (size, etag)
    assert (int(head.headers["content-length"]), head.headers["etag"]) == (size, etag)
    assert len(leaky_table()[path]) == size
    original = leaky.get(f"open/{path}").headers["etag"]
    assert original != etag
    assert leaky.get(key, {"If-Match": etag}).status == 200
    assert leaky.get(key, {"If-Match": original}).status == 412
    assert leaky.get(key, {"If-None-Match": etag}).status == 304
    assert leaky.get(key, {"If-None-Match": original}).status == 200
    assert leaky.get(key, {"Range": "bytes=2-9"}).body == got.body[2:10]
    assert leaky.get(key, {"Range": "bytes=2-9", "If-Range": etag}).status == 206
    assert leaky.get(key, {"Range": "bytes=2-9", "If-Range": original}).status == 200
    assert leaky.get(key, {"Range": f"bytes={size}-"}).status == 416


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"not JSON", "unreadable_log"),
        ({"protocol": {"minReaderVersion": 3, "readerFeatures": ["unheard-of"]}}, "unknown_feature"),
        (metadata("q"), "not_a_partition_column"),
        (metadata(), "not_a_partition_column"),
        (UNCOMPARABLE, "unknown_type"),
    ],
)
def test_a_table_that_cannot_be_judged_is_refused_with_the_reason(
    small: MemoryProxy, line: Line, reason: str
) -> None:
    put(small, 0, line) if line == b"not JSON" else put(small, 1, line)
    small.get("t/unknown")
    for answer in (small.get(COMMIT), small.request("GET", "/datalake?list-type=2&prefix=t/_delta_log/")):
        assert (answer.status, answer.decision) == (403, reason)
    assert small.get("t/a").status in {200, 403}
    assert small.get("t/b").status == 403


def test_a_grant_that_moves_with_the_clock_is_held_to_the_second(tmp_path: pathlib.Path) -> None:
    made = MemoryProxy(tmp_path / "cache", {"t": grant({"p": {"gte": "now-10s"}})})
    columns = metadata("p")
    columns["metaData"]["schemaString"] = columns["metaData"]["schemaString"].replace("string", "timestamp")
    put(made, 0, PROTOCOL, columns, add("a", p="2026-11-22T00:00:00Z"))
    made.store.put("t/a", b"a")
    assert made.get("t/a").status == 200
    made.clock.advance(30)
    assert made.get("t/a").decision == "not_granted"


def test_a_file_whose_partition_value_is_missing_is_denied_and_not_in_the_view(small: MemoryProxy) -> None:
    put(small, 1, add("c"))
    assert small.get("t/c").decision == "missing_value"
    assert b'"c"' not in small.get(f"t/_delta_log/{1:020d}.json").body


def test_a_denied_file_stays_denied_when_it_is_added_again_as_granted(small: MemoryProxy) -> None:
    put(small, 1, add("b", p="green"))
    assert small.get("t/b").status == 403
    assert b'"b"' not in small.get(f"t/_delta_log/{1:020d}.json").body


def test_a_part_of_a_checkpoint_that_is_not_whole_is_refused(
    small: MemoryProxy, tmp_path: pathlib.Path
) -> None:
    rows = [{"add": support.add("c", {"p": "green"})}]
    part = support.write_checkpoint(tmp_path / "part.parquet", rows)
    key = f"t/_delta_log/{9:020d}.checkpoint.{1:010d}.{2:010d}.parquet"
    small.store.put(key, part.read_bytes())
    assert (small.get(key).status, small.get("t/a").status) == (403, 200)


def test_a_file_that_a_later_commit_denies_is_not_listed_any_more(small: MemoryProxy) -> None:
    assert "t/a" in small.list("t/")
    put(small, 1, add("a", p="red"))
    assert "t/a" not in small.list("t/")


@pytest.mark.parametrize("spelling", ["./b", "x/../b", "/t/b", "/t/./b", "s3://warehouse/t/b", "%62"])
def test_a_file_that_was_denied_under_another_spelling_stays_denied(
    small: MemoryProxy, spelling: str
) -> None:
    put(small, 0, add("a", p="green"), add(spelling, p="red"))
    put(small, 1, add("b", p="green"))
    assert (small.get("t/b").status, small.get("t/a").status) == (403, 200)
    assert b'"b"' not in small.get(f"t/_delta_log/{1:020d}.json").body


def test_an_escaped_path_is_the_key_that_it_decodes_to(small: MemoryProxy) -> None:
    put(small, 1, add("p=green/x%20y", p="green"), add("p=red/x%20y", p="red"), add("b", p="green"))
    put(small, 2, add("p=red/x%20y", p="green"))
    for key in ("t/p=green/x y", "t/p=red/x y"):
        small.store.put(key, b"x")
    assert small.get("t/p=green/x y").status == 200
    assert small.get("t/p=red/x y").status == 403
    assert b"p=green/x%20y" in small.get(f"t/_delta_log/{1:020d}.json").body
    assert b"x%20y" not in small.get(f"t/_delta_log/{2:020d}.json").body
    assert "t/p=green/x y" in small.list("t/p=")
    assert "t/p=red/x y" not in small.list("t/p=")


def test_a_view_forgets_a_file_that_a_later_version_takes_back_and_changes_its_etag(
    small: MemoryProxy,
) -> None:
    before = small.get(COMMIT)
    put(small, 1, add("a", p="red"))
    small.clock.advance(1)
    small.list("t/")
    after = small.get(COMMIT)
    assert b'"a"' in before.body
    assert b'"a"' not in after.body
    assert before.headers["etag"] != after.headers["etag"]
    assert small.get("t/a").status == 403


def test_a_commit_of_denied_files_changes_no_etag(small: MemoryProxy) -> None:
    before = small.get(COMMIT).headers["etag"]
    put(small, 1, add("c", p="red"))
    small.list("t/")
    assert small.get(COMMIT).headers["etag"] == before


def test_a_commit_that_lands_between_list_and_get_is_served(small: MemoryProxy) -> None:
    small.list("t/")
    put(small, 1, add("c", p="green"))
    assert b'"c"' in small.get(f"t/_delta_log/{1:020d}.json").body


def hint_reads(made: MemoryProxy) -> list[str | None]:
    """The If-None-Match of each GET of the hint that the store saw."""
    return [
        asked.headers.get("if-none-match")
        for asked in made.store.requests
        if asked.key.endswith("_checkpoint")
    ]


def test_the_hint_is_asked_for_each_time_and_read_again_only_when_it_changed(leaky: MemoryProxy) -> None:
    key = "t/_delta_log/_last_checkpoint"
    body = leaky.store.objects[key].body
    first = leaky.get(key)
    leaky.store.requests.clear()
    assert leaky.get(key).body == first.body
    assert hint_reads(leaky) == [leaky.store.objects[key].etag]
    leaky.store.put(key, body + b" ")
    assert leaky.get(key).headers["etag"] != first.headers["etag"]


def test_a_view_is_made_once_and_found_again_after_a_restart(tmp_path: pathlib.Path) -> None:
    first = MemoryProxy(tmp_path / "cache", {"t": GREEN})
    put(first, 0, add("a", p="green"))
    body = first.get(COMMIT).body
    reads = len([each for each in first.store.requests if each.method == "GET" and each.key == COMMIT])
    assert reads
    first.get(COMMIT)
    again = MemoryProxy(tmp_path / "cache", {"t": GREEN}, store=first.store)
    assert again.get(COMMIT).body == body
    assert (
        len([each for each in again.store.requests if each.method == "GET" and each.key == COMMIT]) == reads
    )


@pytest.mark.parametrize("disk_bytes", [1, 20_000])
def test_a_view_for_which_there_is_no_room_is_served_all_the_same(
    tmp_path: pathlib.Path, disk_bytes: int
) -> None:
    answers = []
    for folder, room in (("ample", 1 << 30), ("tiny", disk_bytes)):
        made = MemoryProxy(tmp_path / folder, {"t": GREEN}, disk_bytes=room, memory_bytes=1)
        for path, body in leaky_table().items():
            made.store.put(f"t/{path}", body)
        served = [made.get(f"t/{path}") for path in leaky_table() for _ in range(2)]
        answers.append(
            [
                (answer.status, answer.headers.get("etag"), answer.body)
                for answer in served
                if answer.status == 200
            ]
        )
    assert len(answers[0]) > 20
    assert answers[0] == answers[1]


def test_a_table_in_the_place_of_another_is_seen_at_once(small: MemoryProxy) -> None:
    small.get(COMMIT)
    small.clock.advance(1)
    lines = (PROTOCOL, metadata("p", identity="another"), add("new", p="green"))
    small.store.put(COMMIT, b"\n".join(map(orjson.dumps, lines)))
    small.list("t/_delta_log/")
    assert b'"new"' in small.get(COMMIT).body
    assert small.get("t/a").status == 404


def test_a_path_that_was_denied_in_a_table_is_granted_in_the_one_that_took_its_place(
    small: MemoryProxy,
) -> None:
    put(small, 1, add("c", p="red"))
    assert small.get("t/b").status == 403
    small.clock.advance(1)
    del small.store.objects[f"t/_delta_log/{1:020d}.json"]
    lines = (PROTOCOL, metadata("p", identity="another"), add("b", p="green"))
    small.store.put(COMMIT, b"\n".join(map(orjson.dumps, lines)))
    small.list("t/_delta_log/")
    assert b'"b"' in small.get(COMMIT).body
    assert small.get("t/b").status == 200


@pytest.mark.parametrize("use", ["log", "vector"])
def test_log_files_and_deletion_vectors_are_never_redirected(tmp_path: pathlib.Path, use: str) -> None:
    made = MemoryProxy(tmp_path / "cache", {"t": GREEN}, get_mode=GetMode.PRESIGNED_URL)
    for path, body in leaky_table().items():
        made.store.put(f"t/{path}", body)
    assert made.get(COMMIT if use == "log" else f"t/{VECTORS}").status == 200
    assert made.get("t/p=green/a.parquet").status == 307
