"""The schema of the permissions database, as Alembic migrations that need no command line and no file
beside them.

`upgrade` may be called by every worker and replica at its start: they wait for each other, and the first
one does the work.
"""

from __future__ import annotations

import pathlib
import threading

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

VERSION_TABLE = "delta_proxy_schema"
_LOCK_NUMBER = 0x64656C7461  # "delta", an advisory lock that nothing else takes
_ONE_AT_A_TIME = threading.Lock()  # Alembic's environment is global to the process


class MigrationError(Exception):
    """The schema could not be brought up to date; the message is one line and holds no URL."""


def upgrade(engine: Engine) -> None:
    """Bring the database's schema to the newest revision; nothing is changed when it is there already.

    Raises MigrationError; the database is then as it was before.
    """
    if engine.dialect.name not in {"sqlite", "postgresql"}:
        raise MigrationError("the permissions database must be sqlite or PostgreSQL")
    config = _config()
    try:
        with _ONE_AT_A_TIME:
            if current(engine) != head():
                _upgrade(engine, config)
    except CommandError as error:
        raise MigrationError(f"the schema is of another version of the proxy: {error}") from error
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        raise MigrationError(f"the schema cannot be migrated: {str(cause).splitlines()[0]}") from error


def current(engine: Engine) -> str | None:
    """The revision that the database is at; None for one that was never migrated."""
    with engine.connect() as connection:
        return MigrationContext.configure(
            connection, opts={"version_table": VERSION_TABLE}
        ).get_current_revision()


def head() -> str | None:
    """The newest revision that this version of the proxy knows."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def _upgrade(engine: Engine, config: Config) -> None:
    # One process migrates, by BEGIN IMMEDIATE on sqlite and the lock on PostgreSQL; the others find it done.
    with engine.execution_options(sqlite_begin="IMMEDIATE").begin() as connection:
        _lock(connection)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _lock(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        # Migrations may take longer than a query of the running proxy may.
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK_NUMBER})


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(pathlib.Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
