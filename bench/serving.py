"""What the proxy answers without a body from the store: redirects, log files and views, signed and verified.

The table has a million files in its checkpoint, half of them granted; beside it stands a small one of which
everything is granted, whose log is answered from the cache as it is. The same log file is read from the store
and through nginx, which asks the store each time; of a redirect nginx has one fixed text, for whoever asks.
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
    """One kind of request, the keys asked for, the status of its answers, and the target in ms if any."""

    name: str
    keys: tuple[str, ...]
    status: int
    agent: str
    target: float | None = None


_LOG_FILE = Case("a log file", (f"{_WHOLE}/{_COMMIT}",), 200, "object_store/0.13.2")
_FIXED = Case("a fixed 307", (), 307, "polars/1")


def cases() -> tuple[Case, ...]:
    """All kinds that the proxy answers."""
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
    with (
        lab.proxy(
            grants={_TABLE: [{"MIC": list(GRANTED)}], _WHOLE: [{}]},
            tables={_TABLE: _TABLE, _WHOLE: _WHOLE},
        ) as proxy,
        lab.reverse_proxy() as nginx,
    ):
        # Interleaved by kind: each kind is a peer of its own to the others.
        pairs = {case.name: (attrs.evolve(proxy, name=case.name), case) for case in cases()}
        for peer, case in ((lab.direct, _LOG_FILE), (nginx, _LOG_FILE), (nginx, _FIXED)):
            name = f"{case.name}, {peer.name}"
            pairs[name] = attrs.evolve(peer, name=name), case
        for peer, case in pairs.values():
            _check(peer, case)
        taken = interleaved(
            [peer for peer, _ in pairs.values()],
            lab.rounds,
            lambda peer: sample(peer, functools.partial(_load, lab, peer, pairs[peer.name][1])),
        )
    for name, (peer, case) in pairs.items():
        samples, own = taken[name], next(iter(peer.pids))
        cost[name] = median(samples, cpu_ms(own))
        behind = median(samples, cpu_ms("store")) if own != "store" else cost[name]
        p99 = median(samples, lambda each: each.load.p99)
        peak = samples[-1].used[own].peak
        rate = median(samples, lambda each: each.load.rate)
        rows.append(
            (name, f"{cost[name]:.3f}", f"{behind:.3f}", f"{rate:,.0f}", f"{p99:.1f}", f"{peak / 1e6:.0f}")
        )
        if case.target is None:
            continue
        claims.append(
            Claim(
                f"{name}: CPU",
                f"≤ {case.target:.2f} ms/request",
                f"{cost[name]:.3f} ms",
                cost[name] <= case.target,
            )
        )
        if case.status == 307:
            claims.append(Claim("307: p99 at 32 connections", "< 10 ms", f"{p99:.1f} ms", p99 < 10))
    section = Section(
        "Answers without a body from the store",
        f"A table of {files:,} files, 32 connections, one worker.",
        ("answer", "CPU ms/request", "of the store", "requests/s", "p99 ms", "peak MB"),
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
    if not case.keys:
        return [Request("GET", "/_fixed", ())]
    return [peer.get(key, user_agent=case.agent) for key in case.keys]


def _check(peer: Peer, case: Case) -> None:
    status, body = ask(peer, _requests(peer, case)[0])
    if status != case.status:
        raise RuntimeError(f"{case.name}: {status} {body[:200]!r}")


def _load(lab: Lab, peer: Peer, case: Case) -> Load:
    return wrk(peer, _requests(peer, case), seconds=lab.seconds)


if __name__ == "__main__":
    alone(run)
