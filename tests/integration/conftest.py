"""Fixtures: one server of each kind for a whole test session, one proxy for each configuration."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from delta_proxy import demo

from . import servers
from .servers import Proxy, Store

TRADES = "trades_plus"
GRANTED = ("XLON", "XETR")
ALL_MICS = tuple(demo.LISTINGS)

ProxyFor = Callable[..., Proxy]


# What is broad rather than deep: the quick run sees it before one store, that which verifies if it is there.
_BROAD = {"test_clients", "test_uploads", "test_views", "test_writes"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the second store to the slow run where a module is broad."""
    second = "moto" if servers.versitygw_path() else "versitygw"
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if item.path.stem in _BROAD and second in {parameters.get("store"), parameters.get("kind")}:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def moto_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """moto, with the demo's table in it."""
    with servers.moto(tmp_path_factory.mktemp("moto")) as store:
        write_trades(store)
        yield store


@pytest.fixture(scope="session")
def gateway_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """versitygw, with the demo's table in it."""
    binary = servers.versitygw_path()
    if binary is None:
        pytest.skip("versitygw is not built: bin/test builds it where Go is installed")
    with servers.versitygw(tmp_path_factory.mktemp("versitygw"), binary) as store:
        write_trades(store)
        yield store


@pytest.fixture(params=["moto", "versitygw"])
def store(request: pytest.FixtureRequest) -> Store:
    """Each of the two stores in turn."""
    found: Store = request.getfixturevalue("moto_store" if request.param == "moto" else "gateway_store")
    return found


@pytest.fixture(scope="session")
def proxy_for(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyFor]:
    """A function (store, **settings) → the proxy with that configuration, started at its first use."""
    with contextlib.ExitStack() as stack:
        started: dict[str, Proxy] = {}

        def find(store: servers.Endpoint | None, **settings: Any) -> Proxy:
            config = servers.configuration(store, **settings)
            name = json.dumps(config, sort_keys=True)
            if name not in started:
                folder = tmp_path_factory.mktemp("proxy")
                started[name] = stack.enter_context(servers.proxy(store, config, folder))
            return started[name]

        yield find


@pytest.fixture(params=["presignedUrl", "proxy"])
def get_mode(request: pytest.FixtureRequest) -> str:
    """Both ways to answer a GET of a data file."""
    return str(request.param)


@pytest.fixture
def trades(store: Store, get_mode: str, proxy_for: ProxyFor) -> Proxy:
    """A proxy before the store that grants two of the four MICs of the demo's table."""
    return proxy_for(store, **trades_settings(get_mode))


@pytest.fixture
def listing(store: Store, proxy_for: ProxyFor) -> Proxy:
    """The proxy of `trades` for what does not depend on how a GET is answered."""
    return proxy_for(store, **trades_settings("presignedUrl"))


def trades_settings(get_mode: str) -> dict[str, Any]:
    """The settings of a proxy that grants two of the four MICs of the demo's table."""
    return {
        "tableMapping": {TRADES: f"s3://{servers.BUCKET}/{TRADES}"},
        "allowedPartitions": {TRADES: [{"MIC": list(GRANTED)}]},
        "getMode": get_mode,
        "domains": ["s3.test"],
    }


def write_trades(store: Store) -> None:
    """Write the demo's table into the store's bucket."""
    demo.write_table(f"s3://{servers.BUCKET}/{TRADES}", store.storage_options)
