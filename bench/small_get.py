"""What a small read costs on its way through the proxy: ranges of 1 and 64 KiB, verified, under a policy.

The table has 100,000 files in its checkpoint, half of them granted; the user signs with SigV4. Beside the
proxy stand the store itself and nginx as a plain reverse proxy, which asks nobody who they are. The median
latency is taken over one connection, where nothing waits for anything else.
"""

from __future__ import annotations

import functools
import os

from bench.harness import (
    GRANTED,
    Bars,
    Claim,
    Lab,
    Load,
    Peer,
    Report,
    Sample,
    Section,
    alone,
    ask,
    cpu_ms,
    granted_paths,
    interleaved,
    median,
    sample,
    wrk,
)
from tests.integration import servers

_TABLE = "small"
_FILES = 100_000
_OBJECTS = 64
_SIZE = 1024 * 1024
_KIB = (1, 64)


def run(lab: Lab) -> Report:
    """The table of both sizes, and what the issue asks of them."""
    paths = granted_paths(_OBJECTS)
    lab.table(_TABLE, _FILES)
    client, body = lab.store.boto3(), os.urandom(_SIZE)
    for path in paths:
        client.put_object(Bucket=servers.BUCKET, Key=f"{_TABLE}/{path}", Body=body)
    with (
        lab.proxy(
            grants={_TABLE: [{"MIC": list(GRANTED)}]}, tables={_TABLE: _TABLE}, getMode="proxy"
        ) as proxy,
        lab.reverse_proxy() as nginx,
    ):
        peers = (lab.direct, nginx, proxy)
        many = {kib: _measured(lab, peers, paths, kib, connections=32) for kib in _KIB}
        one = {kib: _measured(lab, peers, paths, kib, connections=1) for kib in _KIB}
    return _report(peers, many, one)


def _measured(
    lab: Lab, peers: tuple[Peer, ...], paths: list[str], kib: int, *, connections: int
) -> dict[str, list[Sample]]:
    def load(peer: Peer) -> Load:
        requests = [peer.get(f"{_TABLE}/{path}", Range=f"bytes=0-{kib * 1024 - 1}") for path in paths]
        return wrk(peer, requests, connections=connections, seconds=lab.seconds)

    for peer in peers:
        status, found = ask(peer, peer.get(f"{_TABLE}/{paths[0]}", Range=f"bytes=0-{kib * 1024 - 1}"))
        if (status, len(found)) != (206, kib * 1024):
            raise RuntimeError(f"{peer.name}: {status} with {len(found)} bytes")
    return interleaved(peers, lab.rounds, lambda peer: sample(peer, functools.partial(load, peer)))


def _own(peer: Peer) -> str:
    """The process of a peer that is the peer itself."""
    return next(iter(peer.pids))


def _report(
    peers: tuple[Peer, ...], many: dict[int, dict[str, list[Sample]]], one: dict[int, dict[str, list[Sample]]]
) -> Report:
    rows, claims, bars = [], [], []
    for kib in _KIB:
        direct_p50 = median(one[kib]["direct"], lambda s: s.load.p50)
        cost: dict[str, float] = {}
        for peer in peers:
            busy, quiet = many[kib][peer.name], one[kib][peer.name]
            cost[peer.name] = median(busy, cpu_ms(_own(peer)))
            p50 = median(quiet, lambda s: s.load.p50)
            rate, p99 = median(busy, lambda s: s.load.rate), median(busy, lambda s: s.load.p99)
            peak = median(busy, lambda s, peer=peer: s.used[_own(peer)].peak / 1e6)  # type: ignore[misc]
            rows.append(
                (
                    f"{kib} KiB",
                    peer.name,
                    f"{cost[peer.name]:.3f}",
                    f"{rate:,.0f}",
                    f"{p99:.1f}",
                    f"{p50:.2f}",
                    f"{p50 - direct_p50:+.2f}",
                    f"{peak:.0f}",
                )
            )
        added = median(one[kib]["proxy"], lambda s: s.load.p50) - direct_p50
        what = f"small ranged GET ({kib} KiB) streamed, verified, policy"
        claims += [
            Claim(f"{what}: CPU", "≤ 0.30 ms/request", f"{cost['proxy']:.3f} ms", cost["proxy"] <= 0.30),
            Claim(f"{what}: p50 added, one connection", "< 1 ms", f"{added:.2f} ms", added < 1),
        ]
        bars.append(Bars(f"small-get-{kib}", f"Ranged GET of {kib} KiB", "ms CPU/request", cost))
    columns = (
        *("range", "peer", "CPU ms/request", "requests/s", "p99 ms", "p50 ms, alone", "added ms"),
        "peak MB",
    )
    text = "32 connections, the last latency with one. CPU and memory are the peer's own process."
    return Report((Section("Small reads", text, columns, rows, bars),), claims)


if __name__ == "__main__":
    alone(run)
