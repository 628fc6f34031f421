"""Fixtures: databases of each kind, empty or with the newest schema. The schema is made once and copied."""

from __future__ import annotations

import pathlib
import shutil

import pytest

from delta_proxy.access.migrations import upgrade
from delta_proxy.access.permissions import database_engine
from tests.integration.postgres import Postgres, postgres

__all__ = ["database", "kind", "migrated", "postgres", "postgres_schema", "sqlite_schema"]


@pytest.fixture(params=["sqlite", "postgresql"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of database in turn."""
    return str(request.param)


@pytest.fixture
def database(kind: str, request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> str:
    """The URI of a new, empty database."""
    if kind == "sqlite":
        return f"sqlite:{tmp_path / 'permissions.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture
def migrated(kind: str, request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> str:
    """The URI of a new database that has the newest schema and nothing in it."""
    if kind == "sqlite":
        shutil.copyfile(request.getfixturevalue("sqlite_schema"), tmp_path / "migrated.db")
        return f"sqlite:{tmp_path / 'migrated.db'}"
    template: str = request.getfixturevalue("postgres_schema")
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database(template)


@pytest.fixture(scope="session")
def sqlite_schema(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A sqlite file with the newest schema, to be copied."""
    file = tmp_path_factory.mktemp("schema") / "permissions.db"
    _migrate(f"sqlite:{file}")
    return file


@pytest.fixture(scope="session")
def postgres_schema(postgres: Postgres) -> str:
    """The name of a PostgreSQL database with the newest schema, to be copied."""
    uri = postgres.new_database()
    _migrate(uri)
    return uri.rpartition("/")[2]


def _migrate(uri: str) -> None:
    engine = database_engine(uri)
    upgrade(engine)
    engine.dispose()
