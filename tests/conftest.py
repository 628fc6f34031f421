"""What holds for every test."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings

from .integration.clients.report import pytest_terminal_summary

__all__ = ["pytest_collection_modifyitems", "pytest_terminal_summary"]

# Machines are shared: how long an example takes says nothing about the code. The examples are the same in
# every run, so that one is as green as the other; `--hypothesis-profile explore` looks for new ones.
_patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("shared-machine", _patient, derandomize=True)
settings.register_profile("explore", _patient)
settings.load_profile("shared-machine")

_LONG = 25
_SERVERS = pathlib.Path(__file__).parent / "integration"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a module that share servers on one worker: another would start its own."""
    for item in items:
        shares = _SERVERS in item.path.parents or "moto_store" in getattr(item, "fixturenames", ())
        if shares and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--long`, for the generated tests that a release is held to."""
    parser.addoption("--long", action="store_true", help=f"{_LONG} times as many generated cases")


@pytest.fixture(scope="session")
def cases(request: pytest.FixtureRequest) -> Callable[[int], int]:
    """How many cases a generated test runs, of the number that it runs by default."""
    factor = _LONG if request.config.getoption("--long") else 1
    return lambda number: number * factor
