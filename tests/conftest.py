"""What holds for every test."""

from __future__ import annotations

import pathlib
import resource
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

# A process keeps the locks of a cache directory open as long as it lives, and tests make hundreds of those.
_DESCRIPTORS = 8192
_soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
if _soft < _DESCRIPTORS:
    _most = _DESCRIPTORS if _hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, _hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_most, _hard))

_LONG = 25

# bin/test gives whole files to its workers: those that take longest come first, so that none is left for the
# end.
_LONGEST = (
    "integration/test_spark.py",
    "integration/clients/test_matrix.py",
    "integration/test_views.py",
    "integration/test_identity.py",
    "integration/test_clients.py",
    "integration/test_http.py",
    "integration/test_writes.py",
    "integration/test_local_helper.py",
    "integration/test_demo.py",
    "integration/test_streaming.py",
    "integration/test_browser.py",
    "integration/clients/test_helper.py",
    "integration/test_leaks.py",
    "integration/test_shared_tables.py",
    "integration/test_service.py",
    "integration/test_workers.py",
    "delta/view/test_property.py",
    "delta/test_view_rules.py",
    "admin/test_running.py",
    "delta/test_view_property.py",
)
_ROOT = pathlib.Path(__file__).parent


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The files that take longest first, in the order above; more cases have more time."""
    places = {_ROOT / name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
    if config.getoption("--long"):
        for item in items:
            item.add_marker(pytest.mark.timeout(_LONG * float(config.getini("timeout"))))


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--long`, for the generated tests that a release is held to."""
    parser.addoption("--long", action="store_true", help=f"{_LONG} times as many generated cases")


@pytest.fixture(scope="session")
def cases(request: pytest.FixtureRequest) -> Callable[[int], int]:
    """How many cases a generated test runs, of the number that it runs by default."""
    factor = _LONG if request.config.getoption("--long") else 1
    return lambda number: number * factor
