"""The tables that the matrix reads: small Parquet files in two zones, one granted and one not, under plain
and under hard names, and one object that is large enough to be read in parts."""

from __future__ import annotations

import hashlib
import io
import json
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.integration.servers import BUCKET, Store

SHELF = "shelf"
PLAIN_TABLE = "plain"
HARD_TABLE = "hard"
MANY = "many"
ALIASES = (SHELF, PLAIN_TABLE, HARD_TABLE, MANY)
COUNT = 1100
OPEN, CLOSED = "open", "closed"
LARGE = 24 * 1024 * 1024
PLAIN = tuple(f"zone={OPEN}/part-{number:02}.parquet" for number in range(23))
SPECIAL = tuple(
    f"zone={OPEN}/hard/{name}.parquet"
    for name in (
        "a b+c",
        "per%20cent%2F",
        "ümlaut-日本",
        "quote'()!*~",
        "at@amp&dollar$eq=",
        "semi;comma,colon:",
        "hash#question?",
        "[x]{y}^|<>",
    )
)
REFUSED = f"zone={CLOSED}/secret.parquet"
WHOLE = f"zone={OPEN}/large.bin"


@attrs.frozen
class Shelf:
    """What the tables hold, by key below the bucket: `alias/path`."""

    bodies: dict[str, bytes]
    rows: dict[str, tuple[int, int]]

    def table(self, alias: str, zone: str) -> tuple[int, int]:
        """The rows of a zone of a table, and the sum of their identifiers."""
        found = [each for key, each in self.rows.items() if key.startswith(f"{alias}/zone={zone}/")]
        return sum(count for count, _ in found), sum(total for _, total in found)

    def granted(self, prefix: str) -> list[str]:
        """The keys below a prefix that a listing shows: all of them but the closed zone's."""
        return sorted(key for key in self.bodies if key.startswith(prefix) and f"zone={CLOSED}/" not in key)


def make() -> Shelf:
    """The tables' objects. `shelf` holds all names, for readers of objects and files; the others are for
    readers of whole tables: `plain` has files in each zone, `hard` the hard names. `many` has more files than
    a page of a listing."""
    bodies: dict[str, bytes] = {}
    rows: dict[str, tuple[int, int]] = {}
    layout = {
        SHELF: (*PLAIN, *SPECIAL, REFUSED),
        PLAIN_TABLE: (*PLAIN[:2], REFUSED),
        HARD_TABLE: (*SPECIAL, REFUSED),
    }
    start = 0
    for alias, paths in layout.items():
        for path in paths:
            identifiers = range(start, start + 50)
            start += 50
            bodies[f"{alias}/{path}"] = _parquet(identifiers)
            rows[f"{alias}/{path}"] = len(identifiers), sum(identifiers)
    bodies[f"{SHELF}/{WHOLE}"] = b"".join(
        hashlib.sha256(b"%d" % number).digest() * 2048 for number in range(LARGE // 65536)
    )
    for alias, paths in layout.items():
        data = [*paths, WHOLE] if alias == SHELF else list(paths)
        bodies[_log(alias)] = _commit({path: len(bodies[f"{alias}/{path}"]) for path in data})
    names = [f"zone={OPEN}/{number:04}" for number in range(COUNT)]
    bodies |= {f"{MANY}/{name}": b"." for name in names}
    bodies[_log(MANY)] = _commit(dict.fromkeys(names, 1))
    return Shelf(bodies, rows)


def write(store: Store, shelf: Shelf) -> None:
    """Put the objects into the store's bucket."""
    client = store.boto3()

    def put(item: tuple[str, bytes]) -> None:
        client.put_object(Bucket=BUCKET, Key=item[0], Body=item[1])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, shelf.bodies.items()))


def _log(alias: str) -> str:
    return f"{alias}/_delta_log/{0:020}.json"


def _parquet(identifiers: range) -> bytes:
    table = pa.table({"id": pa.array(np.asarray(identifiers, dtype=np.int64))})
    written = io.BytesIO()
    pq.write_table(table, written)
    return written.getvalue()


def _commit(sizes: dict[str, int]) -> bytes:
    fields = [
        {"name": name, "type": kind, "nullable": True, "metadata": {}}
        for name, kind in (("id", "long"), ("zone", "string"))
    ]
    lines: list[dict[str, Any]] = [
        {"commitInfo": {"timestamp": 1_700_000_000_000, "operation": "WRITE", "operationParameters": {}}},
        {"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}},
        {
            "metaData": {
                "id": "6a9a4a52-8c0e-4a7c-9f0b-2f1f4c1a7b11",
                "format": {"provider": "parquet", "options": {}},
                "schemaString": json.dumps({"type": "struct", "fields": fields}),
                "partitionColumns": ["zone"],
                "configuration": {},
                "createdTime": 1_700_000_000_000,
            }
        },
    ]
    lines += [
        {
            "add": {
                "path": urllib.parse.quote(path, safe="/=-._~"),
                "partitionValues": {"zone": path.split("/")[0].removeprefix("zone=")},
                "size": size,
                "modificationTime": 1_700_000_000_000,
                "dataChange": True,
            }
        }
        for path, size in sizes.items()
    ]
    return "".join(f"{json.dumps(line)}\n" for line in lines).encode()
