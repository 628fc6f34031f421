"""Who stands behind an access key or a session, and what file and database grant together."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import MappingProxyType

import pytest

from delta_proxy.access.identity import AuthKind
from delta_proxy.access.keys import Secret
from delta_proxy.access.permission_feed import Unavailable
from delta_proxy.access.policy import NOTHING, Grant, parse_filters
from delta_proxy.access.principals import ConfiguredUser, Principals
from delta_proxy.access.snapshot import PrincipalKind, Snapshot, StoredGrant, User, Version
from delta_proxy.access.sts import SessionIdentity

NOW = datetime(2026, 11, 22, tzinfo=UTC)
XLON, XETR, XPAR = (parse_filters([{"MIC": mic}]) for mic in ("XLON", "XETR", "XPAR"))
ALICE = ConfiguredUser("alice", "AKALICE", Secret("secret-a"), frozenset({"desk"}), {"t": XLON})


def snapshot(*grants: StoredGrant, users: tuple[User, ...] = ()) -> Snapshot:
    held: dict[tuple[PrincipalKind, str], tuple[StoredGrant, ...]] = {}
    for one in grants:
        held[one.kind, one.principal] = (*held.get((one.kind, one.principal), ()), one)
    return Snapshot(
        Version(1),
        MappingProxyType({user.access_key: user for user in users}),
        frozenset({"desk"}),
        MappingProxyType(held),
        frozenset(),
        frozenset({"t"}),
        (),
    )


def stored(kind: PrincipalKind, name: str, grant: Grant, until: datetime | None = None) -> StoredGrant:
    return StoredGrant("grant 1", kind, name, "t", grant, until)


def granted(principals: Principals, access_key: str, now: datetime = NOW) -> Grant:
    known = principals.find(access_key, now, AuthKind.SIGV4)
    assert known is not None
    return known.principal.grants.get("t", NOTHING)


def test_nobody_stands_behind_an_unknown_key() -> None:
    assert Principals.of([ALICE], {}).find("AKBOB", NOW, AuthKind.SIGV4) is None


def test_a_user_has_its_own_grants_and_its_groups() -> None:
    principals = Principals.of([ALICE], {"desk": {"t": XETR}, "others": {"t": XPAR}})
    assert granted(principals, "AKALICE") == XLON.union(XETR)


def test_a_user_of_the_file_has_what_the_database_grants_it_too() -> None:
    state = snapshot(stored(PrincipalKind.USER, "alice", XETR), stored(PrincipalKind.GROUP, "desk", XPAR))
    principals = Principals.of([ALICE], {}, lambda: state)
    assert granted(principals, "AKALICE") == XLON.union(XETR).union(XPAR)


def test_a_user_of_the_database_has_what_the_file_grants_its_groups() -> None:
    bob = User("bob", "AKBOB", Secret("secret-b"), True, frozenset({"desk"}))
    principals = Principals.of([], {"desk": {"t": XETR}}, lambda: snapshot(users=(bob,)))
    known = principals.find("AKBOB", NOW, AuthKind.PRESIGNED)
    assert known is not None
    assert (known.secret, known.principal.read_only) == (Secret("secret-b"), True)
    assert known.principal.auth is AuthKind.PRESIGNED
    assert known.principal.grants == {"t": XETR}


def test_a_grant_that_the_database_no_longer_has_is_gone_at_once() -> None:
    states = [snapshot(stored(PrincipalKind.USER, "alice", XETR)), snapshot()]
    principals = Principals.of([ALICE], {}, lambda: states[0])
    assert granted(principals, "AKALICE") == XLON.union(XETR)
    states.pop(0)
    assert granted(principals, "AKALICE") == XLON


def test_a_grant_ends_at_its_end() -> None:
    state = snapshot(stored(PrincipalKind.USER, "alice", XETR, NOW + timedelta(seconds=5)))
    principals = Principals.of([ALICE], {}, lambda: state)
    assert granted(principals, "AKALICE", NOW + timedelta(seconds=4)) == XLON.union(XETR)
    assert granted(principals, "AKALICE", NOW + timedelta(seconds=5)) == XLON


def test_an_access_key_of_both_is_the_files() -> None:
    mallory = User("mallory", "AKALICE", Secret("secret-m"), False, frozenset())
    principals = Principals.of([ALICE], {}, lambda: snapshot(users=(mallory,)))
    known = principals.find("AKALICE", NOW, AuthKind.SIGV4)
    assert known is not None
    assert (known.principal.id, known.secret) == ("alice", Secret("secret-a"))


def test_a_session_has_the_groups_of_its_token() -> None:
    principals = Principals.of([ALICE], {"desk": {"t": XETR}})
    session = SessionIdentity(
        "oidc:7", frozenset({"desk", "unknown"}), Secret("x"), NOW, NOW + timedelta(hours=1)
    )
    principal = principals.session(session, NOW)
    assert (principal.id, principal.auth) == ("oidc:7", AuthKind.SESSION)
    assert principal.grants == {"t": XETR}


def test_without_grants_in_force_nobody_is_known() -> None:
    def closed() -> Snapshot:
        raise Unavailable

    with pytest.raises(Unavailable):
        Principals.of([ALICE], {}, closed).find("AKALICE", NOW, AuthKind.SIGV4)
