"""Generated Delta tables, the logs only, and a table in a folder as the source of the metadata cache."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import attrs
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

VENUES: Final = tuple(f"X{first}{second}N" for first in "ABCDE" for second in "ABCDEFGH")
_VALUES = pa.map_(pa.string(), pa.string())
_SCHEMA: Final = pa.schema(
    [
        (
            "metaData",
            pa.struct(
                [
                    ("id", pa.string()),
                    ("format", pa.struct([("provider", pa.string()), ("options", _VALUES)])),
                    ("schemaString", pa.string()),
                    ("partitionColumns", pa.list_(pa.string())),
                    ("configuration", _VALUES),
                ]
            ),
        ),
        ("protocol", pa.struct([("minReaderVersion", pa.int32()), ("minWriterVersion", pa.int32())])),
        (
            "add",
            pa.struct(
                [
                    ("path", pa.string()),
                    ("partitionValues", _VALUES),
                    ("size", pa.int64()),
                    ("modificationTime", pa.int64()),
                    ("dataChange", pa.bool_()),
                    ("stats", pa.string()),
                ]
            ),
        ),
        ("remove", pa.struct([("path", pa.string()), ("deletionTimestamp", pa.int64())])),
    ]
)


def schema_string() -> str:
    """The schema of a trades table partitioned by MIC and date."""
    fields = [
        {"name": name, "type": kind, "nullable": True, "metadata": {}}
        for name, kind in (("MIC", "string"), ("date", "date"), ("price", "double"))
    ]
    return orjson.dumps({"type": "struct", "fields": fields}).decode()


def metadata() -> dict[str, object]:
    """The metaData action of the generated tables."""
    return {
        "id": "5c9a2b52-9a05-4a6e-8d5e-000000000001",
        "format": {"provider": "parquet", "options": {}},
        "schemaString": schema_string(),
        "partitionColumns": ["MIC", "date"],
        "configuration": {},
    }


def partition(number: int) -> tuple[str, str]:
    """The MIC and the date of the n-th file; there are 40 times 100 combinations."""
    day = number // len(VENUES) % 100
    return VENUES[number % len(VENUES)], f"2024-{day // 28 + 1:02d}-{day % 28 + 1:02d}"


def path(number: int) -> str:
    """The path of the n-th file, about 100 characters, in no order."""
    mic, date = partition(number)
    scrambled = number * 2654435761 % (1 << 32)
    name = f"part-{number % 200:05d}-{scrambled:08x}-4a6e-8d5e-{number:012x}.c000.snappy.parquet"
    return f"MIC={mic}/date={date}/{name}"


def stats(number: int) -> str:
    """The statistics of the n-th file, as a string like delta-spark writes."""
    counts = f'"numRecords":{number % 1000}'
    return f'{{{counts},"minValues":{{"price":{number}.5}},"maxValues":{{"price":{number}.75}}}}'


def write_checkpoint(log: Path, version: int, files: int, batch: int = 50_000) -> Path:
    """A classic checkpoint of `files` live files, with statistics, written in bounded memory."""
    log.mkdir(parents=True, exist_ok=True)
    target = log / f"{version:020d}.checkpoint.parquet"
    header = [{"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}}, {"metaData": metadata()}]
    with pq.ParquetWriter(target, _SCHEMA, compression="snappy") as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(header, schema=_SCHEMA))
        for start in range(0, files, batch):
            writer.write_batch(_adds(range(start, min(start + batch, files))))
    return target


def _adds(numbers: range) -> pa.RecordBatch:
    """The adds of `add`, column by column: a table of ten million files takes minutes row by row."""
    count = len(numbers)
    values = [value for number in numbers for value in partition(number)]
    partitions = pa.MapArray.from_arrays(
        np.arange(0, 2 * count + 1, 2, dtype=np.int32), pa.array(["MIC", "date"] * count), pa.array(values)
    )
    positions = np.arange(numbers.start, numbers.stop, dtype=np.int64)
    adds = pa.StructArray.from_arrays(
        [
            pa.array([path(number) for number in numbers]),
            partitions,
            pa.array(positions + 1_000_000),
            pa.array(positions + 1_700_000_000_000),
            pa.array(np.ones(count, np.bool_)),
            pa.array([stats(number) for number in numbers]),
        ],
        fields=list(_SCHEMA.field("add").type),
    )
    columns = [adds if field.name == "add" else pa.nulls(count, field.type) for field in _SCHEMA]
    return pa.RecordBatch.from_arrays(columns, schema=_SCHEMA)


def add(number: int) -> dict[str, object]:
    """The add action of the n-th file."""
    mic, date = partition(number)
    return {
        "path": path(number),
        "partitionValues": {"MIC": mic, "date": date},
        "size": 1_000_000 + number,
        "modificationTime": 1_700_000_000_000 + number,
        "dataChange": True,
        "stats": stats(number),
    }


def write_commit(log: Path, version: int, numbers: Iterable[int], *, header: bool = False) -> Path:
    """A commit that adds the numbered files; `header` puts protocol and metaData before them."""
    log.mkdir(parents=True, exist_ok=True)
    target = log / f"{version:020d}.json"
    with target.open("wb") as file:
        file.write(orjson.dumps({"commitInfo": {"operation": "WRITE"}}) + b"\n")
        if header:
            file.write(orjson.dumps({"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}}) + b"\n")
            file.write(orjson.dumps({"metaData": metadata()}) + b"\n")
        for number in numbers:
            file.write(orjson.dumps({"add": add(number)}) + b"\n")
    return target


@attrs.frozen
class FolderObject:
    """A file of a folder, listed or read. `path` is relative to the folder."""

    path: str
    size: int
    etag: str
    body: bytes = b""


@attrs.frozen
class FolderPage:
    """A page of the listing of a folder."""

    objects: tuple[FolderObject, ...]
    truncated: bool


class FolderLog:
    """A table in a local folder, as a LogSource. `asked` records what was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []

    async def list(
        self, prefix: str = "", *, delimiter: str = "", start_after: str = "", max_keys: int = 1000
    ) -> FolderPage:
        """A page of the files below the folder, in the order of their paths."""
        self.asked.append(f"list {start_after}")
        files = (file for file in self.folder.rglob("*") if file.is_file())
        paths = sorted(file.relative_to(self.folder).as_posix() for file in files)
        chosen = [path for path in paths if path.startswith(prefix) and path > start_after]
        return FolderPage(tuple(self._listed(path) for path in chosen[:max_keys]), len(chosen) > max_keys)

    def _listed(self, path: str) -> FolderObject:
        status = (self.folder / path).stat()
        stamp = f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"
        return FolderObject(path, status.st_size, hashlib.sha256(stamp.encode()).hexdigest())

    async def read(self, path: str, *, limit: int) -> FolderObject:
        """A file, whole."""
        self.asked.append(f"read {path}")
        return attrs.evolve(self._listed(path), body=(self.folder / path).read_bytes())

    async def download(self, path: str, into: Path) -> object:
        """Copy a file."""
        self.asked.append(f"download {path}")
        return shutil.copyfile(self.folder / path, into)
