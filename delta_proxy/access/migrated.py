"""The permissions database as the service asks it: migrated first. Only a start that has a database imports
this, because SQLAlchemy is slow to import.
"""

from __future__ import annotations

from cryptography.fernet import MultiFernet
from sqlalchemy import Engine
from twisted.logger import Logger

from delta_proxy.access.failures import MigrationError
from delta_proxy.access.migrations import upgrade
from delta_proxy.access.permissions import PermissionStore, database_engine
from delta_proxy.access.snapshot import Listening, Snapshot, Version

_log = Logger()


class MigratedStore:
    """The database, its schema brought up to date before the first question that reaches it.

    Every method blocks: call them on the thread pool.
    """

    def __init__(self, uri: str, fernet: MultiFernet) -> None:
        self._engine: Engine = database_engine(uri)
        self._store = PermissionStore(self._engine, fernet)
        self._migrated = False

    def current_version(self) -> Version:
        """The version of the state now."""
        return self._ready().current_version()

    def load_snapshot(self) -> Snapshot:
        """The state now."""
        return self._ready().load_snapshot()

    def listen(self) -> Listening | None:
        """Where changes are announced, if the database does so."""
        return self._ready().listen()

    def _ready(self) -> PermissionStore:
        if not self._migrated:
            try:
                upgrade(self._engine)
            except MigrationError as error:
                _log.error("the permissions database: {error}", error=str(error))
                raise
            self._migrated = True
        return self._store
