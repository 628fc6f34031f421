"""`migrate` and `reseal`: the database itself."""

from __future__ import annotations

import click

from delta_proxy.access.migrations import HEAD, current, upgrade
from delta_proxy.admin.desk import Desk, desk_command


@click.command()
@desk_command
def migrate(desk: Desk) -> None:
    """Make the database, or bring its schema up to date; what is up to date stays as it is."""
    _ = desk.keys
    engine = desk.engine
    before = current(engine)
    upgrade(engine)
    line = f"the schema is at {HEAD}" if before != HEAD else f"the schema was at {HEAD} already"
    desk.output.result({"before": before, "after": HEAD}, line)


@click.command()
@desk_command
def reseal(desk: Desk) -> None:
    """Seal every secret with the first of PROXY_SECRET_KEYS, so that older keys can be taken away."""
    count = desk.store.reseal()
    desk.output.result({"resealed": count}, f"sealed {count} secrets with the first key")
