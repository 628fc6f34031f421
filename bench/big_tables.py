"""The index of tables of one and of ten million files: `bench.index` in a process of its own, as a report."""

from __future__ import annotations

import re
import subprocess
import sys

from bench.harness import Bars, Claim, Lab, Report, Section, alone

_LINE = re.compile(r"  (\S.*?) {2,}([\d.]+) (\S*)")
_SHOWN = (
    "build",
    "processor time of the build",
    "the index on disk",
    "peak resident growth while building",
    "private growth after",
    "resident growth after",
    "longest stall of the reactor while building",
    "look-up of a known path, median",
    "look-up of an unknown path, median",
    "taking in a commit of ten files",
    "processor time of that",
    "private growth for each such commit",
    "first use after a restart",
)


def run(lab: Lab) -> Report:
    """Both sizes side by side, and their targets."""
    small, large = (100_000, 1_000_000) if lab.quick else (1_000_000, 10_000_000)
    found = {files: _measured(files) for files in (small, large)}
    rows = [
        (name, *(f"{found[files][name][0]:,.1f}" for files in found), found[small][name][1])
        for name in _SHOWN
    ]
    one, ten = ({name: value for name, (value, _) in found[files].items()} for files in (small, large))
    cpu, commit = "processor time of the build", "processor time of that"
    after, private, disk = "resident growth after", "private growth after", "the index on disk"
    linear, grown = ten[cpu] / one[cpu], ten[commit] / max(one[commit], 0.001)
    claims = [
        Claim(f"index of {small:,} files: build", "≤ 4 s", f"{one[cpu]:.1f} s of CPU", one[cpu] <= 4),
        Claim(
            f"index of {small:,} files: after", "≤ 150 MB resident", f"{one[after]:.0f} MB", one[after] <= 150
        ),
        Claim(
            f"index of {large:,} files: build", "linear", f"{linear:.1f} × the CPU of a tenth", linear <= 11
        ),
        Claim(f"index of {large:,} files: disk", "≤ 1.2 GB", f"{ten[disk] / 1000:.2f} GB", ten[disk] <= 1200),
        Claim(
            f"index of {large:,} files: after",
            "≤ 300 MB private",
            f"{ten[private]:.0f} MB",
            ten[private] <= 300,
        ),
        Claim(
            "growth for a new commit",
            "independent of table size",
            f"{grown:.1f} × the CPU at ten times the size",
            grown <= 2,
        ),
    ]
    section = Section(
        "Big tables",
        "The index of a table with a checkpoint of that many files, built from a local folder.",
        ("", *(f"{files:,} files" for files in found), "unit"),
        rows,
        [
            Bars(
                "index",
                "Building the index",
                "s CPU",
                {f"{files:,} files": found[files][cpu][0] for files in found},
            )
        ],
    )
    return Report([section], claims)


def _measured(files: int) -> dict[str, tuple[float, str]]:
    command = [sys.executable, "-m", "bench.index", "--files", str(files), "--commits", "20", "--generated"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    lines = (_LINE.fullmatch(line.rstrip()) or _LINE.match(line) for line in done.stdout.splitlines())
    return {match[1]: (float(match[2]), match[3]) for match in lines if match}


if __name__ == "__main__":
    alone(run)
