"""The matrix as a table: on the terminal at the end of a run, and in docs/clients.md.

The tests hand their cells over as properties of their reports, which also come from the processes of xdist.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import pytest

RESULTS = "client-matrix"
WRITES = "WRITE_CLIENTS_PAGE"
MODES = ("proxy", "presignedUrl")
COLUMNS = ("open", "list", "whole", "ranges", "rows", "special", "denied", "virtual host", "GET")
_SHOWN = {"ok": "ok", "fault": "own fault", "bad": "FAILED"}
_HEADINGS = {"whole": "whole", "rows": "rows", "special": "hard names", "GET": "a GET is"}


@attrs.frozen
class Cell:
    """What came of one column.

    `state` is ok, fault (the client's own, `note` says which), redirected, streamed, none (`note` says why
    it was not tried) or bad (`problem` says what came).
    """

    state: str
    problem: str | None = None
    note: str | None = None

    @property
    def text(self) -> str:
        """The cell as a word."""
        return _SHOWN.get(self.state, self.state)


Row = Mapping[str, Cell]


def wire(cells: Row) -> dict[str, Any]:
    """Cells as JSON."""
    return {name: attrs.asdict(cell) for name, cell in cells.items()}


def merged(row: Row, column: str) -> Cell | None:
    """The cell of a column over both modes: the worse one; None where the client has no such operation."""
    found = [row[name] for mode in MODES if (name := f"{column} {mode}") in row]
    if column == "GET" and found:
        return next((cell for cell in found if cell.state != "streamed"), found[0])
    order = ("bad", "fault", "none", "ok")
    return min(found, key=lambda cell: order.index(cell.state), default=None)


def table(rows: Mapping[str, Row], skipped: Mapping[str, str]) -> str:
    """The matrix as plain text, a line a client, and its notes."""
    lines = [["client", *(_HEADINGS.get(name, name) for name in COLUMNS)]]
    for name, row in rows.items():
        cells = [merged(row, column) for column in COLUMNS]
        lines.append([name, *(cell.text if cell else "-" for cell in cells)])
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    text += [f"{name}: {note}" for name, row in rows.items() for note in notes(row)]
    text += [f"{name}: skipped, {reason}" for name, reason in skipped.items()]
    return "\n".join(line.rstrip() for line in text)


def notes(row: Row) -> list[str]:
    """Why cells are not green, each reason once."""
    found = (merged(row, column) for column in COLUMNS)
    return list(
        dict.fromkeys(
            cell.note or cell.problem or ""
            for cell in found
            if (cell and cell.note) or (cell and cell.problem)
        )
    )


def gathered(reports: Iterable[Any]) -> dict[str, dict[str, Cell]]:
    """The rows that the reports of tests hold."""
    rows: dict[str, dict[str, Cell]] = {}
    for report in reports:
        for name, value in getattr(report, "user_properties", ()):
            if name == RESULTS and getattr(report, "when", "") == "call":
                rows.setdefault(value[0], {}).update({key: Cell(**cell) for key, cell in value[1].items()})
    return rows


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the matrix of this run; write the page when it is asked for and every client was run."""
    from . import page
    from .programs import PROGRAMS

    reports = [each for kind in ("passed", "failed") for each in terminalreporter.stats.get(kind, [])]
    rows = gathered(reports)
    if not rows:
        return
    skipped = {
        program.name: reason
        for program in PROGRAMS
        for report in terminalreporter.stats.get("skipped", [])
        if f"[{program.slug}]" in report.nodeid and (reason := _reason(report))
    }
    ordered = {program.name: rows[program.name] for program in PROGRAMS if program.name in rows}
    terminalreporter.section("clients")
    terminalreporter.write_line(table(ordered, skipped))
    if os.environ.get(WRITES):
        terminalreporter.write_line(page.write(ordered))


def _reason(report: Any) -> str:
    longrepr = report.longrepr
    text = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    return str(text).removeprefix("Skipped: ").partition(": ")[2]
