"""`audit tail`: who read what, from the audit log."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

import attrs
import click

from delta_proxy.access.audit import STANDARD_OUTPUT
from delta_proxy.admin.desk import Desk, desk_command
from delta_proxy.admin.errors import AdminGroup, one_line

_PAUSE_SECONDS: Final = 0.5
_CHUNK: Final = 1 << 16


@click.group(cls=AdminGroup)
def audit() -> None:
    """The audit log: who asked what, and what was decided."""


@audit.command()
@click.option(
    "-n", "--lines", "count", default=10, show_default=True, type=click.IntRange(0), help="How many."
)
@click.option("-f", "--follow", is_flag=True, help="Go on with new ones until Ctrl-C; survives a rotation.")
@click.option("--user", help="Only of this principal.")
@click.option("--table", help="Only about this table.")
@click.option("--decision", type=click.Choice(["allowed", "denied"]), help="Only these.")
@desk_command
def tail(
    desk: Desk, *, count: int, follow: bool, user: str | None, table: str | None, decision: str | None
) -> None:
    """The newest records, the oldest of them first."""
    log = desk.config.audit
    if log is None or log == STANDARD_OUTPUT:
        where = "goes to the proxy's standard output" if log else "is not configured (audit)"
        raise click.ClickException(f"there is no file to read: the audit log {where}")
    given = {"principal": user, "table": table, "decision": decision}
    wanted = Wanted({key: value for key, value in given.items() if value is not None})
    with Follower.open(pathlib.Path(log)) as file, contextlib.suppress(KeyboardInterrupt):
        for record in deque(wanted.of(file.lines()), maxlen=count):
            _print(desk, record)
        while follow:
            for record in wanted.of(file.lines()):
                _print(desk, record)
            time.sleep(_PAUSE_SECONDS)


@attrs.frozen
class Wanted:
    """Which records are asked for: those whose fields have these values."""

    fields: dict[str, str]

    def of(self, lines: Iterator[bytes]) -> Iterator[dict[str, Any]]:
        """The records among lines; a line that is no record is passed over."""
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and all(record.get(k) == v for k, v in self.fields.items()):
                yield record


@attrs.define
class Follower:
    """A log that grows and is now and then replaced by a new file of the same name."""

    path: pathlib.Path
    _file: io.BufferedReader
    _rest: bytes = b""

    @classmethod
    def open(cls, path: pathlib.Path) -> Follower:
        """Begin at the start. OSError when it cannot be read."""
        return cls(path, path.open("rb"))

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def lines(self) -> Iterator[bytes]:
        """The whole lines that have come since the last call, those of a new file after the old one's."""
        yield from self._read()
        fresh = self._replacement()
        if fresh is not None:
            yield from self._read()
            self._file.close()
            self._file, self._rest = fresh, b""
            yield from self._read()

    def _read(self) -> Iterator[bytes]:
        while chunk := self._file.read(_CHUNK):
            *whole, self._rest = (self._rest + chunk).split(b"\n")
            yield from whole

    def _replacement(self) -> io.BufferedReader | None:
        """The new file of the name; None while there is none, as between the rename and the reopening."""
        try:
            found = self.path.stat()
            mine = os.fstat(self._file.fileno())
            same = (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino)
            return None if same and found.st_size >= self._file.tell() else self.path.open("rb")
        except OSError:
            return None


def _print(desk: Desk, record: dict[str, Any]) -> None:
    if desk.output.as_json:
        desk.output.document(record)
        return
    where = "/".join(str(record[key]) for key in ("table", "path") if record.get(key)) or "-"
    reason = f" ({record['reason']})" if record.get("reason") else ""
    who = [_said(record, key) for key in ("time", "principal", "source", "operation")]
    outcome = [f"{_said(record, 'decision')}{reason}", _said(record, "status"), _said(record, "bytes")]
    click.echo(one_line("  ".join([*who, where, *outcome])))


def _said(record: dict[str, Any], key: str) -> str:
    value = record.get(key)
    return "-" if value is None else str(value)
