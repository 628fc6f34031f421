"""The schema of the permissions database, as Alembic migrations that need no command line and no file
beside them.

`upgrade` may be called by every worker and replica at its start: they wait for each other, and the first
one does the work.
"""

from __future__ import annotations

import threading

from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.exc import SQLAlchemyError

from delta_proxy.access.failures import MigrationError

VERSION_TABLE = "delta_proxy_schema"
HEAD = "0001"
"""The newest revision that this version of the proxy knows."""
_LOCK_NUMBER = 0x64656C7461  # "delta", an advisory lock that nothing else takes
_ONE_AT_A_TIME = threading.Lock()  # Alembic's environment is global to the process


def upgrade(engine: Engine) -> None:
    """Bring the database's schema to the newest revision; nothing is changed when it is there already.

    Raises MigrationError; the database is then as it was before.
    """
    if engine.dialect.name not in {"sqlite", "postgresql"}:
        raise MigrationError("the permissions database must be sqlite or PostgreSQL")
    try:
        with _ONE_AT_A_TIME:
            if current(engine) != HEAD:
                _upgrade(engine)
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        raise MigrationError(f"the schema cannot be migrated: {str(cause).splitlines()[0]}") from error


def current(engine: Engine) -> str | None:
    """The revision that the database is at; None for one that was never migrated."""
    with engine.connect() as connection:
        if not inspect(connection).has_table(VERSION_TABLE):
            return None
        found = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608
        return None if found is None else str(found)


def _upgrade(engine: Engine) -> None:
    from delta_proxy.access.migrations import runner  # noqa: PLC0415 - Alembic is slow to import

    # One process migrates, by BEGIN IMMEDIATE on sqlite and the lock on PostgreSQL; the others find it done.
    try:
        with engine.execution_options(sqlite_begin="IMMEDIATE").begin() as connection:
            _lock(connection)
            runner.run(connection)
    except runner.CommandError as error:
        raise MigrationError(f"the schema is of another version of the proxy: {error}") from error


def _lock(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        # Migrations may take longer than a query of the running proxy may.
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK_NUMBER})
