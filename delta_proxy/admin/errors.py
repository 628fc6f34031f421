"""What goes wrong in a command, as the one line that the operator reads."""

from __future__ import annotations

from typing import Final

import click

from delta_proxy.access.failures import MigrationError, PermissionsError
from delta_proxy.access.policy import PolicyError
from delta_proxy.config import ConfigError
from delta_proxy.delta.actions import LogError
from delta_proxy.s3.errors import S3Error

_LONGEST: Final = 600
EXPECTED: Final = (ConfigError, PermissionsError, PolicyError, MigrationError, LogError, S3Error, OSError)
"""Errors whose own words are for the operator."""


def one_line(text: str) -> str:
    """The text without line breaks and control characters: it may come from a client, a store or a row."""
    shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in shown)


def words(error: BaseException) -> str:
    """What an error says, in one line; never a statement of SQL, which could hold a row."""
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415 - slow to import, and needed only for a failure

    if isinstance(error, SQLAlchemyError):
        lines = str(getattr(error, "orig", None) or type(error).__name__).splitlines()
        return one_line(f"the permissions database: {lines[0] if lines else type(error).__name__}")
    if isinstance(error, EXPECTED):
        return one_line(" ".join(str(error).split())) or type(error).__name__
    return one_line(f"unexpected {type(error).__name__}: {' '.join(str(error).split())}")


class AdminGroup(click.Group):
    """A group of commands that end with one line and status 1 when something goes wrong."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:  # noqa: BLE001 - an operator gets a line, not a traceback
            raise click.ClickException(words(error)) from None
