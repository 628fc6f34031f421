"""CONNECT: bytes both ways, and how a tunnel ends."""

# mypy: allow-untyped-calls
from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import TypeVar

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread

from delta_proxy.local_helper.tunnel import Tunnel
from tests.ports import free_port
from tests.upstream.parts import in_reactor, soon
from tests.waiting import PATIENCE

from .parts import Listener, Peer, helper, reset_on_close

T = TypeVar("T")
ESTABLISHED = b"HTTP/1.1 200 Connection Established\r\n\r\n"
LARGE = 8 * 1024 * 1024


class Echo(Listener):
    """Sends back what it gets."""

    def received(self, peer: Peer, data: bytes) -> None:
        """The same again."""
        peer.wire.write(data)


def connected(port: int, target: str, early: bytes = b"") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    client.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode() + early)
    received = b""
    while not received.endswith(b"\r\n\r\n"):
        received += client.recv(1)
    assert received == ESTABLISHED
    return client


def with_tunnel(
    port: int, target: str, work: Callable[[socket.socket], T], early: bytes = b""
) -> Deferred[T]:
    def run() -> T:
        with connected(port, target, early) as client:
            return work(client)

    return deferToThread(run)


def rest(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(65536), b""))


@in_reactor
async def test_bytes_pass_both_ways_also_those_sent_before_the_answer() -> None:
    echo = Echo()

    def talk(client: socket.socket) -> bytes:
        client.sendall(b" world")
        return client.recv(5, socket.MSG_WAITALL) + client.recv(6, socket.MSG_WAITALL)

    async with helper() as running:
        assert await with_tunnel(running.port, f"127.0.0.1:{echo.port}", talk, b"hello") == b"hello world"
        await echo.close()


@in_reactor
async def test_a_side_that_has_said_all_still_hears_the_other() -> None:
    far = Listener()

    def talk(client: socket.socket) -> bytes:
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        return rest(client)

    async with helper() as running:
        talking = with_tunnel(running.port, f"127.0.0.1:{far.port}", talk)
        peer = await far.peer()
        while peer.received != b"question":
            await soon(0.01)
        peer.wire.write(b"answer" * 1000)
        peer.wire.loseConnection()
        assert await talking == b"answer" * 1000
        assert isinstance(await peer.lost, ConnectionDone)
    assert len(running.site.channels) == 0
    await far.close()


@in_reactor
async def test_a_reset_of_the_far_end_is_a_reset_for_the_client() -> None:
    far = Listener()

    def talk(client: socket.socket) -> bool:
        client.sendall(b"x")
        try:
            rest(client)
        except ConnectionResetError:
            return True
        return False

    async with helper() as running:
        talking = with_tunnel(running.port, f"127.0.0.1:{far.port}", talk)
        peer = await far.peer()
        while not peer.received:
            await soon(0.01)
        peer.wire.abortConnection()
        assert await talking
    await far.close()


@in_reactor
async def test_a_reset_of_the_client_is_a_reset_for_the_far_end() -> None:
    far = Listener()
    async with helper() as running:
        await with_tunnel(running.port, f"127.0.0.1:{far.port}", reset_on_close)
        peer = await far.peer()
        assert isinstance(await peer.lost, ConnectionLost)
    await far.close()


@in_reactor
async def test_a_client_that_does_not_read_stops_the_far_end_and_gets_all_later() -> None:
    far = Listener()

    def dawdle(client: socket.socket) -> int:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        released.wait(15)
        return len(rest(client))

    released = threading.Event()
    async with helper() as running:
        dawdling = with_tunnel(running.port, f"127.0.0.1:{far.port}", dawdle)
        peer = await far.peer()
        peer.wire.write(bytes(4 * LARGE))
        peer.wire.loseConnection()
        channel = next(iter(running.site.channels))
        for _ in range(20):
            await soon(0.01)
        held = len(channel.transport.dataBuffer) + sum(map(len, channel.transport._tempDataBuffer))
        released.set()
        assert await dawdling == 4 * LARGE
    assert held < 1024 * 1024
    await far.close()


@in_reactor
async def test_a_tunnel_in_which_nothing_moves_is_ended_in_time() -> None:
    far = Listener()

    def wait(client: socket.socket) -> bool:
        try:
            return rest(client) == b""
        except ConnectionResetError:
            return True

    async with helper(tunnel_idle_seconds=0.2) as running:
        assert await with_tunnel(running.port, f"127.0.0.1:{far.port}", wait)
        await far.peers[0].lost
    await far.close()


class Transport(StringTransport):
    """One that knows of resets."""

    aborted = False

    def abortConnection(self) -> None:  # noqa: N802 - Twisted's name
        """Reset."""
        self.aborted = True


def test_a_tunnel_in_which_something_moves_stays() -> None:
    clock, near, far = Clock(), Transport(), Transport()
    tunnel = Tunnel(near, clock, 10.0)
    tunnel.makeConnection(far)
    for _ in range(4):
        clock.advance(9.0)
        tunnel.from_client(b"x")
        clock.advance(9.0)
        tunnel.dataReceived(b"y")
    assert not near.aborted
    assert (near.value(), far.value()) == (b"yyyy", b"xxxx")
    clock.advance(10.0)
    clock.advance(10.0)
    assert near.aborted


@in_reactor
async def test_a_far_end_that_refuses_is_503() -> None:
    target = f"127.0.0.1:{free_port()}"
    async with helper() as running:
        outcome = await running.ask(
            f"CONNECT {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        )
    assert (outcome.status, b"ServiceUnavailable" in outcome.body) == (503, True)


@pytest.mark.parametrize("target", ["/b", "http://h/", "h:0", "h:99999", ":443", "u@h:443"])
@in_reactor
async def test_a_target_that_is_no_host_and_port_is_refused(target: str) -> None:
    async with helper() as running:
        outcome = await running.ask(
            f"CONNECT {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        )
    assert outcome.status == 400
