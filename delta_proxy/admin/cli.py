"""`delta-s3-proxy-admin`: the commands under one name."""

from __future__ import annotations

import click

from delta_proxy.admin.audit import audit
from delta_proxy.admin.check import check
from delta_proxy.admin.database import migrate, reseal
from delta_proxy.admin.errors import AdminGroup
from delta_proxy.admin.explain import explain
from delta_proxy.admin.grants import grant, grants, revoke
from delta_proxy.admin.groups import group
from delta_proxy.admin.users import user
from delta_proxy.admin.verify import verify


@click.group(cls=AdminGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="delta-s3-proxy", message="%(prog)s %(version)s")
def admin() -> None:
    """Users, grants and checks of a Delta S3 Proxy."""


for _command in (user, group, grant, revoke, grants, explain, check, verify, audit, migrate, reseal):
    admin.add_command(_command)


def main() -> None:
    """The console script."""
    admin(prog_name="delta-s3-proxy-admin")
