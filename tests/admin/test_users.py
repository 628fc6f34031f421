"""`user`, `group`, `migrate` and `reseal`, on both databases."""

from __future__ import annotations

import os

import pytest

from delta_proxy.access.keys import VARIABLE, generate_key
from delta_proxy.access.migrations import HEAD

from .conftest import Cli


def test_a_secret_is_shown_when_it_is_made_and_never_again(cli: Cli) -> None:
    made = cli.json("user", "add", "alice")
    shown = [cli.ok("user", "list"), cli.ok("user", "list", "--json"), cli.ok("user", "disable", "alice")]
    assert len(made["secret_key"]) >= 40
    assert all(made["secret_key"] not in text for text in shown)
    assert made["access_key"] in shown[0]


def test_the_text_for_a_person_holds_key_and_secret(cli: Cli) -> None:
    lines = cli.ok("user", "add", "alice", "--access-key", "ALICEKEY").splitlines()
    assert lines[0].split() == ["user", "alice"]
    assert lines[1].split() == ["access", "key", "ALICEKEY"]
    assert lines[2].split()[:2] == ["secret", "key"]
    assert "not shown again" in lines[3]


def test_rotating_gives_a_new_secret_and_keeps_the_access_key(cli: Cli) -> None:
    before, after = cli.json("user", "add", "alice"), cli.json("user", "rotate", "alice")
    assert after["access_key"] == before["access_key"]
    assert after["secret_key"] != before["secret_key"]


def test_a_user_is_shut_out_and_let_in(cli: Cli) -> None:
    cli.ok("user", "add", "alice", "--read-only")
    cli.ok("user", "disable", "alice")
    assert [(user["disabled"], user["read_only"]) for user in cli.json("user", "list")] == [(True, True)]
    cli.ok("user", "enable", "alice")
    assert [user["disabled"] for user in cli.json("user", "list")] == [False]


def test_the_list_names_the_users_of_the_file_without_their_secrets(cli: Cli) -> None:
    cli.config["users"] = {"bob": {"accessKey": "BOBKEY", "secretKey": "bob-secret"}}
    cli.ok("user", "add", "alice")
    assert [(user["id"], user["source"]) for user in cli.json("user", "list")] == [
        ("alice", "database"),
        ("bob", "configuration"),
    ]
    assert "bob-secret" not in cli.ok("user", "list")


@pytest.mark.parametrize("arguments", [("bob",), ("carol", "--access-key", "BOBKEY")])
def test_a_user_of_the_file_is_not_made_again(cli: Cli, arguments: tuple[str, ...]) -> None:
    cli.config["users"] = {"bob": {"accessKey": "BOBKEY", "secretKey": "bob-secret"}}
    assert "is in" in cli.refused("user", "add", *arguments)
    assert len(cli.json("user", "list")) == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("user", "add", "alice"), "the user alice or its access key exists"),
        (("user", "add", " x"), "the name of a user is"),
        (("user", "add", "oidc:x"), "does not begin with oidc:"),
        (("user", "rotate", "nobody"), "no user nobody"),
        (("user", "disable", "nobody"), "no user nobody"),
        (("group", "remove", "nobody"), "no group nobody"),
        (("group", "add-member", "desk", "alice"), "no group desk"),
        (("group", "remove-member", "desk", "alice"), "alice is not in desk"),
    ],
)
def test_a_change_that_cannot_be_made_is_one_line(cli: Cli, arguments: tuple[str, ...], line: str) -> None:
    cli.ok("user", "add", "alice")
    assert line in cli.refused(*arguments)


def test_groups_have_members(cli: Cli) -> None:
    cli.config["groups"] = {"board": {}}
    cli.config["users"] = {"bob": {"accessKey": "BOBKEY", "secretKey": "bob-secret", "groups": ["board"]}}
    for command in (
        ("user", "add", "alice"),
        ("group", "add", "desk"),
        ("group", "add-member", "desk", "alice"),
    ):
        cli.ok(*command)
    assert cli.json("group", "list") == [
        {"id": "board", "members": ["bob"], "source": "configuration"},
        {"id": "desk", "members": ["alice"], "source": "database"},
    ]
    cli.ok("group", "remove-member", "desk", "alice")
    assert cli.json("group", "list")[1]["members"] == []
    cli.ok("group", "remove", "desk")
    assert [group["id"] for group in cli.json("group", "list")] == ["board"]


def test_resealing_lets_an_old_key_be_taken_away(cli: Cli) -> None:
    cli.ok("user", "add", "alice")
    old, new = cli.environ[VARIABLE], generate_key()
    cli.environ[VARIABLE] = f"{new},{old}"
    assert cli.json("reseal") == {"resealed": 1}
    cli.environ[VARIABLE] = new
    assert cli.json("reseal") == {"resealed": 1}
    cli.environ[VARIABLE] = old
    assert "cannot be opened" in cli.refused("reseal")


def test_migrating_again_changes_nothing(cli: Cli) -> None:
    told = cli.json("migrate")
    assert told["before"] == told["after"] is not None
    assert "already" in cli.ok("migrate")


def test_a_new_database_gets_its_schema(cli: Cli, database: str) -> None:
    cli.config["database"]["uri"] = database
    told = cli.json("migrate")
    assert (told["before"], told["after"]) == (None, HEAD)
    assert cli.json("user", "list") == []


def test_a_database_without_its_schema_asks_for_migrate(cli: Cli) -> None:
    database = cli.config["database"]["uri"]
    if database.startswith("sqlite"):
        os.unlink(database.removeprefix("sqlite:"))
        assert cli.refused("user", "list").endswith("run the command migrate")
        assert not os.path.exists(database.removeprefix("sqlite:"))
    else:
        cli.config["database"]["uri"] = database.replace("/test", "/none")
        assert "does not exist" in cli.refused("user", "list")


def test_without_a_database_there_is_nothing_to_change(plain: Cli) -> None:
    assert "databaseEnabled is false" in plain.refused("user", "add", "alice")
    assert "databaseEnabled is false" in plain.refused("migrate")
    assert plain.json("user", "list") == []
    assert plain.ok("group", "list") == "no groups\n"


def test_a_bad_configuration_is_one_line(plain: Cli) -> None:
    plain.config["nonsense"] = 1
    assert "nonsense" in plain.refused("user", "list")


def test_a_configuration_that_is_not_there_is_one_line(plain: Cli) -> None:
    plain.name = "gone/config.json"
    assert "cannot be read" in plain.refused("user", "list")


def test_names_are_not_taken_for_markup(cli: Cli) -> None:
    cli.ok("user", "add", "[red]alice[/red]")
    assert "[red]alice[/red]" in cli.ok("user", "list")


def test_a_database_that_does_not_answer_is_one_line_without_its_password(plain: Cli) -> None:
    plain.environ[VARIABLE] = generate_key()
    plain.config |= {
        "databaseEnabled": True,
        "database": {"uri": "postgresql+psycopg://proxy:hunter22@127.0.0.1:1/x"},
    }
    line = plain.refused("user", "list")
    assert line.startswith("the permissions database: ")
    assert "hunter22" not in line
