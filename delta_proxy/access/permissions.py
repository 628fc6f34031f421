"""Users, groups and grants in a database: what the proxy reads, and what an operator changes.

Synchronous code for a thread pool; `permission_feed` is the edge. SQLAlchemy Core on sqlite and PostgreSQL.
What is read is a `Snapshot`: one consistent state, from which a principal is answered without the database.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import attrs
import sqlalchemy as sa
from cryptography.fernet import InvalidToken, MultiFernet
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError
from sqlalchemy.types import NullType

from delta_proxy.access.failures import Conflict, NotFound, PermissionsError
from delta_proxy.access.keys import Secret
from delta_proxy.access.oidc import PRINCIPAL_PREFIX
from delta_proxy.access.policy import parse_filters
from delta_proxy.access.snapshot import (
    BadRow,
    Listening,
    PrincipalKind,
    Problem,
    Row,
    Rows,
    Snapshot,
    SnapshotReader,
    Version,
    flag,
    members,
    moment_of,
    stored_grant,
    utc_now,
)
from delta_proxy.access.sts import SESSION_KEY_PREFIX

ACCESS_KEY_PREFIX = "AKDS"
CHANNEL = "delta_proxy_permissions"
_NAME = re.compile(
    r"[^\x00-\x20\x7f-\xa0\ud800-\udfff\ufffe\uffff](?:[^\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]{0,254})\Z"
)
_ACCESS_KEY = re.compile(r"\w{3,128}\Z", re.ASCII)
_CONNECT_SECONDS = 5
_QUERY_MILLISECONDS = 10_000

metadata = sa.MetaData()
_moment = sa.DateTime(timezone=True)
users = sa.Table(
    "users",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("access_key", sa.Text),
    sa.Column("sealed_secret", sa.Text),
    sa.Column("disabled", sa.Boolean),
    sa.Column("read_only", sa.Boolean),
    sa.Column("created_at", _moment),
)
groups = sa.Table(
    "groups", metadata, sa.Column("id", sa.Text, primary_key=True), sa.Column("created_at", _moment)
)
memberships = sa.Table(
    "memberships",
    metadata,
    sa.Column("group_id", sa.Text, primary_key=True),
    sa.Column("user_id", sa.Text, primary_key=True),
)
grants = sa.Table(
    "grants",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("principal_kind", sa.Text),
    sa.Column("principal_id", sa.Text),
    sa.Column("table_name", sa.Text),
    sa.Column("partition_filters", sa.Text),
    sa.Column("expires_at", _moment),
    sa.Column("granted_by", sa.Text),
    sa.Column("note", sa.Text),
    sa.Column("created_at", _moment),
)
version = sa.Table("version", metadata, sa.Column("id", sa.Integer), sa.Column("number", sa.BigInteger))
legacy = sa.Table(
    "permissions",
    metadata,
    sa.Column("id", sa.Integer),
    sa.Column("user_id", sa.Text),
    sa.Column("table_name", sa.Text),
    sa.Column("partition_filters", sa.Text),
)


@attrs.frozen
class NewCredentials:
    """What a new or rotated user signs with; the only time its secret is shown."""

    user: str
    access_key: str
    secret: Secret


@attrs.frozen
class UserInfo:
    """A row of `users` for the operator: no secret."""

    id: str
    access_key: str
    disabled: bool
    read_only: bool
    groups: tuple[str, ...]
    created_at: datetime | None


@attrs.frozen
class GroupInfo:
    """A row of `groups` with its members."""

    id: str
    members: tuple[str, ...]


@attrs.frozen
class GrantInfo:
    """A row of `grants` for the operator.

    `filters` is the JSON text as it stands; `problem` tells why the row grants nothing, None if it is sound.
    """

    number: int
    kind: str
    principal: str
    table: str
    filters: str
    expires_at: datetime | None
    granted_by: str
    note: str
    created_at: datetime | None
    problem: str | None


def database_engine(uri: str) -> sa.Engine:
    """The engine for a `database.uri`: `sqlite:file`, `postgresql://…` or any SQLAlchemy URL of the two.

    ValueError for another database or a malformed URL; the message does not repeat it (a password).
    A new sqlite file is made readable by its owner only.
    """
    url = _url(uri)
    if url.get_backend_name() == "sqlite":
        return _sqlite(url)
    # statement_timeout: a query that hangs must not hold a thread of the pool for ever.
    given = url.query.get("options", "")
    options = (
        f"{given if isinstance(given, str) else ' '.join(given)} -c statement_timeout={_QUERY_MILLISECONDS}"
    )
    return sa.create_engine(
        url,
        pool_size=2,
        max_overflow=2,
        pool_timeout=_CONNECT_SECONDS,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": _CONNECT_SECONDS,
            "tcp_user_timeout": _QUERY_MILLISECONDS,
            "options": options,
        },
        hide_parameters=True,
    )


def _url(uri: str) -> URL:
    short = re.match(r"sqlite:(?!//)(.+)\Z", uri)
    try:
        url = URL.create("sqlite", database=short[1]) if short else make_url(uri)
    except (ArgumentError, ValueError):
        raise ValueError("not a database URL") from None
    if url.drivername in {"postgresql", "postgres"}:
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in {"sqlite", "sqlite+pysqlite", "postgresql+psycopg"}:
        raise ValueError("the permissions database must be sqlite or postgresql+psycopg")
    if url.get_backend_name() == "sqlite" and url.database in {None, "", ":memory:"}:
        raise ValueError("the sqlite database must be a file")
    return url


def _sqlite(url: URL) -> sa.Engine:
    # No pool: a file that is replaced under the running proxy is seen by the next query.
    engine = sa.create_engine(
        url, connect_args={"timeout": _CONNECT_SECONDS}, poolclass=sa.NullPool, hide_parameters=True
    )
    database = url.database or ""

    @sa.event.listens_for(engine, "do_connect")
    def create(*_: Any) -> None:
        if not database.startswith("file:") and not os.path.exists(database):
            os.close(os.open(database, os.O_CREAT | os.O_WRONLY, 0o600))

    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        # The driver's own way opens no transaction for reads; a snapshot needs one.
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys = ON")
        # With a write-ahead log a busy writer never keeps the proxy from reading. A file that may not be
        # written, or is in use at this moment, stays as it is.
        with suppress(sqlite3.OperationalError):
            connection.execute("PRAGMA journal_mode = WAL")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql(
            f"BEGIN {connection.get_execution_options().get('sqlite_begin', 'DEFERRED')}"
        )

    return engine


class PermissionStore:
    """The database of users and grants. Every method blocks: call them on the thread pool."""

    def __init__(self, engine: sa.Engine, fernet: MultiFernet, now: Callable[[], datetime] = utc_now) -> None:
        self._now = now
        self._reading = engine.execution_options(
            **({"isolation_level": "REPEATABLE READ"} if engine.dialect.name == "postgresql" else {})
        )
        self._writing = engine.execution_options(sqlite_begin="IMMEDIATE")
        self._fernet = fernet
        self._opened: dict[str, Secret] = {}

    def current_version(self) -> Version:
        """The version of the state that `load_snapshot` would give; cheap but for the legacy table."""
        with self._reading.begin() as connection:
            return Version(_number(connection), _digest(_legacy_rows(connection)))

    def load_snapshot(self) -> Snapshot:
        """The state as one transaction sees it. Database errors pass through; bad rows do not raise."""
        with self._reading.begin() as connection:
            legacy_rows = _legacy_rows(connection)
            rows = Rows(
                Version(_number(connection), _digest(legacy_rows)),
                _raw(connection, users),
                _raw(connection, groups),
                _raw(connection, memberships),
                _raw(connection, grants),
                legacy_rows,
            )
        reader = SnapshotReader(self._fernet, self._opened)
        snapshot = reader.read(rows)
        self._opened = reader.opened
        return snapshot

    def listen(self) -> Listening | None:
        """A connection of its own on which changes are announced; None for a database that cannot."""
        if self._reading.dialect.name != "postgresql":
            return None
        connection = self._writing.execution_options(isolation_level="AUTOCOMMIT").connect()
        try:
            driver = connection.connection.driver_connection
            connection.detach()
            connection.exec_driver_sql(f"LISTEN {CHANNEL}")
        except BaseException:
            connection.close()
            raise
        return _PostgresListening(connection, driver)

    def add_user(
        self, user: str, *, access_key: str | None = None, secret: str | None = None, read_only: bool = False
    ) -> NewCredentials:
        """Make a user; key and secret are made up unless given. Raises Conflict, PermissionsError."""
        _check_name(user, "user")
        if user.startswith(PRINCIPAL_PREFIX):
            raise PermissionsError(
                f"a user's id does not begin with {PRINCIPAL_PREFIX}: that marks OIDC subjects"
            )
        made = NewCredentials(user, access_key or _new_access_key(), Secret(secret or _new_secret()))
        if _ACCESS_KEY.match(made.access_key) is None or made.access_key.startswith(SESSION_KEY_PREFIX):
            raise PermissionsError(
                f"an access key is 3 to 128 letters, digits and _, not {SESSION_KEY_PREFIX}…"
            )
        row = {
            "id": user,
            "access_key": made.access_key,
            "sealed_secret": self._seal(made.secret),
            "disabled": False,
            "read_only": read_only,
            "created_at": self._now(),
        }
        with self._changing(f"the user {user} or its access key exists") as connection:
            connection.execute(sa.insert(users).values(row))
        return made

    def list_users(self) -> tuple[UserInfo, ...]:
        """All users by id."""
        with self._reading.begin() as connection:
            member_of = members(_raw(connection, memberships), "user_id", "group_id")
            rows = sorted(_raw(connection, users), key=lambda row: str(row["id"]))
        return tuple(
            UserInfo(
                str(row["id"]),
                str(row["access_key"]),
                flag(row["disabled"]) is not False,
                flag(row["read_only"]) is not False,
                tuple(sorted(member_of[str(row["id"])])),
                _shown_moment(row["created_at"]),
            )
            for row in rows
        )

    def set_disabled(self, user: str, disabled: bool) -> None:
        """Shut a user out, or let it in again. Raises NotFound."""
        self._update_user(user, disabled=disabled)

    def set_read_only(self, user: str, read_only: bool) -> None:
        """Whether a user may only read. Raises NotFound."""
        self._update_user(user, read_only=read_only)

    def rotate_secret(self, user: str) -> NewCredentials:
        """A new secret for a user; the old one stops, the access key stays. Raises NotFound."""
        secret = Secret(_new_secret())
        match = users.c.id == user
        with self._changing() as connection:
            values = {"sealed_secret": self._seal(secret)}
            _one(connection.execute(sa.update(users).where(match).values(values)), f"no user {user}")
            access_key = connection.execute(sa.select(users.c.access_key).where(match)).scalar_one()
        return NewCredentials(user, access_key, secret)

    def reseal(self) -> int:
        """Seal every secret with the first key; how many there were.

        Raises PermissionsError, changing nothing, when one cannot be opened.
        """
        with self._changing() as connection:
            rows = connection.execute(sa.select(users.c.id, users.c.sealed_secret)).all()
            for user, sealed in rows:
                try:
                    fresh = self._fernet.rotate(sealed).decode("ascii")
                except InvalidToken:
                    raise PermissionsError(f"the secret of {user} cannot be opened with any key") from None
                connection.execute(sa.update(users).where(users.c.id == user).values(sealed_secret=fresh))
        return len(rows)

    def add_group(self, group: str) -> None:
        """Make a group. Raises Conflict."""
        _check_name(group, "group")
        with self._changing(f"the group {group} exists") as connection:
            connection.execute(sa.insert(groups).values(id=group, created_at=self._now()))

    def remove_group(self, group: str) -> None:
        """Take a group away with its memberships and grants. Raises NotFound."""
        with self._changing() as connection:
            connection.execute(sa.delete(memberships).where(memberships.c.group_id == group))
            held = (grants.c.principal_kind == PrincipalKind.GROUP.value) & (grants.c.principal_id == group)
            connection.execute(sa.delete(grants).where(held))
            _one(connection.execute(sa.delete(groups).where(groups.c.id == group)), f"no group {group}")

    def list_groups(self) -> tuple[GroupInfo, ...]:
        """All groups by id, with their members."""
        with self._reading.begin() as connection:
            of_group = members(_raw(connection, memberships), "group_id", "user_id")
            names = sorted(str(row["id"]) for row in _raw(connection, groups))
        return tuple(GroupInfo(name, tuple(sorted(of_group[name]))) for name in names)

    def add_member(self, group: str, user: str) -> None:
        """Put a user into a group. Raises NotFound, Conflict."""
        with self._changing(f"{user} is in {group} already") as connection:
            _exists(connection, PrincipalKind.GROUP, group)
            _exists(connection, PrincipalKind.USER, user)
            connection.execute(sa.insert(memberships).values(group_id=group, user_id=user))

    def remove_member(self, group: str, user: str) -> None:
        """Take a user out of a group. Raises NotFound."""
        match = (memberships.c.group_id == group) & (memberships.c.user_id == user)
        with self._changing() as connection:
            _one(connection.execute(sa.delete(memberships).where(match)), f"{user} is not in {group}")

    def grant(
        self,
        kind: PrincipalKind,
        principal: str,
        table: str,
        filters: object,
        *,
        granted_by: str,
        expires_at: datetime | None = None,
        note: str = "",
        configured: bool = False,
    ) -> int:
        """Grant what `filters` (decoded JSON, as in allowedPartitions) describe; the number of the grant.

        The principal must exist here, be `configured` (in the file), or be an OIDC subject (`oidc:…`).
        Raises PolicyError, NotFound, PermissionsError.
        """
        parse_filters(filters)
        text = _encode(filters)
        _check_name(table, "table")
        if expires_at is not None and expires_at.tzinfo is None:
            raise PermissionsError("the end of a grant needs a time zone")
        row = {
            "principal_kind": kind.value,
            "principal_id": principal,
            "table_name": table,
            "partition_filters": text,
            "expires_at": None if expires_at is None else expires_at.astimezone(UTC),
            "granted_by": granted_by,
            "note": note,
            "created_at": self._now(),
        }
        with self._changing() as connection:
            subject = kind is PrincipalKind.USER and principal.startswith(PRINCIPAL_PREFIX)
            if not configured and not subject:
                _exists(connection, kind, principal)
            result = connection.execute(sa.insert(grants).values(row))
        inserted = result.inserted_primary_key
        assert inserted is not None
        return int(inserted[0])

    def revoke(self, number: int) -> None:
        """Take one grant away. Raises NotFound."""
        with self._changing() as connection:
            _one(connection.execute(sa.delete(grants).where(grants.c.id == number)), f"no grant {number}")

    def revoke_all(self, kind: PrincipalKind, principal: str, table: str | None = None) -> int:
        """Take away every grant of a principal, on one table or on all; how many there were."""
        match = (grants.c.principal_kind == kind.value) & (grants.c.principal_id == principal)
        if table is not None:
            match &= grants.c.table_name == table
        with self._changing() as connection:
            return connection.execute(sa.delete(grants).where(match)).rowcount

    def list_grants(self) -> tuple[GrantInfo, ...]:
        """All rows of `grants` by number, those that grant nothing too, with the reason."""
        with self._reading.begin() as connection:
            rows = sorted(_raw(connection, grants), key=lambda row: int(row["id"]))
        return tuple(_grant_info(row) for row in rows)

    def _update_user(self, user: str, **values: object) -> None:
        with self._changing() as connection:
            _one(
                connection.execute(sa.update(users).where(users.c.id == user).values(values)),
                f"no user {user}",
            )

    @contextmanager
    def _changing(self, conflict: str = "the change contradicts another one") -> Iterator[sa.Connection]:
        try:
            with self._writing.begin() as connection:
                yield connection
        except IntegrityError:
            # The original error would carry the row along.
            raise Conflict(conflict) from None

    def _seal(self, secret: Secret) -> str:
        return self._fernet.encrypt(secret.value.encode()).decode("ascii")


@attrs.frozen
class _PostgresListening:
    _connection: sa.Connection
    _driver: Any

    def fileno(self) -> int:
        return int(self._driver.fileno())

    def drain(self) -> bool:
        try:
            self._driver.pgconn.consume_input()
            changed = False
            while self._driver.pgconn.notifies() is not None:
                changed = True
        except Exception as error:
            # The driver's own error types stay inside this module.
            raise OSError("the connection that announces changes is lost") from error
        return changed

    def close(self) -> None:
        # Not by SQLAlchemy: it would first speak to a server that may be gone.
        self._driver.close()
        self._connection.invalidate()
        self._connection.close()


def _shown_moment(value: object) -> datetime | None:
    try:
        return moment_of(value)
    except BadRow:
        return None


def _grant_info(row: Row) -> GrantInfo:
    try:
        stored_grant("", row)
        problem = None
    except BadRow as bad:
        problem = str(bad)
    return GrantInfo(
        int(row["id"]),
        str(row["principal_kind"]),
        str(row["principal_id"]),
        str(row["table_name"]),
        str(row["partition_filters"]),
        _shown_moment(row["expires_at"]),
        str(row["granted_by"]),
        str(row["note"]),
        _shown_moment(row["created_at"]),
        problem,
    )


def _raw(connection: sa.Connection, table: sa.Table) -> Sequence[Row]:
    """The rows as the driver gives them: the type of a column must not decide whether a row can be read."""
    columns = [sa.type_coerce(column, NullType()).label(column.name) for column in table.columns]
    return [dict(row._mapping) for row in connection.execute(sa.select(*columns).select_from(table))]


def _number(connection: sa.Connection) -> int:
    return int(connection.execute(sa.select(version.c.number)).scalar_one())


def _legacy_rows(connection: sa.Connection) -> Sequence[Row] | Problem | None:
    """The rows of the legacy table with their filters as JSON text; None without the table."""
    inspector = sa.inspect(connection)
    if not inspector.has_table(legacy.name):
        return None
    present = {column["name"] for column in inspector.get_columns(legacy.name)}
    missing = sorted({column.name for column in legacy.columns} - present)
    if missing:
        return Problem("legacy table permissions", f"ignored: it has no column {', '.join(missing)}")
    # json, jsonb and text alike come as JSON text; an integer user_id as its digits.
    columns: list[sa.ColumnElement[Any]] = [
        sa.type_coerce(legacy.c.id, NullType()).label("id"),
        sa.cast(legacy.c.user_id, sa.Text).label("user_id"),
        sa.type_coerce(legacy.c.table_name, NullType()).label("table_name"),
        sa.cast(legacy.c.partition_filters, sa.Text).label("partition_filters"),
    ]
    return [dict(row._mapping) for row in connection.execute(sa.select(*columns).order_by(legacy.c.id))]


def _digest(rows: Sequence[Row] | Problem | None) -> str:
    if rows is None:
        return ""
    text = str(rows) if isinstance(rows, Problem) else repr([tuple(row.values()) for row in rows])
    return sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def _exists(connection: sa.Connection, kind: PrincipalKind, name: str) -> None:
    table = users if kind is PrincipalKind.USER else groups
    if connection.execute(sa.select(table.c.id).where(table.c.id == name)).first() is None:
        raise NotFound(f"no {kind.value} {name}")


def _encode(filters: object) -> str:
    try:
        return json.dumps(filters, allow_nan=False)
    except (TypeError, ValueError):
        raise PermissionsError("the partition filters cannot be written as JSON") from None


def _one(result: sa.CursorResult[Any], otherwise: str) -> None:
    if result.rowcount != 1:
        raise NotFound(otherwise)


def _check_name(name: str, kind: str) -> None:
    if _NAME.match(name) is None or name != name.strip():
        raise PermissionsError(
            f"the name of a {kind} is 1 to 255 printable characters, none a space at an end"
        )


def _new_access_key() -> str:
    return ACCESS_KEY_PREFIX + base64.b32encode(secrets.token_bytes(10)).decode("ascii")


def _new_secret() -> str:
    return secrets.token_urlsafe(30)
