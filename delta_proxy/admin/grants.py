"""`grant`, `revoke` and `grants`: what may be read, and by whom."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click

from delta_proxy.access.permissions import GrantInfo
from delta_proxy.access.policy import Grant, check
from delta_proxy.admin.desk import Desk, desk_command
from delta_proxy.admin.filters import read_filters
from delta_proxy.admin.people import is_configured, parse_principal, principal_text
from delta_proxy.admin.tables import Unreadable, explained, opened
from delta_proxy.delta.index import TableIndex

_COLUMNS = {
    "number": "GRANT",
    "principal": "PRINCIPAL",
    "table": "TABLE",
    "filters": "FILTERS",
    "expires_at": "EXPIRES",
    "state": "STATE",
    "granted_by": "BY",
    "note": "NOTE",
}
_UNITS: Final = {"m": 60, "h": 3_600, "d": 86_400}
_SPAN: Final = re.compile(r"([0-9]{1,6})([mhd])")
_NUMBER: Final = re.compile(r"[0-9]{1,18}")


@click.command()
@click.argument("principal")
@click.option("--table", "alias", required=True, help="The alias of the table.")
@click.argument("filters")
@click.option("--expires", help="When it ends: 2026-12-31T18:00:00+00:00, or from now: 90m, 12h, 30d.")
@click.option("--note", default="", help="Why; kept with the grant.")
@click.option(
    "--no-check", is_flag=True, help="Do not compare the filters with the table's partition columns."
)
@desk_command
def grant(
    desk: Desk, *, principal: str, alias: str, filters: str, expires: str | None, note: str, no_check: bool
) -> None:
    """Grant partitions of a table to PRINCIPAL: user:NAME, group:NAME or oidc:SUBJECT.

    FILTERS is JSON as in allowedPartitions: '[{"MIC": ["XLON", "XETR"]}]'; '[{}]' is everything.
    """
    kind, name = parse_principal(principal)
    granted, stored = read_filters(filters)
    ends = None if expires is None else parse_end(expires, desk.now())
    _require_table(desk, alias)
    store = desk.store
    if not no_check:
        _check_columns(desk, alias, granted)
    number = store.grant(
        kind,
        name,
        alias,
        stored,
        granted_by=desk.surroundings.operator(),
        expires_at=ends,
        note=note,
        configured=is_configured(desk.config, kind, name),
    )
    record = {"number": number, "principal": principal, "table": alias, "filters": stored, "expires_at": ends}
    until = "" if ends is None else f" until {ends.isoformat(timespec='seconds')}"
    desk.output.result(record, f"grant {number}: {principal} on {alias}{until}")


@click.command()
@click.argument("what")
@click.option("--table", "alias", help="With a principal: its grants on this table.")
@click.option("--all", "everywhere", is_flag=True, help="With a principal: its grants on every table.")
@desk_command
def revoke(desk: Desk, what: str, alias: str | None, everywhere: bool) -> None:
    """Take away one grant by its number, or those of a principal on a table."""
    if _NUMBER.fullmatch(what):
        if alias is not None or everywhere:
            raise click.ClickException("a number names one grant: neither --table nor --all goes with it")
        desk.store.revoke(int(what))
        desk.output.result({"revoked": 1}, f"revoked grant {what}")
        return
    kind, name = parse_principal(what)
    if (alias is None) is not everywhere:
        raise click.ClickException("with a principal, expected either --table ALIAS or --all")
    count = desk.store.revoke_all(kind, name, alias)
    if count == 0:
        raise click.ClickException(f"{what} has no grant{f' on {alias}' if alias else ''} in the database")
    desk.output.result({"revoked": count}, f"revoked {count} of {what}")


@click.command()
@click.argument("principal", required=False)
@click.option("--table", "alias", help="Only those on this table.")
@desk_command
def grants(desk: Desk, principal: str | None, alias: str | None) -> None:
    """The grants of the database, those too that have expired or cannot be used."""
    wanted = None if principal is None else parse_principal(principal)
    rows = [
        _record(info, desk.now())
        for info in desk.store.list_grants()
        if (alias is None or info.table == alias)
        and (wanted is None or (info.kind, info.principal) == (wanted[0].value, wanted[1]))
    ]
    desk.output.rows(rows, _COLUMNS, "no grants")


def parse_end(text: str, now: datetime) -> datetime:
    """The end of a grant: a time with its zone, a date (its first moment in UTC), or a span from `now`.

    Raises ClickException for anything else and for a time that is over.
    """
    if span := _SPAN.fullmatch(text):
        return now + timedelta(seconds=int(span[1]) * _UNITS[span[2]])
    try:
        end = datetime.fromisoformat(text)
    except ValueError:
        expected = f'expected a time with its zone, or 90m, 12h, 30d, found "{text}"'
        raise click.ClickException(expected) from None
    if end.tzinfo is None and len(text) > len("2026-12-31"):
        raise click.ClickException(f'"{text}" needs a zone: {text}+00:00')
    end = end.replace(tzinfo=UTC) if end.tzinfo is None else end
    if end <= now:
        raise click.ClickException(f'"{text}" is over')
    return end


def _require_table(desk: Desk, alias: str) -> None:
    if alias not in desk.config.table_mapping:
        known = ", ".join(sorted(desk.config.table_mapping))
        raise click.ClickException(f"no table {alias} in tableMapping; there is {known}")


def _check_columns(desk: Desk, alias: str, granted: Grant) -> None:
    """Raises PolicyError when the grant cannot be meant for the table; warns when that cannot be known."""
    if granted.is_everything or granted.is_nothing:
        return

    async def read(reactor: Any) -> TableIndex:
        async with opened(desk.config, reactor, desk.now) as tables:
            return await explained(tables.cache.table(alias))

    try:
        index = desk.run(read)
    except Unreadable as error:
        desk.output.warn(f"not checked, the table {alias} cannot be read: {error}")
        return
    check(granted, index.metadata.columns, "filters")


def _record(info: GrantInfo, now: datetime) -> dict[str, object]:
    expired = info.expires_at is not None and info.expires_at <= now
    return {
        "number": info.number,
        "principal": principal_text(info.kind, info.principal),
        "table": info.table,
        "filters": _filters(info.filters),
        "expires_at": info.expires_at,
        "state": f"unusable: {info.problem}" if info.problem else "expired" if expired else "in force",
        "granted_by": info.granted_by,
        "note": info.note,
        "created_at": info.created_at,
    }


def _filters(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text
