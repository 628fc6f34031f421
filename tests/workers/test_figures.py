"""What several workers tell, told as of one proxy."""

from __future__ import annotations

import pathlib
import subprocess
import sys

from prometheus_client import CollectorRegistry
from twisted.internet.task import Clock

from delta_proxy.metrics import IndexFigures, Metrics, Moment, joined, render_workers
from delta_proxy.resources.health import Checks, Degraded
from delta_proxy.resources.status import Status, TableStatus
from delta_proxy.workers.figures import joined_checks, joined_status
from delta_proxy.workers.link import pack, pack_checks, unpack_checks, unpack_moment, unpack_status

ALL_WELL: Checks = {"accepting": True, "credentials": True}
_COUNT = """
import sys
from prometheus_client import values
from delta_proxy.workers.counts import counting, write_counts
values.ValueClass = counting(sys.argv[1])
from prometheus_client import CollectorRegistry
from twisted.internet.task import Clock
from delta_proxy.metrics import Metrics
registry = CollectorRegistry()
figures = Metrics(registry, Clock(), tables=["trades"])
for _ in range(int(sys.argv[2])):
    figures.request_finished("GetObject", 200, "allowed", "trades", 0.001, 10, "alice", True)
print(registry.get_sample_value("queries_served_total"))
if len(sys.argv) == 3:
    write_counts()
"""


def test_a_user_of_two_workers_counts_once() -> None:
    assert joined([Moment(("alice", "bob")), Moment(("bob", "carol"))]).users == ("alice", "bob", "carol")


def test_means_are_of_all_values_and_not_of_means() -> None:
    moment = joined([Moment(sizes=(10.0, 1), replies=(3.0, 3)), Moment(sizes=(0.0, 9), replies=(0.0, 0))])
    assert (moment.sizes, moment.replies) == ((10.0, 10), (3.0, 3))


def test_what_is_open_adds_up_and_an_index_is_as_old_as_the_oldest() -> None:
    one = Moment(in_flight=1, connections=5, indexes={"t": IndexFigures(10, 3.0, 1.0)})
    two = Moment(in_flight=2, connections=7, indexes={"t": IndexFigures(12, 1.0, 0.5)})
    assert joined([one, two]) == Moment(
        in_flight=3, connections=12, indexes={"t": IndexFigures(12, 3.0, 1.0)}
    )


def test_figures_pass_the_link_unchanged() -> None:
    moment = Moment(("al\u0131ce",), (1.5, 2), (0.1, 1), 1, 2, {"t": IndexFigures(3, 4.0, 5.0)})
    assert unpack_moment(pack(moment)) == moment
    status = Status("1", 2.0, (TableStatus("t", 3, 4, 5.0), TableStatus("u")), {"connections": 6})
    assert unpack_status(pack(status)) == status
    checks: Checks = {"a": True, "b": False, "c": "broken", "d": Degraded("old")}
    assert unpack_checks(pack_checks(checks)) == checks


def counted(folder: pathlib.Path, *arguments: str) -> float:
    """What a worker that counted so many requests says itself."""
    command = [sys.executable, "-c", _COUNT, *arguments]
    env = {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
    return float(subprocess.run(command, check=True, env=env, capture_output=True, text=True).stdout)


def test_a_worker_that_is_killed_takes_with_it_only_what_it_has_not_written(tmp_path: pathlib.Path) -> None:
    assert counted(tmp_path, "1", "3") == 3
    assert counted(tmp_path, "1", "2", "and no more") == 5
    assert "queries_served_total 3.0" in render_workers(tmp_path, []).decode().splitlines()


def test_counters_of_workers_add_up_and_outlive_the_worker(tmp_path: pathlib.Path) -> None:
    assert counted(tmp_path, "1", "3") == 3
    assert counted(tmp_path, "2", "4") == 4
    # The second worker was replaced: its place goes on counting.
    assert counted(tmp_path, "2", "5") == 9
    text = render_workers(tmp_path, [Moment(("alice",)), Moment(("alice",))]).decode()
    lines = text.splitlines()
    assert "queries_served_total 12.0" in lines
    assert "unique_users_last_minute 1.0" in lines
    name = 'delta_s3_proxy_request_duration_seconds_count{operation="GetObject"}'
    assert f"{name} 12.0" in lines
    assert text.count("# HELP queries_served_total") == 1


def test_a_process_that_did_nothing_tells_nothing() -> None:
    moment = Metrics(CollectorRegistry(), Clock()).moment()
    assert moment == Moment()


def test_the_proxy_is_ready_when_all_that_answer_are() -> None:
    assert joined_checks([ALL_WELL, ALL_WELL], 2) == {"workers": True, **ALL_WELL}
    failing: Checks = {"accepting": True, "credentials": "none yet"}
    for answers in ([ALL_WELL, failing], [failing, ALL_WELL]):
        assert joined_checks(answers, 2)["credentials"] == "none yet"


def test_a_worker_that_is_missing_degrades_the_proxy_and_one_that_is_left_serves() -> None:
    assert joined_checks([ALL_WELL], 2)["workers"] == Degraded("1 of 2 answer")


def test_without_any_worker_the_proxy_is_not_ready() -> None:
    assert joined_checks([], 2) == {"workers": "none answers"}


def test_a_degraded_check_is_told_but_a_broken_one_goes_first() -> None:
    old: Checks = {"database": Degraded("old")}
    assert joined_checks([old, {"database": True}], 2)["database"] == Degraded("old")
    assert joined_checks([old, {"database": False}], 2)["database"] is False


def test_the_status_shows_the_newest_of_each_table_and_sums() -> None:
    one = Status("1", 5.0, (TableStatus("t", 3, 30, 1.0), TableStatus("u")), {"connections": 1})
    two = Status("1", 5.0, (TableStatus("t", 4, 40, 2.0), TableStatus("u")), {"connections": 2})
    mine = Status("2", 9.0, counters={"workers": 2})
    assert joined_status([one, two], mine) == Status(
        "2", 9.0, (TableStatus("t", 4, 40, 2.0), TableStatus("u")), {"workers": 2, "connections": 3}
    )
