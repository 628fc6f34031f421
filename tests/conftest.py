"""What holds for every test."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings

from .integration.clients.report import pytest_terminal_summary

__all__ = ["pytest_terminal_summary"]

# Machines are shared: how long an example takes says nothing about the code. The examples are the same in
# every run, so that one is as green as the other; `--hypothesis-profile explore` looks for new ones.
_patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("shared-machine", _patient, derandomize=True)
settings.register_profile("explore", _patient)
settings.load_profile("shared-machine")

_LONG = 25


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--long`, for the generated tests that a release is held to."""
    parser.addoption("--long", action="store_true", help=f"{_LONG} times as many generated cases")


@pytest.fixture(scope="session")
def cases(request: pytest.FixtureRequest) -> Callable[[int], int]:
    """How many cases a generated test runs, of the number that it runs by default."""
    factor = _LONG if request.config.getoption("--long") else 1
    return lambda number: number * factor
