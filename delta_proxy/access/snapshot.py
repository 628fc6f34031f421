"""One state of the permissions database as a value, built row by row.

Pure: rows in, snapshot out. Every row is taken as the driver gives it and judged alone: one that cannot be
understood grants nothing, is named in `Snapshot.problems`, and takes no other row with it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from itertools import chain
from types import MappingProxyType
from typing import Any, Protocol

import attrs
from cryptography.fernet import InvalidToken, MultiFernet

from delta_proxy.access.identity import AuthKind, Principal
from delta_proxy.access.keys import Secret
from delta_proxy.access.policy import EVERYTHING, NOTHING, Grant, PolicyError, parse_filters

_RESOLVED = 4_096


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


class Listening(Protocol):
    """A connection on which the database tells of changes; used on one thread, never blocking."""

    def fileno(self) -> int:
        """What to watch for reading."""

    def drain(self) -> bool:
        """Take in what has arrived; whether there was a change. OSError when the connection is lost."""

    def close(self) -> None:
        """Give the connection up."""


class PrincipalKind(Enum):
    """Whom a grant is for."""

    USER = "user"
    GROUP = "group"


@attrs.frozen
class Version:
    """What changes with every change: compared for equality only.

    `legacy` is a digest of the legacy table, which knows no version; '' where there is none.
    """

    number: int
    legacy: str = ""


@attrs.frozen
class Problem:
    """A row that was left out, and why."""

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


@attrs.frozen
class User:
    """A user that may sign requests: not disabled, with a secret that could be opened."""

    id: str
    access_key: str
    secret: Secret
    read_only: bool
    groups: frozenset[str]


@attrs.frozen
class StoredGrant:
    """One usable row of `grants` or of the legacy table. `label` names the row: `grant 7`, `legacy 3`."""

    label: str
    kind: PrincipalKind
    principal: str
    table: str
    grant: Grant
    expires_at: datetime | None = None

    def in_force(self, now: datetime) -> bool:
        """Whether it holds at `now`: up to its end, not at it."""
        return self.expires_at is None or now < self.expires_at


@attrs.frozen
class _Resolved:
    """The union of somebody's grants by table, right from `since` to before `until`."""

    since: datetime
    until: datetime
    grants: Mapping[str, Grant]


_EVER = datetime.max.replace(tzinfo=UTC)
_NEVER = datetime.min.replace(tzinfo=UTC)
Holder = tuple[PrincipalKind, str]


@attrs.frozen
class Snapshot:
    """One consistent state of the database.

    `users` are the enabled ones by access key; `groups` all group ids; `grants` by holder, expired ones too;
    `disabled` the ids of disabled users; `tables` every alias that any row names, also one that is expired or
    unusable, so that a table never opens because its last grant went bad.
    """

    version: Version
    users: Mapping[str, User]
    groups: frozenset[str]
    grants: Mapping[Holder, tuple[StoredGrant, ...]]
    disabled: frozenset[str]
    tables: frozenset[str]
    problems: tuple[Problem, ...]
    _resolved: dict[tuple[str, frozenset[str]], _Resolved] = attrs.field(
        factory=dict, init=False, eq=False, repr=False
    )

    def principal(self, access_key: str, now: datetime, auth: AuthKind) -> Principal | None:
        """The principal that signs with `access_key`, with the grants in force at `now`.

        None for an access key that is unknown or whose user is disabled.
        """
        user = self.users.get(access_key)
        if user is None:
            return None
        return Principal(
            user.id, user.groups, auth, self.grants_of(user.id, user.groups, now), user.read_only
        )

    def grants_of(self, principal: str, member_of: frozenset[str], now: datetime) -> Mapping[str, Grant]:
        """The union by table of the grants in force at `now` of a principal and of the groups it is in.

        For sessions: principal and groups come from the token. A disabled user has none.
        """
        if principal in self.disabled:
            return MappingProxyType({})
        key = (principal, member_of)
        known = self._resolved.get(key)
        if known is None or not known.since <= now < known.until:
            known = _resolve(tuple(self.held_by(principal, member_of)), now)
            if len(self._resolved) >= _RESOLVED:
                self._resolved.clear()
            self._resolved[key] = known
        return known.grants

    def held_by(self, principal: str, member_of: Iterable[str]) -> Iterator[StoredGrant]:
        """Every usable grant of a principal and of its groups, expired ones included, for `explain`."""
        holders = chain(
            [(PrincipalKind.USER, principal)], ((PrincipalKind.GROUP, one) for one in sorted(member_of))
        )
        return chain.from_iterable(self.grants.get(holder, ()) for holder in holders)


def _resolve(held: Sequence[StoredGrant], now: datetime) -> _Resolved:
    ends = [grant.expires_at for grant in held if grant.expires_at is not None]
    union: dict[str, Grant] = {}
    for one in held:
        if one.in_force(now):
            union[one.table] = union[one.table].union(one.grant) if one.table in union else one.grant
    since = max((end for end in ends if end <= now), default=_NEVER)
    until = min((end for end in ends if end > now), default=_EVER)
    return _Resolved(since, until, MappingProxyType(union))


Row = Mapping[str, Any]


class BadRow(Exception):
    """A row that cannot be understood; the text says why."""


@attrs.frozen
class Rows:
    """The tables as read in one transaction.

    `legacy` is None where there is no such table, and a Problem where it has another form.
    """

    version: Version
    users: Sequence[Row]
    groups: Sequence[Row]
    memberships: Sequence[Row]
    grants: Sequence[Row]
    legacy: Sequence[Row] | Problem | None = None


class SnapshotReader:
    """Builds one snapshot.

    `before` maps sealed secrets to the ones opened earlier, `opened` to those of this one.
    """

    def __init__(self, fernet: MultiFernet, before: Mapping[str, Secret]) -> None:
        self._fernet, self._before = fernet, before
        self.opened: dict[str, Secret] = {}
        self._problems: list[Problem] = []
        self._tables: set[str] = set()

    def read(self, rows: Rows) -> Snapshot:
        """The snapshot of `rows`; never raises for what stands in them."""
        group_ids = frozenset(row["id"] for row in rows.groups if isinstance(row["id"], str))
        member_of = members(rows.memberships, "user_id", "group_id")
        by_key, disabled = self._users(rows.users, member_of, group_ids)
        held = [one for row in rows.grants if (one := self._grant(row)) is not None]
        if isinstance(rows.legacy, Problem):
            self._problems.append(rows.legacy)
        elif rows.legacy is not None:
            held += self._legacy(rows.legacy, rows.users)
        by_holder: dict[Holder, list[StoredGrant]] = defaultdict(list)
        for one in held:
            by_holder[one.kind, one.principal].append(one)
        return Snapshot(
            rows.version,
            MappingProxyType(by_key),
            group_ids,
            MappingProxyType({holder: tuple(several) for holder, several in by_holder.items()}),
            disabled,
            frozenset(self._tables),
            tuple(self._problems),
        )

    def _users(
        self, rows: Sequence[Row], member_of: Mapping[str, set[str]], group_ids: frozenset[str]
    ) -> tuple[dict[str, User], frozenset[str]]:
        by_key: dict[str, User] = {}
        disabled: set[str] = set()
        for row in rows:
            try:
                user = self._user(row, frozenset(member_of.get(row["id"], ())) & group_ids)
            except BadRow as bad:
                self._problems.append(Problem(f"user {row['id']!r}", str(bad)))
                user = None
            if user is None:
                disabled.add(row["id"])
            else:
                by_key[user.access_key] = user
        return by_key, frozenset(disabled)

    def _user(self, row: Row, member_of: frozenset[str]) -> User | None:
        disabled, read_only = flag(row["disabled"]), flag(row["read_only"])
        if disabled is None or read_only is None:
            raise BadRow("disabled and read_only must be true or false")
        if disabled:
            return None
        if not isinstance(row["id"], str) or not isinstance(row["access_key"], str):
            raise BadRow("the id and the access key must be text")
        return User(row["id"], row["access_key"], self._open(row["sealed_secret"]), read_only, member_of)

    def _open(self, sealed: object) -> Secret:
        if not isinstance(sealed, str):
            raise BadRow("the sealed secret must be text")
        secret = self._before.get(sealed)
        if secret is None:
            try:
                secret = Secret(self._fernet.decrypt(sealed).decode())
            except (InvalidToken, ValueError):
                raise BadRow("the secret cannot be opened with any key of PROXY_SECRET_KEYS") from None
        self.opened[sealed] = secret
        return secret

    def _grant(self, row: Row) -> StoredGrant | None:
        label = f"grant {row['id']}"
        if isinstance(row["table_name"], str):
            self._tables.add(row["table_name"])
        try:
            return stored_grant(label, row)
        except BadRow as bad:
            self._problems.append(Problem(label, str(bad)))
            return None

    def _legacy(self, rows: Sequence[Row], user_rows: Sequence[Row]) -> Iterator[StoredGrant]:
        """The legacy rows, whose `user_id` is an access key (so the original took it) or the id of a user."""
        named: dict[object, set[str]] = defaultdict(set)
        for user in user_rows:
            named[user["access_key"]].add(user["id"])
            named[user["id"]].add(user["id"])
        for row in rows:
            label = f"legacy {row['id']}"
            if isinstance(row["table_name"], str):
                self._tables.add(row["table_name"])
            try:
                grant = _legacy_grant(row)
                owners = named.get(row["user_id"], set())
                if len(owners) != 1:
                    raise BadRow("user_id names no user" if not owners else "user_id names two users")
                yield StoredGrant(label, PrincipalKind.USER, next(iter(owners)), row["table_name"], grant)
            except BadRow as bad:
                self._problems.append(Problem(label, str(bad)))


def stored_grant(label: str, row: Row) -> StoredGrant:
    """What a row of `grants` grants; BadRow when it cannot be understood."""
    if not isinstance(row["principal_id"], str) or not isinstance(row["table_name"], str):
        raise BadRow("the principal and the table must be text")
    try:
        kind = PrincipalKind(row["principal_kind"])
    except ValueError:
        raise BadRow("the kind of principal must be user or group") from None
    grant = _parse(_decode(row["partition_filters"]))
    return StoredGrant(
        label, kind, row["principal_id"], row["table_name"], grant, moment_of(row["expires_at"])
    )


def _legacy_grant(row: Row) -> Grant:
    """Filters of the legacy table: empty ones mean nothing, in whatever spelling, but for exactly `[{}]`."""
    if not isinstance(row["table_name"], str):
        raise BadRow("the table must be text")
    filters = None if row["partition_filters"] in {None, ""} else _decode(row["partition_filters"])
    if filters is None or filters in ([], {}):
        return NOTHING
    if filters == [{}]:
        return EVERYTHING
    if isinstance(filters, list) and {} in filters:
        raise BadRow("an empty filter beside others: write [{}] alone for everything")
    return _parse(filters)


def _parse(filters: object) -> Grant:
    try:
        return parse_filters(filters)
    except PolicyError as error:
        raise BadRow(f"the partition filters cannot be used: {error}") from None


def _decode(text: object) -> object:
    """Strict JSON: a name given twice or a number that is none is refused, not guessed at."""
    if not isinstance(text, str):
        raise BadRow("the partition filters must be JSON text")
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_float=Decimal, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise BadRow("the partition filters are not JSON") from None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name is given twice")
    return made


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def flag(value: object) -> bool | None:
    """A boolean as either driver gives it; None for anything else."""
    return bool(value) if isinstance(value, bool | int) and value in {0, 1} else None


def moment_of(value: object) -> datetime | None:
    """A time as either driver gives it: PostgreSQL with its zone, sqlite as text in UTC."""
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        moment = None
    if not isinstance(moment, datetime):
        raise BadRow("the end of the grant is not a time")
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def members(rows: Iterable[Row], key: str, value: str) -> defaultdict[str, set[str]]:
    """The memberships one way or the other: the values of column `value` by those of column `key`."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        if isinstance(row[key], str) and isinstance(row[value], str):
            found[row[key]].add(row[value])
    return found
