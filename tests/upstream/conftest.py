"""Fixtures: an Upstream and scripted stores over loopback sockets, closed when the test is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .parts import Call, Rig, ScriptedStore, wait_for

MakeStore = Callable[..., ScriptedStore]
MakeRig = Callable[..., Rig]


@pytest.fixture
def make_store() -> Iterator[MakeStore]:
    """A function that starts a store with a script."""
    stores: list[ScriptedStore] = []

    def make(*script: Callable[[Call], object]) -> ScriptedStore:
        stores.append(ScriptedStore(*script))
        return stores[-1]

    yield make
    for store in stores:
        wait_for(store.close())


@pytest.fixture
def lean(request: pytest.FixtureRequest) -> bool:
    """Whether objects are read by the lean client; modules that hold both to their tests ask for both."""
    return bool(getattr(request, "param", True))


@pytest.fixture
def make_rig(make_store: MakeStore, lean: bool) -> Iterator[MakeRig]:
    """A function that makes an Upstream."""
    rigs: list[Rig] = []

    def make(**options: Any) -> Rig:
        rigs.append(Rig(**{"lean": lean, **options}))
        return rigs[-1]

    yield make
    for rig in rigs:
        wait_for(rig.close())


@pytest.fixture
def rig(make_rig: MakeRig) -> Rig:
    """An Upstream that retries at once."""
    return make_rig()


def both_clients(metafunc: pytest.Metafunc) -> None:
    """A module's `pytest_generate_tests`: its tests run with the lean client and with Twisted's agent."""
    if "lean" in metafunc.fixturenames:
        metafunc.parametrize("lean", [True, False], ids=["lean", "agent"], indirect=True)
