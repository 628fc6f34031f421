"""`explain`: what is granted, by what, how much it is, and why a path is served or not."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from delta_proxy.access.keys import VARIABLE, generate_key

from .conftest import Cli, one_file, threaded


@pytest.fixture
def kind() -> str:
    """One kind of database: these commands look at the tables."""
    return "sqlite"


LONDON = '[{"MIC": "XLON"}]'


@pytest.fixture
def desk(served: pathlib.Path, cli: Cli) -> Cli:
    """A database where alice is in the group desk, before a table of three MICs and three days."""
    cli.ok("user", "add", "alice")
    cli.ok("group", "add", "desk")
    cli.ok("group", "add-member", "desk", "alice")
    return cli


def grant(cli: Cli, *arguments: str) -> None:
    cli.ok("grant", *arguments, "--no-check")


def explained(cli: Cli, *arguments: str) -> dict[str, Any]:
    told: dict[str, Any] = cli.json("explain", "--user", "alice", "--table", "trades", *arguments)
    return told


@threaded
def test_every_grant_that_counts_is_named_with_what_it_covers(desk: Cli) -> None:
    desk.config["allowedPartitions"] = {"trades": [{"day": "2026-01-01"}]}
    grant(desk, "user:alice", "--table", "trades", LONDON)
    grant(desk, "group:desk", "--table", "trades", '[{"MIC": "XETR", "day": "2026-01-02"}]')
    grant(desk, "user:alice", "--table", "quotes", "[{}]")
    told = explained(desk)
    assert [
        (one["source"], one["holder"], one["files"], one["partitions"], one["in_force"])
        for one in told["grants"]
    ] == [
        ("allowedPartitions.trades", "everyone", 3, 3, True),
        ("grant 1", "user alice", 3, 3, True),
        ("grant 2", "group desk", 1, 1, True),
    ]
    # 2026-01-01 of each MIC, the two other days of XLON, and one of XETR.
    assert (told["files"], told["of_files"]) == (6, 9)
    assert (told["partitions"], told["of_partitions"]) == (6, 9)
    assert (told["access"], told["version"]) == ("restricted", 2)


@threaded
def test_grants_of_the_file_are_named_by_their_keys(desk: Cli) -> None:
    desk.config["groups"] = {"ops": {"allowedPartitions": {"trades": [{"MIC": "XPAR"}]}}}
    desk.config["users"] = {
        "bob": {
            "accessKey": "BOBKEY",
            "secretKey": "bob-secret",
            "groups": ["ops"],
            "allowedPartitions": {"trades": [{"MIC": "XLON"}]},
        }
    }
    told = desk.json("explain", "--user", "bob", "--table", "trades")
    assert [one["source"] for one in told["grants"]] == [
        "users.bob.allowedPartitions.trades",
        "groups.ops.allowedPartitions.trades",
    ]
    assert (told["source"], told["groups"], told["files"]) == ("configuration", ["ops"], 6)


@threaded
def test_an_expired_grant_is_named_and_grants_nothing(desk: Cli) -> None:
    grant(desk, "user:alice", "--table", "trades", LONDON, "--expires", "2026-11-22T12:00:01+00:00")
    desk.now = desk.now.replace(second=1)
    told = explained(desk)
    assert [one["in_force"] for one in told["grants"]] == [False]
    assert (told["access"], told["files"]) == ("closed", 0)
    assert "expired" in desk.ok("explain", "--user", "alice", "--table", "trades")


@threaded
def test_a_disabled_user_reads_nothing(desk: Cli) -> None:
    grant(desk, "user:alice", "--table", "trades", "[{}]")
    desk.ok("user", "disable", "alice")
    told = explained(desk)
    assert (told["access"], told["disabled"], told["files"], told["grants"]) == ("closed", True, 0, [])


@pytest.mark.parametrize(
    ("filters", "path", "decision", "reason"),
    [
        (LONDON, "XLON", "allowed", "every partition value it ever had is granted"),
        (LONDON, "XETR", "denied", "no alternative of the grant holds"),
        (LONDON, "MIC=XLON/nothing.parquet", "absent", "no such file"),
        (LONDON, "_delta_log/00000000000000000001.json", "allowed", "the view of this grant"),
        (LONDON, "_delta_log/00000000000000000001.crc", "absent", "no such file"),
        ("[{}]", "XETR", "allowed", "the grant is everything"),
    ],
)
@threaded
def test_a_path_is_decided_with_a_reason(
    desk: Cli, served: pathlib.Path, *, filters: str, path: str, decision: str, reason: str
) -> None:
    grant(desk, "user:alice", "--table", "trades", filters)
    file = one_file(served, path) if path in {"XLON", "XETR"} else path
    told = explained(desk, "--path", file)["path"]
    assert told["decision"] == decision
    assert reason in told["reason"]
    assert [values["MIC"] for values in told["partitions"]] == ([path] if path in {"XLON", "XETR"} else [])


@threaded
def test_a_path_of_a_closed_table_is_denied(desk: Cli, served: pathlib.Path) -> None:
    told = explained(desk, "--path", one_file(served, "XLON"))
    assert told["access"] == "closed"
    assert told["path"]["decision"] == "denied"


@threaded
def test_the_text_for_a_person_says_it_all(desk: Cli, served: pathlib.Path) -> None:
    grant(desk, "user:alice", "--table", "trades", LONDON)
    text = desk.ok("explain", "--user", "alice", "--table", "trades", "--path", one_file(served, "XETR"))
    lines = text.splitlines()
    assert lines[0] == "alice (database, in desk) on trades: restricted"
    assert lines[1] == "granted by grant 1"
    assert lines[3].split()[:3] == ["grant", "1", "user"]
    assert lines[4] == "version 2: 3 of 9 files, 3 of 9 partitions"
    assert ": denied, " in lines[5]
    assert lines[6].strip().startswith("MIC=XETR, day=")


@threaded
def test_a_table_that_cannot_be_read_is_told_after_the_grants(desk: Cli) -> None:
    grant(desk, "user:alice", "--table", "quotes", LONDON)
    done = desk.run("explain", "--user", "alice", "--table", "quotes")
    assert done.exit_code == 1
    assert "grant 1" in done.stdout
    assert done.stderr.startswith("Error: the table cannot be read: ")
    assert len(done.stderr.splitlines()) == 1


@threaded
def test_an_oidc_subject_has_the_grants_of_the_groups_of_its_token(desk: Cli) -> None:
    desk.config["sts"] = {"issuer": "https://issuer.example", "audience": "lake"}
    grant(desk, "group:desk", "--table", "trades", LONDON)
    grant(desk, "oidc:sub-1", "--table", "trades", '[{"MIC": "XETR"}]')
    with_group = desk.json("explain", "--user", "oidc:sub-1", "--group", "desk", "--table", "trades")
    without = desk.json("explain", "--user", "oidc:sub-1", "--table", "trades")
    assert (with_group["files"], without["files"]) == (6, 3)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--user", "nobody", "--table", "trades"), "no user nobody"),
        (("--user", "alice", "--table", "tardes"), "no table tardes"),
        (("--table", "trades"), "--user NAME is needed"),
        (("--user", "alice", "--group", "desk", "--table", "trades"), "--group is for OIDC subjects"),
        (("--user", "oidc:x", "--table", "trades"), "only where sts is configured"),
    ],
)
@threaded
def test_a_question_about_nobody_is_one_line(desk: Cli, arguments: tuple[str, ...], line: str) -> None:
    assert line in desk.refused("explain", *arguments)


@threaded
def test_without_users_everyone_is_anonymous(
    served: pathlib.Path, plain: Cli, settings: dict[str, Any]
) -> None:
    told = plain.json("explain", "--table", "trades")
    assert (told["principal"], told["access"], told["files"]) == ("anonymous", "everything", 9)
    assert told["why"] == "no grant names the table: it is open"
    settings["allowedPartitions"] = {"trades": [{"MIC": ["XLON", "XPAR"]}]}
    assert plain.json("explain", "--table", "trades")["files"] == 6


@threaded
def test_a_key_that_opens_no_secret_makes_the_user_unknown_to_the_proxy(desk: Cli) -> None:
    desk.environ[VARIABLE] = generate_key()
    assert explained(desk)["disabled"] is True
