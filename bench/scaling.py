"""One worker and two: redirects on a large table, which cost the proxy processor time and nothing else.

The load generator needs a part of the machine too. So beside the rates stands what the processor times tell:
how much longer one worker was busy for a request than the busier one of two.
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
    Sample,
    Section,
    alone,
    ask,
    granted_paths,
    interleaved,
    median,
    memory,
    sample,
    tree,
    wrk,
)

_TABLE = "scaled"
_REQUESTS = 1_000
_CONNECTIONS = 64


def run(lab: Lab) -> Report:
    """The rates, the processor times, and how they compare."""
    files = 100_000 if lab.quick else 1_000_000
    lab.table(_TABLE, files)
    grants, tables = {_TABLE: [{"MIC": list(GRANTED)}]}, {_TABLE: _TABLE}
    with (
        lab.proxy("one worker", grants=grants, tables=tables) as one,
        lab.proxy("two workers", grants=grants, tables=tables, workers=2) as two,
    ):
        peers = (_answering(one, one.pids["proxy"]), _answering(two, *tree(two.pids["proxy"])[1:]))
        taken = interleaved(peers, lab.rounds, lambda peer: sample(peer, functools.partial(_load, lab, peer)))
        private = [sum(memory(pid, "RssAnon") for pid in tree(peer.pids["worker 1"])) for peer in peers]
    rows, busy = [], {}
    for peer, own in zip(peers, private, strict=True):
        samples = taken[peer.name]
        busy[peer.name] = median(samples, _busiest)
        rows.append(
            (
                peer.name,
                f"{median(samples, lambda each: each.load.rate):,.0f}",
                f"{median(samples, _all_workers):.3f}",
                f"{busy[peer.name]:.3f}",
                f"{median(samples, lambda each: each.load.cpu / each.load.seconds):.2f}",
                f"{own / 1e6:.0f}",
            )
        )
    rates = [median(taken[peer.name], lambda each: each.load.rate) for peer in peers]
    wall, gain = rates[1] / rates[0], busy["one worker"] / busy["two workers"]
    section = Section(
        "Workers",
        f"307 on a table of {files:,} files, {_CONNECTIONS} connections. The machine's cores also run wrk, "
        f"whose share is told, so the rates alone gain {wall:.2f} ×. Were there a core for each worker and "
        f"one for the load, they would gain {gain:.2f} ×: the busiest worker's time for each request of all.",
        (
            "peer",
            "requests/s",
            "CPU ms/request, all workers",
            "of the busiest",
            "cores of wrk",
            "private MB of a worker",
        ),
        rows,
        [Bars("workers", "307 with workers", "requests/s", dict(zip(busy, rates, strict=True)))],
    )
    claim = Claim(
        "2 workers on 2 cores",
        "≥ 1.8 × one worker",
        f"{gain:.2f} × by processor time, {wall:.2f} × by rate beside wrk",
        gain >= 1.8,
    )
    return Report([section], [claim])


def _answering(peer: Peer, *pids: int) -> Peer:
    pids_by_name = {f"worker {number}": pid for number, pid in enumerate(pids, 1)}
    return attrs.evolve(peer, pids=pids_by_name)


def _load(lab: Lab, peer: Peer) -> Load:
    requests = [peer.get(f"{_TABLE}/{path}", user_agent="polars/1") for path in granted_paths(_REQUESTS)]
    status, _ = ask(peer, requests[0])
    if status != 307:
        raise RuntimeError(f"{peer.name}: {status}")
    return wrk(peer, requests, connections=_CONNECTIONS, seconds=lab.seconds)


def _all_workers(taken: Sample) -> float:
    return sum(used.cpu for used in taken.used.values()) * 1000 / taken.load.requests


def _busiest(taken: Sample) -> float:
    return max(used.cpu for used in taken.used.values()) * 1000 / taken.load.requests


if __name__ == "__main__":
    alone(run)
