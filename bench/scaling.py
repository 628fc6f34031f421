"""One worker and two: redirects on a large table, which cost the proxy processor time and nothing else.

A second worker gains what two workers do in two seconds of their own processor time, beside what one
does in one: so the cores that the load generator takes are left out, and what the machine's other work
takes as well. Two busy cores share what is not theirs alone (caches, the bandwidth of memory, often the
core itself), so a third peer tells what this machine gives to two processes at most: two proxies of one
worker each, which share nothing, under the same load at the same time.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

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
    weigh_as_two,
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
        lab.proxy("one more", grants=grants, tables=tables) as more,
        lab.proxy("two workers", grants=grants, tables=tables, workers=2) as two,
    ):
        weigh_as_two(two.pids["proxy"])
        single = _answering(one, [one], [one.pids["proxy"]])
        pair = _answering(two, [two], tree(two.pids["proxy"])[1:])
        apart = _answering(
            attrs.evolve(one, name="two proxies"), [one, more], [one.pids["proxy"], more.pids["proxy"]]
        )
        peers = (single, pair, apart)
        taken = interleaved(
            [peer.peer for peer in peers],
            lab.rounds,
            lambda peer: _measured(lab, next(each for each in peers if each.peer is peer)),
        )
        private = [
            statistics.median(memory(pid, "RssAnon") for pid in each.peer.pids.values()) for each in peers
        ]
        peaks = [max(memory(pid, "VmHWM") for pid in each.peer.pids.values()) for each in peers]
    return _report(files, taken, private, peaks)


@attrs.frozen
class Measured:
    """A peer whose `pids` are the processes that answer, and where clients reach it."""

    peer: Peer
    doors: Sequence[Peer]


def _answering(peer: Peer, doors: Sequence[Peer], pids: Sequence[int]) -> Measured:
    named = {f"worker {number}": pid for number, pid in enumerate(pids, 1)}
    return Measured(attrs.evolve(peer, pids=named), doors)


def _measured(lab: Lab, each: Measured) -> Sample:
    """The load goes to all doors at the same time, the same number of connections in all."""
    loads = [functools.partial(_load, lab, door, _CONNECTIONS // len(each.doors)) for door in each.doors]
    with ThreadPoolExecutor(len(loads)) as threads:
        return sample(each.peer, lambda: _together([begun.result() for begun in map(threads.submit, loads)]))


def _together(loads: Sequence[Load]) -> Load:
    if len(loads) == 1:
        return loads[0]
    return Load(
        sum(load.requests for load in loads),
        max(load.seconds for load in loads),
        sum(load.received for load in loads),
        max(load.p50 for load in loads),
        max(load.p99 for load in loads),
        sum(load.errors for load in loads),
        # Each of them saw the processor time of all.
        max(load.cpu for load in loads),
    )


def _load(lab: Lab, peer: Peer, connections: int) -> Load:
    requests = [peer.get(f"{_TABLE}/{path}", user_agent="polars/1") for path in granted_paths(_REQUESTS)]
    status, _ = ask(peer, requests[0])
    if status != 307:
        raise RuntimeError(f"{peer.name}: {status}")
    return wrk(peer, requests, connections=connections, seconds=lab.seconds)


def _report(
    files: int, taken: dict[str, list[Sample]], private: Sequence[float], peaks: Sequence[int]
) -> Report:
    rows, rates = [], dict[str, float]()
    for (name, samples), own, peak in zip(taken.items(), private, peaks, strict=True):
        rates[name] = median(samples, lambda each: each.load.rate)
        rows.append(
            (
                name,
                f"{rates[name]:,.0f}",
                f"{median(samples, _all_workers):.3f}",
                f"{median(samples, _busiest_share):.0%}",
                f"{median(samples, lambda each: each.load.p99):.1f}",
                f"{median(samples, lambda each: each.load.cpu / each.load.seconds):.2f}",
                f"{median(samples, _cores):.2f}",
                f"{own / 1e6:.0f}",
                f"{peak / 1e6:.0f}",
            )
        )
    one, two, apart = (median(samples, _all_workers) for samples in taken.values())
    busiest = median(taken["two workers"], _busiest_share)
    gain, limit, wall = 2 * one / two, 2 * one / apart, rates["two workers"] / rates["one worker"]
    section = Section(
        "Workers",
        f"307 on a table of {files:,} files, {_CONNECTIONS} connections in all. wrk takes a part of the same "
        "cores, which is told: so by processor time two workers gain what they answer in two seconds of "
        "their own processor time, beside what one answers in one, "
        f"2 × {one:.3f} / {two:.3f} = {gain:.2f} ×. Two proxies that share nothing, under load at the same "
        f"time, gain 2 × {one:.3f} / {apart:.3f} = {limit:.2f} × in this way: what is missing there the "
        f"machine takes for having both cores busy, and what two workers do less than that is lost "
        f"to sharing: they have {gain / limit:.0%} of it. By rate two workers gain {wall:.2f} × here, and "
        f"two proxies {rates['two proxies'] / rates['one worker']:.2f} ×.",
        (
            "peer",
            "requests/s",
            "CPU ms/request, all workers",
            "share of the busiest",
            "p99 ms",
            "cores of wrk",
            "cores of the workers",
            "private MB of a worker",
            "peak MB of a worker",
        ),
        rows,
        [Bars("workers", "307 with workers", "requests/s", rates)],
    )
    claim = Claim(
        "2 workers on 2 cores",
        "≥ 1.8 × one worker",
        f"{gain:.2f} × by processor time (two proxies that share nothing: {limit:.2f} ×), "
        f"{wall:.2f} × by rate beside wrk; the busier one took {busiest:.0%} of it",
        # What one does while the other idles is not a gain, whatever it costs.
        gain >= 1.8 and busiest <= 0.6,
    )
    return Report([section], [claim])


def _all_workers(taken: Sample) -> float:
    return sum(used.cpu for used in taken.used.values()) * 1000 / taken.load.requests


def _busiest_share(taken: Sample) -> float:
    return max(used.cpu for used in taken.used.values()) / sum(used.cpu for used in taken.used.values())


def _cores(taken: Sample) -> float:
    return sum(used.cpu for used in taken.used.values()) / taken.load.seconds


if __name__ == "__main__":
    alone(run)
