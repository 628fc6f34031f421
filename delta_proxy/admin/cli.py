"""`delta-s3-proxy-admin`: the commands under one name. A command is imported when it is called for: reading
tables needs far more of the package than changing a user does.
"""

from __future__ import annotations

from importlib import import_module
from typing import Final

import click

from delta_proxy.admin.errors import AdminGroup

_COMMANDS: Final = {
    "audit": "audit",
    "check": "check",
    "explain": "explain",
    "grant": "grants",
    "grants": "grants",
    "group": "groups",
    "migrate": "database",
    "reseal": "database",
    "revoke": "grants",
    "user": "users",
    "verify": "verify",
}
"""The module of each command, which has its name there."""


class _Commands(AdminGroup):
    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, for the help."""
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now; None for a name that is none."""
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        found: click.Command = getattr(import_module(f"delta_proxy.admin.{module}"), cmd_name)
        return found


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="delta-s3-proxy", message="%(prog)s %(version)s")
def admin() -> None:
    """Users, grants and checks of a Delta S3 Proxy."""


def main() -> None:
    """The console script."""
    admin(prog_name="delta-s3-proxy-admin")
