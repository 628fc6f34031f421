"""`group …`: users that are granted the same."""

from __future__ import annotations

import click

from delta_proxy.admin.desk import Desk, desk_command
from delta_proxy.admin.errors import AdminGroup

_COLUMNS = {"id": "GROUP", "members": "MEMBERS", "source": "SOURCE"}


@click.group(cls=AdminGroup)
def group() -> None:
    """Groups: users that are granted the same."""


@group.command()
@click.argument("name")
@desk_command
def add(desk: Desk, name: str) -> None:
    """Make a group."""
    desk.store.add_group(name)
    desk.output.result({"group": name}, f"made the group {name}")


@group.command()
@click.argument("name")
@desk_command
def remove(desk: Desk, name: str) -> None:
    """Take a group away, with its memberships and grants."""
    desk.store.remove_group(name)
    desk.output.result({"group": name, "removed": True}, f"removed the group {name} and its grants")


@group.command(name="list")
@desk_command
def list_groups(desk: Desk) -> None:
    """All groups and their members, those of the configuration file too."""
    users = desk.config.users.items()
    rows: list[dict[str, object]] = [
        {
            "id": name,
            "members": sorted(user for user, each in users if name in each.groups),
            "source": "configuration",
        }
        for name in desk.config.groups
    ]
    if desk.config.database_enabled:
        rows += [
            {"id": info.id, "members": list(info.members), "source": "database"}
            for info in desk.store.list_groups()
        ]
    desk.output.rows(sorted(rows, key=lambda row: str(row["id"])), _COLUMNS, "no groups")


@group.command(name="add-member")
@click.argument("name")
@click.argument("user")
@desk_command
def add_member(desk: Desk, name: str, user: str) -> None:
    """Put a user into a group."""
    desk.store.add_member(name, user)
    desk.output.result({"group": name, "user": user, "member": True}, f"{user} is in {name}")


@group.command(name="remove-member")
@click.argument("name")
@click.argument("user")
@desk_command
def remove_member(desk: Desk, name: str, user: str) -> None:
    """Take a user out of a group."""
    desk.store.remove_member(name, user)
    desk.output.result({"group": name, "user": user, "member": False}, f"{user} is not in {name} any more")
