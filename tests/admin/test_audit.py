"""`audit tail`: the records asked for, also while the log grows and is rotated."""

from __future__ import annotations

import json
import pathlib
from datetime import UTC, datetime
from typing import Any

import attrs
import pytest

from delta_proxy.access.audit import AuditRecord
from delta_proxy.admin.audit import Follower, Wanted

from .conftest import Cli

RECORD = AuditRecord(
    time=datetime(2026, 11, 22, 12, tzinfo=UTC),
    request_id="1",
    principal="alice",
    auth="sigv4",
    source="192.0.2.1",
    operation="GetObject",
    table="trades",
    path="MIC=XLON/a.parquet",
    decision="allowed",
    status=200,
    bytes_sent=1234,
    duration=0.01,
)
BY_BOB = attrs.evolve(RECORD, principal="bob", request_id="2", table="quotes")
DENIED = attrs.evolve(
    RECORD, request_id="3", decision="denied", reason="no grant on this table", status=403, bytes_sent=0
)


@pytest.fixture
def log(plain: Cli) -> pathlib.Path:
    """An audit log with three records."""
    path = plain.folder / "audit.log"
    path.write_bytes(RECORD.line() + BY_BOB.line() + DENIED.line())
    plain.config["audit"] = str(path)
    return path


def ids(text: str) -> list[str]:
    return [json.loads(line)["request_id"] for line in text.splitlines()]


def test_the_newest_records_come_last(plain: Cli, log: pathlib.Path) -> None:
    assert ids(plain.ok("audit", "tail", "--json")) == ["1", "2", "3"]
    assert ids(plain.ok("audit", "tail", "--json", "-n", "2")) == ["2", "3"]


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("--user", "alice"), ["1", "3"]),
        (("--table", "quotes"), ["2"]),
        (("--decision", "denied"), ["3"]),
        (("--user", "bob", "--decision", "denied"), []),
        (("--user", "alice", "-n", "1"), ["3"]),
    ],
)
def test_records_are_picked_before_they_are_counted(
    plain: Cli, log: pathlib.Path, arguments: tuple[str, ...], found: list[str]
) -> None:
    assert ids(plain.ok("audit", "tail", "--json", *arguments)) == found


def test_a_line_for_a_person_names_who_what_and_why(plain: Cli, log: pathlib.Path) -> None:
    line = plain.ok("audit", "tail", "-n", "1").rstrip("\n")
    assert line == (
        "2026-11-22T12:00:00.000000+00:00  alice  192.0.2.1  GetObject  trades/MIC=XLON/a.parquet  "
        "denied (no grant on this table)  403  0"
    )


def test_a_path_that_a_client_made_up_sends_nothing_to_the_terminal(plain: Cli, log: pathlib.Path) -> None:
    log.write_bytes(attrs.evolve(RECORD, path="\x1b[2Jx\ny").line())
    (line,) = plain.ok("audit", "tail").splitlines()
    assert "\x1b" not in line
    assert r"\x1b[2Jx\ny" in line


def test_a_torn_line_is_passed_over(plain: Cli, log: pathlib.Path) -> None:
    log.write_bytes(b'{"time": "20\n' + BY_BOB.line() + b"[1]\n" + DENIED.line()[:-5])
    assert ids(plain.ok("audit", "tail", "--json")) == ["2"]


def test_a_log_that_is_no_file_is_one_line(plain: Cli) -> None:
    assert "is not configured" in plain.refused("audit", "tail")
    plain.config["audit"] = "-"
    assert "standard output" in plain.refused("audit", "tail")
    plain.config["audit"] = str(plain.folder / "gone.log")
    assert "No such file" in plain.refused("audit", "tail")


def new(follower: Follower) -> list[Any]:
    return [record["request_id"] for record in Wanted({}).of(follower.lines())]


def append(path: pathlib.Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def test_a_line_is_told_once_it_is_whole(log: pathlib.Path) -> None:
    with Follower.open(log) as follower:
        assert new(follower) == ["1", "2", "3"]
        append(log, RECORD.line()[:20])
        assert new(follower) == []
        append(log, RECORD.line()[20:])
        assert new(follower) == ["1"]


def test_a_rotation_loses_no_line_and_repeats_none(log: pathlib.Path) -> None:
    with Follower.open(log) as follower:
        assert new(follower) == ["1", "2", "3"]
        log.rename(log.with_suffix(".1"))
        append(log.with_suffix(".1"), RECORD.line())
        assert new(follower) == ["1"]
        append(log.with_suffix(".1"), BY_BOB.line())
        append(log, DENIED.line())
        assert new(follower) == ["2", "3"]
        append(log, BY_BOB.line())
        assert new(follower) == ["2"]


def test_a_log_that_is_emptied_is_read_from_its_start(log: pathlib.Path) -> None:
    with Follower.open(log) as follower:
        assert new(follower) == ["1", "2", "3"]
        log.write_bytes(DENIED.line())
        assert new(follower) == ["3"]
