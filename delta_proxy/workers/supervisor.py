"""Keeps the workers running: starts them, replaces those that end, asks them, and ends them.

Which processes these are, and how they are reached, is the spawner's business. A worker that ends is started
again after a pause that doubles with each early end, up to half a minute. One that is alive and does not
answer is killed.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from delta_proxy.workers.link import Message

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 30.0
STEADY_SECONDS: Final = 60.0
"""A worker that ran for so long is started again as if nothing had been wrong before."""
GRACE_SECONDS: Final = 5.0
"""What a worker has beyond `shutdownSeconds` before it is killed."""
ANSWER_SECONDS: Final = 2.0
MOST_QUESTIONS: Final = 64
BEAT_SECONDS: Final = 5.0
"""How often a worker is asked for a sign of life."""
MOST_MISSED: Final = 6
"""After so many questions in a row without any word from it a worker is hung."""
MOST_MISSED_AT_START: Final = 60
"""The same for one that said nothing yet: a busy machine takes its time to load the program."""
_BEAT: Final = {"ask": "beat", "id": 0}

_log = Logger()


class Process(Protocol):
    """A worker's process, as long as it runs."""

    def send(self, message: Message) -> None:
        """Send it a message; nothing happens when it is ending."""

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; nothing happens when it has ended."""


class Spawner(Protocol):
    """Starts a process for a worker, which is told what it sends and when it ends."""

    def spawn(self, worker: Worker) -> Process:
        """Start it. Raises OSError."""


class NoAnswer(Exception):
    """A worker ended before it answered, or took too long."""


class Worker:
    """The place of one worker, whatever process has it. `number` counts from 1.

    Its process is `heard` once it said anything, and `up` once it has looked at the tables of its grants.
    """

    def __init__(self, number: int, supervisor: Supervisor) -> None:
        self.number = number
        self.up = False
        self.heard = False
        self.running = False
        self._supervisor = supervisor
        self._process: Process | None = None
        self._started_at = 0.0
        self._early_ends = 0
        self._restart: IDelayedCall | None = None
        self._questions: dict[int, Deferred[Any]] = {}
        self._numbers = itertools.count(1)
        self._beat: IDelayedCall | None = None
        self._missed = 0

    def start(self) -> None:
        """Start a process."""
        self._restart = None
        self._started_at = self._supervisor.clock.seconds()
        self.running, self._missed = True, 0
        try:
            self._process = self._supervisor.spawner.spawn(self)
        except OSError as error:
            self.ended(f"could not be started: {error.strerror}")
        else:
            self._next_beat()

    def received(self, message: Message) -> None:
        """The process sent a message: that it is up, that it refuses to start, or an answer."""
        self.heard, self._missed = True, 0
        match message:
            case {"up": True}:
                self.up = self._supervisor.was_up = True
            case {"refused": str(problem)}:
                self._supervisor.refused(problem)
            case {"id": int(number), **answer} if number in self._questions:
                self._questions.pop(number).callback(answer.get("answer"))

    def ended(self, how: str) -> None:
        """The process is gone."""
        self.up = self.heard = self.running = False
        self._process = None
        self._no_beats()
        questions, self._questions = self._questions, {}
        for question in questions.values():
            question.errback(NoAnswer())
        if self._supervisor.stopping:
            self._supervisor.one_ended()
            return
        clock = self._supervisor.clock
        steady = clock.seconds() - self._started_at >= STEADY_SECONDS
        self._early_ends = 1 if steady else min(self._early_ends + 1, 20)
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (self._early_ends - 1))
        _log.error("worker {n} {how}; the next one starts in {s} s", n=self.number, how=how, s=pause)
        self._restart = clock.callLater(pause, self.start)

    def stop(self) -> None:
        """Ask the process to end; start no other."""
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
        self._no_beats()
        if self._process is not None:
            self._process.signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None:
            _log.warn("worker {n} is killed", n=self.number)
            self._process.signal(signal.SIGKILL)

    def tell(self, message: Message) -> None:
        """Send a message to the process, if there is one."""
        if self._process is not None:
            self._process.send(message)

    def ask(self, what: str, seconds: float = ANSWER_SECONDS, **more: object) -> Deferred[Any]:
        """The answer to a question. Fails with NoAnswer after so many seconds, or when the process ends."""
        answer: Deferred[Any] = Deferred()
        if self._process is None or len(self._questions) >= MOST_QUESTIONS:
            answer.errback(NoAnswer())
            return answer
        number = next(self._numbers)
        self._questions[number] = answer
        timer = self._supervisor.clock.callLater(seconds, self._give_up, number)
        self._process.send({"ask": what, "id": number, **more})
        return answer.addBoth(_cancelling, timer)

    def _next_beat(self) -> None:
        self._beat = self._supervisor.clock.callLater(BEAT_SECONDS, self._ask_for_life)

    def _no_beats(self) -> None:
        if self._beat is not None and self._beat.active():
            self._beat.cancel()
        self._beat = None

    def _ask_for_life(self) -> None:
        # Questions are counted, not seconds: those of a parent that was stopped itself are nobody's silence.
        if self._missed >= (MOST_MISSED if self.heard else MOST_MISSED_AT_START):
            self._beat = None
            _log.error("worker {n} is alive and does not answer", n=self.number)
            self.kill()
            return
        self._missed += 1
        self.tell(_BEAT)
        self._next_beat()

    def _give_up(self, number: int) -> None:
        if number in self._questions:
            self._questions.pop(number).errback(NoAnswer())


class Supervisor:
    """All workers. `give_up` is told why none of them can ever start."""

    def __init__(
        self,
        count: int,
        spawner: Spawner,
        clock: IReactorTime,
        *,
        shutdown_seconds: float,
        give_up: Callable[[str], None],
    ) -> None:
        self.spawner, self.clock = spawner, clock
        self.stopping = self.was_up = False
        self.workers = tuple(Worker(number, self) for number in range(1, count + 1))
        self._shutdown_seconds = shutdown_seconds
        self._give_up = give_up
        self._all_ended: Deferred[None] = Deferred()
        self._killing: IDelayedCall | None = None

    def start(self) -> None:
        """Start all workers."""
        for worker in self.workers:
            worker.start()

    def stop(self) -> Deferred[None]:
        """Let all workers drain and end; those that take too long are killed."""
        self.stopping = True
        for worker in self.workers:
            worker.stop()
        self._killing = self.clock.callLater(self._shutdown_seconds + GRACE_SECONDS, self._kill)
        self.one_ended()
        return self._all_ended

    def one_ended(self) -> None:
        """A worker ended while all of them are to end."""
        if any(worker.running for worker in self.workers) or self._all_ended.called:
            return
        if self._killing is not None and self._killing.active():
            self._killing.cancel()
        self._all_ended.callback(None)

    def refused(self, problem: str) -> None:
        """A worker says that it cannot start with what it was given: a mistake, if none ever could."""
        if self.was_up or self.stopping:
            _log.error("a worker could not start: {problem}", problem=problem)
        else:
            self._give_up(problem)

    def tell(self, message: Message) -> None:
        """Send a message to all that run; one that starts later is told by the spawner how things stand."""
        for worker in self.workers:
            worker.tell(message)

    async def ask(self, what: str) -> Mapping[int, Any]:
        """The answers of those that answer, by the workers' numbers."""
        questions = {worker.number: worker.ask(what).addErrback(_nothing) for worker in self.workers}
        answers = {number: await question for number, question in questions.items()}
        return {number: answer for number, answer in answers.items() if answer is not None}

    async def ask_one(self, what: str, seconds: float, **more: object) -> Any:
        """The answer of one that is up, else of one that answers while it starts. Raises NoAnswer."""
        for worker in sorted(self.workers, key=lambda each: not each.up):
            if worker.heard:
                return await worker.ask(what, seconds, **more)
        raise NoAnswer

    def _kill(self) -> None:
        for worker in self.workers:
            worker.kill()


def _nothing(failure: Failure) -> None:
    failure.trap(NoAnswer)  # type: ignore[no-untyped-call]


def _cancelling(result: Any, timer: IDelayedCall) -> Any:
    if timer.active():
        timer.cancel()
    return result
