"""What every command works with: the configuration, the permissions database, the clock, the output."""

from __future__ import annotations

import functools
import getpass
import os
import pathlib
from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

import attrs
import click
from twisted.internet.defer import Deferred
from twisted.internet.task import react

from delta_proxy.access.keys import SecretKeys
from delta_proxy.access.snapshot import Snapshot, utc_now
from delta_proxy.admin.output import Output
from delta_proxy.config import Config, load

if TYPE_CHECKING:
    import sqlalchemy as sa

    from delta_proxy.access.permissions import PermissionStore

P = ParamSpec("P")
T = TypeVar("T")
DEFAULT_CONFIG = pathlib.Path("etc/config.json")
CONFIG_VARIABLE = "DELTA_S3_PROXY_CONFIG"
Work = Callable[[Any], Coroutine[Deferred[Any], Any, T]]
RunOnReactor = Callable[[Callable[[Any], Coroutine[Deferred[Any], Any, Any]]], Any]


def run_on_reactor(work: Work[T]) -> T:
    """What the work gives that is done on the reactor; at most once in a process."""
    results: list[T] = []
    failures: list[Exception] = []

    async def main(reactor: Any) -> None:
        try:
            results.append(await work(reactor))
        except Exception as error:  # noqa: BLE001 - raised again below: react would print it
            failures.append(error)

    try:
        react(main)
    except SystemExit:
        if failures:
            raise failures[0] from None
    if not results:
        raise click.Abort
    return results[0]


@attrs.frozen
class Surroundings:
    """What a command finds around it: environment, clock, the way onto the reactor, who runs it."""

    environ: Mapping[str, str] = attrs.field(factory=lambda: dict(os.environ))
    now: Callable[[], datetime] = utc_now
    run: RunOnReactor = run_on_reactor
    operator: Callable[[], str] = getpass.getuser


@attrs.define(slots=False)
class Desk:
    """One run of a command. Errors are those of the parts: ConfigError, ClickException, SQLAlchemyError."""

    surroundings: Surroundings
    file: pathlib.Path
    output: Output

    @cached_property
    def config(self) -> Config:
        """The configuration. Raises ConfigError."""
        environ = {
            name: value for name, value in self.surroundings.environ.items() if name != CONFIG_VARIABLE
        }
        return load(self.file, environ)

    def now(self) -> datetime:
        """The time, with its zone."""
        return self.surroundings.now()

    @cached_property
    def keys(self) -> SecretKeys:
        """The keys that seal; checked with the configuration."""
        if not self.config.database_enabled or self.config.secret_keys is None:
            raise click.ClickException(f"{self.file} has no database: databaseEnabled is false")
        return self.config.secret_keys

    @cached_property
    def engine(self) -> sa.Engine:
        """The way to the database, closed when the command ends."""
        from delta_proxy.access.permissions import database_engine  # noqa: PLC0415 - SQLAlchemy is slow to import

        engine = database_engine(self.config.database.uri)
        click.get_current_context().call_on_close(engine.dispose)
        return engine

    @cached_property
    def store(self) -> PermissionStore:
        """The permissions database, which must have the newest schema."""
        from delta_proxy.access.migrations import HEAD, current  # noqa: PLC0415 - slow to import
        from delta_proxy.access.permissions import PermissionStore  # noqa: PLC0415

        keys, engine = self.keys, self.engine
        database = engine.url.database or ""
        if engine.dialect.name == "sqlite" and not pathlib.Path(database).exists():
            raise click.ClickException(f"there is no database {database}: run the command migrate")
        if current(engine) != HEAD:
            raise click.ClickException("the database has another schema: run the command migrate")
        return PermissionStore(engine, keys.fernet(), self.now)

    def snapshot(self) -> Snapshot | None:
        """The state of the database; None without one."""
        return self.store.load_snapshot() if self.config.database_enabled else None

    def run(self, work: Work[T]) -> T:
        """Do work on the reactor."""
        return cast(T, self.surroundings.run(work))


def desk_command(function: Callable[Concatenate[Desk, P], None]) -> Callable[P, None]:
    """A command's function that gets a Desk; gives the command `--config` and `--json`."""

    @click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=pathlib.Path),
        default=DEFAULT_CONFIG,
        envvar=CONFIG_VARIABLE,
        show_default=True,
        show_envvar=True,
        metavar="FILE",
        help="The proxy's configuration; PROXY_* variables go before it.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    @functools.wraps(function)
    def run(config_file: pathlib.Path, as_json: bool, *args: P.args, **kwargs: P.kwargs) -> None:
        surroundings = click.get_current_context().find_object(Surroundings) or Surroundings()
        function(Desk(surroundings, config_file, Output(as_json)), *args, **kwargs)

    return cast("Callable[P, None]", run)
