"""`explain`: what somebody may read of a table, by which grant, and why a path is served or not."""

from __future__ import annotations

from typing import Any

import attrs
import click

from delta_proxy.access.identity import Principal
from delta_proxy.access.policy import Grant
from delta_proxy.admin.desk import Desk, desk_command
from delta_proxy.admin.filters import filters_of
from delta_proxy.admin.people import Held, Person, find_person, grants_held
from delta_proxy.admin.tables import Coverage, Tables, Unreadable, explained, opened
from delta_proxy.delta.gate import Absent, GrantedTable, Refused, Served, Verdict
from delta_proxy.delta.index import TableIndex

_COLUMNS = {
    "source": "GRANT",
    "holder": "HELD BY",
    "filters": "FILTERS",
    "state": "STATE",
    "files": "FILES",
    "partitions": "PARTITIONS",
}
_FILES = "of {of_files} files, {partitions} of {of_partitions} partitions"


@click.command()
@click.option(
    "--user", "name", help="A user's name, or oidc:SUBJECT; not needed where everyone is anonymous."
)
@click.option("--group", "groups", multiple=True, help="A group of the OIDC subject; may be repeated.")
@click.option("--table", "alias", required=True, help="The alias of the table.")
@click.option("--path", help="A path relative to the table's root: is it served, and why?")
@desk_command
def explain(desk: Desk, name: str | None, groups: tuple[str, ...], alias: str, path: str | None) -> None:
    """Tell what a user may read of a table, by which grants, and how much that is."""
    if alias not in desk.config.table_mapping:
        raise click.ClickException(f"no table {alias} in tableMapping")
    snapshot, now = desk.snapshot(), desk.now()
    person = find_person(desk.config, snapshot, name, groups, now)
    case = Case(
        person,
        alias,
        tuple(grants_held(desk.config, snapshot, person.principal, alias, now)),
        desk.config.policy.grant(person.principal, alias),
        admitted=not person.disabled and desk.config.policy.admits(person.principal, alias),
    )

    async def measure(reactor: Any) -> dict[str, object]:
        async with opened(desk.config, reactor, desk.now) as tables:
            return await case.measured(tables, desk, path)

    record = case.record | desk.run(measure)
    if desk.output.as_json:
        desk.output.document(record)
    else:
        _print(desk, record)
    if record["unreadable"]:
        raise click.exceptions.Exit(1)


@attrs.frozen
class Case:
    """One principal before one table; `admitted` tells whether the table exists for it."""

    person: Person
    alias: str
    held: tuple[Held, ...]
    grant: Grant
    admitted: bool

    @property
    def principal(self) -> Principal:
        """Who asks."""
        return self.person.principal

    @property
    def record(self) -> dict[str, object]:
        """What needs no look at the table."""
        return {
            "principal": self.principal.id,
            "groups": sorted(self.principal.groups),
            "source": self.person.source,
            "disabled": self.person.disabled,
            "read_only": self.principal.read_only,
            "table": self.alias,
            "access": self.access,
            "why": self.why,
            "filters": filters_of(self.grant) if self.admitted else [],
        }

    @property
    def access(self) -> str:
        """How much of the table, in a word."""
        if not self.admitted:
            return "closed"
        if self.grant.is_everything:
            return "everything"
        return "nothing" if self.grant.is_nothing else "restricted"

    @property
    def why(self) -> str:
        """The reason, in a sentence."""
        in_force = [held.source for held in self.held if held.in_force]
        if self.person.disabled:
            return "the user is disabled: every request is refused"
        if not self.admitted:
            return "no grant in force names the table, and it is closed to whom none names"
        return f"granted by {', '.join(in_force)}" if in_force else "no grant names the table: it is open"

    async def measured(self, tables: Tables, desk: Desk, path: str | None) -> dict[str, object]:
        """What the table says: its version, what each grant covers, what becomes of the path."""
        found: dict[str, object] = {"grants": [held.record for held in self.held], "unreadable": None}
        try:
            index = await tables.index(self.alias)
        except Unreadable as error:
            return found | {"unreadable": str(error)}
        now = desk.now()
        found["version"] = index.version
        found["unknown_features"] = sorted(index.metadata.unknown_features)
        found["grants"] = [
            held.record | attrs.asdict(Coverage.of(index, held.grant, now)) for held in self.held
        ]
        covered = Coverage.of(index, self.grant, now)
        found |= attrs.asdict(covered if self.admitted else attrs.evolve(covered, files=0, partitions=0))
        if path is not None:
            try:
                found["path"] = await self._path(tables, path, index)
            except Unreadable as error:
                found["unreadable"] = str(error)
        return found

    async def _path(self, tables: Tables, path: str, index: TableIndex) -> dict[str, object]:
        entries = index.lookup(path)
        values = [dict(index.partitions[entry.tuple_id].values) for entry in entries]
        record: dict[str, object] = {"path": path, "partitions": values}
        if not self.admitted:
            return record | {"decision": "denied", "reason": self.why}
        verdict = await explained(tables.gate.judge(GrantedTable(self.alias, self.grant), path))
        return record | _told(verdict, self.grant)


def _told(verdict: Verdict, grant: Grant) -> dict[str, object]:
    match verdict:
        case Served(use, shown):
            if grant.is_everything:
                reason = "the grant is everything: the table is passed on as it is"
            elif shown is not None:
                reason = "deletion vectors of granted files; the other bytes are zeros"
            else:
                reason = f"a {use.value} file: every partition value it ever had is granted"
            if use.value == "log" and not grant.is_everything:
                reason = "a log file, as the view of this grant"
            return {"decision": "allowed", "reason": reason}
        case Refused(reason):
            return {"decision": "denied", "reason": reason.value}
        case Absent():
            return {"decision": "absent", "reason": "for this principal there is no such file (404)"}


def _print(desk: Desk, record: dict[str, Any]) -> None:
    output = desk.output
    groups = f", in {', '.join(record['groups'])}" if record["groups"] else ""
    output.line(
        f"{record['principal']} ({record['source']}{groups}) on {record['table']}: {record['access']}"
    )
    output.line(record["why"])
    rows = [each | {"state": "in force" if each["in_force"] else "expired"} for each in record["grants"]]
    if rows:
        output.table(rows, _COLUMNS)
    if record["unreadable"]:
        click.echo(f"Error: the table cannot be read: {record['unreadable']}", err=True)
        return
    output.line(f"version {record['version']}: {record['files']} {_FILES.format_map(record)}")
    if record["unknown_features"]:
        output.line(f"closed but to everything: unknown features {', '.join(record['unknown_features'])}")
    if "path" in record:
        told = record["path"]
        output.line(f"{told['path']}: {told['decision']}, {told['reason']}")
        for values in told["partitions"]:
            output.line("  " + ", ".join(f"{column}={value}" for column, value in values.items()))
