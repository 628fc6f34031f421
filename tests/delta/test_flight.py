"""Work that runs once for many, and never for one who came too late for it."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred

from delta_proxy.delta.flight import Successive


class Runs:
    """Work whose runs wait to be ended by the test."""

    def __init__(self) -> None:
        self.begun: list[Deferred[str]] = []
        self.shared: Successive[str] = Successive(self.run)

    async def run(self) -> str:
        self.begun.append(Deferred())
        return await self.begun[-1]

    def ask(self) -> list[Any]:
        """What the asker is told, once it is."""
        told: list[Any] = []
        self.shared.ask().addBoth(told.append)
        return told


@pytest.fixture
def runs() -> Runs:
    return Runs()


def test_who_comes_while_a_run_is_under_way_shares_the_next(runs: Runs) -> None:
    first, second, third = runs.ask(), runs.ask(), runs.ask()
    assert len(runs.begun) == 1
    runs.begun[0].callback("early")
    assert (first, second, third) == (["early"], [], [])
    assert len(runs.begun) == 2
    fourth = runs.ask()
    runs.begun[1].callback("late")
    assert (second, third, fourth) == (["late"], ["late"], [])
    runs.begun[2].callback("last")
    assert fourth == ["last"]
    assert runs.shared.idle


def test_a_failure_is_told_to_those_of_its_run_alone(runs: Runs) -> None:
    first, second = runs.ask(), runs.ask()
    runs.begun[0].errback(ValueError("no"))
    assert first[0].type is ValueError
    runs.begun[1].callback("yes")
    assert second == ["yes"]


def test_one_who_leaves_does_not_end_the_run_of_the_others(runs: Runs) -> None:
    runs.ask()
    leaving = runs.shared.ask()
    leaving.addErrback(lambda _: None)
    staying = runs.ask()
    leaving.cancel()
    runs.begun[0].callback("early")
    runs.begun[1].callback("late")
    assert staying == ["late"]
