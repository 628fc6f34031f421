"""Who a name stands for, and by which grants it may read: the configuration's and the database's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

import attrs
import click

from delta_proxy.access.identity import ANONYMOUS, AuthKind, Principal
from delta_proxy.access.oidc import PRINCIPAL_PREFIX
from delta_proxy.access.policy import Grant
from delta_proxy.access.principals import Principals
from delta_proxy.access.snapshot import PrincipalKind, Snapshot, StoredGrant
from delta_proxy.access.sts import SessionIdentity, SessionTokens
from delta_proxy.admin.filters import filters_of
from delta_proxy.config import Config
from delta_proxy.identity import configured_principals

_SESSION_SECONDS = 3_600
USER_PREFIX = "user:"
GROUP_PREFIX = "group:"


@attrs.frozen
class Keys:
    """What somebody signs with."""

    access_key: str
    secret_key: str = attrs.field(repr=False)
    session_token: str | None = attrs.field(default=None, repr=False)


@attrs.frozen
class Person:
    """A principal as the proxy would see it. `keys` is None for a disabled user; `source` tells where it is
    known.
    """

    principal: Principal
    source: str
    keys: Keys | None

    @property
    def disabled(self) -> bool:
        """Whether every request of this user is refused."""
        return self.keys is None


@attrs.frozen
class Held:
    """One grant that counts for somebody on a table; `source` names the row or the spot that gives it."""

    source: str
    holder: str
    grant: Grant
    expires_at: datetime | None = None
    in_force: bool = True

    @property
    def record(self) -> dict[str, object]:
        """For the output."""
        return {
            "source": self.source,
            "holder": self.holder,
            "filters": filters_of(self.grant),
            "expires_at": self.expires_at,
            "in_force": self.in_force,
        }


def parse_principal(text: str) -> tuple[PrincipalKind, str]:
    """`user:alice`, `group:desk` or `oidc:subject` as the database names them. Raises ClickException."""
    if text.startswith(USER_PREFIX):
        return PrincipalKind.USER, text.removeprefix(USER_PREFIX)
    if text.startswith(GROUP_PREFIX):
        return PrincipalKind.GROUP, text.removeprefix(GROUP_PREFIX)
    if text.startswith(PRINCIPAL_PREFIX):
        return PrincipalKind.USER, text
    raise click.ClickException(f'expected user:NAME, group:NAME or oidc:SUBJECT, found "{text}"')


def is_configured(config: Config, kind: PrincipalKind, name: str) -> bool:
    """Whether the configuration knows a user or group of this name."""
    return name in (config.users if kind is PrincipalKind.USER else config.groups)


def principal_text(kind: str, name: str) -> str:
    """A principal as `parse_principal` takes it."""
    return name if name.startswith(PRINCIPAL_PREFIX) else f"{kind}:{name}"


def find_person(
    config: Config, snapshot: Snapshot | None, name: str | None, groups: Sequence[str], now: datetime
) -> Person:
    """Who a user's id or an OIDC subject stands for; None is the anonymous principal.

    A name in both the configuration and the database is taken from the configuration, as is done for an
    access key. Raises ClickException for a name that nobody has.
    """
    principals = _principals(config, snapshot)
    if groups and not (name or "").startswith(PRINCIPAL_PREFIX):
        raise click.ClickException("--group is for OIDC subjects: other groups are known")
    if name is None:
        return _anonymous(config)
    if name.startswith(PRINCIPAL_PREFIX):
        return _subject(config, principals, name, groups, now)
    if name in config.users:
        return _known(principals, config.users[name].access_key, "configuration", now)
    if snapshot is not None:
        for access_key, user in snapshot.users.items():
            if user.id == name:
                return _known(principals, access_key, "database", now)
        if name in snapshot.disabled:
            return Person(Principal(name, frozenset(), AuthKind.SIGV4), "database", None)
    raise click.ClickException(f"no user {name}")


def grants_held(
    config: Config, snapshot: Snapshot | None, principal: Principal, alias: str, now: datetime
) -> Iterator[Held]:
    """Every grant that counts for a principal on a table, and those that counted until they expired."""
    spots = [("everyone", "", config.allowed_partitions)]
    if principal.id in config.users:
        spots.append(
            (f"user {principal.id}", f"users.{principal.id}.", config.users[principal.id].allowed_partitions)
        )
    spots += [
        (f"group {name}", f"groups.{name}.", config.groups[name].allowed_partitions)
        for name in sorted(principal.groups & config.groups.keys())
    ]
    for holder, path, grants in spots:
        if alias in grants:
            yield Held(f"{path}allowedPartitions.{alias}", holder, grants[alias])
    if snapshot is not None and principal.id not in snapshot.disabled:
        yield from (
            _held(stored, now)
            for stored in snapshot.held_by(principal.id, principal.groups)
            if stored.table == alias
        )


def _held(stored: StoredGrant, now: datetime) -> Held:
    holder = f"{stored.kind.value} {stored.principal}"
    return Held(stored.label, holder, stored.grant, stored.expires_at, stored.in_force(now))


def _principals(config: Config, snapshot: Snapshot | None) -> Principals:
    return configured_principals(config, None if snapshot is None else lambda: snapshot)


def _anonymous(config: Config) -> Person:
    if config.verifies:
        raise click.ClickException("--user NAME is needed: nobody is anonymous where users are configured")
    # Any key will do; deltalake wants one.
    return Person(ANONYMOUS, "anonymous", Keys("anonymous", "anonymous"))


def _known(principals: Principals, access_key: str, source: str, now: datetime) -> Person:
    known = principals.find(access_key, now, AuthKind.SIGV4)
    assert known is not None
    return Person(known.principal, source, Keys(access_key, known.secret.value))


def _subject(
    config: Config, principals: Principals, name: str, groups: Sequence[str], now: datetime
) -> Person:
    """An OIDC subject, by a session as the proxy itself would issue it for a token with these groups."""
    if config.sts is None or config.secret_keys is None:
        raise click.ClickException("OIDC subjects are known only where sts is configured")
    tokens = SessionTokens(config.secret_keys)
    issued = tokens.issue(name, groups, _SESSION_SECONDS, now)
    session = SessionIdentity(
        name, frozenset(groups), issued.secret_key, now, now + timedelta(seconds=_SESSION_SECONDS)
    )
    keys = Keys(issued.access_key, issued.secret_key.value, issued.session_token.value)
    return Person(principals.session(session, now), "session", keys)
