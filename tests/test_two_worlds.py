"""Two tables that differ in nothing but what is hidden are answered alike, byte for byte, whatever is asked.

Not hidden are the versions, the sizes of log files and whether the log has an exactly known name: those the
tables have in common, or are not asked for.
"""

from __future__ import annotations

import pathlib
import random
import re
import tempfile
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import orjson
import pytest

from delta_proxy.config import GetMode
from delta_proxy.s3.listing import encode_token
from tests.delta.tables import grant
from tests.delta.view.support import (
    PROTOCOL,
    add,
    lines,
    metadata,
    remove,
    write_checkpoint,
)
from tests.fakes.store import StoredObject
from tests.memory import Answer, MemoryProxy

GREEN = {"p": "green"}
HIDDEN: tuple[dict[str, str | None], ...] = ({"p": "red"}, {"p": "greenish"}, {"p": None}, {"p": "gree"}, {})
DIRECTORIES = ("", "p=", "p=green/", "p=green/a/", "p=green0/", "_d/", "x y/", "é/")
VERSIONS = 5
MANY = 1_100
"""More than a store lists at once; only a table of a seed above 5 has them."""
COMMIT_BYTES, CHECKPOINT_BYTES, HINT_BYTES = 20_000, 80_000, 2_000
CHECKPOINT = f"{2:020d}.checkpoint.parquet"
# What a table may have beside its log and the files that the log names.
STRAY = (
    f"_delta_log/{1:020d}.crc",
    f"_delta_log/{0:020d}.{2:020d}.compacted.json",
    "_delta_log/_last_vacuum_info",
    "_delta_log/_sidecars/hidden.parquet",
    "_symlink_format_manifest/manifest",
    "p=green",
    "p=green/stray.parquet",
    "zz/stray",
)


@attrs.frozen
class Logged(StoredObject):
    """A log file whose ETag tells nothing of its content, as not to differ where only that does."""

    @property
    def etag(self) -> str:
        return '"log"'


@attrs.frozen
class World:
    """A table: its files by their paths, and those of them that its log names."""

    files: Mapping[str, StoredObject]
    named: frozenset[str]


def world(seed: int) -> World:
    """A table with the granted files that all have, and hidden ones of its own; without any for 0."""
    shown, other = random.Random("granted"), random.Random(seed)
    files: dict[str, StoredObject] = {}
    named: set[str] = set()
    live: dict[str, dict[str, Any]] = {}
    hidden: dict[str, dict[str, Any]] = {}
    head: list[dict[str, Any]] = [{"protocol": PROTOCOL}, {"metaData": metadata()}]

    def added(rng: random.Random, name: str, values: Mapping[str, str | None], **more: object) -> Any:
        path = f"{rng.choice(DIRECTORIES)}{rng.choice('aghz~')}{name}"
        named.add(path)
        files[path] = StoredObject(path.encode() * (1 if values == GREEN else rng.randint(1, 9)))
        return add(urllib.parse.quote(path, safe="/="), values, **more)

    def removed(rng: random.Random, files_of: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for path in [path for path in files_of if rng.random() < 0.2]:
            yield {"remove": remove(path, files_of.pop(path)["partitionValues"])}
            if rng.random() < 0.5:
                del files[urllib.parse.unquote(path)]

    for version in range(VERSIONS):
        actions = [*(head if version == 0 else ()), *removed(shown, live)]
        for number in range(4):
            action = added(shown, f"{version}{number}.parquet", GREEN)
            live[action["path"]] = action
            actions.append({"add": action})
        if seed:
            actions += removed(other, hidden)
            actions.append({"txn": {"appId": f"{seed}", "version": version}})
            for number in range(other.choice((0, 1, 5, 12))):
                values, stats = other.choice(HIDDEN), f'{{"numRecords":{other.randint(1, 999)}}}'
                action = added(other, f"{version}{number}-{seed}.parquet", values, stats=stats)
                hidden[action["path"]] = action
                actions.insert(other.randint(0, len(actions)), {"add": action})
        files[f"_delta_log/{version:020d}.json"] = Logged(_commit(actions))
        if f"{version:020d}." in CHECKPOINT:
            rows = [*head, *({"add": action} for action in live.values())]
            for action in hidden.values():
                rows.insert(other.randint(0, len(rows)), {"add": action})
            files[f"_delta_log/{CHECKPOINT}"] = Logged(_checkpoint(rows))
    hint = {"version": 2, "size": 100 + seed, "numOfAddFiles": 50 + seed, "tags": {"t": f"{seed}"}}
    files["_delta_log/_last_checkpoint"] = Logged(orjson.dumps(hint).ljust(HINT_BYTES))
    if seed:
        more = [f"p=green/~{number}" for number in range(MANY * (seed > 5))]
        files |= {path: StoredObject(b"hidden" * seed) for path in (*STRAY, *more)}
    return World(files, frozenset(named))


def _commit(actions: Sequence[Mapping[str, Any]]) -> bytes:
    info = {"timestamp": 1700000000000, "operation": "WRITE", "userMetadata": ""}
    info["userMetadata"] = "~" * (COMMIT_BYTES - len(lines({"commitInfo": info}, *actions)))
    body = lines({"commitInfo": info}, *actions)
    assert len(body) == COMMIT_BYTES
    return body


def _checkpoint(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A checkpoint whose size is made up by a row that is not shown."""
    padding = CHECKPOINT_BYTES // 2
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            padded = [*rows, {"txn": {"appId": "~" * padding, "version": 1}}]
            body = write_checkpoint(pathlib.Path(folder, "checkpoint"), padded, **plain).read_bytes()
            padding += CHECKPOINT_BYTES - len(body)
    assert len(body) == CHECKPOINT_BYTES
    return body


Asked = tuple[str, str, dict[str, str]]
FIELDS: tuple[dict[str, str], ...] = (
    {},
    {"Range": "bytes=0-0"},
    {"Range": "bytes=-1"},
    {"Range": "bytes=999999-"},
    {"If-Match": "*"},
    {"If-Match": '"log"'},
    {"If-None-Match": "*"},
    {"If-Modified-Since": "Fri, 02 Jan 2026 03:04:05 GMT"},
    {"User-Agent": "duckdb/v1.5.5", "x-amz-checksum-mode": "ENABLED"},
)
QUERIES = (
    *(
        "",
        "acl",
        "tagging",
        "uploads",
        "location",
        "versions",
        "versionId=null",
        "partNumber=1",
        "list-type=2",
    ),
    *("attributes", "select&select-type=2", "response-content-type=a/b", "X-Amz-Expires=1", "delete"),
)


def keys(worlds: Sequence[World]) -> list[str]:
    """Names that are in a table or near to one, without those that only one log names."""
    differing = (
        frozenset[str]()
        .union(*(one.named for one in worlds))
        .difference(frozenset.intersection(*(one.named for one in worlds)))
    )
    paths = sorted(frozenset[str]().union(*(one.files for one in worlds)))
    near = {
        name
        for path in paths
        if not path.startswith("p=green/~")
        for name in (path, f"{path}/", path[:-1], f"./{path}", f"{path}.crc", path.rpartition("/")[0] + "/")
    }
    return sorted(near - differing)


def reads(worlds: Sequence[World], rng: random.Random, count: int) -> Iterator[Asked]:
    """Every name by GET, and some with other methods, fields and queries."""
    names = keys(worlds)
    shown = sorted(frozenset.intersection(*(frozenset(one.files) for one in worlds)))
    for name in names:
        yield "GET", _target("t", name), {}
    methods = ("GET", "GET", "GET", "GET", "HEAD", "HEAD", "DELETE", "OPTIONS")
    for _ in range(count):
        target = _target(rng.choice(("t", "t", "closed", "none")), rng.choice(rng.choice((names, shown))))
        query = rng.choice(("", rng.choice(QUERIES)))
        yield rng.choice(methods), f"{target}?{query}" if query else target, dict(rng.choice(FIELDS))


def _target(alias: str, name: str) -> str:
    return f"/datalake/{alias}/{urllib.parse.quote(name, safe='/-._~')}"


def lists(worlds: Sequence[World], rng: random.Random, count: int) -> Iterator[Asked]:
    """Listings of every kind, which start at, before, behind and within hidden names too."""
    paths = [f"t/{path}" for one in worlds for path in one.files]
    cut = [path[: rng.randint(1, len(path))] for path in paths]
    starts = [*paths, *cut, *(f"{path}{rng.choice('0~/')}" for path in cut)]
    for _ in range(count):
        query = {
            "prefix": rng.choice(("", "t/", "t/", "t/p=", "t/p=green/", "t/_", "closed/", rng.choice(cut))),
            "delimiter": rng.choice(("", "/", "/", "=", "-", "g", ".p")),
            "max-keys": rng.choice(("1", "2", "3", "5", "8", "1000")),
        }
        start, kind = rng.choice(starts), rng.choice(("start-after", "continuation-token", "marker", ""))
        if kind:
            query[kind] = encode_token(start) if kind == "continuation-token" else start
        version = {} if kind == "marker" else {"list-type": "2"}
        yield "GET", f"/datalake?{urllib.parse.urlencode(version | query)}", {}


def told(answer: Answer) -> tuple[int, dict[str, str], bytes]:
    """All of an answer that may not differ."""
    fields = {
        name: value for name, value in answer.headers.items() if name not in {"x-amz-request-id", "date"}
    }
    return answer.status, fields, re.sub(rb"<(RequestId|HostId)>[^<]*<", b"", answer.body)


def answered(
    folder: pathlib.Path, worlds: Sequence[World], asked: Iterable[Asked], get_mode: GetMode = GetMode.PROXY
) -> set[int]:
    """The statuses of the answers, all of which must be the same before every world."""
    grants = {"t": grant(GREEN), "closed": grant()}
    proxies = [MemoryProxy(folder / f"{number}", grants, get_mode=get_mode) for number in range(len(worlds))]
    for proxy, one in zip(proxies, worlds, strict=True):
        for alias in grants:
            proxy.store.objects |= {f"{alias}/{path}": file for path, file in one.files.items()}
    statuses = set()
    for method, target, fields in asked:
        first, *others = (told(proxy.request(method, target, fields)) for proxy in proxies)
        assert all(other == first for other in others), (method, target, fields)
        statuses.add(first[0])
    return statuses


@pytest.mark.parametrize("get_mode", GetMode)
def test_what_is_hidden_changes_no_answer_about_a_key(tmp_path: pathlib.Path, get_mode: GetMode) -> None:
    worlds = [world(seed) for seed in (0, 3, 5)]
    statuses = answered(tmp_path, worlds, reads(worlds, random.Random(1), 400), get_mode)
    assert statuses >= {200, 206, 304, 403, 404, 412, 416, 501}


@pytest.mark.parametrize(("seed", "count"), [(3, 700), (7, 150)])
def test_what_is_hidden_changes_no_listing(tmp_path: pathlib.Path, seed: int, count: int) -> None:
    worlds = [world(0), world(seed)]
    assert answered(tmp_path, worlds, lists(worlds, random.Random(seed), count)) == {200}
