"""How long, and in how much memory, the view rewrites its two largest kinds of file.

A checkpoint of 1,000,000 adds of which 5 % are granted, and a commit of 550 MB, made in a temporary folder.
Each rewrite runs in a process of its own, which prints its seconds and by how much its peak resident size
grew. Run it as `python bench/view_core.py [--files N] [--megabytes N]`.
"""

from __future__ import annotations

import argparse
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from delta_proxy.access.partitions import PartitionTuple
from delta_proxy.delta import checkpoints, commits
from delta_proxy.delta.view_grant import ViewGrant

_DAYS = 500
_GRANTED_DAYS = {f"2024-{day}" for day in range(0, _DAYS, 20)}
_METADATA = {
    "id": "bench",
    "format": {"provider": "parquet", "options": {}},
    "schemaString": '{"type":"struct","fields":[{"name":"day","type":"string","metadata":{}}]}',
    "partitionColumns": ["day"],
    "configuration": {},
    "createdTime": 0,
}
_STATS = '{{"numRecords":1000,"minValues":{{"x":{0},"y":"{0:08d}"}},"maxValues":{{"x":{0},"y":"{0:09d}"}}}}'


def _add(number: int) -> dict[str, object]:
    day = f"2024-{number % _DAYS}"
    return {
        "path": f"day={day}/part-{number:08d}-5f1c0d5e-8a4b-4d57-9d0f-{number:012x}.c000.snappy.parquet",
        "partitionValues": {"day": day},
        "size": 1000 + number,
        "modificationTime": 1700000000000 + number,
        "dataChange": True,
        "stats": _STATS.format(number),
    }


def make_commit(path: pathlib.Path, size: int) -> None:
    """A commit of about `size` bytes."""
    with path.open("wb") as file:
        file.write(orjson.dumps({"commitInfo": {"timestamp": 0, "operation": "WRITE"}}) + b"\n")
        file.write(orjson.dumps({"metaData": _METADATA}) + b"\n")
        number = 0
        while file.tell() < size:
            file.writelines(orjson.dumps({"add": _add(number + step)}) + b"\n" for step in range(1000))
            number += 1000


def make_checkpoint(path: pathlib.Path, files: int) -> None:
    """A classic checkpoint of `files` adds, in row groups as delta-spark writes them."""
    add = pa.struct(
        [
            ("path", pa.string()),
            ("partitionValues", pa.map_(pa.string(), pa.string())),
            ("size", pa.int64()),
            ("modificationTime", pa.int64()),
            ("dataChange", pa.bool_()),
            ("stats", pa.string()),
        ]
    )
    metadata = pa.struct(
        [
            ("id", pa.string()),
            ("schemaString", pa.string()),
            ("partitionColumns", pa.list_(pa.string())),
            ("configuration", pa.map_(pa.string(), pa.string())),
        ]
    )
    protocol = pa.struct([("minReaderVersion", pa.int32()), ("minWriterVersion", pa.int32())])
    schema = pa.schema([("add", add), ("metaData", metadata), ("protocol", protocol)])
    head = [
        {
            "metaData": {
                **{key: _METADATA[key] for key in ("id", "schemaString", "partitionColumns")},
                "configuration": [],
            }
        },
        {"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}},
    ]
    with pq.ParquetWriter(path, schema, store_schema=False) as writer:
        writer.write_table(pa.Table.from_pylist(head, schema))
        for first in range(0, files, 100_000):
            rows = [
                {"add": {**_add(number), "partitionValues": [("day", f"2024-{number % _DAYS}")]}}
                for number in range(first, min(first + 100_000, files))
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema))


def _granted(values: PartitionTuple) -> bool:
    return dict(values.values)["day"] in _GRANTED_DAYS


def _grant() -> ViewGrant:
    return ViewGrant(None, _granted, lambda path: True, pc.is_valid)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_commit(source: pathlib.Path, target: pathlib.Path) -> None:
    """Filter a commit, printing what it took."""
    before, begin = _peak(), time.perf_counter()
    facts = commits.scan(source, _grant())
    scanned = time.perf_counter()
    with target.open("wb") as file:
        for chunk in commits.emit(source, facts):
            file.write(chunk)
    end = time.perf_counter()
    print(
        f"commit of {facts.size / 1e6:.0f} MB: scan {scanned - begin:.2f} s, emit {end - scanned:.2f} s,"
        f" peak +{_peak() - before:.0f} MiB"
    )


def run_checkpoint(source: pathlib.Path, target: pathlib.Path) -> None:
    """Rewrite a checkpoint, printing what it took."""
    before, begin = _peak(), time.perf_counter()
    written = checkpoints.rewrite(source, target, _grant())
    seconds = time.perf_counter() - begin
    rows = pq.ParquetFile(source).metadata.num_rows
    print(
        f"checkpoint of {rows} rows, {source.stat().st_size / 1e6:.0f} MB, {written.adds} adds kept:"
        f" {seconds:.2f} s, peak +{_peak() - before:.0f} MiB"
    )


_STEPS: dict[tuple[str, str], Callable[[int, pathlib.Path, pathlib.Path], None]] = {
    ("make", "commit"): lambda amount, source, _: make_commit(source, amount),
    ("make", "checkpoint"): lambda amount, source, _: make_checkpoint(source, amount),
    ("run", "commit"): lambda _, source, target: run_commit(source, target),
    ("run", "checkpoint"): lambda _, source, target: run_checkpoint(source, target),
}


def main() -> None:
    """Make the files, then measure each rewrite in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--megabytes", type=int, default=550)
    parser.add_argument("--step", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        _STEPS[given.step[0], given.step[1]](int(given.step[2]), *map(pathlib.Path, given.step[3:]))
        return
    with tempfile.TemporaryDirectory() as folder:
        for kind, amount in (("checkpoint", given.files), ("commit", given.megabytes * 1_000_000)):
            source, target = pathlib.Path(folder, f"{kind}-source"), pathlib.Path(folder, f"{kind}-target")
            # A process inherits its parent's peak, so the one that makes the file must not be the parent.
            for step in ("make", "run"):
                command = [sys.executable, __file__, "--step", step, kind, str(amount), source, target]
                subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
