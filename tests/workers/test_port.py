"""Connections that come at once are shared among the workers of a port."""

# mypy: allow-untyped-calls

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import maybeDeferred
from twisted.internet.protocol import Protocol, ServerFactory
from twisted.internet.task import deferLater

from delta_proxy.workers.parent import listening
from delta_proxy.workers.port import AdoptedPort, SharedPort

CLIENTS = 64


class Connections(ServerFactory):
    """A worker's connections."""

    noisy = False

    def __init__(self) -> None:
        self.made: list[Protocol] = []
        self.before = 0

    def buildProtocol(self, addr: object) -> Protocol:  # noqa: N802
        protocol = Protocol()
        self.made.append(protocol)
        return protocol

    def count(self) -> int:
        return self.before + len(self.made)


@pytest.fixture
def waiting() -> Iterator[socket.socket]:
    """A socket that many clients wait to be taken from."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listening("127.0.0.1", 0))
        address = listener.getsockname()
        for _ in range(CLIENTS):
            stack.enter_context(socket.create_connection(address))
        yield listener


@ensureDeferred
async def test_clients_that_come_at_once_are_shared_among_the_workers(waiting: socket.socket) -> None:
    one, other = Connections(), Connections()
    ports = [AdoptedPort(reactor, waiting.dup().detach(), each, each.count) for each in (one, other)]
    for port in ports:
        port.startService()
    while len(one.made) + len(other.made) < CLIENTS:
        await deferLater(reactor, 0.001, lambda: None)
    for port in ports:
        await port.stopService()
    assert min(len(one.made), len(other.made)) >= CLIENTS // 4


@ensureDeferred
async def test_a_worker_takes_more_at_a_time_the_more_it_has(waiting: socket.socket) -> None:
    """A busy worker's turns are long: a crowd is not to wait for as many of them as it has heads."""
    connections = Connections()
    port = SharedPort.adopt(reactor, waiting.fileno(), socket.AF_INET, connections, connections.count)
    taken = []
    for connections.before in (0, 160):
        port.doRead()
        taken.append(len(connections.made))
    await maybeDeferred(port.stopListening)
    assert taken == [1, 12]


@ensureDeferred
async def test_a_worker_that_stops_takes_nobody_more(waiting: socket.socket) -> None:
    connections = Connections()
    port = AdoptedPort(reactor, waiting.dup().detach(), connections, connections.count)
    port.startService()
    await port.stopService()
    before = len(connections.made)
    await deferLater(reactor, 0.01, lambda: None)
    assert len(connections.made) == before < CLIENTS
