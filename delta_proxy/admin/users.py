"""`user …`: who may sign requests."""

from __future__ import annotations

import click

from delta_proxy.access.permissions import NewCredentials
from delta_proxy.admin.desk import Desk, desk_command
from delta_proxy.admin.errors import AdminGroup

_COLUMNS = {
    "id": "USER",
    "access_key": "ACCESS KEY",
    "groups": "GROUPS",
    "disabled": "DISABLED",
    "read_only": "READ ONLY",
    "created_at": "CREATED",
    "source": "SOURCE",
}


@click.group(cls=AdminGroup)
def user() -> None:
    """Users: who may sign requests."""


@user.command()
@click.argument("name")
@click.option("--access-key", help="An access key of your own; made up unless given.")
@click.option("--read-only", is_flag=True, help="The user may only read, whatever it is granted.")
@desk_command
def add(desk: Desk, name: str, access_key: str | None, read_only: bool) -> None:
    """Make a user. Its secret is shown now and never again."""
    taken = {each.access_key for each in desk.config.users.values()}
    if name in desk.config.users or access_key in taken:
        raise click.ClickException(f"the user {name} or its access key is in {desk.file}")
    _show(desk, desk.store.add_user(name, access_key=access_key, read_only=read_only))


@user.command()
@click.argument("name")
@desk_command
def rotate(desk: Desk, name: str) -> None:
    """Give a user a new secret; the old one stops. It is shown now and never again."""
    _show(desk, desk.store.rotate_secret(name))


@user.command()
@click.argument("name")
@desk_command
def disable(desk: Desk, name: str) -> None:
    """Shut a user out."""
    desk.store.set_disabled(name, True)
    desk.output.result({"user": name, "disabled": True}, f"{name} is disabled")


@user.command()
@click.argument("name")
@desk_command
def enable(desk: Desk, name: str) -> None:
    """Let a user in again."""
    desk.store.set_disabled(name, False)
    desk.output.result({"user": name, "disabled": False}, f"{name} is enabled")


@user.command(name="list")
@desk_command
def list_users(desk: Desk) -> None:
    """All users, those of the configuration file too."""
    rows: list[dict[str, object]] = [
        {
            "id": name,
            "access_key": each.access_key,
            "groups": sorted(each.groups),
            "disabled": False,
            "read_only": each.read_only,
            "created_at": None,
            "source": "configuration",
        }
        for name, each in desk.config.users.items()
    ]
    if desk.config.database_enabled:
        rows += [
            {
                "id": info.id,
                "access_key": info.access_key,
                "groups": list(info.groups),
                "disabled": info.disabled,
                "read_only": info.read_only,
                "created_at": info.created_at,
                "source": "database",
            }
            for info in desk.store.list_users()
        ]
    desk.output.rows(sorted(rows, key=lambda row: str(row["id"])), _COLUMNS, "no users")


def _show(desk: Desk, made: NewCredentials) -> None:
    record = {"user": made.user, "access_key": made.access_key, "secret_key": made.secret.value}
    desk.output.result(
        record,
        f"user        {made.user}\naccess key  {made.access_key}\nsecret key  {made.secret.value}\n"
        "The secret key is not shown again.",
    )
