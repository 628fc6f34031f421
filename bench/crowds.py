"""What many connections hold in memory: idle ones, and readers that stop reading a large object."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import time
from collections.abc import Callable

from bench.harness import (
    GRANTED,
    Claim,
    Lab,
    Peer,
    Report,
    Section,
    alone,
    ask,
    granted_paths,
    memory,
)
from tests.integration import servers

_TABLE = "crowded"
_PATH = granted_paths(1)[0]


def run(lab: Lab) -> Report:
    """Both crowds, each before a proxy of its own."""
    idle, readers = (2_000, 100) if lab.quick else (10_000, 1_000)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    lab.table(_TABLE, 1_000)
    lab.store.boto3().put_object(Bucket=servers.BUCKET, Key=f"{_TABLE}/{_PATH}", Body=os.urandom(64 << 20))
    each = _growth(lab, idle, "HEAD", _answered) / idle
    held = _growth(lab, readers, "GET", _a_little)
    rows = [
        (f"{idle:,} idle connections", f"{each / 1000:.1f} KB each", f"{each * idle / 1e6:.0f}"),
        (f"{readers:,} slow readers", f"{held / readers / 1000:.0f} KB each", f"{held / 1e6:.0f}"),
    ]
    claims = [
        Claim(
            f"{idle:,} idle keep-alive connections", "≤ 25 KB each", f"{each / 1000:.1f} KB", each <= 25_000
        ),
        Claim(f"{readers:,} slow readers", "≤ 200 MB in all", f"{held / 1e6:.0f} MB", held <= 200_000_000),
    ]
    text = "Growth of the proxy's resident memory. A slow reader takes a little of 64 MiB, and then nothing."
    return Report([Section("Many connections", text, ("crowd", "memory", "MB in all"), rows)], claims)


def _growth(lab: Lab, count: int, method: str, read: Callable[[socket.socket], None]) -> float:
    limits = {
        "maxConnections": 20_000,
        "maxRequestsInFlight": 5_000,
        "maxRequestsPerPrincipal": 5_000,
        "upstreamConnections": 5_000,
        "idleTimeoutSeconds": 600,
        "upstreamIdleTimeoutSeconds": 600,
    }
    grants = {_TABLE: [{"MIC": list(GRANTED)}]}
    with (
        lab.proxy(grants=grants, tables={_TABLE: _TABLE}, getMode="proxy", limits=limits) as peer,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(50):
            ask(peer, peer.signed("HEAD", peer.path(f"{_TABLE}/{_PATH}")))
        pid = peer.pids["proxy"]
        before = memory(pid, "VmRSS")
        for _ in range(count):
            read(stack.enter_context(_asked(peer, method)))
        # What is on its way is to arrive, and what is not needed any more to go.
        time.sleep(3)
        return memory(pid, "VmRSS") - before


def _asked(peer: Peer, method: str) -> socket.socket:
    host, _, port = peer.netloc.partition(":")
    connection = socket.create_connection((host, int(port)), 60)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    request = peer.signed(method, peer.path(f"{_TABLE}/{_PATH}"))
    fields = "".join(f"{name}: {value}\r\n" for name, value in (("Host", peer.netloc), *request.headers))
    connection.sendall(f"{method} {request.target} HTTP/1.1\r\n{fields}\r\n".encode())
    return connection


def _answered(connection: socket.socket) -> None:
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65_536)
        if not part:
            raise RuntimeError(f"the proxy closed after {data[:200]!r}")
        data += part
    if not data.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"{data[:200]!r}")


def _a_little(connection: socket.socket) -> None:
    _answered(connection)


if __name__ == "__main__":
    alone(run)
