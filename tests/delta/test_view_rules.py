"""Nothing hidden can be fetched through the resource tree, and each rule that sees to it is needed.

A rule is removed from the source, the proxy built of what is left, and the crawler must find something.
"""

from __future__ import annotations

import itertools
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from delta_proxy.config import GetMode
from tests import altered
from tests.leaky import MARK, VECTORS, findings, leaky_table
from tests.memory import MemoryProxy, Parts

from .tables import PROTOCOL, add, grant, metadata
from .test_ahead import CHECKPOINT, upload
from .test_ahead import shown as adds_shown

GRANT = grant({"p": "green"})


def proxy(folder: pathlib.Path, parts: Parts | None = None, get_mode: GetMode = GetMode.PROXY) -> MemoryProxy:
    """A proxy over the table with markers, which grants one partition of it."""
    made = MemoryProxy(folder / "cache", {"t": GRANT, "none": grant()}, parts=parts, get_mode=get_mode)
    for path, body in leaky_table().items():
        made.store.put(f"t/{path}", body)
        made.store.put(f"none/{path}", body)
    return made


def wrong(folder: pathlib.Path, parts: Parts | None, get_mode: GetMode, *, thorough: bool) -> Iterator[str]:
    """All that is wrong with what such a proxy gives."""
    for number, check in enumerate(
        (_vectors, _nothing, _closed, _replaced, _overwritten, _foreign, _first, _ahead, _behind)
    ):
        yield from check(proxy(folder / str(number), parts, get_mode))
    made = proxy(folder / "crawled", parts, get_mode)
    yield from findings(made.request, "t", thorough=thorough)


def _vectors(made: MemoryProxy) -> Iterator[str]:
    whole, shown = leaky_table()[VECTORS], made.get(f"t/{VECTORS}").body
    if shown != whole[:25] + bytes(len(whole) - 25):
        yield "a deletion vector file shows other bytes than those of the granted vector"
    vector = {"storageType": "p", "pathOrInlineDv": "lost.bin", "offset": 1, "sizeInBytes": 3}
    for version, lines in ((5, add("d", vector, p="green")), (6, add("d", p="red"))):
        made.store.put(f"t/_delta_log/{version:020d}.json", orjson.dumps(lines))
    made.store.put("t/lost.bin", b"hidden")
    if b"hidden" in made.get("t/lost.bin").body:
        yield "the vector of a file that was taken back is shown"


def _nothing(made: MemoryProxy) -> Iterator[str]:
    """A grant of nothing sees the log, emptied, and nothing else."""
    if any("_delta_log" not in key for key in made.list("none/")):
        yield "to a grant of nothing something is listed"
    for path in leaky_table():
        if "_delta_log" not in path and made.get(f"none/{path}").status not in {403, 404}:
            yield f"to a grant of nothing {path} is served"
    commit = f"_delta_log/{0:020d}.json"
    if made.get(f"none/{commit}").headers["etag"] == made.get(f"t/{commit}").headers["etag"]:
        yield "two contents have one ETag"


def _closed(made: MemoryProxy) -> Iterator[str]:
    """From the commit on that needs an unknown feature, or partitions the table otherwise, it is closed."""
    protocol = {
        "minReaderVersion": 3,
        "minWriterVersion": 7,
        "readerFeatures": ["x"],
        "writerFeatures": ["x"],
    }
    made.store.put(f"t/_delta_log/{5:020d}.json", orjson.dumps({"protocol": protocol}))
    if made.get(f"t/_delta_log/{5:020d}.json").decision != "unknown_feature":
        yield "a commit with an unknown feature is not refused"
    for path in (f"_delta_log/{0:020d}.json", "_delta_log/_last_checkpoint", "p=green/a.parquet"):
        if made.get(f"t/{path}").decision != "unknown_feature":
            yield f"of a table with an unknown feature {path} is not refused"
    if made.request("GET", "/datalake?list-type=2&prefix=t/_delta_log/").decision != "unknown_feature":
        yield "a table with an unknown feature is listed"


def _replaced(made: MemoryProxy) -> Iterator[str]:
    """A table that takes the place of another is judged by its own columns, at once."""
    made.get("t/p=green/a.parquet")
    for key in [key for key in made.store.objects if key.startswith("t/")]:
        del made.store.objects[key]
    table = leaky_table()
    commit = table[f"_delta_log/{0:020d}.json"].replace(b'"p"', b'"q"').replace(b'\\"p\\"', b'\\"q\\"')
    made.store.put(f"t/_delta_log/{0:020d}.json", commit)
    made.store.put(f"t/_delta_log/{1:020d}.json", table[f"_delta_log/{1:020d}.json"])
    made.request("GET", "/datalake?list-type=2&prefix=t/_delta_log/")
    answer = made.get(f"t/_delta_log/{1:020d}.json")
    if answer.status == 200 and b"green" in answer.body:
        yield "a commit is judged by the columns of another table"


def _overwritten(made: MemoryProxy) -> Iterator[str]:
    """What is put in the place of a file while it is read is not served under the ETag of that."""
    key = f"t/{VECTORS}"
    listed = made.list(key)[key][1]
    whole = leaky_table()[VECTORS]

    def overwrite(asked: str) -> None:
        if asked.startswith("GET") and VECTORS in asked:
            made.store.put(key, whole[:10] + b"~" + whole[11:])

    made.agent.before = overwrite
    if made.get(key).headers.get("etag") == listed or made.get(key).status != 200:
        yield "a file has the ETag of another"


def _behind(made: MemoryProxy) -> Iterator[str]:
    """Nothing tells of hidden keys behind all that is shown of a group."""
    made.store.put("t/p=red/b.parquet", b"hidden")
    page = "/datalake?list-type=2&prefix=t/&delimiter=%3D&start-after=t/p%3D"
    for start in ("green0", "red/b", "red/c"):
        if b"<Prefix>t/p=</Prefix>" in made.request("GET", page + start).body:
            yield f"a common prefix tells of hidden keys behind {start}"
    if b"<Prefix>t/p=</Prefix>" not in made.request("GET", page + "green/b").body:
        yield "a common prefix with something shown behind the start is not listed"


def _foreign(made: MemoryProxy) -> Iterator[str]:
    """A checkpoint that is seen before its index may name a file of another table."""
    if _of_checkpoint(made, add("a", p="green"), add("../other/b", p="green")) != {"a"}:
        yield "a checkpoint names a file outside the table"


def _first(made: MemoryProxy) -> Iterator[str]:
    """A checkpoint that is seen before its index shows what is granted."""
    if _of_checkpoint(made, add("a", p="green"), add("b", p="red")) != {"a"}:
        yield "a checkpoint that is seen first names a file that is not granted"


def _of_checkpoint(made: MemoryProxy, *adds: dict[str, Any]) -> set[str]:
    """What is shown of a table that has nothing but a checkpoint of these."""
    for key in [key for key in made.store.objects if key.startswith("t/")]:
        del made.store.objects[key]
    with tempfile.TemporaryDirectory() as folder:
        upload(made, *adds, folder=pathlib.Path(folder))
        return adds_shown(made.get(f"t/{CHECKPOINT}").body, pathlib.Path(folder))


def _ahead(made: MemoryProxy) -> Iterator[str]:
    """The index is of the log before a checkpoint whose view is made already."""
    kept = f"t/_delta_log/{0:020d}.json"
    for key in [key for key in made.store.objects if key.startswith("t/") and key != kept]:
        del made.store.objects[key]
    first = b"\n".join(map(orjson.dumps, (PROTOCOL, metadata("p"), add("a", p="green"))))
    made.store.put(kept, first)
    with tempfile.TemporaryDirectory() as folder:
        adds = [add("a", p="green"), add("b", p="green"), add("c", p="red")]
        upload(made, *adds, folder=pathlib.Path(folder))
        made.store.put(f"t/_delta_log/{1:020d}.json", orjson.dumps(add("b", p="red")))
        made.store.put(f"t/_delta_log/{2:020d}.json", orjson.dumps(add("b", p="green")))
        whole, lists = dict(made.store.objects), itertools.count()

        def between(asked: str) -> None:
            made.store.objects.update(whole)
            if "list-type" in asked and next(lists) == 1:
                for key in [key for key in whole if key.startswith("t/") and key != kept]:
                    del made.store.objects[key]

        made.agent.before = between
        made.get("t/_delta_log/_last_checkpoint")
        if adds_shown(made.get(f"t/{CHECKPOINT}").body, pathlib.Path(folder)) != {"a"}:
            yield "a checkpoint shows a file that commits the index had not seen deny"


@pytest.mark.parametrize("get_mode", GetMode)
def test_whatever_can_be_fetched_holds_nothing_hidden(tmp_path: pathlib.Path, get_mode: GetMode) -> None:
    assert list(wrong(tmp_path, None, get_mode, thorough=get_mode is GetMode.PROXY)) == []


RULES: dict[str, tuple[str, *tuple[tuple[str, str], ...]]] = {
    "gate: only an unrestricted principal gets the table as it is": (
        "delta.gate",
        (
            "        if table.grant.is_everything:\n            return Served",
            "        if True:\n            return Served",
        ),
    ),
    "gate: a path the log does not name is absent": (
        "delta.gate",
        (
            "        if not entries:\n            return Absent()",
            "        if not entries:\n            return Served(Use.DATA)",
        ),
    ),
    "gate: a path the log names and the grant does not open is denied": (
        "delta.gate",
        ("        if isinstance(decision, Denied):\n", "        if False:\n"),
    ),
    "gate: a data file is served only when the mask allows it": (
        "delta.gate",
        ("self._masks.allows_data(index, table.grant, entries, now)", "True"),
    ),
    "gate: deletion vectors are masked": (
        "delta.gate",
        ("_SERVED_DATA if shown is None else Served(Use.DELETION_VECTOR, shown)", "_SERVED_DATA"),
    ),
    "view_names: a log file of another kind does not exist": (
        "delta.view_names",
        ("return file if shown and name.isprintable() else None", "return file"),
    ),
    "gate: a restricted principal gets the view of a log file": (
        "delta.gate",
        ("served.use is Use.LOG and restricted and self._filtered", "False"),
    ),
    "gate: a listing is filtered": (
        "delta.gate",
        (
            "        if table.grant.is_everything:\n            return WholeTable()",
            "        if True:\n            return WholeTable()",
        ),
    ),
    "masks: a data file is open when its values are granted": (
        "delta.masks",
        (
            "if entry.kind is FileKind.DELETION_VECTOR or not bits[entry.tuple_id]:",
            "if entry.kind is FileKind.DELETION_VECTOR:",
        ),
    ),
    "masks: deletion vectors are not open as data is": (
        "delta.masks",
        (
            "if entry.kind is FileKind.DELETION_VECTOR or not bits[entry.tuple_id]:",
            "if not bits[entry.tuple_id]:",
        ),
    ),
    "masks: an unknown feature closes the table": (
        "delta.masks",
        (
            "    if index.metadata.unknown_features:\n        return Reason",
            "    if False:\n        return Reason",
        ),
    ),
    "masks: an unknown feature closes the data files": (
        "delta.masks",
        (
            "    if index.metadata.unknown_features:\n        return _CLOSED",
            "    if False:\n        return _CLOSED",
        ),
    ),
    "views: an ETag is the view's own": ("delta.views", ("\\n{etag}\\n{view}", "\\n{etag}")),
    "views: views are kept apart": (
        "delta.views",
        ("key = await self._key_of(alias, grant, file, stat, now, known)", 'key = "one for all"'),
    ),
    "views: what is downloaded is what was asked for": (
        "delta.views",
        ("download(path, target)).etag != stat.etag:", "download(path, target)).etag == '':"),
    ),
    "views: an index older than the file does not judge it": (
        "delta.views",
        (
            "await self._cache.as_of(alias, table.catalog.since(file.path))",
            "await self._cache.complete(alias)",
        ),
    ),
    "views: a sidecar that no checkpoint names is absent": (
        "delta.views",
        (
            "        if columns is None:\n            raise NoSuchKey()",
            "        if columns is None:\n            return ()",
        ),
    ),
    "views: a sidecar that no checkpoint names is not listed": (
        "delta.views",
        ("sidecar and not await self._is_named(table, file)", "False"),
    ),
    "views: what was made ahead is served by an index that knows the file": (
        "delta.views",
        ("if not grant.is_relative and file.kind not in KINDS:", "if not grant.is_relative:"),
    ),
    "ahead: a path that may lead out of the table waits for the index": (
        "delta.ahead",
        ("if pc.any(pc.match_substring_regex(paths, FOREIGN)).as_py():", "if False:"),
    ),
    "ahead: the grant decides about values": (
        "delta.ahead",
        ("isinstance(decide(grant, partition, now), Allowed)", "True"),
    ),
    "views: the hint is rewritten": (
        "delta.views",
        ("last_checkpoint.rewrite(found.body, names)", "found.body"),
    ),
    "views: deletion vectors are zeroed": (
        "delta.views",
        ("deletion_vectors.mask(chunk, position, shown)", "chunk"),
    ),
    "views: checkpoints are rewritten": (
        "delta.views",
        (
            "        checkpoints.rewrite(source, target, questions())\n",
            "        target.write_bytes(source.read_bytes())\n",
        ),
    ),
    "visibility: of the log the files of the view are listed": (
        "delta.visibility",
        (
            "path.startswith(LOG_DIRECTORY) and view_file(path[len(LOG_DIRECTORY) :]) is not None",
            "path.startswith(LOG_DIRECTORY)",
        ),
    ),
    "visibility: of the data the granted files are listed": (
        "delta.visibility",
        ("for path, _, etag, _, _ in data if path in granted", "for path, _, etag, _, _ in data"),
    ),
    "visibility: log files are listed under the ETags of the view": (
        "delta.visibility",
        ("return derived_etag(etag, self.key)", "return etag"),
    ),
    "visibility: deletion vectors are listed under the ETags of what is shown": (
        "delta.visibility",
        ("item.etag if shown is None else derived_etag(item.etag, vector_key(shown))", "item.etag"),
    ),
    "visibility: a common prefix of hidden files is hidden": (
        "delta.visibility",
        ("return None if maybe else False", "return True"),
    ),
    "visibility: denied vectors are not shown": (
        "delta.visibility",
        ("for entry in vectors if mask.allows_vector(entry)]", "for entry in vectors]"),
        ("return regions(granted, denied)", "return regions(granted, [])"),
    ),
    "view_history: what a path had later counts for old versions": (
        "delta.view_history",
        ("return mask.allows(entries) if entries else None", "return True if entries else None"),
    ),
    "view_history: what a path had later counts in checkpoints": (
        "delta.view_history",
        (
            "np.invert(pc.is_in(paths, denied).to_numpy(zero_copy_only=False))",
            "np.ones(len(paths), np.bool_)",
        ),
    ),
    "view_history: the grant decides about values": (
        "delta.view_history",
        ("isinstance(decide(grant, partition, now), Allowed)", "True"),
    ),
    "listing: what is not shown is not listed": (
        "delta.visibility",
        ("for path, _, etag, _, _ in data if path in granted", "for path, _, etag, _, _ in data"),
    ),
    "listing: what is not served is not listed": (
        "delta.visibility",
        ("item.path not in unserved and self.shows(item.path)", "self.shows(item.path)"),
    ),
    "listing: a common prefix with nothing below is not listed": (
        "resources.listing",
        (
            "_comes_after(entry, after) and await self._shows_below(visibility, entry, after)",
            "_comes_after(entry, after)",
        ),
    ),
    "listing: a common prefix is shown only for what is visible behind the start": (
        "resources.listing",
        ("within = after if after is not None and after.startswith(group) else None", "within = None"),
    ),
    "listing: keys have the ETag that GET gives": (
        "delta.visibility",
        ("item.path: self.etag(item.path, item.etag)", "item.path: item.etag"),
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_without_the_rule_something_is_wrong(tmp_path: pathlib.Path, rule: str) -> None:
    module, *changes = RULES[rule]
    parts = altered.parts(module, *changes)
    modes = (wrong(tmp_path / mode.value, parts, mode, thorough=False) for mode in GetMode)
    assert next(itertools.chain(*modes), None) is not None


def test_the_marker_is_in_every_kind_of_file() -> None:
    assert sum(MARK.encode() in body for body in leaky_table().values()) > 20
