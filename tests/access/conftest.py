"""Fixtures of the permission tests: each runs on sqlite and on a real PostgreSQL."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from delta_proxy.access.keys import SecretKeys, generate_key
from delta_proxy.access.migrations import upgrade
from delta_proxy.access.permissions import PermissionStore, database_engine
from tests.integration.postgres import postgres

__all__ = ["postgres"]


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> str:
    """The URI of a new, empty database."""
    if request.param == "sqlite":
        return f"sqlite:{tmp_path / 'permissions.db'}"
    return str(request.getfixturevalue("postgres").new_database())


@pytest.fixture
def engine(database: str) -> Iterator[sa.Engine]:
    """The engine of a database with the newest schema."""
    made = database_engine(database)
    upgrade(made)
    yield made
    made.dispose()


@pytest.fixture
def keys() -> SecretKeys:
    """One sealing key."""
    return SecretKeys.parse(generate_key())


@pytest.fixture
def store(engine: sa.Engine, keys: SecretKeys) -> PermissionStore:
    """A store without any user."""
    return PermissionStore(engine, keys.fernet())
