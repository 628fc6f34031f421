"""From an access key or a session to a principal: the users of the configuration and of the database.

What a principal may read is the union of its own grants and its groups', wherever they stand. Everyone's
grants are added by the policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from types import MappingProxyType

import attrs

from delta_proxy.access.identity import AuthKind, Principal
from delta_proxy.access.keys import Secret
from delta_proxy.access.policy import Grant
from delta_proxy.access.snapshot import Snapshot, User
from delta_proxy.access.sts import SessionIdentity

Grants = Mapping[str, Grant]
_NOBODY: Grants = MappingProxyType({})
_MOST_KEPT = 4_096


@attrs.frozen
class ConfiguredUser:
    """A user of the configuration; `grants` are its own, those of its groups not included."""

    id: str
    access_key: str
    secret: Secret
    groups: frozenset[str] = frozenset()
    grants: Grants = _NOBODY
    read_only: bool = False


@attrs.frozen
class Known:
    """Somebody who has an access key: what it signs with, and who it is."""

    secret: Secret
    principal: Principal


@attrs.frozen
class Principals:
    """All who may sign. `snapshot` gives the database's state, None without a database.

    Where a user of the file and one of the database have the same access key, the file's is meant. Grants
    belong to ids: what file and database grant to the same user or group is added up.
    """

    users: Mapping[str, ConfiguredUser] = attrs.field(factory=dict)
    own: Mapping[str, Grants] = attrs.field(factory=dict)
    groups: Mapping[str, Grants] = attrs.field(factory=dict)
    snapshot: Callable[[], Snapshot] | None = None
    _unions: dict[tuple[str, frozenset[str]], tuple[Grants, Grants]] = attrs.field(
        factory=dict, init=False, eq=False, repr=False
    )

    _known: dict[tuple[str, AuthKind], tuple[object, Grants, Known]] = attrs.field(
        factory=dict, init=False, eq=False, repr=False
    )

    @classmethod
    def of(
        cls,
        users: Iterable[ConfiguredUser],
        groups: Mapping[str, Grants],
        snapshot: Callable[[], Snapshot] | None = None,
    ) -> Principals:
        """All of these users and groups, and of the database."""
        everyone = tuple(users)
        return cls(
            {user.access_key: user for user in everyone},
            {user.id: user.grants for user in everyone},
            groups,
            snapshot,
        )

    def find(self, access_key: str, now: datetime, auth: AuthKind) -> Known | None:
        """Who signs with this access key; None when nobody does.

        Raises `permission_feed.Unavailable` while the database's grants are not in force.
        """
        stored = None if self.snapshot is None else self.snapshot()
        user: ConfiguredUser | User | None = self.users.get(access_key)
        if user is None and stored is not None:
            user = stored.users.get(access_key)
        if user is None:
            return None
        grants = self._grants(user.id, user.groups, stored, now)
        before = self._known.get((access_key, auth))
        if before is not None and before[0] is user and before[1] is grants:
            return before[2]
        known = Known(user.secret, Principal(user.id, user.groups, auth, grants, user.read_only))
        if len(self._known) >= _MOST_KEPT:
            self._known.clear()
        self._known[access_key, auth] = (user, grants, known)
        return known

    def session(self, session: SessionIdentity, now: datetime) -> Principal:
        """The principal of an opened session token; its groups are those of the token.

        Raises `permission_feed.Unavailable` while the database's grants are not in force.
        """
        stored = None if self.snapshot is None else self.snapshot()
        grants = self._grants(session.principal, session.groups, stored, now)
        return Principal(session.principal, session.groups, AuthKind.SESSION, grants)

    def _grants(self, name: str, groups: frozenset[str], stored: Snapshot | None, now: datetime) -> Grants:
        """The union, made anew only when the database's part has changed: every request asks for it."""
        from_database = _NOBODY if stored is None else stored.grants_of(name, groups, now)
        known = self._unions.get((name, groups))
        if known is not None and known[0] is from_database:
            return known[1]
        of_groups = [self.groups[group] for group in sorted(groups) if group in self.groups]
        union = united(self.own.get(name, _NOBODY), *of_groups, from_database)
        if len(self._unions) >= _MOST_KEPT:
            self._unions.clear()
        self._unions[name, groups] = (from_database, union)
        return union


def united(*holders: Grants) -> Grants:
    """The grants of several holders as one: by alias the union."""
    union: dict[str, Grant] = {}
    for grants in holders:
        for alias, grant in grants.items():
            union[alias] = union[alias].union(grant) if alias in union else grant
    return MappingProxyType(union)
