"""Fixtures of the permission tests: each runs on sqlite and on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from delta_proxy.access.keys import SecretKeys, generate_key
from delta_proxy.access.permissions import PermissionStore, database_engine
from tests.databases import database, kind, migrated, postgres, postgres_schema, sqlite_schema

__all__ = ["database", "kind", "migrated", "postgres", "postgres_schema", "sqlite_schema"]


@pytest.fixture
def engine(migrated: str) -> Iterator[sa.Engine]:
    """The engine of a database with the newest schema."""
    made = database_engine(migrated)
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
