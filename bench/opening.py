"""How long deltalake takes to open a table: a checkpoint of 100,000 files and 20 commits, near and far.

A link of 0, 10 and 30 ms stands between the store and whoever reads it: deltalake itself, or the proxy beside
the client. The user is granted a twentieth of the table. Cold is a proxy that was just started and has an
empty cache; warm is one through which the table was opened before.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics

from bench.harness import Bars, Claim, Lab, Peer, Report, Section, alone, usage
from bench.tables import VENUES, write_checkpoint, write_commit
from bench.view import Opened, distant, opened
from tests.integration import servers

_TABLE = "opened"
_GRANTED = VENUES[: len(VENUES) // 20]
_COMMITS = 20
_ROUNDS, _WARM = 3, 2
_LATENCIES = (0.0, 0.010, 0.030)


def run(lab: Lab) -> Report:
    """The table of all latencies, and the claim about the farthest."""
    files = 10_000 if lab.quick else 100_000
    _write(lab, files)
    rows, warm_gain, seconds = [], 0.0, dict[str, float]()
    for latency in _LATENCIES:
        with distant(lab.store, latency) if latency else contextlib.nullcontext(lab.store) as store:
            direct, cold, warm, cost, peak = _measured(lab, store)
        name = f"{latency * 1000:.0f} ms"
        warm_gain = direct / warm
        seconds |= {f"{name}: direct": direct, f"{name}: cold": cold, f"{name}: warm": warm}
        rows.append(
            (
                name,
                f"{direct:.3f}",
                f"{cold:.3f}",
                f"{warm:.3f}",
                f"{direct / cold:.1f} ×",
                f"{warm_gain:.1f} ×",
                f"{cost[0]:.2f}",
                f"{cost[1]:.2f}",
                f"{peak / 1e6:.0f}",
            )
        )
    section = Section(
        "Opening a table",
        f"deltalake, {files:,} files in the checkpoint and {_COMMITS} commits after it, medians in seconds. "
        "The processor seconds and the largest resident memory are those of the proxy.",
        (
            "to the store",
            "direct",
            "cold",
            "warm",
            "cold gains",
            "warm gains",
            "CPU s cold",
            "CPU s warm",
            "peak MB",
        ),
        rows,
        [Bars("opening", "Opening a table", "s", seconds)],
    )
    claim = Claim(
        "open a table, checkpoint + 20 commits, 30 ms to the store, warm",
        "≥ 3 × faster than direct",
        f"{warm_gain:.1f} ×",
        warm_gain >= 3,
    )
    return Report([section], [claim])


def _write(lab: Lab, files: int) -> None:
    folder = lab.folder / "made-to-be-opened"
    log = folder / "_delta_log"
    write_checkpoint(log, 10, files)
    for commit in range(_COMMITS):
        first = files + commit * 10
        write_commit(log, 11 + commit, range(first, first + 10))
    hint = {"version": 10, "size": files + 2, "sizeInBytes": files, "numOfAddFiles": files}
    (log / "_last_checkpoint").write_text(json.dumps(hint))
    lab.store.upload(folder, _TABLE)
    shutil.rmtree(folder)


def _measured(lab: Lab, store: servers.Store) -> tuple[float, float, float, tuple[float, float], int]:
    """Seconds of the three, medians; they are taken in turn. Then what the proxy took for a cold and a warm
    one in processor seconds, and its peak in bytes.
    """
    direct, cold, warm = list[Opened](), list[Opened](), list[Opened]()
    costs, peaks = list[tuple[float, float]](), list[int]()
    through = f"s3://datalake/{_TABLE}"
    for _ in range(min(lab.rounds, _ROUNDS)):
        direct.append(opened(store, f"s3://{servers.BUCKET}/{_TABLE}"))
        with lab.proxy(
            grants={_TABLE: [{"MIC": list(_GRANTED)}]}, tables={_TABLE: _TABLE}, store=store
        ) as proxy:
            at, pid = _endpoint(proxy), proxy.pids["proxy"]
            before = usage(pid)
            cold.append(opened(at, through))
            between = usage(pid)
            warm += [opened(at, through) for _ in range(_WARM)]
            after = usage(pid)
            costs.append((between.since(before).cpu, after.since(between).cpu / _WARM))
            peaks.append(after.peak)
    if not {each.files for each in cold} == {each.files for each in warm} or not warm[0].files:
        raise RuntimeError("the views differ")
    cost = statistics.median(each for each, _ in costs), statistics.median(each for _, each in costs)
    return _median(direct), _median(cold), _median(warm), cost, max(peaks)


def _endpoint(peer: Peer) -> servers.Endpoint:
    return servers.Endpoint(peer.url, peer.access_key, peer.secret_key)


def _median(times: list[Opened]) -> float:
    return statistics.median(each.seconds for each in times)


if __name__ == "__main__":
    alone(run)
