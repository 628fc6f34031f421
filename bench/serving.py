"""What the proxy answers without a body from the store: redirects, log files and views, signed and verified.

The table has a million files in its checkpoint, half of them granted; beside it stands a small one of which
everything is granted, whose log is answered from the cache as it is.
"""

from __future__ import annotations

import functools

import attrs

from bench.harness import (
    GRANTED,
    Bars,
    Claim,
    Lab,
    Load,
    Peer,
    Report,
    Request,
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
from bench.tables import write_commit

_TABLE, _WHOLE = "redirected", "whole"
_COMMIT = f"_delta_log/{11:020d}.json"


@attrs.frozen
class Case:
    """One kind of request, the keys asked for, the status of its answers, and the target in ms."""

    name: str
    keys: tuple[str, ...]
    status: int
    agent: str
    target: float


def cases() -> tuple[Case, ...]:
    """All kinds."""
    data = tuple(f"{_TABLE}/{path}" for path in granted_paths(1_000))
    return (
        Case("307 with a policy", data, 307, "polars/1", 0.15),
        Case("a view of a commit", (f"{_TABLE}/{_COMMIT}",), 200, "object_store/0.13.2", 0.12),
        Case("a log file, as it is", (f"{_WHOLE}/{_COMMIT}",), 200, "object_store/0.13.2", 0.12),
    )


def run(lab: Lab) -> Report:
    """The table of all kinds, and their targets."""
    files = 100_000 if lab.quick else 1_000_000
    _tables(lab, files)
    rows, claims, cost = [], [], dict[str, float]()
    with lab.proxy(
        grants={_TABLE: [{"MIC": list(GRANTED)}], _WHOLE: [{}]}, tables={_TABLE: _TABLE, _WHOLE: _WHOLE}
    ) as proxy:
        # Interleaved by kind: it is one peer, and each kind is a peer of its own to the others.
        peers = [attrs.evolve(proxy, name=case.name) for case in cases()]
        by_name = {case.name: case for case in cases()}
        for peer in peers:
            _check(peer, by_name[peer.name])
        taken = interleaved(
            peers,
            lab.rounds,
            lambda peer: sample(peer, functools.partial(_load, lab, peer, by_name[peer.name])),
        )
    for case in cases():
        samples = taken[case.name]
        cost[case.name] = median(samples, cpu_ms("proxy"))
        p99 = median(samples, lambda each: each.load.p99)
        peak = median(samples, lambda each: each.used["proxy"].peak)
        rate = median(samples, lambda each: each.load.rate)
        rows.append((case.name, f"{cost[case.name]:.3f}", f"{rate:,.0f}", f"{p99:.1f}", f"{peak / 1e6:.0f}"))
        claims.append(
            Claim(
                f"{case.name}: CPU",
                f"≤ {case.target:.2f} ms/request",
                f"{cost[case.name]:.3f} ms",
                cost[case.name] <= case.target,
            )
        )
        if case.status == 307:
            claims.append(Claim("307: p99 at 32 connections", "< 10 ms", f"{p99:.1f} ms", p99 < 10))
    section = Section(
        "Answers without a body from the store",
        f"A table of {files:,} files, 32 connections, one worker.",
        ("answer", "CPU ms/request", "requests/s", "p99 ms", "peak MB"),
        rows,
        [Bars("serving", "Redirects, views and log files", "ms CPU/request", cost)],
    )
    return Report([section], claims)


def _tables(lab: Lab, files: int) -> None:
    for name, size in ((_TABLE, files), (_WHOLE, 1_000)):
        lab.table(name, size)
        folder = lab.folder / f"commit-{name}"
        write_commit(folder / "_delta_log", 11, range(size, size + 20))
        lab.store.upload(folder, name)


def _requests(peer: Peer, case: Case) -> list[Request]:
    return [peer.get(key, user_agent=case.agent) for key in case.keys]


def _check(peer: Peer, case: Case) -> None:
    status, body = ask(peer, _requests(peer, case)[0])
    if status != case.status:
        raise RuntimeError(f"{case.name}: {status} {body[:200]!r}")


def _load(lab: Lab, peer: Peer, case: Case) -> Load:
    return wrk(peer, _requests(peer, case), seconds=lab.seconds)


if __name__ == "__main__":
    alone(run)
