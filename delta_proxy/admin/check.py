"""`check`: whether the configuration, the stores, the tables and every grant fit each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import click

from delta_proxy.access.audit import STANDARD_OUTPUT
from delta_proxy.access.policy import EVERYTHING, Grant, PolicyError
from delta_proxy.access.policy import check as check_policy
from delta_proxy.access.snapshot import Snapshot
from delta_proxy.admin.desk import Desk, desk_command
from delta_proxy.admin.errors import words
from delta_proxy.admin.output import Steps
from delta_proxy.admin.tables import Coverage, Tables, Unreadable, opened
from delta_proxy.config import Config
from delta_proxy.delta.index import TableIndex
from delta_proxy.tls import UnusableCertificate, server_context

_COLUMNS = {
    "table": "TABLE",
    "location": "LOCATION",
    "version": "VERSION",
    "files": "FILES",
    "partitions": "PARTITIONS",
    "partition_columns": "PARTITION COLUMNS",
    "features": "FEATURES",
    "grants": "GRANTS",
    "state": "STATE",
}


@attrs.frozen
class Rule:
    """A grant with the spot or row where it stands."""

    where: str
    alias: str
    grant: Grant

    @property
    def restricts(self) -> bool:
        """Whether it grants a part of the table."""
        return not (self.grant.is_everything or self.grant.is_nothing)


@click.command()
@desk_command
def check(desk: Desk) -> None:
    """Check the configuration, the access to every table, and each grant against its table.

    The exit status is 1 when there is a problem.
    """
    config = desk.config
    problems = list(_parts(config))
    snapshot = _snapshot(desk, problems)
    rules = [Rule(".".join(path), alias, grant) for path, alias, grant in config.grants]
    rules += _stored(snapshot)
    problems += [
        f"{rule.where}: no table {rule.alias} in tableMapping"
        for rule in rules
        if rule.alias not in config.table_mapping
    ]
    with desk.output.progress("tables", len(config.table_mapping)) as steps:

        async def look(reactor: Any) -> list[dict[str, object]]:
            async with opened(config, reactor, desk.now) as tables:
                return [await _table(desk, tables, alias, rules, steps) for alias in sorted(tables.clients)]

        rows = desk.run(look)
    problems += [f"{row['table']}: {problem}" for row in rows for problem in _listed(row["problems"])]
    _report(desk, rows, problems)
    if problems:
        raise click.exceptions.Exit(1)


def _parts(config: Config) -> Iterator[str]:
    """What is wrong beside the tables."""
    if config.tls is not None:
        try:
            server_context(config.tls.certificate, config.tls.private_key)
        except UnusableCertificate as error:
            yield words(error)
    if config.audit not in {None, STANDARD_OUTPUT}:
        try:
            with open(config.audit or "", "ab"):
                pass
        except OSError as error:
            yield f"audit: {config.audit} cannot be written: {error.strerror}"


def _snapshot(desk: Desk, problems: list[str]) -> Snapshot | None:
    try:
        snapshot = desk.snapshot()
    except Exception as error:  # noqa: BLE001 - the tables are to be looked at all the same
        problems.append(error.format_message() if isinstance(error, click.ClickException) else words(error))
        return None
    if snapshot is not None:
        problems += [f"{problem}; it grants nothing" for problem in snapshot.problems]
    return snapshot


def _stored(snapshot: Snapshot | None) -> Iterator[Rule]:
    held = [] if snapshot is None else [one for several in snapshot.grants.values() for one in several]
    for one in held:
        yield Rule(f"{one.label} ({one.kind.value} {one.principal})", one.table, one.grant)


async def _table(
    desk: Desk, tables: Tables, alias: str, rules: list[Rule], steps: Steps
) -> dict[str, object]:
    steps.next(alias)
    mine = [rule for rule in rules if rule.alias == alias]
    row: dict[str, object] = {
        "table": alias,
        "location": tables.clients[alias].location.uri,
        "grants": len(mine),
    }
    try:
        index = await tables.index(alias)
    except Unreadable as error:
        row |= {"state": "unreadable", "problems": [f"cannot be read: {error}"]}
    else:
        problems = list(_judged(index, mine))
        row |= _described(desk, index) | {"state": "problems" if problems else "good", "problems": problems}
    steps.done()
    return row


def _described(desk: Desk, index: TableIndex) -> dict[str, object]:
    metadata = index.metadata
    covered = Coverage.of(index, EVERYTHING, desk.now())
    return {
        "version": index.version,
        "files": covered.of_files,
        "partitions": covered.of_partitions,
        "partition_columns": [f"{column.name} {column.type}" for column in metadata.columns],
        "reader_version": metadata.min_reader,
        "features": sorted(metadata.reader_features),
        "outside": index.outside,
    }


def _judged(index: TableIndex, rules: list[Rule]) -> Iterator[str]:
    restricted = [rule for rule in rules if rule.restricts]
    if index.metadata.unknown_features and restricted:
        unknown = ", ".join(sorted(index.metadata.unknown_features))
        yield f"is closed to whom only a part is granted: reader features not known: {unknown}"
    for rule in restricted:
        try:
            check_policy(rule.grant, index.metadata.columns, rule.where)
        except PolicyError as error:
            yield words(error)


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _report(desk: Desk, rows: list[dict[str, object]], problems: list[str]) -> None:
    if desk.output.as_json:
        desk.output.document({"good": not problems, "tables": rows, "problems": problems})
        return
    desk.output.table(rows, _COLUMNS)
    for problem in problems:
        click.echo(f"problem: {problem}")
    desk.output.line(f"{len(problems)} problems" if problems else "everything fits")
