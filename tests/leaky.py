"""A table in which everything of the denied partition carries a marker, and a crawler that looks for it.

The crawler asks for every key that is in the table, could be in it or is listed, in every way there is, and
looks into what comes back as far as it can be decoded. It knows the proxy only by a function that asks it, so
that it works over the wire and in memory.
"""

from __future__ import annotations

import io
import pathlib
import re
import tempfile
import urllib.parse
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol
from xml.etree import ElementTree

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from delta_proxy.delta.paths import decode_z85
from tests.delta.view.support import (
    CHECKPOINT_SCHEMA,
    add,
    bytes_within,
    lines,
    metadata,
    remove,
    write_checkpoint,
)

MARK = "HIDDEN"
GRANTED = {"p": "green"}
DENIED = {"p": f"{MARK}-value"}
VECTOR_NAME = "0" * 19 + "7"
VECTORS = f"deletion_vector_{uuid.UUID(bytes=decode_z85(VECTOR_NAME))}.bin"

_UUID = "2a15d0c6-8b11-4a98-bab4-957905d62f7f"
_SIDECAR = "016ae953-37a9-438e-8683-9a9a4a79a395.parquet"
_PROTOCOL = {
    "minReaderVersion": 3,
    "minWriterVersion": 7,
    "readerFeatures": ["deletionVectors", "v2Checkpoint"],
    "writerFeatures": ["deletionVectors", "v2Checkpoint"],
}
_SECRETS: dict[str, Any] = {
    "stats": f'{{"numRecords":1,"minValues":{{"x":"{MARK}-min"}}}}',
    "tags": {"t": f"{MARK}-tag"},
}
_INFO = {
    "timestamp": 1700000000000,
    "userName": f"{MARK}-user",
    "operation": "WRITE",
    "operationParameters": {"predicate": f"p = '{MARK}'"},
    "userMetadata": f"{MARK}-note",
    "engineInfo": f"{MARK}-engine",
}
_NOISE: tuple[dict[str, Any], ...] = (
    {"commitInfo": _INFO},
    {"txn": {"appId": f"{MARK}-app", "version": 1}},
    {"domainMetadata": {"domain": f"{MARK}-domain", "configuration": MARK, "removed": False}},
)


def _vector(offset: int, size: int) -> dict[str, Any]:
    return {
        "storageType": "u",
        "pathOrInlineDv": VECTOR_NAME,
        "offset": offset,
        "sizeInBytes": size,
        "cardinality": 1,
    }


def data_file(text: str) -> bytes:
    """A Parquet file with one row."""
    out = io.BytesIO()
    pq.write_table(pa.table({"x": [text]}), out)
    return out.getvalue()


def leaky_table() -> dict[str, bytes]:
    """The files of the table by their paths. Of its data only `p=green/` is granted to `{"p": "green"}`.

    Version 1 has a classic checkpoint, version 3 one with a JSON manifest and a sidecar. A file that was
    green in version 0 is denied in version 3, and so was denied all along.
    """
    first, second = b"granted vector..", f"{MARK}-vector".encode()
    vectors = b"\x01" + b"".join(
        len(body).to_bytes(4, "big") + body + b"\0\0\0\0" for body in (first, second)
    )
    green_vector, hidden_vector = _vector(1, len(first)), _vector(1 + 4 + len(first) + 4, len(second))
    denied = f"p={MARK}-value"
    a, b = add("p=green/a.parquet", GRANTED), add(f"{denied}/b.parquet", DENIED, **_SECRETS)
    a["deletionVector"], b["deletionVector"] = green_vector, hidden_vector
    c, d = add("p=green/c.parquet", GRANTED), add(f"{denied}/d.parquet", DENIED, **_SECRETS)
    moved = add(f"{MARK}-relabelled.parquet", GRANTED, **_SECRETS)
    relabelled = add(f"{MARK}-relabelled.parquet", DENIED, **_SECRETS)
    changes = [
        {"cdc": {"path": f"_change_data/{MARK}.parquet", "partitionValues": DENIED, "size": 1}},
        {"cdc": {"path": "_change_data/green.parquet", "partitionValues": GRANTED, "size": 1}},
    ]
    head: list[dict[str, Any]] = [{"protocol": _PROTOCOL}, {"metaData": metadata()}]
    early = [{"add": a}, {"add": b}, {"add": moved}]
    late = [{"add": a}, {"add": b}, {"add": c}, {"add": d}, {"add": relabelled}]
    log = {
        f"{0:020d}.json": lines(*_NOISE, *head, *early),
        f"{1:020d}.json": lines(*_NOISE, {"add": c}, {"add": d}, *changes),
        f"{2:020d}.json": lines(*_NOISE, {"add": add(f"{denied}/e.parquet", DENIED, **_SECRETS)}),
        f"{3:020d}.json": lines(
            *_NOISE, {"remove": remove(f"{denied}/e.parquet", DENIED)}, {"add": relabelled}
        ),
        f"{4:020d}.json": lines(*_NOISE, {"remove": remove("p=green/c.parquet", GRANTED)}),
        f"{1:020d}.checkpoint.parquet": _checkpoint([*head, *early, {"add": c}, {"add": d}, *_NOISE[1:]]),
        f"_sidecars/{_SIDECAR}": _checkpoint(late),
        f"_sidecars/{MARK}.parquet": _checkpoint(late),
        f"{2:020d}.crc": MARK.encode(),
        f"{0:020d}.{2:020d}.compacted.json": lines(*late),
        f"_staged_commits/{5:020d}.{_UUID}.json": lines(*late),
        f"_commit_{_UUID}.json.tmp": MARK.encode(),
        ".tmp/x": MARK.encode(),
        "_last_vacuum_info": MARK.encode(),
        f"{MARK}.json": MARK.encode(),
    }
    sidecar = {
        "path": _SIDECAR,
        "sizeInBytes": len(log[f"_sidecars/{_SIDECAR}"]),
        "modificationTime": 1,
        "tags": {"t": f"{MARK}-tag"},
    }
    manifest = f"{3:020d}.checkpoint.{_UUID}.json"
    log[manifest] = lines(
        {"checkpointMetadata": {"version": 3, "tags": {"t": MARK}}}, *head, {"sidecar": sidecar}, *_NOISE[1:]
    )
    log["_last_checkpoint"] = orjson.dumps(
        {
            "version": 3,
            "size": 424242,
            "numOfAddFiles": 424242,
            "tags": {"t": MARK},
            "checksum": MARK,
            "v2Checkpoint": {
                "path": manifest,
                "sizeInBytes": len(log[manifest]),
                "modificationTime": 1,
                "nonFileActions": [_NOISE[1]],
                "sidecarFiles": [sidecar],
            },
        }
    )
    data = {
        path: data_file(path if MARK in path else "green")
        for path in (
            *(each["add"]["path"] for each in late),
            f"{denied}/e.parquet",
            "_change_data/green.parquet",
            f"_change_data/{MARK}.parquet",
        )
    }
    others = {
        VECTORS: vectors,
        f"p=green/{MARK}-unreferenced.parquet": data_file(MARK),
        "_symlink_format_manifest/manifest": MARK.encode(),
        "metadata/v1.metadata.json": MARK.encode(),
        "_delta_index/x": MARK.encode(),
    }
    return {f"_delta_log/{name}": body for name, body in log.items()} | data | others


SERVED = frozenset(
    {
        *(f"_delta_log/{version:020d}.json" for version in range(5)),
        f"_delta_log/{1:020d}.checkpoint.parquet",
        f"_delta_log/{3:020d}.checkpoint.{_UUID}.json",
        f"_delta_log/_sidecars/{_SIDECAR}",
        "_delta_log/_last_checkpoint",
        "p=green/a.parquet",
        "p=green/c.parquet",
        "_change_data/green.parquet",
        VECTORS,
    }
)
"""The paths of the table that there are for a grant of p = green."""

FORBIDDEN = frozenset(
    {
        f"p={MARK}-value/b.parquet",
        f"p={MARK}-value/d.parquet",
        f"p={MARK}-value/e.parquet",
        f"{MARK}-relabelled.parquet",
        f"_change_data/{MARK}.parquet",
    }
)
"""The paths that the log names and the grant does not open: 403. All others are 404."""


def _checkpoint(rows: Iterable[Mapping[str, Any]]) -> bytes:
    vector = pa.struct(
        {
            "storageType": pa.string(),
            "pathOrInlineDv": pa.string(),
            "offset": pa.int32(),
            "sizeInBytes": pa.int32(),
            "cardinality": pa.int64(),
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        path = write_checkpoint(pathlib.Path(folder, "checkpoint"), list(rows), _with_vectors(vector))
        return path.read_bytes()


def _with_vectors(vector: pa.DataType) -> pa.Schema:
    """The schema of a checkpoint whose adds have deletion vectors."""
    place = CHECKPOINT_SCHEMA.get_field_index("add")
    inner = [*CHECKPOINT_SCHEMA.field("add").type, pa.field("deletionVector", vector)]
    return CHECKPOINT_SCHEMA.set(place, pa.field("add", pa.struct(inner)))


class Answer(Protocol):
    """An answer of the proxy."""

    @property
    def status(self) -> int:
        """The status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """The fields, their names in lower case."""
        ...

    @property
    def body(self) -> bytes:
        """The body."""
        ...


Ask = Callable[[str, str, Mapping[str, str]], Answer]


def findings(ask: Ask, alias: str, *, thorough: bool = True, each: Any = map) -> Iterator[str]:
    """All that is wrong with what the proxy answers for the table of an alias, to a grant of p = green.

    Unless `thorough` there are no guesses, fewer ranges and fewer listings. `each` may ask in parallel.
    """
    table = leaky_table()
    listed = _listed(ask, alias)
    if listed.keys() != SERVED:
        yield f"listed: {sorted(listed.keys() ^ SERVED)}"

    def check(path: str) -> list[str]:
        return list(_key(ask, f"{alias}/{path}", path, listed.get(path), thorough))

    for found in each(check, sorted({*table, *listed, *(_guesses(table) if thorough else ())})):
        yield from found
    yield from listings(ask, alias, len(table) if thorough else 2, each)


def _guesses(table: Iterable[str]) -> Iterator[str]:
    """Names near those of the table."""
    for path in table:
        yield from (path + "/", path.rpartition("/")[0] + "/", path + ".crc", f"./{path}", f"x/../{path}")
    yield from (f"_delta_log/{version:020d}.json" for version in (5, 6))
    yield from (f"_delta_log/_sidecars/{'0' * 8}.parquet", "_delta_log", "_delta_log/", "p=green", "")


_RANGES = ("bytes=1-", "bytes=-8", "bytes=0-0", "bytes=5-90", "bytes=999999-", "bytes=0-1,5-6")
_CONDITIONS = (("If-Match", '"x"'), ("If-None-Match", "*"), ("If-None-Match", '"x"'))


def _key(ask: Ask, key: str, path: str, listed: tuple[int, str] | None, thorough: bool) -> Iterator[str]:
    target = f"/datalake/{urllib.parse.quote(key, safe='/-._~')}"
    got, head = ask("GET", target, {}), ask("HEAD", target, {})
    wanted = {200, 307} if path in SERVED else {403} if path in FORBIDDEN else {404}
    if got.status not in wanted or (head.status not in wanted and got.status != 307):
        yield f"{path}: GET {got.status}, HEAD {head.status}"
    answers = {"GET": got, "HEAD": head}
    absent = got.status == 404 and not thorough
    for value in _RANGES if thorough else () if absent else _RANGES[:2]:
        answers[value] = ask("GET", target, {"Range": value})
    for name, value in _CONDITIONS if thorough else ():
        answers[name + value] = ask("GET", target, {name: value})
    for query in ("partNumber=1", "partNumber=2", "response-content-type=text/plain") if thorough else ():
        answers[query] = ask("GET", f"{target}?{query}", {})
    for what, answer in answers.items():
        yield from (f"{path}: {what}: {where}" for where in _marks(answer, key))
    if got.status == 200 and listed is not None:
        yield from _consistent(path, got, head, listed, answers)


def _consistent(
    path: str, got: Answer, head: Answer, listed: tuple[int, str], answers: Mapping[str, Answer]
) -> Iterator[str]:
    """HEAD, GET, LIST and ranges must tell of one and the same object."""
    sizes = {int(head.headers["content-length"]), len(got.body), listed[0]}
    if len(sizes) != 1 or len({head.headers["etag"], got.headers["etag"], listed[1]}) != 1:
        yield f"{path}: GET, HEAD and LIST differ"
    if answers["bytes=1-"].body != got.body[1:] or answers["bytes=-8"].body != got.body[-8:]:
        yield f"{path}: its ranges are not of it"


def _marks(answer: Answer, asked: str) -> Iterator[str]:
    """Where an answer holds the marker, beyond the key that was asked for."""
    for name, value in answer.headers.items():
        if MARK in _without(value, asked):
            yield f"header {name}: {value}"
    if MARK in _without(answer.body.decode("latin-1"), asked):
        yield "body"
    if answer.body[:4] == b"PAR1" and answer.body[-4:] == b"PAR1" and MARK.encode() in _decoded(answer.body):
        yield "a page of Parquet"


def _without(text: str, asked: str) -> str:
    """The text without what the client itself said."""
    for spelled in (asked, urllib.parse.quote(asked, safe="/-._~"), urllib.parse.quote(asked, safe="/")):
        text = text.replace(spelled, "")
    return text


def _decoded(body: bytes) -> bytes:
    with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
        file.write(body)
        file.flush()
        table = pq.read_table(io.BytesIO(body))
        return bytes_within(pathlib.Path(file.name)) + repr(table.to_pylist()).encode()


def _entries(body: bytes) -> tuple[dict[str, tuple[int, str]], list[str]]:
    root = ElementTree.fromstring(re.sub(rb' xmlns="[^"]*"', b"", body, count=1))
    keys = {
        item.findtext("Key", ""): (int(item.findtext("Size", "0")), item.findtext("ETag", ""))
        for item in root.iterfind("Contents")
    }
    return keys, [item.findtext("Prefix", "") for item in root.iterfind("CommonPrefixes")]


def _listed(ask: Ask, alias: str) -> dict[str, tuple[int, str]]:
    """Every path that a plain listing has, with size and ETag."""
    body = ask("GET", f"/datalake?list-type=2&prefix={alias}%2F", {}).body
    return {key.partition("/")[2]: told for key, told in _entries(body)[0].items()}


def listings(ask: Ask, alias: str, most: int, each: Any = map) -> Iterator[str]:
    """What is wrong with listings of up to `most` keys a page, in every form."""

    def check(query: Mapping[str, str]) -> str | None:
        return _listing(ask, query)

    yield from filter(None, each(check, _queries(alias, most)))


def _listing(ask: Ask, query: Mapping[str, str]) -> str | None:
    text = urllib.parse.urlencode(query)
    answer = ask("GET", f"/datalake?{text}", {})
    said = [query[name] for name in ("prefix", "start-after", "marker", "delimiter") if query.get(name)]
    body = answer.body.decode()
    for value in sorted(said, key=len, reverse=True):
        for element in ("Prefix", "StartAfter", "Marker", "Delimiter"):
            for spelled in (value, urllib.parse.quote(value, safe="/"), urllib.parse.quote(value, safe="")):
                body = body.replace(f"<{element}>{spelled}</{element}>", "")
    leaks = MARK in body or any(MARK in value for value in answer.headers.values())
    return f"LIST {text}" if leaks or answer.status != 200 else None


def _queries(alias: str, most: int) -> Iterator[dict[str, str]]:
    root = f"{alias}/"
    prefixes = (
        "",
        root,
        f"{root}_",
        f"{root}_delta_log/",
        f"{root}p=",
        f"{root}p={MARK}-value/",
        f"{root}{MARK}",
    )
    for prefix in prefixes:
        for delimiter in ("", "/", "=", "H", "-"):
            for version in ("1", "2"):
                yield ({"list-type": "2"} if version == "2" else {}) | {
                    "prefix": prefix,
                    "delimiter": delimiter,
                }
    for size in range(1, most + 1):
        for after in ("", f"{root}p=H", f"{root}_delta_log/{4:020d}"):
            query = {"prefix": root, "max-keys": str(size), "start-after": after, "list-type": "2"}
            yield query
            yield {"prefix": root, "max-keys": str(size), "marker": after, "delimiter": "/"}
    yield {"list-type": "2", "prefix": root, "encoding-type": "url", "fetch-owner": "true"}
