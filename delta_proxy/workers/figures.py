"""What several workers tell, told as of one proxy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from delta_proxy.resources.health import Checks, Degraded
from delta_proxy.resources.status import Status, TableStatus


def joined_checks(answers: Iterable[Checks], workers: int) -> Checks:
    """The checks of those that answer: one holds when it holds for all of them.

    "workers" holds when any answers, and says so when not all do.
    """
    given = list(answers)
    checks: dict[str, bool | str | Degraded] = {}
    for name, value in (item for each in given for item in each.items()):
        checks[name] = max(checks.get(name, True), value, key=_badness)
    missing = Degraded(f"{len(given)} of {workers} answer") if given else "none answers"
    return {"workers": True if len(given) == workers else missing, **checks}


def _badness(value: bool | str | Degraded) -> int:
    if value is True:
        return 0
    return 1 if isinstance(value, Degraded) else 2


def joined_status(answers: Iterable[Status], mine: Status) -> Status:
    """The parent's own status with the workers' figures: the newest of each table, counters added up."""
    tables: dict[str, TableStatus] = {}
    counters: dict[str, float] = {}
    for status in answers:
        for table in status.tables:
            known = tables.get(table.alias)
            if known is None or _version(table) > _version(known):
                tables[table.alias] = table
        for name, value in status.counters.items():
            counters[name] = counters.get(name, 0) + value
    ordered = tuple(tables[alias] for alias in sorted(tables))
    return attrs.evolve(mine, tables=ordered, counters={**mine.counters, **counters})


def _version(table: TableStatus) -> int:
    return -1 if table.version is None else table.version


def counted(answers: Mapping[int, object]) -> dict[str, float]:
    """How many workers answer, as a figure of the status page."""
    return {"workers": len(answers)}
