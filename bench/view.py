"""How long, and in how much memory, a client opens a table through the proxy that grants it 5 % of it.

Two tables: one of 1,000,000 files in a checkpoint, and one of 100,000 with 20 commits after it behind
a link of 30 ms to the store. deltalake opens each in a process of its own: directly, through a proxy that has
never seen the table, and through one that has. Run it as `python -m bench.view [--files N] [--small N]`; the
store is versitygw where there is one, else moto.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import attrs

from bench.tables import VENUES, write_checkpoint, write_commit
from delta_proxy import demo
from tests.integration import servers

_GRANTED = VENUES[: len(VENUES) // 20]
_TIMES = 3
_OPEN = """
import json, re, sys, time
import deltalake

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

before, started = peak(), time.perf_counter()
table = deltalake.DeltaTable(sys.argv[1], storage_options=json.loads(sys.argv[2]))
seconds = time.perf_counter() - started
files = len(table.file_uris())
print(json.dumps([seconds, peak() - before, files]))
"""


@attrs.frozen
class Opened:
    """One open: seconds until deltalake has the table, KiB by which the client grew, files it sees."""

    seconds: float
    kib: int
    files: int

    def __str__(self) -> str:
        return f"{self.seconds:7.3f} s {self.kib / 1024:7.0f} MB {self.files:9,d} files"


def opened(at: servers.Endpoint, uri: str) -> Opened:
    """The table opened by a new process."""
    command = [sys.executable, "-c", _OPEN, uri, json.dumps(at.storage_options)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return Opened(*json.loads(answer.stdout))


def fastest(at: servers.Endpoint, uri: str) -> Opened:
    """The fastest of some."""
    return min((opened(at, uri) for _ in range(_TIMES)), key=lambda each: each.seconds)


@contextlib.contextmanager
def distant(store: servers.Store, seconds: float) -> Iterator[servers.Store]:
    """The store at the far end of a link on which a byte takes half the time in each direction."""
    host, _, port = store.netloc.partition(":")
    loop, ready, found = asyncio.new_event_loop(), threading.Event(), list[int]()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                due, data = await queue.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                if not data:
                    writer.close()
                    return
                writer.write(data)
                await writer.drain()

        delivery = asyncio.create_task(deliver())
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 20):
                queue.put_nowait((loop.time() + seconds / 2, data))
        queue.put_nowait((loop.time() + seconds / 2, b""))
        with contextlib.suppress(OSError):
            await delivery

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, int(port))
        await asyncio.gather(forward(reader, back), forward(there, writer))

    async def listen() -> None:
        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        found.append(server.sockets[0].getsockname()[1])
        ready.set()

    def run() -> None:
        loop.run_until_complete(listen())
        loop.run_forever()

    threading.Thread(target=run, daemon=True).start()
    ready.wait()
    yield attrs.evolve(store, url=f"http://127.0.0.1:{found[0]}")
    loop.call_soon_threadsafe(loop.stop)


@contextlib.contextmanager
def a_store(folder: pathlib.Path) -> Iterator[servers.Store]:
    """versitygw where it is built, else moto."""
    binary = servers.versitygw_path()
    with servers.versitygw(folder, binary) if binary else servers.moto(folder) as store:
        yield store


def compare(store: servers.Store, name: str, folder: pathlib.Path) -> None:
    """Print what opening the table takes directly and through a proxy."""
    config: dict[str, Any] = servers.configuration(
        store,
        tableMapping={name: f"s3://{servers.BUCKET}/{name}"},
        allowedPartitions={name: [{"MIC": list(_GRANTED)}]},
        logView="filtered",
    )
    through = f"s3://{demo.PROXY_BUCKET}/{name}"
    direct = fastest(store, f"s3://{servers.BUCKET}/{name}")
    colds = []
    for number in range(_TIMES):
        place = folder / f"{name}-{number}"
        place.mkdir()
        with servers.proxy(store, config, place) as proxy:
            colds.append(opened(proxy, through))
            warm = fastest(proxy, through) if number == _TIMES - 1 else None
    cold = min(colds, key=lambda each: each.seconds)
    assert warm is not None
    print(f"  direct {direct}")
    print(f"  cold   {cold}   {direct.seconds / cold.seconds:5.1f} times as fast")
    print(f"  warm   {warm}   {direct.seconds / warm.seconds:5.1f} times as fast", flush=True)


def main() -> None:
    """Make the tables and compare."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--files", type=int, default=1_000_000)
    options.add_argument("--small", type=int, default=100_000)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        with a_store(folder) as store:
            big, small = folder / "big", folder / "small"
            write_checkpoint(big / "_delta_log", 10, chosen.files)
            write_checkpoint(small / "_delta_log", 10, chosen.small)
            for commit in range(20):
                first = chosen.small + commit * 10
                write_commit(small / "_delta_log", 11 + commit, range(first, first + 10))
            for table, files in ((big, chosen.files), (small, chosen.small)):
                hint = {"version": 10, "size": files + 2, "sizeInBytes": files, "numOfAddFiles": files}
                (table / "_delta_log" / "_last_checkpoint").write_text(json.dumps(hint))
                store.upload(table, table.name)
            print(f"{chosen.files:,} files in a checkpoint, 5 % of them granted; store: {store.kind}")
            compare(store, "big", folder)
            print(f"{chosen.small:,} files in a checkpoint and 20 commits, 30 ms to the store")
            with distant(store, 0.030) as far:
                compare(far, "small", folder)


if __name__ == "__main__":
    main()
