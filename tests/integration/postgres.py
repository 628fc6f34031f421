"""A real PostgreSQL for a test session: Debian's package, on a free port, its data in a temporary folder."""

from __future__ import annotations

import contextlib
import os
import pathlib
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

import attrs
import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from tests.ports import free_port
from tests.waiting import PATIENCE

# Nothing is synchronised to the disk, but what was committed outlives a crash of the server itself.
_FAST = ("fsync=off", "full_page_writes=off", "max_connections=40")


def binaries() -> pathlib.Path | None:
    """The folder of the server's programs; None where PostgreSQL is not installed."""
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    other = shutil.which("initdb")
    return found[-1].parent if found else pathlib.Path(other).parent if other else None


@attrs.define
class Postgres:
    """A server that can be stopped and started again."""

    programs: pathlib.Path
    home: pathlib.Path
    port: int
    _databases: int = 0

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        options = f"-k {self.home} -h 127.0.0.1 -p {self.port} " + " ".join(f"-c {o}" for o in _FAST)
        log = str(self.home / "log")
        self._run(
            "pg_ctl",
            "start",
            "-w",
            "-t",
            f"{PATIENCE:g}",
            "-D",
            str(self.home / "data"),
            "-l",
            log,
            "-o",
            options,
        )

    def stop(self) -> None:
        """Stop it at once, as a crash would."""
        self._run(
            "pg_ctl", "stop", "-w", "-t", f"{PATIENCE:g}", "-m", "immediate", "-D", str(self.home / "data")
        )

    def new_database(self, template: str = "template1") -> str:
        """The SQLAlchemy URL of a new database: a copy of the template, which nobody may be using."""
        self._databases += 1
        name = f"test{self._databases}"
        with psycopg.connect(f"postgresql://proxy@127.0.0.1:{self.port}/postgres", autocommit=True) as server:
            server.execute(
                SQL("CREATE DATABASE {} TEMPLATE {}").format(Identifier(name), Identifier(template))
            )
        return f"postgresql+psycopg://proxy@127.0.0.1:{self.port}/{name}"

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self.programs / program), *arguments],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd="/",
            **_account(),
        )


@contextlib.contextmanager
def running() -> Iterator[Postgres]:
    """A new server, gone with its data at the end."""
    programs = binaries()
    assert programs is not None
    # A short path: a Unix socket's name has 107 bytes.
    home = pathlib.Path(tempfile.mkdtemp(prefix="pg-"))
    if os.geteuid() == 0:
        shutil.chown(home, "postgres")
    server = Postgres(programs, home, free_port())
    try:
        server._run(
            "initdb", "-A", "trust", "-U", "proxy", "--no-sync", "-E", "UTF8", "-D", str(home / "data")
        )
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The server that the tests of a session share; each takes a database of its own."""
    if binaries() is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    if os.geteuid() == 0 and not _has_account():
        pytest.skip("PostgreSQL does not run as root, and there is no account postgres")
    with running() as server:
        yield server


def _account() -> dict[str, Any]:
    """PostgreSQL refuses to run as root."""
    return {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}


def _has_account() -> bool:
    return any(entry.pw_name == "postgres" for entry in pwd.getpwall())
