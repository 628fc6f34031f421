"""What connections cost the proxy in memory: idle ones, and slow readers of a large object.

    python -m bench.connections [--idle 10000] [--slow 1000]

The idle ones each had one answer before; the slow readers ask for 64 MB and read no more than the beginning.
Figures are the growth of the proxy's resident memory.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import resource
import socket
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from bench.hot_path import OBJECT_STORE, TABLE, UNRESTRICTED, Asked, configuration
from bench.tables import write_checkpoint, write_commit
from bench.view import a_store
from tests.integration import servers

_LARGE = "large"
_LARGE_BYTES = 64 << 20
_SETTLE_SECONDS = 3.0


def opened(proxy: servers.Proxy, number: int) -> socket.socket:
    """A connection to the proxy; from one of many addresses, because one has too few ports."""
    made = socket.socket()
    made.bind((f"127.0.0.{2 + number // 20_000}", 0))
    made.connect(("127.0.0.1", proxy.port))
    return made


@contextlib.contextmanager
def connections(proxy: servers.Proxy, count: int, wire: bytes, read: int) -> Iterator[list[socket.socket]]:
    """Connections that have sent a request and read the first bytes of the answer."""
    held: list[socket.socket] = []
    try:
        for number in range(count):
            held.append(opened(proxy, number))
            held[-1].sendall(wire)
            if number % 100 == 99:
                for each in held[-100:]:
                    if not each.recv(read).startswith(b"HTTP/1.1 20"):
                        raise RuntimeError("the proxy refused a connection")
        yield held
    finally:
        for each in held:
            each.close()


def growth(proxy: servers.Proxy, count: int, wire: bytes, read: int) -> int:
    """By how many bytes the proxy is larger while these connections are open."""
    with connections(proxy, 100, wire, read):
        time.sleep(_SETTLE_SECONDS)
    time.sleep(_SETTLE_SECONDS)
    before = proxy.resident_bytes()
    with connections(proxy, count, wire, read):
        time.sleep(_SETTLE_SECONDS)
        return proxy.resident_bytes() - before


def config_for(store: servers.Endpoint, most: int) -> dict[str, Any]:
    """The configuration of the hot path's benchmark, with room for these connections."""
    limits = {"maxConnections": most, "maxRequestsInFlight": most, "upstreamConnections": 2048}
    return {**configuration(store), "limits": limits, "getMode": "proxy"}


def main() -> None:
    """Print the growth of the proxy."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--idle", type=int, default=10_000)
    options.add_argument("--slow", type=int, default=1_000)
    chosen = options.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        with a_store(folder) as store:
            table = folder / TABLE
            write_checkpoint(table / "_delta_log", 10, 1000)
            write_commit(table / "_delta_log", 11, range(1000, 1010))
            (table / _LARGE).write_bytes(bytes(_LARGE_BYTES))
            store.upload(table, TABLE)
            with servers.proxy(store, config_for(store, chosen.idle + 1000), folder) as proxy:
                report(proxy, chosen.idle, chosen.slow)


def report(proxy: servers.Proxy, idle: int, slow: int) -> None:
    """Measure both kinds."""
    host, now, agent = f"127.0.0.1:{proxy.port}", datetime.now(UTC), (("user-agent", OBJECT_STORE),)
    commit = Asked(UNRESTRICTED, f"{TABLE}/_delta_log/{11:020d}.json", (*agent, ("range", "bytes=0-99")))
    large = Asked(UNRESTRICTED, f"{TABLE}/{_LARGE}", agent)
    grown = growth(proxy, idle, commit.wire(host, now), 4096)
    print(f"{idle:6,} idle connections: {grown / idle / 1024:8.1f} KiB each, {grown / 1e6:8.1f} MB in all")
    grown = growth(proxy, slow, large.wire(host, now), 64)
    print(f"{slow:6,} slow readers:     {grown / slow / 1024:8.1f} KiB each, {grown / 1e6:8.1f} MB in all")


if __name__ == "__main__":
    main()
