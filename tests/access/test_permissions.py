"""The permissions database: what rows grant, what bad rows do not, and how changes show."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sqlite3
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from delta_proxy.access.failures import Conflict, MigrationError, NotFound, PermissionsError
from delta_proxy.access.identity import AuthKind
from delta_proxy.access.keys import SecretKeys, generate_key
from delta_proxy.access.migrations import HEAD, current, runner, upgrade
from delta_proxy.access.permissions import PermissionStore, database_engine
from delta_proxy.access.policy import EVERYTHING, NOTHING, PolicyError, parse_filters
from delta_proxy.access.snapshot import PrincipalKind, Snapshot

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
LONDON = [{"MIC": "XLON"}]
PARIS = [{"MIC": "XPAR"}]
USER, GROUP = PrincipalKind.USER, PrincipalKind.GROUP


def grants_of(snapshot: Snapshot, user: str, now: datetime = NOW) -> dict[str, object]:
    """What a user of the snapshot may read at `now`."""
    (found,) = [one for one in snapshot.users.values() if one.id == user]
    principal = snapshot.principal(found.access_key, now, AuthKind.ANONYMOUS)
    assert principal is not None
    return dict(principal.grants)


def execute(engine: sa.Engine, statement: str) -> None:
    """Change the database by hand, as an operator with a shell would."""
    with engine.begin() as connection:
        connection.exec_driver_sql(statement)


def test_a_user_signs_with_the_secret_it_was_given(store: PermissionStore) -> None:
    made = store.add_user("alice")
    user = store.load_snapshot().users[made.access_key]
    assert (user.id, user.secret) == ("alice", made.secret)


def test_the_secret_is_not_in_the_database_nor_in_a_repr(store: PermissionStore, engine: sa.Engine) -> None:
    made = store.add_user("alice", secret="correct horse battery")
    with engine.begin() as connection:
        rows = connection.exec_driver_sql("SELECT * FROM users").all()
    shown = repr((rows, made, store.load_snapshot(), store.list_users()))
    assert "correct horse" not in shown


def test_an_unknown_access_key_is_nobody(store: PermissionStore) -> None:
    assert store.load_snapshot().principal("AKDSUNKNOWN", NOW, AuthKind.ANONYMOUS) is None


def test_a_disabled_user_is_nobody_and_can_be_let_in_again(store: PermissionStore) -> None:
    key = store.add_user("alice").access_key
    store.grant(USER, "alice", "trades", LONDON, granted_by="root")
    store.set_disabled("alice", True)
    snapshot = store.load_snapshot()
    assert snapshot.principal(key, NOW, AuthKind.ANONYMOUS) is None
    assert snapshot.grants_of("alice", frozenset(), NOW) == {}
    store.set_disabled("alice", False)
    assert grants_of(store.load_snapshot(), "alice") == {"trades": parse_filters(LONDON)}


def test_what_a_principal_may_read_is_the_union_of_its_own_and_its_groups_grants(
    store: PermissionStore,
) -> None:
    store.add_user("alice")
    store.add_group("desk")
    store.add_member("desk", "alice")
    store.grant(USER, "alice", "trades", LONDON, granted_by="root")
    store.grant(GROUP, "desk", "trades", PARIS, granted_by="root")
    store.grant(GROUP, "desk", "quotes", [{}], granted_by="root")
    expected = {"trades": parse_filters(LONDON + PARIS), "quotes": EVERYTHING}
    assert grants_of(store.load_snapshot(), "alice") == expected


def test_a_group_is_left_with_its_grants(store: PermissionStore) -> None:
    store.add_user("alice")
    store.add_group("desk")
    store.add_member("desk", "alice")
    store.grant(GROUP, "desk", "trades", LONDON, granted_by="root")
    store.remove_member("desk", "alice")
    assert grants_of(store.load_snapshot(), "alice") == {}


def test_a_group_that_is_removed_and_made_again_grants_nothing(store: PermissionStore) -> None:
    store.add_user("alice")
    store.add_group("desk")
    store.add_member("desk", "alice")
    store.grant(GROUP, "desk", "trades", LONDON, granted_by="root")
    store.remove_group("desk")
    store.add_group("desk")
    store.add_member("desk", "alice")
    assert grants_of(store.load_snapshot(), "alice") == {}


def test_a_membership_in_a_group_that_does_not_exist_grants_nothing(
    tmp_path: pathlib.Path, keys: SecretKeys
) -> None:
    engine = database_engine(f"sqlite:{tmp_path / 'p.db'}")
    upgrade(engine)
    store = PermissionStore(engine, keys.fernet())
    store.add_user("alice")
    store.add_group("desk")
    store.add_member("desk", "alice")
    store.grant(GROUP, "desk", "trades", LONDON, granted_by="root")
    # As the sqlite3 shell does it: without foreign keys the membership and the grant stay.
    with contextlib.closing(sqlite3.connect(tmp_path / "p.db")) as shell:
        shell.execute("DELETE FROM groups")
        shell.commit()
    assert grants_of(store.load_snapshot(), "alice") == {}
    engine.dispose()


def test_a_user_of_a_groups_name_has_not_the_groups_grants(store: PermissionStore) -> None:
    store.add_user("desk")
    store.add_group("desk")
    store.grant(GROUP, "desk", "trades", LONDON, granted_by="root")
    assert grants_of(store.load_snapshot(), "desk") == {}


def test_a_grant_ends_at_its_end_and_the_table_stays_named(store: PermissionStore) -> None:
    store.add_user("alice")
    end = NOW + timedelta(hours=1)
    store.grant(USER, "alice", "trades", LONDON, granted_by="root", expires_at=end)
    snapshot = store.load_snapshot()
    assert "trades" in grants_of(snapshot, "alice", end - timedelta(microseconds=1))
    assert "trades" not in grants_of(snapshot, "alice", end)
    assert "trades" in grants_of(snapshot, "alice", end - timedelta(seconds=1))
    assert "trades" in snapshot.tables


def test_the_end_of_a_grant_keeps_its_moment_whatever_its_zone(store: PermissionStore) -> None:
    store.add_user("alice")
    end = NOW.astimezone(timezone(timedelta(hours=-7)))
    store.grant(USER, "alice", "trades", LONDON, granted_by="root", expires_at=end)
    (grant,) = store.load_snapshot().held_by("alice", ())
    assert grant.expires_at == NOW


def test_the_end_of_a_grant_needs_a_zone(store: PermissionStore) -> None:
    store.add_user("alice")
    with pytest.raises(PermissionsError, match="time zone"):
        store.grant(USER, "alice", "t", LONDON, granted_by="r", expires_at=datetime(2030, 1, 1))  # noqa: DTZ001


def test_an_empty_list_of_filters_is_nothing(store: PermissionStore) -> None:
    store.add_user("alice")
    store.grant(USER, "alice", "trades", [], granted_by="root")
    assert grants_of(store.load_snapshot(), "alice") == {"trades": NOTHING}


@pytest.mark.parametrize(
    "filters",
    [
        "",
        "null",
        "{}",
        "{]",
        '"[{}]"',
        "[{}",
        '[{"MIC": NaN}]',
        '[{"MIC": "XLON", "MIC": "XPAR"}]',
        "[[]]",
        '[{"": 1}]',
    ],
)
def test_a_row_with_bad_filters_grants_nothing_is_named_and_takes_no_other_along(
    store: PermissionStore, engine: sa.Engine, filters: str
) -> None:
    store.add_user("alice")
    bad = store.grant(USER, "alice", "trades", LONDON, granted_by="root")
    store.grant(USER, "alice", "quotes", PARIS, granted_by="root")
    with engine.begin() as connection:
        statement = sa.text("UPDATE grants SET partition_filters = :filters WHERE id = :id")
        connection.execute(statement, {"filters": filters, "id": bad})
    snapshot = store.load_snapshot()
    assert grants_of(snapshot, "alice") == {"quotes": parse_filters(PARIS)}
    assert [problem.where for problem in snapshot.problems] == [f"grant {bad}"]
    assert "trades" in snapshot.tables
    assert [one.problem is None for one in store.list_grants()] == [False, True]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("expires_at", "'someday'"),
        ("expires_at", "17"),
        ("expires_at", "x'00ff'"),
        ("partition_filters", "x'5b7b7d5d'"),
        ("principal_id", "x'616c696365'"),
    ],
)
def test_a_value_of_another_type_in_sqlite_grants_nothing(
    tmp_path: pathlib.Path, column: str, value: str
) -> None:
    engine = database_engine(f"sqlite:{tmp_path / 'p.db'}")
    upgrade(engine)
    store = PermissionStore(engine, SecretKeys.parse(generate_key()).fernet())
    store.add_user("alice")
    store.grant(USER, "alice", "trades", LONDON, granted_by="root")
    execute(engine, f"UPDATE grants SET {column} = {value}")
    snapshot = store.load_snapshot()
    assert grants_of(snapshot, "alice") == {}
    assert [problem.where for problem in snapshot.problems] == ["grant 1"]
    assert len(store.list_grants()) == 1
    engine.dispose()


@pytest.mark.parametrize(
    "change", ["disabled = 'no'", "disabled = 2", "read_only = 'x'", "access_key = x'00'"]
)
def test_a_user_whose_row_is_not_sound_is_nobody(tmp_path: pathlib.Path, change: str) -> None:
    engine = database_engine(f"sqlite:{tmp_path / 'p.db'}")
    upgrade(engine)
    store = PermissionStore(engine, SecretKeys.parse(generate_key()).fernet())
    store.add_user("alice")
    store.add_user("bob")
    execute(engine, f"UPDATE users SET {change} WHERE id = 'alice'")
    snapshot = store.load_snapshot()
    assert [user.id for user in snapshot.users.values()] == ["bob"]
    assert [problem.where for problem in snapshot.problems] == ["user 'alice'"]
    assert snapshot.disabled == {"alice"}
    engine.dispose()


def test_a_secret_sealed_with_an_unknown_key_is_reported_and_its_user_is_nobody(
    store: PermissionStore, engine: sa.Engine
) -> None:
    store.add_user("alice")
    other = PermissionStore(engine, SecretKeys.parse(generate_key()).fernet())
    snapshot = other.load_snapshot()
    assert snapshot.users == {}
    assert [problem.where for problem in snapshot.problems] == ["user 'alice'"]


def test_keys_are_rotated_by_sealing_again(engine: sa.Engine) -> None:
    old, new = generate_key(), generate_key()
    made = PermissionStore(engine, SecretKeys.parse(old).fernet()).add_user("alice")
    assert PermissionStore(engine, SecretKeys.parse(f"{new},{old}").fernet()).reseal() == 1
    snapshot = PermissionStore(engine, SecretKeys.parse(new).fernet()).load_snapshot()
    assert snapshot.users[made.access_key].secret == made.secret


def test_sealing_again_changes_nothing_when_one_secret_cannot_be_opened(engine: sa.Engine) -> None:
    first, second, third = (SecretKeys.parse(generate_key()) for _ in range(3))
    PermissionStore(engine, first.fernet()).add_user("alice")
    PermissionStore(engine, second.fernet()).add_user("bob")
    keys = SecretKeys((third.keys[0], first.keys[0]))
    with pytest.raises(PermissionsError, match="bob"):
        PermissionStore(engine, keys.fernet()).reseal()
    assert list(PermissionStore(engine, first.fernet()).load_snapshot().users)


def test_a_rotated_secret_replaces_the_old_one_under_the_same_access_key(store: PermissionStore) -> None:
    made = store.add_user("alice")
    fresh = store.rotate_secret("alice")
    assert fresh.access_key == made.access_key
    assert store.load_snapshot().users[made.access_key].secret == fresh.secret != made.secret


def test_every_change_moves_the_version_by_itself(store: PermissionStore, engine: sa.Engine) -> None:
    seen = [store.current_version()]

    def moved() -> bool:
        seen.append(store.current_version())
        return seen[-1] != seen[-2] and seen[-1] not in seen[:-1]

    store.add_user("alice")
    assert moved()
    store.add_group("desk")
    assert moved()
    store.add_member("desk", "alice")
    assert moved()
    number = store.grant(USER, "alice", "trades", LONDON, granted_by="root")
    assert moved()
    execute(engine, "UPDATE grants SET note = 'by hand'")
    assert moved()
    store.revoke(number)
    assert moved()
    execute(engine, "DELETE FROM users")
    assert moved()
    assert not moved()


def test_a_change_that_fails_does_not_move_the_version(store: PermissionStore) -> None:
    store.add_user("alice")
    before = store.current_version()
    with pytest.raises(Conflict):
        store.add_user("alice")
    with pytest.raises(NotFound):
        store.revoke(77)
    assert store.current_version() == before


def test_the_snapshot_carries_the_version_of_its_state(store: PermissionStore) -> None:
    store.add_user("alice")
    assert store.load_snapshot().version == store.current_version()


def test_a_revoked_grant_is_gone_with_its_number(store: PermissionStore) -> None:
    store.add_user("alice")
    number = store.grant(USER, "alice", "trades", LONDON, granted_by="root")
    store.revoke(number)
    assert grants_of(store.load_snapshot(), "alice") == {}
    assert store.grant(USER, "alice", "trades", LONDON, granted_by="root") > number


def test_all_grants_of_a_principal_on_a_table_are_revoked_and_no_others(store: PermissionStore) -> None:
    store.add_user("alice")
    store.add_user("bob")
    for user, table in (("alice", "trades"), ("alice", "trades"), ("alice", "quotes"), ("bob", "trades")):
        store.grant(USER, user, table, LONDON, granted_by="root")
    assert store.revoke_all(USER, "alice", "trades") == 2
    assert [(one.principal, one.table) for one in store.list_grants()] == [
        ("alice", "quotes"),
        ("bob", "trades"),
    ]


def test_a_grant_tells_who_gave_it_and_why(engine: sa.Engine, keys: SecretKeys) -> None:
    store = PermissionStore(engine, keys.fernet(), lambda: NOW)
    store.add_user("alice")
    store.grant(USER, "alice", "trades", LONDON, granted_by="root", note="ticket 9", expires_at=NOW)
    (grant,) = store.list_grants()
    assert (grant.granted_by, grant.note, grant.created_at, grant.expires_at) == (
        "root",
        "ticket 9",
        NOW,
        NOW,
    )


def test_users_and_groups_are_listed_with_their_memberships(store: PermissionStore) -> None:
    store.add_user("bob", read_only=True)
    store.add_user("alice")
    store.add_group("desk")
    store.add_member("desk", "bob")
    assert [(one.id, one.read_only, one.groups) for one in store.list_users()] == [
        ("alice", False, ()),
        ("bob", True, ("desk",)),
    ]
    assert [(one.id, one.members) for one in store.list_groups()] == [("desk", ("bob",))]


@pytest.mark.parametrize("principal", ["nobody", "alice "])
def test_a_grant_for_nobody_is_refused(store: PermissionStore, principal: str) -> None:
    store.add_user("alice")
    with pytest.raises(NotFound):
        store.grant(USER, principal, "trades", LONDON, granted_by="root")


def test_an_oidc_subject_is_granted_without_being_a_user(store: PermissionStore) -> None:
    store.grant(USER, "oidc:4711", "trades", LONDON, granted_by="root")
    assert store.load_snapshot().grants_of("oidc:4711", frozenset(), NOW) == {"trades": parse_filters(LONDON)}


def test_a_session_has_the_grants_of_the_groups_in_its_token(store: PermissionStore) -> None:
    store.add_group("desk")
    store.grant(GROUP, "desk", "trades", LONDON, granted_by="root")
    snapshot = store.load_snapshot()
    assert snapshot.grants_of("oidc:1", frozenset({"desk"}), NOW) == {"trades": parse_filters(LONDON)}
    assert snapshot.grants_of("oidc:1", frozenset({"other"}), NOW) == {}


@pytest.mark.parametrize("user", ["", "oidc:alice", " alice", "a\nb", "x" * 256])
def test_a_users_name_that_could_mislead_is_refused(store: PermissionStore, user: str) -> None:
    with pytest.raises(PermissionsError):
        store.add_user(user)


@pytest.mark.parametrize("key", ["ASIAABCDEFGHIJKLMNOP", "a/b/c", "ab", "k\n"])
def test_an_access_key_that_could_mislead_is_refused(store: PermissionStore, key: str) -> None:
    with pytest.raises(PermissionsError):
        store.add_user("alice", access_key=key)


def test_two_users_cannot_share_an_access_key(store: PermissionStore) -> None:
    store.add_user("alice", access_key="SHARED")
    with pytest.raises(Conflict):
        store.add_user("bob", access_key="SHARED")


def test_filters_that_are_no_grant_are_refused_when_granted(store: PermissionStore) -> None:
    store.add_user("alice")
    with pytest.raises(PolicyError):
        store.grant(USER, "alice", "trades", {"MIC": "XLON"}, granted_by="root")
    assert store.list_grants() == ()


LEGACY = (
    "CREATE TABLE permissions (id INTEGER PRIMARY KEY, user_id TEXT, table_name TEXT, partition_filters {})"
)


def legacy_table(engine: sa.Engine, rows: list[tuple[str, str, str | None]], json: str = "TEXT") -> None:
    """The table of the original, with rows."""
    execute(engine, LEGACY.format(json))
    with engine.begin() as connection:
        for number, (user, table, filters) in enumerate(rows, 1):
            statement = sa.text(
                f"INSERT INTO permissions VALUES ({number}, :user, :table, CAST(:filters AS {json}))"
            )
            connection.execute(statement, {"user": user, "table": table, "filters": filters})


@pytest.mark.parametrize("filters", ["[]", "{}", "null", None])
def test_empty_legacy_filters_mean_nothing(
    store: PermissionStore, engine: sa.Engine, filters: str | None
) -> None:
    key = store.add_user("alice").access_key
    legacy_table(engine, [(key, "trades", filters)])
    assert grants_of(store.load_snapshot(), "alice") == {"trades": NOTHING}


def test_legacy_filters_of_one_empty_map_mean_everything(store: PermissionStore, engine: sa.Engine) -> None:
    key = store.add_user("alice").access_key
    legacy_table(engine, [(key, "trades", "[{}]")])
    assert grants_of(store.load_snapshot(), "alice") == {"trades": EVERYTHING}


@pytest.mark.parametrize("filters", ['[{}, {"MIC": "XLON"}]', '{"MIC": "XLON"}', '"[{}]"', "1", "[{},{}]"])
def test_other_legacy_filters_deny_and_are_named(
    store: PermissionStore, engine: sa.Engine, filters: str
) -> None:
    key = store.add_user("alice").access_key
    legacy_table(engine, [(key, "trades", filters), (key, "quotes", '[{"MIC": "XLON"}]')])
    snapshot = store.load_snapshot()
    assert grants_of(snapshot, "alice") == {"quotes": parse_filters(LONDON)}
    assert [problem.where for problem in snapshot.problems] == ["legacy 1"]
    assert "trades" in snapshot.tables


@pytest.mark.parametrize("kind", ["json", "jsonb"])
def test_legacy_filters_in_a_json_column_are_read(postgres: object, kind: str, keys: SecretKeys) -> None:
    engine = database_engine(postgres.new_database())  # type: ignore[attr-defined]
    upgrade(engine)
    store = PermissionStore(engine, keys.fernet())
    key = store.add_user("alice").access_key
    legacy_table(engine, [(key, "a", '[{"MIC": "XLON"}]'), (key, "b", "[{}]"), (key, "c", '"[{}]"')], kind)
    snapshot = store.load_snapshot()
    assert grants_of(snapshot, "alice") == {"a": parse_filters(LONDON), "b": EVERYTHING}
    assert [problem.where for problem in snapshot.problems] == ["legacy 3"]
    engine.dispose()


def test_a_legacy_row_names_its_user_by_access_key_or_by_id(
    store: PermissionStore, engine: sa.Engine
) -> None:
    key = store.add_user("alice").access_key
    legacy_table(engine, [(key, "trades", "[{}]"), ("alice", "quotes", "[{}]"), ("nobody", "other", "[{}]")])
    snapshot = store.load_snapshot()
    assert grants_of(snapshot, "alice") == {"trades": EVERYTHING, "quotes": EVERYTHING}
    assert [problem.where for problem in snapshot.problems] == ["legacy 3"]


def test_a_legacy_row_that_could_mean_two_users_grants_nothing(
    store: PermissionStore, engine: sa.Engine
) -> None:
    store.add_user("alice", access_key="bob")
    store.add_user("bob", access_key="BOBSKEY")
    legacy_table(engine, [("bob", "trades", "[{}]")])
    snapshot = store.load_snapshot()
    assert grants_of(snapshot, "alice") == grants_of(snapshot, "bob") == {}
    assert [problem.where for problem in snapshot.problems] == ["legacy 1"]


def test_a_change_of_the_legacy_table_shows_in_the_version(store: PermissionStore, engine: sa.Engine) -> None:
    key = store.add_user("alice").access_key
    seen = {store.current_version()}
    legacy_table(engine, [(key, "trades", "[{}]")])
    for statement in (
        "UPDATE permissions SET partition_filters = '[]'",
        "UPDATE permissions SET table_name = 'quotes'",
        "DELETE FROM permissions",
        "DROP TABLE permissions",
    ):
        version = store.current_version()
        assert version not in seen
        assert store.load_snapshot().version == version
        seen.add(version)
        execute(engine, statement)


def test_a_legacy_table_of_another_form_is_named_and_ignored(
    store: PermissionStore, engine: sa.Engine
) -> None:
    store.add_user("alice")
    execute(engine, "CREATE TABLE permissions (id INTEGER PRIMARY KEY, user_id TEXT)")
    snapshot = store.load_snapshot()
    assert [problem.where for problem in snapshot.problems] == ["legacy table permissions"]
    assert grants_of(snapshot, "alice") == {}


def test_a_snapshot_is_one_state_even_while_grants_move(store: PermissionStore) -> None:
    store.add_user("alice")
    store.add_user("bob")
    stop = threading.Event()

    def move() -> None:
        number = store.grant(USER, "alice", "trades", LONDON, granted_by="root")
        while not stop.is_set():
            store.set_read_only("alice", True)
            store.revoke(number)
            number = store.grant(USER, "alice", "trades", LONDON, granted_by="root")
            store.set_read_only("alice", False)

    with ThreadPoolExecutor(1) as pool:
        mover = pool.submit(move)
        try:
            for _ in range(30):
                snapshot = store.load_snapshot()
                (alice,) = [one for one in snapshot.users.values() if one.id == "alice"]
                # A grant is missing only between the two changes of the flag.
                assert alice.read_only or grants_of(snapshot, "alice") or snapshot.version.number <= 4
        finally:
            stop.set()
        mover.result()


def test_many_workers_that_start_at_once_migrate_once(database: str) -> None:
    script = (
        "import sys\n"
        "from delta_proxy.access.migrations import upgrade\n"
        "from delta_proxy.access.permissions import database_engine\n"
        "engine = database_engine(sys.argv[1])\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "upgrade(engine)\n"
    )
    command = [sys.executable, "-c", script, database]
    pipe = subprocess.PIPE
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(subprocess.Popen(command, stdin=pipe, stdout=pipe)) for _ in range(3)]
        for worker in workers:
            assert worker.stdout is not None
            worker.stdout.readline()
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.close()
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    engine = database_engine(database)
    assert current(engine) == HEAD
    engine.dispose()


def test_the_newest_revision_is_the_one_that_a_current_schema_has() -> None:
    assert runner.newest() == HEAD


def test_migrating_again_changes_nothing(store: PermissionStore, engine: sa.Engine) -> None:
    store.add_user("alice")
    before = store.current_version()
    upgrade(engine)
    assert store.current_version() == before


def test_a_schema_of_a_newer_proxy_is_refused(engine: sa.Engine) -> None:
    execute(engine, "UPDATE delta_proxy_schema SET version_num = '9999'")
    with pytest.raises(MigrationError, match="another version"):
        upgrade(engine)


def test_a_foreign_table_in_the_way_is_one_line_and_leaves_nothing_behind(database: str) -> None:
    engine = database_engine(database)
    execute(engine, "CREATE TABLE memberships (id INTEGER)")
    with pytest.raises(MigrationError) as caught:
        upgrade(engine)
    assert "\n" not in str(caught.value)
    assert not sa.inspect(engine).has_table("users")
    engine.dispose()


@pytest.mark.parametrize(
    "uri", ["sqlite:", "sqlite:///:memory:", "mysql://h/d", "nonsense", "postgresql+pg8000://h/d"]
)
def test_a_database_that_cannot_serve_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="database"):
        database_engine(uri)


def test_a_bad_url_is_refused_without_its_password() -> None:
    with pytest.raises(ValueError, match="database") as caught:
        database_engine("postgresql//proxy:hunter2@host/db")
    assert "hunter2" not in str(caught.value)


def test_a_new_sqlite_file_is_its_owners_alone(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "permissions.db"
    engine = database_engine(f"sqlite:{path}")
    upgrade(engine)
    engine.dispose()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_an_unreachable_server_raises_soon() -> None:
    engine = database_engine("postgresql+psycopg://proxy@127.0.0.1:1/none")
    with pytest.raises(OperationalError):
        PermissionStore(engine, SecretKeys.parse(generate_key()).fernet()).current_version()
    engine.dispose()


@pytest.mark.parametrize("text", ["", ",", "abc", "ÄÖ", "A" * 40 + "===="])
def test_bad_sealing_keys_are_refused_without_their_text(text: str) -> None:
    with pytest.raises(ValueError, match="PROXY_SECRET_KEYS") as caught:
        SecretKeys.parse(text)
    assert not text.strip(",") or text not in str(caught.value)


def test_the_same_sealing_key_twice_is_refused() -> None:
    key = generate_key()
    with pytest.raises(ValueError, match="twice"):
        SecretKeys.parse(f"{key}, {key}")


def test_a_writer_in_the_middle_of_a_change_keeps_nobody_from_reading(
    store: PermissionStore, engine: sa.Engine
) -> None:
    store.add_user("alice")
    with engine.execution_options(sqlite_begin="EXCLUSIVE").begin() as writing:
        writing.exec_driver_sql("UPDATE users SET disabled = TRUE")
        assert [one.id for one in store.load_snapshot().users.values()] == ["alice"]


def test_a_sqlite_file_put_in_place_of_another_is_read_from_the_next_query_on(
    store: PermissionStore, engine: sa.Engine, tmp_path: pathlib.Path
) -> None:
    if engine.dialect.name != "sqlite":
        pytest.skip("only sqlite databases are files")
    store.add_user("alice")
    copy = tmp_path / "restored.db"
    with (
        sqlite3.connect(copy) as target,
        contextlib.closing(sqlite3.connect(engine.url.database or "")) as old,
    ):
        old.backup(target)
        target.execute("DELETE FROM users")
    target.close()
    os.replace(copy, engine.url.database or "")
    assert store.load_snapshot().users == {}
