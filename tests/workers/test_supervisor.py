"""Workers that are started, replaced, asked and ended, with a clock and processes of the test's own."""

from __future__ import annotations

import signal
from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from delta_proxy.workers.link import Message
from delta_proxy.workers.supervisor import (
    ANSWER_SECONDS,
    BEAT_SECONDS,
    FIRST_PAUSE,
    GRACE_SECONDS,
    LONGEST_PAUSE,
    MOST_MISSED,
    MOST_MISSED_AT_START,
    MOST_QUESTIONS,
    STEADY_SECONDS,
    NoAnswer,
    Supervisor,
    Worker,
)
from tests.helpers import result_of


@attrs.define(eq=False)
class Process:
    """A process that does what the test says."""

    worker: Worker
    sent: list[Message] = attrs.field(factory=list)
    signals: list[signal.Signals] = attrs.field(factory=list)

    def send(self, message: Message) -> None:
        self.sent.append(message)

    def signal(self, number: signal.Signals) -> None:
        self.signals.append(number)

    def answer(self, value: object) -> None:
        self.worker.received({"id": self.sent[-1]["id"], "answer": value})

    def end(self) -> None:
        self.worker.ended("ended")


class Machine:
    """A supervisor, and all processes it started; `broken` lets the next ones fail to start."""

    def __init__(self, count: int = 2) -> None:
        self.clock = Clock()
        self.processes: list[Process] = []
        self.broken = False
        self.problems: list[str] = []
        self.supervisor = Supervisor(
            count, self, self.clock, shutdown_seconds=30, give_up=self.problems.append
        )
        self.supervisor.start()

    def spawn(self, worker: Worker) -> Process:
        if self.broken:
            raise OSError(11, "no more processes")
        self.processes.append(Process(worker))
        return self.processes[-1]

    @property
    def newest(self) -> Process:
        return self.processes[-1]


def test_as_many_workers_are_started_as_were_asked_for() -> None:
    machine = Machine(3)
    assert [process.worker.number for process in machine.processes] == [1, 2, 3]


def test_a_worker_that_ends_is_replaced_in_its_place() -> None:
    machine = Machine()
    machine.processes[0].end()
    assert len(machine.processes) == 2
    machine.clock.advance(FIRST_PAUSE)
    assert machine.newest.worker.number == 1
    assert len(machine.processes) == 3


def test_the_pause_before_a_replacement_doubles_up_to_a_bound() -> None:
    machine = Machine(1)
    pauses = []
    for _ in range(12):
        machine.newest.end()
        (restart,) = machine.clock.getDelayedCalls()
        pauses.append(round(restart.getTime() - machine.clock.seconds(), 3))
        machine.clock.advance(LONGEST_PAUSE)
    assert pauses[:4] == [0.1, 0.2, 0.4, 0.8]
    assert max(pauses) == pauses[-1] == LONGEST_PAUSE


def test_a_worker_that_ran_for_long_is_replaced_as_if_nothing_had_been_wrong() -> None:
    machine = Machine(1)
    for _ in range(6):
        machine.newest.end()
        machine.clock.advance(LONGEST_PAUSE)
    machine.clock.advance(STEADY_SECONDS)
    started = len(machine.processes)
    machine.newest.end()
    machine.clock.advance(FIRST_PAUSE)
    assert len(machine.processes) == started + 1


def test_a_process_that_cannot_be_started_is_tried_again() -> None:
    machine = Machine(1)
    machine.broken = True
    machine.newest.end()
    machine.clock.advance(LONGEST_PAUSE)
    machine.broken = False
    machine.clock.advance(LONGEST_PAUSE)
    assert len(machine.processes) == 2


def test_all_workers_are_told_to_end_and_none_is_replaced() -> None:
    machine = Machine()
    stopped = machine.supervisor.stop()
    assert [process.signals for process in machine.processes] == [[signal.SIGTERM], [signal.SIGTERM]]
    machine.processes[0].end()
    assert not stopped.called
    machine.processes[1].end()
    assert stopped.called
    machine.clock.advance(LONGEST_PAUSE)
    assert len(machine.processes) == 2
    assert not machine.clock.getDelayedCalls()


def test_a_worker_that_waits_for_its_replacement_does_not_delay_the_end() -> None:
    machine = Machine(1)
    machine.newest.end()
    assert machine.supervisor.stop().called
    assert not machine.clock.getDelayedCalls()


def test_a_worker_that_does_not_drain_in_time_is_killed() -> None:
    machine = Machine()
    stopped = machine.supervisor.stop()
    machine.processes[0].end()
    machine.clock.advance(30 + GRACE_SECONDS)
    assert machine.processes[1].signals == [signal.SIGTERM, signal.SIGKILL]
    machine.processes[1].end()
    assert stopped.called


def silent_for(machine: Machine, beats: int) -> None:
    """So many questions for a sign of life, each of which finds the worker as it was."""
    for _ in range(beats):
        machine.clock.advance(BEAT_SECONDS)


def test_a_worker_that_is_alive_and_does_not_answer_is_killed_and_replaced() -> None:
    machine = Machine()
    hung = machine.processes[0]
    hung.worker.received({"up": True})
    silent_for(machine, MOST_MISSED)
    assert (len(hung.sent), hung.signals) == (MOST_MISSED, [])
    silent_for(machine, 1)
    assert hung.signals == [signal.SIGKILL]
    hung.end()
    machine.clock.advance(FIRST_PAUSE)
    assert machine.newest.worker.number == 1
    silent_for(machine, MOST_MISSED + 1)
    assert machine.newest.signals == []


def test_a_worker_that_never_says_a_word_is_replaced_when_it_had_time_to_start() -> None:
    machine = Machine(1)
    hung = machine.newest
    silent_for(machine, MOST_MISSED_AT_START)
    assert hung.signals == []
    silent_for(machine, 1)
    assert hung.signals == [signal.SIGKILL]


def test_a_worker_that_answers_may_take_any_time_to_be_up() -> None:
    machine = Machine(1)
    silent_for(machine, MOST_MISSED_AT_START)
    machine.newest.answer(None)
    for _ in range(30):
        silent_for(machine, MOST_MISSED)
        machine.newest.answer(None)
    assert machine.newest.signals == []


def test_a_worker_that_answered_and_hangs_before_it_is_up_is_replaced_soon() -> None:
    machine = Machine(1)
    silent_for(machine, 1)
    machine.newest.answer(None)
    silent_for(machine, MOST_MISSED)
    hung = machine.newest
    assert hung.signals == []
    silent_for(machine, 1)
    assert hung.signals == [signal.SIGKILL]


def test_a_replacement_has_its_own_time_to_start() -> None:
    machine = Machine(1)
    machine.newest.worker.received({"up": True})
    machine.newest.end()
    machine.clock.advance(FIRST_PAUSE)
    silent_for(machine, MOST_MISSED_AT_START)
    assert (len(machine.processes), machine.newest.signals) == (2, [])


def test_any_word_of_a_worker_is_a_sign_of_life() -> None:
    machine = Machine(1)
    machine.newest.worker.received({"up": True})
    for _ in range(5):
        silent_for(machine, MOST_MISSED)
        machine.newest.answer(None)
    assert machine.newest.signals == []


def test_a_parent_that_was_stopped_itself_blames_no_worker() -> None:
    machine = Machine(1)
    machine.newest.worker.received({"up": True})
    machine.clock.advance(100 * BEAT_SECONDS)
    assert machine.newest.signals == []


def test_a_worker_that_drains_is_not_asked_for_signs_of_life() -> None:
    machine = Machine(1)
    machine.newest.worker.received({"up": True})
    stopped = machine.supervisor.stop()
    silent_for(machine, 1)
    assert machine.newest.sent == []
    machine.newest.end()
    assert stopped.called
    assert not machine.clock.getDelayedCalls()


def test_answers_are_told_by_the_number_of_the_worker() -> None:
    machine = Machine()
    asking = result_later(machine, "figures")
    machine.processes[1].answer("b")
    machine.processes[0].answer("a")
    assert asking == [{1: "a", 2: "b"}]


def test_a_worker_that_does_not_answer_in_time_is_left_out() -> None:
    machine = Machine()
    asking = result_later(machine, "health")
    machine.processes[1].answer("b")
    assert asking == []
    machine.clock.advance(ANSWER_SECONDS)
    assert asking == [{2: "b"}]
    machine.processes[0].answer("too late")


def test_a_worker_that_ends_while_it_is_asked_is_left_out_at_once() -> None:
    machine = Machine()
    asking = result_later(machine, "health")
    machine.processes[1].answer("b")
    machine.processes[0].end()
    assert asking == [{2: "b"}]


def test_a_worker_that_answers_nothing_is_not_asked_without_end() -> None:
    machine = Machine(1)
    for _ in range(MOST_QUESTIONS + 5):
        result_later(machine, "figures")
    assert len(machine.newest.sent) == MOST_QUESTIONS


def test_one_worker_is_asked_only_when_it_has_answered_and_best_one_that_is_up() -> None:
    machine = Machine()
    with pytest.raises(NoAnswer):
        result_of(machine.supervisor.ask_one("check", 5))
    machine.processes[0].worker.received({"id": 0, "answer": None})
    result_later(machine, "check", one=True)
    assert [len(process.sent) for process in machine.processes] == [1, 0]
    machine.processes[1].worker.received({"up": True})
    result_later(machine, "check", one=True)
    assert [len(process.sent) for process in machine.processes] == [1, 1]
    assert machine.processes[1].sent[0]["ask"] == "check"
    for process in machine.processes:
        process.end()
    with pytest.raises(NoAnswer):
        result_of(machine.supervisor.ask_one("check", 5))


def test_a_configuration_with_which_no_worker_can_start_ends_the_parent() -> None:
    machine = Machine()
    machine.newest.worker.received({"refused": "ISIN is no partition column"})
    assert machine.problems == ["ISIN is no partition column"]


def test_a_replacement_that_cannot_start_does_not_end_the_workers_that_run() -> None:
    machine = Machine()
    machine.processes[0].worker.received({"up": True})
    machine.processes[1].worker.received({"refused": "the table is gone"})
    assert machine.problems == []


def test_every_running_worker_is_told() -> None:
    machine = Machine()
    machine.processes[0].end()
    machine.supervisor.tell({"do": "reopen"})
    assert [process.sent for process in machine.processes] == [[], [{"do": "reopen"}]]


def result_later(machine: Machine, what: str, *, one: bool = False) -> list[Any]:
    """A list that the answer will be in."""
    found: list[Any] = []
    asking = machine.supervisor.ask_one(what, 5) if one else machine.supervisor.ask(what)
    Deferred.fromCoroutine(asking).addCallback(found.append)
    return found
