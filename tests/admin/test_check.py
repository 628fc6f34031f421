"""`check`: each thing that does not fit is a problem, and the exit status says whether there is one."""

from __future__ import annotations

import contextlib
import json
import pathlib
import sqlite3
from typing import Any

import pytest

from .conftest import Cli, threaded


@pytest.fixture
def kind() -> str:
    """One kind of database: these commands look at the tables."""
    return "sqlite"


@pytest.fixture
def trades(served: pathlib.Path, cli: Cli) -> Cli:
    """One table, a user and a group."""
    cli.config["tableMapping"].pop("quotes")
    cli.ok("user", "add", "alice")
    cli.ok("group", "add", "desk")
    return cli


def problems(cli: Cli) -> list[str]:
    done = cli.run("check", "--json")
    told = json.loads(done.stdout)
    assert done.exit_code == (1 if told["problems"] else 0), done.output
    assert told["good"] is not bool(told["problems"])
    found: list[str] = told["problems"]
    return found


@threaded
def test_what_fits_is_told_table_by_table(trades: Cli) -> None:
    trades.ok("grant", "user:alice", "--table", "trades", '[{"MIC": "XLON"}]', "--no-check")
    told: dict[str, Any] = trades.json("check")
    assert told["good"] is True
    (row,) = told["tables"]
    assert row["location"] == "s3://warehouse/trades"
    assert (row["version"], row["files"], row["partitions"], row["grants"]) == (2, 9, 9, 1)
    assert row["partition_columns"] == ["MIC string", "day date"]
    assert trades.ok("check").endswith("everything fits\n")


@threaded
def test_a_grant_of_the_file_that_names_another_column_is_a_problem(trades: Cli) -> None:
    trades.config["groups"] = {"ops": {"allowedPartitions": {"trades": [{"mic": "XLON"}]}}}
    (problem,) = problems(trades)
    assert problem.startswith("trades: groups.ops.allowedPartitions.trades[0].mic: no partition column")


@threaded
def test_a_grant_of_the_database_that_names_another_column_is_a_problem(trades: Cli) -> None:
    trades.ok("grant", "group:desk", "--table", "trades", '[{"price": 1}]', "--no-check")
    (problem,) = problems(trades)
    assert problem.startswith("trades: grant 1 (group desk)[0].price: no partition column")


@threaded
def test_a_grant_on_a_table_that_is_not_mapped_is_a_problem(trades: Cli) -> None:
    trades.config["tableMapping"]["gone"] = "s3://warehouse/gone"
    trades.ok("grant", "user:alice", "--table", "gone", "[{}]", "--no-check")
    trades.config["tableMapping"].pop("gone")
    assert problems(trades) == ["grant 1 (user alice): no table gone in tableMapping"]


@threaded
def test_a_prefix_without_a_delta_log_is_a_problem(trades: Cli) -> None:
    trades.config["tableMapping"]["gone"] = "s3://warehouse/gone"
    (problem,) = problems(trades)
    assert problem.startswith("gone: cannot be read: ")


@threaded
def test_a_store_that_does_not_answer_is_a_problem_and_the_other_tables_are_still_told(trades: Cli) -> None:
    trades.config["tableMapping"]["far"] = {"uri": "s3://far-away/t", "endpoint": "http://127.0.0.1:1"}
    done = trades.run("check")
    assert done.exit_code == 1
    assert "problem: far: cannot be read: " in done.stdout
    assert "s3://warehouse/trades" in done.stdout
    assert done.stdout.endswith("1 problems\n")


@threaded
def test_a_table_with_an_unknown_feature_is_a_problem_only_where_a_part_is_granted(
    served: pathlib.Path, trades: Cli, feature_table: str
) -> None:
    trades.config["tableMapping"] = {"odd": feature_table}
    trades.config["allowedPartitions"] = {"odd": [{}]}
    assert problems(trades) == []
    trades.config["allowedPartitions"] = {"odd": [{"MIC": "XLON"}]}
    (problem,) = problems(trades)
    assert "reader features not known: fancyFeature" in problem


@threaded
def test_a_row_that_cannot_be_used_is_a_problem(trades: Cli) -> None:
    trades.ok("grant", "user:alice", "--table", "trades", "[{}]", "--no-check")
    with contextlib.closing(sqlite3.connect(trades.folder / "migrated.db")) as shell:
        shell.execute("UPDATE grants SET partition_filters = 'x'")
        shell.commit()
    assert problems(trades) == ["grant 1: the partition filters are not JSON; it grants nothing"]


@threaded
def test_a_database_without_its_schema_is_a_problem_beside_the_tables(trades: Cli) -> None:
    (trades.folder / "migrated.db").unlink()
    (problem,) = problems(trades)
    assert problem.endswith("run the command migrate")


@threaded
def test_an_audit_file_that_cannot_be_written_is_a_problem(trades: Cli) -> None:
    trades.config["audit"] = str(trades.folder / "gone" / "audit.log")
    (problem,) = problems(trades)
    assert problem.startswith("audit: ")


@threaded
def test_a_certificate_that_is_none_is_a_problem(trades: Cli) -> None:
    pem = trades.folder / "cert.pem"
    pem.write_text("no certificate")
    trades.config["tls"] = {"certificate": str(pem), "privateKey": str(pem)}
    assert len(problems(trades)) == 1
