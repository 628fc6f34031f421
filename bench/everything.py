"""Every benchmark side by side in one run: docs/benchmarks.md with its plots, from bin/bench.

    python -m bench.everything [--quick] [--into FOLDER] [--only NAME ...]

A benchmark that fails, or takes longer than its limit, is told in the report, and the others go on. --quick
measures small tables for a short time, and writes to a temporary folder unless told otherwise: its figures
show that the benchmarks run. With --only the page holds those alone.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import Final

import attrs
import matplotlib as mpl
from matplotlib.figure import Figure

from bench.harness import Bars, Claim, Lab, Report, laboratory, markdown

BENCHMARKS: Final = (
    "serving",
    "small_get",
    "bodies",
    "scaling",
    "listing",
    "opening",
    "crowds",
    "writing",
    "big_tables",
)
"""Modules of this folder with a function `run(lab) -> Report`, in the order of the report."""
_DOCS: Final = pathlib.Path(__file__).parents[1] / "docs"
_PLOTS: Final = "benchmarks"
_MEASURED_BEFORE: Final = """
| peer | small GET (1 KiB, 32 connections) | 307 | 256 MiB streamed | first authorised read of 100k files |
| --- | --- | --- | --- | --- |
| the Rust original, no authentication | 0.20 ms/request | 0.08 ms | 1.07 s/GB | 9.7 s, every 120 s |
| pingora-based object-storage-proxy | 0.07 | none | 1.14 | cannot |
| nginx as a plain reverse proxy | 0.024 | (fixed text 0.004) | 1.22 | cannot |
| versitygw in s3 mode | 0.37 | none | 2.03 | cannot |
| bare Twisted protocol, no parsing, no authentication | 0.044 | 0.014 | 1.36; with splice 0.41 | |
"""


_LIMIT: Final = 600
"""The seconds that one benchmark may take."""


@attrs.frozen
class Outcome:
    """What became of one benchmark: its report, or why there is none; the seconds it took."""

    name: str
    report: Report
    problem: str
    seconds: float


class TookTooLong(Exception):
    """A benchmark is not through within its limit."""


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raises TookTooLong in what is done within, in the main thread, after so many seconds."""

    def too_long(*_: object) -> None:
        raise TookTooLong(f"not through after {seconds} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run_one(name: str, prepared: contextlib.AbstractContextManager[Lab], limit: int = _LIMIT) -> Outcome:
    """Run a benchmark; a failure of it, or of what it needs, becomes part of the outcome."""
    begun = time.monotonic()
    print(f"== {name}", flush=True)
    report, problem = Report([]), ""
    try:
        with limited(limit), prepared as lab:
            report = importlib.import_module(f"bench.{name}").run(lab)
    except Exception as error:  # noqa: BLE001 - the others are to go on, and the report says it
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        problem = f"{type(error).__name__}: {lines[-1]}"
    seconds = time.monotonic() - begun
    for claim in report.claims:
        print(f"   {claim.what}: {claim.measured} ({claim.target})", flush=True)
    print(f"   {seconds:.0f} s", flush=True)
    return Outcome(name, report, problem, seconds)


def machine() -> str:
    """The machine and the versions, as a table."""
    rows = [
        ("processor", f"{_processor()}, {os.cpu_count()} cores seen"),
        ("memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB"),
        ("system", f"{platform.system()} {platform.release()}"),
        (
            "Python",
            f"{platform.python_version()}, Twisted {version('twisted')}, pyarrow {version('pyarrow')}",
        ),
        ("store", _first_line("versitygw", "--version") or "versitygw"),
        ("nginx", _first_line("nginx", "-v").removeprefix("nginx version: ")),
        ("load", (_first_line("wrk", "-v").split(" Copyright")[0] or "wrk").strip()),
    ]
    return markdown(("", ""), rows)


def _processor() -> str:
    names = [
        line.partition(":")[2].strip()
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return names[0] if names else platform.machine()


def _first_line(*command: str) -> str:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}
        )
    except OSError:
        return ""
    return (done.stdout + done.stderr).strip().partition("\n")[0]


def document(outcomes: Iterable[Outcome], *, load: str, quick: bool) -> str:
    """The page."""
    done = list(outcomes)
    claims = [_row(claim) for outcome in done for claim in outcome.report.claims]
    missed = [row for row in claims if row[3] == "no"]
    parts = [
        "# Benchmarks",
        "Written by `bin/bench`: every benchmark in one run, against the same store on the same machine, the "
        "peers in turn, round by round; figures are medians. Processor time and memory are those of a peer's "
        "own processes, and the figures to compare where a machine is shared: rates and latencies there tell "
        "about the neighbours as well.",
    ]
    if quick:
        parts.append(
            "**This was a quick run (`bin/bench --quick`): smaller tables, shorter runs, fewer rounds.** "
            "Where its machine was busy with other work, as its load average tells, rates and latencies "
            "say little, and even processor times are some times what they are on a quiet one."
        )
    parts += ["## Machine", machine(), load]
    parts += [
        "## Targets",
        _summary(len(claims), missed),
        markdown(("what", "target", "measured", "met"), claims),
    ]
    for outcome in done:
        if outcome.problem:
            parts += [f"## {outcome.name}", f"Did not run to its end: {outcome.problem}"]
        for section in outcome.report.sections:
            parts += [f"## {section.title}", section.text, markdown(section.columns, section.rows)]
            parts += [f"![{bars.title}]({_PLOTS}/{bars.file}.svg)" for bars in section.bars]
    parts += ["## Measured before", "On machines of this kind, processor time of the proxy alone:"]
    parts += [_MEASURED_BEFORE.strip()]
    took = ", ".join(f"{outcome.name} {outcome.seconds:.0f} s" for outcome in done)
    parts.append(f"The run took {sum(outcome.seconds for outcome in done) / 60:.0f} minutes: {took}.")
    return "\n\n".join(part for part in parts if part) + "\n"


def _row(claim: Claim) -> tuple[str, str, str, str]:
    return claim.what, claim.target, claim.measured, "yes" if claim.met else "no"


def _summary(total: int, missed: list[tuple[str, str, str, str]]) -> str:
    if not missed:
        return f"All {total} are met."
    names = "; ".join(f"{what} ({measured}, target {target})" for what, target, measured, _ in missed)
    return f"{total - len(missed)} of {total} are met. What falls short: {names}."


def draw(bars: Bars, folder: pathlib.Path) -> None:
    """A plot as an SVG file; the same values give the same file."""
    mpl.rcParams["svg.hashsalt"] = "bench"
    figure = Figure(figsize=(7, 0.45 * len(bars.values) + 1.1))
    axes = figure.subplots()
    names, values = list(bars.values), list(bars.values.values())
    drawn = axes.barh(names, values, color="#3b6ea5")
    axes.bar_label(drawn, fmt="%.3g", padding=3)
    axes.invert_yaxis()
    axes.set_xlabel(bars.unit)
    axes.set_title(bars.title)
    axes.margins(x=0.12)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(folder / f"{bars.file}.svg", metadata={"Date": None})


def write(outcomes: Iterable[Outcome], into: pathlib.Path, *, load: str, quick: bool) -> pathlib.Path:
    """The page and its plots in a folder."""
    done = list(outcomes)
    plots = into / _PLOTS
    plots.mkdir(parents=True, exist_ok=True)
    for section in (section for outcome in done for section in outcome.report.sections):
        for bars in section.bars:
            draw(bars, plots)
    page = into / "benchmarks.md"
    page.write_text(document(done, load=load, quick=quick))
    return page


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small tables, short runs")
    parser.add_argument("--into", type=pathlib.Path, help="the folder of the page; docs unless --quick")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS, metavar="NAME")
    parser.add_argument("--seconds", type=float, help="the length of one run under load")
    parser.add_argument("--rounds", type=int, help="how many runs a median is of")
    options = parser.parse_args()
    into = options.into or (pathlib.Path(tempfile.mkdtemp()) if options.quick else _DOCS)
    before = os.getloadavg()
    outcomes = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.only:
            folder = pathlib.Path(scratch) / name
            folder.mkdir()
            # A store of its own for each: what one left behind must not slow the next.
            prepared = laboratory(folder, quick=options.quick, seconds=options.seconds, rounds=options.rounds)
            outcomes.append(run_one(name, prepared))
            shutil.rmtree(folder, ignore_errors=True)
            # After each: a run that is ended early leaves what it has found.
            load = f"Load average before the run {before[0]:.1f}, at its end {os.getloadavg()[0]:.1f}."
            page = write(outcomes, into, load=load, quick=options.quick)
    print(page)
    sys.exit(any(outcome.problem for outcome in outcomes))


if __name__ == "__main__":
    main()
