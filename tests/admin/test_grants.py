"""`grant`, `revoke` and `grants`."""

from __future__ import annotations

import pathlib
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta_proxy.access.policy import PolicyError, parse_filters
from delta_proxy.admin.filters import filters_of, read_filters
from delta_proxy.admin.grants import parse_end

from .conftest import NOW, Cli, threaded

LONDON = '[{"MIC": "XLON"}]'


@pytest.fixture
def alice(cli: Cli) -> Cli:
    """A database with a user alice and a group desk."""
    cli.ok("user", "add", "alice")
    cli.ok("group", "add", "desk")
    return cli


def granted(cli: Cli, *arguments: str) -> int:
    return int(cli.json("grant", *arguments, "--no-check")["number"])


def test_a_grant_is_listed_with_all_that_was_said_of_it(alice: Cli) -> None:
    granted(alice, "user:alice", "--table", "trades", LONDON, "--expires", "1d", "--note", "asked for it")
    (row,) = alice.json("grants")
    assert row == {
        "number": row["number"],
        "principal": "user:alice",
        "table": "trades",
        "filters": [{"MIC": "XLON"}],
        "expires_at": "2026-11-23T12:00:00+00:00",
        "state": "in force",
        "granted_by": "root",
        "note": "asked for it",
        "created_at": "2026-11-22T12:00:00+00:00",
    }


def test_grants_are_found_by_principal_and_by_table(alice: Cli) -> None:
    granted(alice, "user:alice", "--table", "trades", LONDON)
    granted(alice, "group:desk", "--table", "trades", LONDON)
    granted(alice, "oidc:sub-1", "--table", "quotes", "[{}]")
    assert [row["principal"] for row in alice.json("grants", "--table", "trades")] == [
        "user:alice",
        "group:desk",
    ]
    assert [row["table"] for row in alice.json("grants", "oidc:sub-1")] == ["quotes"]
    assert alice.json("grants", "user:alice", "--table", "quotes") == []


def test_an_expired_grant_says_so(alice: Cli) -> None:
    granted(alice, "user:alice", "--table", "trades", LONDON, "--expires", "90m")
    alice.now = NOW + timedelta(minutes=90)
    assert [row["state"] for row in alice.json("grants")] == ["expired"]


def test_one_grant_is_revoked_by_its_number(alice: Cli) -> None:
    number = granted(alice, "user:alice", "--table", "trades", LONDON)
    kept = granted(alice, "user:alice", "--table", "quotes", LONDON)
    alice.ok("revoke", str(number))
    assert [row["number"] for row in alice.json("grants")] == [kept]
    assert alice.refused("revoke", str(number)) == f"no grant {number}"


def test_the_grants_of_a_principal_are_revoked_on_a_table_or_on_all(alice: Cli) -> None:
    for table in ("trades", "trades", "quotes"):
        granted(alice, "user:alice", "--table", table, LONDON)
    assert alice.json("revoke", "user:alice", "--table", "trades") == {"revoked": 2}
    assert alice.json("revoke", "user:alice", "--all") == {"revoked": 1}
    assert "has no grant" in alice.refused("revoke", "user:alice", "--all")


@pytest.mark.parametrize(
    "arguments", [("user:alice",), ("user:alice", "--all", "--table", "trades"), ("7", "--all")]
)
def test_revoking_asks_for_one_scope(alice: Cli, arguments: tuple[str, ...]) -> None:
    granted(alice, "user:alice", "--table", "trades", LONDON)
    alice.refused("revoke", *arguments)
    assert len(alice.json("grants")) == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("alice", "--table", "trades", LONDON), "expected user:NAME, group:NAME or oidc:SUBJECT"),
        (("user:bob", "--table", "trades", LONDON), "no user bob"),
        (("group:ops", "--table", "trades", LONDON), "no group ops"),
        (
            ("user:alice", "--table", "tardes", LONDON),
            "no table tardes in tableMapping; there is quotes, trades",
        ),
        (("user:alice", "--table", "trades", "[{"), "filters: not JSON"),
        (("user:alice", "--table", "trades", '[{"a": 1, "a": 2}]'), 'duplicate key "a"'),
        (("user:alice", "--table", "trades", '[{"a": {"ge": 1}}]'), 'filters[0].a: unknown operator "ge"'),
        (("user:alice", "--table", "trades", '"x"'), "expected a list of partition maps"),
        (("user:alice", "--table", "trades", LONDON, "--expires", "2020-01-01"), "is over"),
        (("user:alice", "--table", "trades", LONDON, "--expires", "2027-01-01T00:00"), "needs a zone"),
        (("user:alice", "--table", "trades", LONDON, "--expires", "soon"), "expected a time"),
    ],
)
@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_grant_that_makes_no_sense_is_refused_in_one_line(
    alice: Cli, arguments: tuple[str, ...], line: str
) -> None:
    assert line in alice.refused("grant", *arguments, "--no-check")
    assert alice.json("grants") == []


def test_a_user_and_a_group_of_the_file_can_be_granted_to(cli: Cli) -> None:
    cli.config |= {
        "users": {"bob": {"accessKey": "AKBOB", "secretKey": "secret-of-bob", "groups": ["ops"]}},
        "groups": {"ops": {}},
    }
    for principal in ("user:bob", "group:ops"):
        cli.ok("grant", principal, "--table", "trades", LONDON, "--no-check")
    assert [each["principal"] for each in cli.json("grants")] == ["user:bob", "group:ops"]
    assert "no user ops" in cli.refused("grant", "user:ops", "--table", "trades", LONDON, "--no-check")
    assert "no group bob" in cli.refused("grant", "group:bob", "--table", "trades", LONDON, "--no-check")


@pytest.mark.parametrize("kind", ["sqlite"])
@threaded
def test_filters_are_compared_with_the_tables_partition_columns(served: pathlib.Path, alice: Cli) -> None:
    line = alice.refused("grant", "user:alice", "--table", "trades", '[{"mic": "XLON"}]')
    assert line == "filters[0].mic: no partition column; the table is partitioned by MIC, day"
    assert "2026-1-1" in alice.refused("grant", "user:alice", "--table", "trades", '[{"day": "2026-1-1"}]')
    assert alice.json("grants") == []
    alice.ok("grant", "user:alice", "--table", "trades", '[{"day": {"gte": "now-7d"}}]')


@pytest.mark.parametrize("kind", ["sqlite"])
@threaded
def test_a_table_that_cannot_be_read_is_a_warning(served: pathlib.Path, alice: Cli) -> None:
    done = alice.run("grant", "user:alice", "--table", "quotes", LONDON)
    assert done.exit_code == 0
    assert done.stderr.startswith("Warning: not checked, the table quotes cannot be read: ")


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("90m", NOW + timedelta(minutes=90)),
        ("12h", NOW + timedelta(hours=12)),
        ("2026-12-31", datetime(2026, 12, 31, tzinfo=UTC)),
        ("2026-12-31T18:00:00+01:00", datetime(2026, 12, 31, 18, tzinfo=timezone(timedelta(hours=1)))),
    ],
)
def test_an_end_is_a_time_a_day_or_a_span(text: str, end: datetime) -> None:
    assert parse_end(text, NOW) == end


@given(st.text(max_size=30))
def test_any_other_end_is_refused(text: str) -> None:
    try:
        assert parse_end(text, NOW) > NOW
    except click.ClickException:
        return


def test_a_number_that_json_cannot_hold_is_refused() -> None:
    with pytest.raises(PolicyError, match="too many digits"):
        read_filters('[{"price": 0.12345678901234567890123}]')


@pytest.mark.parametrize(
    "filters",
    [
        [],
        [{}],
        [{"MIC": "XLON"}, {"MIC": None, "day": {"gte": "2026-01-01", "lt": "now-1d"}}],
        [{"n": [1, 2.5, None], "flag": True, "MIC": {"glob": "X*"}, "none": []}],
    ],
)
def test_a_grant_is_told_as_the_filters_that_give_it(filters: list[dict[str, Any]]) -> None:
    assert parse_filters(filters_of(parse_filters(filters))) == parse_filters(filters)
