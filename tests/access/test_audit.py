"""The audit log: complete or closed, never in the reactor's way, whole lines whoever else writes."""

from __future__ import annotations

import json
import os
import pathlib
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta_proxy.access.audit import AuditLog, AuditRecord, AuditUnavailable
from delta_proxy.s3.errors import ServiceUnavailable
from tests.waiting import PATIENCE

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def record(number: int = 0, **changes: Any) -> AuditRecord:
    """A decision."""
    good: dict[str, Any] = {
        "time": NOW,
        "request_id": f"r{number}",
        "principal": "alice",
        "auth": "header",
        "access_key": "AKDSALICE",
        "source": "127.0.0.1",
        "operation": "GetObject",
        "table": "trades",
        "path": "MIC=XLON/a.parquet",
        "partitions": [{"MIC": "XLON", "date": None}],
        "grant": "ab12",
        "decision": "allowed",
        "status": 200,
        "bytes_sent": 10,
        "duration": 0.25,
    }
    return AuditRecord(**{**good, **changes})


@contextmanager
def logging_to(path: str | pathlib.Path, **settings: Any) -> Iterator[tuple[AuditLog, list[str]]]:
    """An audit log and what it reported; closed at the end."""
    reports: list[str] = []
    log = AuditLog(str(path), report=reports.append, **settings)
    log.start()
    try:
        yield log, reports
    finally:
        log.close(timeout=PATIENCE)


def lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The records in a file."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait for the writer's thread, for as long as a slow machine may take."""
    pause = threading.Event()
    for _ in range(24_000):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("the condition did not come about")


def test_a_decision_is_a_line_of_json(tmp_path: pathlib.Path) -> None:
    with logging_to(tmp_path / "audit") as (log, _):
        log.reserve().record(record(7, reason="not granted", decision="denied", status=403))
    assert lines(tmp_path / "audit") == [
        {
            "time": "2026-11-22T12:00:00.000000+00:00",
            "request_id": "r7",
            "principal": "alice",
            "auth": "header",
            "access_key": "AKDSALICE",
            "source": "127.0.0.1",
            "operation": "GetObject",
            "table": "trades",
            "path": "MIC=XLON/a.parquet",
            "copied_from": None,
            "partitions": [{"MIC": "XLON", "date": None}],
            "grant": "ab12",
            "decision": "denied",
            "reason": "not granted",
            "status": 403,
            "bytes": 10,
            "bytes_received": 0,
            "duration": 0.25,
        }
    ]


def test_the_time_is_told_in_utc() -> None:
    elsewhere = NOW.astimezone(timezone(timedelta(hours=9)))
    assert json.loads(record(time=elsewhere).line())["time"] == "2026-11-22T12:00:00.000000+00:00"


def test_a_record_has_no_field_for_a_secret() -> None:
    names = {field.name for field in attrs.fields(AuditRecord)}
    assert not {
        name for name in names if any(word in name for word in ("secret", "signature", "token", "header"))
    }


@given(st.text(alphabet=st.characters(), max_size=50))
def test_any_text_is_one_line_that_reads_back(text: str) -> None:
    line = record(path=text, principal=text).line()
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    json.loads(line)


def test_text_that_is_not_unicode_does_not_cost_the_record() -> None:
    assert json.loads(record(path="a\ud800").line())["path"] == "a\ud800"


def test_the_records_are_written_in_their_order_when_the_log_is_closed(tmp_path: pathlib.Path) -> None:
    with logging_to(tmp_path / "audit") as (log, _):
        for number in range(2_000):
            log.reserve().record(record(number))
        assert log.close() == 0
    assert [line["request_id"] for line in lines(tmp_path / "audit")] == [
        f"r{number}" for number in range(2_000)
    ]


def test_what_was_there_before_stays(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "audit"
    path.write_bytes(b"{}\n")
    with logging_to(path) as (log, _):
        log.reserve().record(record())
    assert len(lines(path)) == 2


def test_the_file_is_not_for_everyone(tmp_path: pathlib.Path) -> None:
    with logging_to(tmp_path / "audit"):
        assert stat.S_IMODE((tmp_path / "audit").stat().st_mode) & 0o027 == 0


def test_a_file_that_cannot_be_opened_stops_the_start(tmp_path: pathlib.Path) -> None:
    with pytest.raises(OSError, match="audit"):
        AuditLog(str(tmp_path / "none" / "audit"), report=print)


def test_a_request_without_a_place_is_refused(tmp_path: pathlib.Path) -> None:
    with logging_to(tmp_path / "audit", capacity=2) as (log, _):
        first, second = log.reserve(), log.reserve()
        assert not log.ready
        with pytest.raises(ServiceUnavailable) as refused:
            log.reserve()
        assert (refused.value.code, refused.value.status) == ("ServiceUnavailable", 503)
        first.release()
        log.reserve().release()
        second.record(record())
        wait_for(lambda: log.waiting == 0)
        log.reserve().release()


def test_a_place_is_used_once(tmp_path: pathlib.Path) -> None:
    with logging_to(tmp_path / "audit", capacity=2) as (log, _):
        place = log.reserve()
        place.record(record())
        place.record(record())
        place.release()
        wait_for(lambda: log.waiting == 0)
        assert log.written == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_closes_the_door_and_loses_nothing_that_is_not_said() -> None:
    with logging_to("/dev/full", capacity=3) as (log, reports):
        for number in range(3):
            log.reserve().record(record(number))
        wait_for(lambda: log.failure is not None)
        with pytest.raises(AuditUnavailable):
            log.reserve()
        assert not log.ready
        assert log.close(timeout=0.3) == 3
        assert log.dropped == 3
    assert [report.split(":")[0] for report in reports] == ["audit", "audit"]
    assert "No space left" in reports[0]
    assert "3 records" in reports[1]


def fill(log: AuditLog, places: int) -> None:
    """Take as many places."""
    for _ in range(places):
        log.reserve()


def test_a_reader_that_stands_still_never_blocks_the_caller(tmp_path: pathlib.Path) -> None:
    fifo = tmp_path / "audit"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    reports: list[str] = []
    log = AuditLog(str(fifo), report=reports.append, capacity=1_000)
    log.start()
    try:
        for number in range(1_000):
            log.reserve().record(record(number))
        with pytest.raises(AuditUnavailable):
            fill(log, 1_000)
        assert log.close(timeout=0.05) > 0
    finally:
        os.close(reader)
    assert any("lost" in report for report in reports)


def test_after_a_rotation_the_lines_go_to_the_new_file(tmp_path: pathlib.Path) -> None:
    path, old = tmp_path / "audit", tmp_path / "audit.1"
    with logging_to(path) as (log, _):
        log.reserve().record(record(1))
        wait_for(lambda: log.written == 1)
        path.rename(old)
        log.reopen()
        wait_for(path.exists)
        log.reserve().record(record(2))
    assert [line["request_id"] for line in lines(old)] == ["r1"]
    assert [line["request_id"] for line in lines(path)] == ["r2"]


def test_a_rotation_that_fails_goes_on_in_the_old_file(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    with logging_to(folder / "audit") as (log, reports):
        folder.rename(tmp_path / "moved")
        log.reopen()
        wait_for(lambda: bool(reports))
        log.reserve().record(record())
    assert len(lines(tmp_path / "moved" / "audit")) == 1
    assert "cannot reopen" in reports[0]


def test_what_is_recorded_before_the_start_is_written_after_it(tmp_path: pathlib.Path) -> None:
    log = AuditLog(str(tmp_path / "audit"), report=print)
    log.reserve().record(record())
    log.start()
    assert log.close() == 0
    assert len(lines(tmp_path / "audit")) == 1


def test_a_log_that_was_never_started_says_what_it_loses(tmp_path: pathlib.Path) -> None:
    reports: list[str] = []
    log = AuditLog(str(tmp_path / "audit"), report=reports.append)
    log.reserve().record(record())
    assert log.close() == 1
    assert "1 record" in reports[0]


def test_nothing_is_taken_after_the_close(tmp_path: pathlib.Path) -> None:
    with logging_to(tmp_path / "audit") as (log, _):
        late = log.reserve()
        log.close()
        with pytest.raises(AuditUnavailable):
            log.reserve()
        late.record(record())
        assert log.dropped == 1


def run(script: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Another process that writes an audit log."""
    head = "import sys\nfrom tests.access.test_audit import *\n"
    return subprocess.Popen([sys.executable, "-c", head + textwrap.dedent(script), *arguments])


def test_the_lines_of_several_workers_do_not_mix(tmp_path: pathlib.Path) -> None:
    script = """
        with logging_to(sys.argv[1]) as (log, _):
            for number in range(3_000):
                log.reserve().record(record(number, path="x" * (number % 900)))
            log.close(PATIENCE)
    """
    workers = [run(script, str(tmp_path / "audit")) for _ in range(3)]
    assert [worker.wait(PATIENCE) for worker in workers] == [0, 0, 0]
    assert len(lines(tmp_path / "audit")) == 9_000


def test_a_line_that_was_cut_by_a_full_disk_comes_again_whole(tmp_path: pathlib.Path) -> None:
    # A limit on the size of files cuts a write as a full disk does, and can be lifted.
    script = """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, resource.RLIM_INFINITY))
        with logging_to(sys.argv[1]) as (log, reports):
            for number in range(10):
                log.reserve().record(record(number))
            wait_for(lambda: log.failure is not None)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            wait_for(lambda: log.written == 10)
            assert log.failure is None and "works again" in reports[-1], reports
    """
    assert run(script, str(tmp_path / "audit")).wait(PATIENCE) == 0
    whole, torn = [], 0
    for line in (tmp_path / "audit").read_bytes().splitlines():
        try:
            whole.append(json.loads(line)["request_id"])
        except ValueError:
            torn += 1
    assert whole == [f"r{number}" for number in range(10)]
    assert torn == 1
