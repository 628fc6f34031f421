"""What the index costs: build time, memory, look-ups, and the reactor's longest stall while it builds.

    python -m bench.index [--files 1000000] [--table FOLDER]

Without --table a table with a checkpoint is generated. Each table is measured in a process of its own,
because memory is measured as the growth of the process.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import random
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import attrs
import orjson
import zstandard
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from bench.tables import FolderLog, path, write_checkpoint, write_commit
from delta_proxy.access.policy import parse_filters
from delta_proxy.delta.cache import MetadataCache
from delta_proxy.delta.index import TableIndex
from delta_proxy.delta.masks import GrantMasks
from delta_proxy.delta.paths import TableRoot
from delta_proxy.delta.source import TableSource

reactor: Any = installed_reactor
_TICK: Final = 0.005
_LOOKUPS: Final = 20_000
_SHARED: Final = (
    Path(__file__).parents[2] / "shared" / "tables" / "300k-add-files-100-col-partitioned.tar.zst"
)


def resident(kind: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) * 1024
    raise LookupError(kind)


@attrs.define
class Stalls:
    """Notes how late a timer of the reactor comes."""

    longest: float = 0.0
    last: float = attrs.field(factory=time.perf_counter)

    def tick(self) -> None:
        """The timer."""
        now = time.perf_counter()
        self.longest = max(self.longest, now - self.last - _TICK)
        self.last = now


def row(name: str, value: float, unit: str) -> None:
    """Print a figure."""
    print(f"  {name:<44}{value:>12.2f} {unit}", flush=True)


def percentiles(work: Callable[[Any], object], cases: list[Any]) -> tuple[float, float]:
    """The median and the 99th percentile of the time of one call, in microseconds."""
    times = []
    for case in cases:
        begun = time.perf_counter_ns()
        work(case)
        times.append((time.perf_counter_ns() - begun) / 1_000)
    return statistics.median(times), sorted(times)[int(len(times) * 0.99)]


async def idle(seconds: float) -> None:
    """Let the reactor run."""
    waiting: Deferred[None] = Deferred()
    reactor.callLater(seconds, waiting.callback, None)
    await waiting


async def measure(folder: Path, known: list[str], commits: int) -> None:
    """Build the index of a table and print what it cost; `known` are some of its paths."""
    pool = reactor.getThreadPool()
    stalls = Stalls()
    timer = LoopingCall(stalls.tick)
    with tempfile.TemporaryDirectory() as directory:
        source = TableSource("bench", TableRoot("bucket", "table"), FolderLog(folder))
        cache = MetadataCache(
            {"table": source},
            clock=reactor,
            defer_to_pool=lambda work, *args: deferToThreadPool(reactor, pool, work, *args),
            directory=Path(directory),
        )
        timer.start(_TICK)
        await idle(0.5)
        stalls.longest = 0.0
        await idle(1.0)
        row("longest stall of an idle reactor", stalls.longest * 1000, "ms")
        stalls.longest = 0.0
        before, cpu, begun = resident("VmRSS"), time.process_time(), time.perf_counter()
        private = resident("RssAnon")
        index = await cache.table("table")
        row("build", time.perf_counter() - begun, "s")
        row("processor time of the build", time.process_time() - cpu, "s")
        row("the index on disk", size_of_index(directory) / 1e6, "MB")
        row("longest stall of the reactor while building", stalls.longest * 1000, "ms")
        row("peak resident growth while building", (resident("VmHWM") - before) / 1e6, "MB")
        begun, stalls.longest = time.perf_counter(), 0.0
        index = await cache.complete("table")
        row("reading the history", time.perf_counter() - begun, "s")
        row("longest stall of the reactor meanwhile", stalls.longest * 1000, "ms")
        timer.stop()
        row("statements", index.rows, "")
        row("distinct partition tuples", len(index.partitions), "")
        look(index, known)
        row("resident growth after", (resident("VmRSS") - before) / 1e6, "MB")
        row("private growth after", (resident("RssAnon") - private) / 1e6, "MB")
        await grow(cache, folder, index.version, commits)
        begun = time.perf_counter()
        again = MetadataCache(
            {"table": source},
            clock=reactor,
            defer_to_pool=lambda work, *args: deferToThreadPool(reactor, pool, work, *args),
            directory=Path(directory),
        )
        await again.table("table")
        row("first use after a restart", time.perf_counter() - begun, "s")


def size_of_index(directory: str) -> int:
    """Bytes of the file of the one index in a directory."""
    return sum(file.stat().st_size for file in Path(directory).glob("*.arrow"))


def look(index: TableIndex, known: list[str]) -> None:
    """Print what questions cost."""
    rng = random.Random(7)
    for name, cases in (
        ("look-up of a known path", rng.choices(known, k=_LOOKUPS)),
        ("look-up of an unknown path", [f"{one}x" for one in rng.choices(known, k=_LOOKUPS)]),
    ):
        assert all(bool(index.lookup(one)) is (name == "look-up of a known path") for one in cases[:100])
        median, high = percentiles(index.lookup, cases)
        row(f"{name}, median", median, "us")
        row(f"{name}, 99th percentile", high, "us")
    column = index.metadata.columns[0].name
    granted = parse_filters([{column: "~ no such value"}])
    begun = time.perf_counter()
    bits = GrantMasks().of(index, granted, datetime.now(UTC)).bits
    row("a new grant's mask", (time.perf_counter() - begun) * 1000, "ms")
    index.next_visible("", "", bits)
    begun = time.perf_counter()
    assert index.next_visible("", "", bits) is None
    row("next visible path when all is denied", (time.perf_counter() - begun) * 1000, "ms")


async def grow(cache: MetadataCache, folder: Path, version: int, commits: int) -> None:
    """Print what commits of ten files cost."""
    before, begun, cpu = resident("RssAnon"), time.perf_counter(), time.process_time()
    for step in range(1, commits + 1):
        first = 10_000_000 + step * 10
        write_commit(folder / "_delta_log", version + step, range(first, first + 10))
        await cache.refreshed("table", 0.0)
    row("taking in a commit of ten files", (time.perf_counter() - begun) / commits * 1000, "ms")
    row("processor time of that", (time.process_time() - cpu) / commits * 1000, "ms")
    row("private growth for each such commit", (resident("RssAnon") - before) / commits / 1e3, "kB")


def run(folder: Path, known: list[str], commits: int) -> None:
    """Measure one table in this process."""
    # As the service does when it starts.
    gc.collect()
    gc.freeze()
    failed: list[Failure] = []
    work = Deferred.fromCoroutine(measure(folder, known, commits))
    work.addErrback(failed.append)
    work.addBoth(lambda _: reactor.stop())
    reactor.run()
    for failure in failed:
        print(failure.getTraceback(), file=sys.stderr)
    sys.exit(bool(failed))


def in_own_process(folder: Path, known: list[str], commits: int) -> None:
    """Measure one table in a new process. Raises RuntimeError when that fails."""
    process = multiprocessing.get_context("spawn").Process(target=run, args=(folder, known, commits))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError("the measurement failed")


def unpack(archive: Path, into: Path) -> Path:
    """The table of a .tar.zst archive."""
    with (
        archive.open("rb") as packed,
        zstandard.ZstdDecompressor().stream_reader(packed) as plain,
        tarfile.open(fileobj=plain, mode="r|") as tar,
    ):
        tar.extractall(into, filter="data")
    return next(into.rglob("_delta_log")).parent


def paths_of(folder: Path) -> list[str]:
    """Paths that the commits of a table add; they must hold no escapes."""
    found: list[str] = []
    for commit in sorted((folder / "_delta_log").glob("*.json")):
        lines = (line for line in commit.read_bytes().splitlines() if b'"add"' in line)
        found += (orjson.loads(line)["add"]["path"] for line in lines)
    return [name for name in found if "%" not in name][:100_000]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--commits", type=int, default=50)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--generated", action="store_true", help="no other table than the generated one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if options.table:
            in_own_process(options.table, paths_of(options.table), options.commits)
            return
        print(f"{options.files} files in a checkpoint")
        folder = Path(scratch) / "generated"
        write_checkpoint(folder / "_delta_log", 10, options.files)
        in_own_process(
            folder,
            [path(number) for number in range(0, options.files, max(10, options.files // 100_000))],
            options.commits,
        )
        if _SHARED.exists() and not options.generated:
            print("300,000 files in one commit of JSON")
            folder = unpack(_SHARED, Path(scratch) / "unpacked")
            in_own_process(folder, paths_of(folder), options.commits)


if __name__ == "__main__":
    main()
