"""What the commands print: tables and lines for people, or one JSON document with `--json`.

Progress goes to standard error and only to a terminal, so that standard output can be piped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Final

import attrs
import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from delta_proxy.admin.errors import one_line

_UNLIMITED: Final = 10_000
Row = Mapping[str, object]


@attrs.frozen
class Output:
    """Where a command's results go; `as_json` says in which form."""

    as_json: bool = False

    def rows(self, rows: Sequence[Row], columns: Mapping[str, str], otherwise: str) -> None:
        """Records of one kind. `columns` maps keys to headings; `otherwise` is said of no records."""
        if self.as_json:
            self.document(list(rows))
        elif not rows:
            click.echo(otherwise)
        else:
            self.table(rows, columns)

    def table(self, rows: Sequence[Row], columns: Mapping[str, str]) -> None:
        """A plain table, whatever the form asked for."""
        console = _console(stderr=False)
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in columns.values():
            table.add_column(heading, no_wrap=not console.is_terminal, overflow="fold")
        for row in rows:
            table.add_row(*(Text(shown(row.get(key))) for key in columns))
        console.print(table)

    def document(self, value: object) -> None:
        """One JSON document."""
        click.echo(json.dumps(value, default=_encoded, ensure_ascii=True, indent=None))

    def result(self, record: Row, line: str) -> None:
        """What a change did: the record with `--json`, else the line."""
        if self.as_json:
            self.document(record)
        else:
            click.echo(line)

    def line(self, text: str) -> None:
        """A line for people only."""
        if not self.as_json:
            click.echo(text)

    def warn(self, text: str) -> None:
        """A line on standard error, in either form."""
        click.echo(f"Warning: {text}", err=True)

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Steps]:
        """A progress bar over `total` steps."""
        console = _console(stderr=True)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        with Progress(
            *columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal, transient=True
        ) as bar:
            yield Steps(bar, bar.add_task(what, total=total))


@attrs.frozen
class Steps:
    """A progress bar on its way."""

    _bar: Progress
    _task: object

    def next(self, what: str) -> None:
        """Say what is being done now."""
        self._bar.update(self._task, description=one_line(what))  # type: ignore[arg-type]

    def done(self) -> None:
        """One step is done."""
        self._bar.advance(self._task)  # type: ignore[arg-type]

    def more(self, steps: int) -> None:
        """There are that many more steps to do."""
        task = next(task for task in self._bar.tasks if task.id == self._task)
        self._bar.update(task.id, total=(task.total or 0) + steps)


def shown(value: object) -> str:
    """A value in a table's cell."""
    match value:
        case None | [] | () | {}:
            text = "-"
        case bool():
            text = "yes" if value else "no"
        case datetime():
            text = value.isoformat(timespec="seconds")
        case list() | tuple() if all(isinstance(each, str) for each in value):
            text = ", ".join(value)
        case list() | tuple() | dict():
            text = json.dumps(value, default=_encoded, ensure_ascii=False)
        case _:
            text = str(value)
    return one_line(text)


def _encoded(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, frozenset | set):
        return sorted(value)
    return str(value)


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    # A pipe has no width: a name that is cut or folded could not be searched for.
    return console if console.is_terminal else Console(stderr=stderr, width=_UNLIMITED, highlight=False)
