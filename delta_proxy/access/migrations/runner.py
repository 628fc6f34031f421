"""Alembic, for a database whose schema is not the newest: the common start needs none of it."""

from __future__ import annotations

import pathlib

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection

__all__ = ["CommandError", "newest", "run"]


def run(connection: Connection) -> None:
    """Bring the schema to the newest revision in the connection's transaction. Raises CommandError."""
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def newest() -> str | None:
    """The newest of the revisions in `versions/`."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(pathlib.Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
