"""Reading on within one turn of the reactor: how much, and when it ends."""

# mypy: allow-untyped-calls
from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.protocol import Protocol
from twisted.internet.tcp import Connection as TCPConnection
from twisted.internet.testing import MemoryReactorClock, StringTransport

from delta_proxy.upstream.sockets import reads_of_a_turn

from .test_http1 import Lab

READ = 64 * 1024
TURN = 8 * READ


class Line:
    """A connected pair of sockets: a transport of ours, and the other end."""

    def __init__(self) -> None:
        near, self.far = socket.socketpair()
        for end in (near, self.far):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, TURN)
        self.far.setblocking(False)
        self.transport: Any = TCPConnection(near, Protocol(), MemoryReactorClock())
        self.transport.connected = 1

    def send(self, data: bytes) -> int:
        """Put bytes on the way to the transport, as many as are taken; how many those were."""
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < len(data):
                sent += self.far.send(data[sent:])
        return sent

    def waiting(self) -> int:
        """Take what has not been read, and count it."""
        left = 0
        with contextlib.suppress(BlockingIOError):
            while data := self.transport.socket.recv(READ):
                left += len(data)
        return left

    def close(self) -> None:
        """Close both ends."""
        self.transport.socket.close()
        self.far.close()


@pytest.fixture
def line() -> Iterator[Line]:
    made = Line()
    yield made
    made.close()


def test_a_full_read_is_followed_by_what_else_is_there(line: Line) -> None:
    line.send(bytes(100_000))
    pieces = list(reads_of_a_turn(line.transport, bytes(READ)))
    assert sum(map(len, pieces)) == READ + 100_000
    assert line.waiting() == 0


def test_a_read_that_was_not_full_is_not_followed(line: Line) -> None:
    line.send(bytes(1000))
    assert list(reads_of_a_turn(line.transport, b"short")) == [b"short"]
    assert line.waiting() == 1000


def test_others_have_their_turn_however_much_there_is(line: Line) -> None:
    sent, read = 0, 0
    for piece in reads_of_a_turn(line.transport, bytes(READ)):
        read += len(piece)
        # The other end is always ahead.
        sent += line.send(bytes(2 * READ))
    assert read == TURN
    assert line.waiting() == sent - (TURN - READ)


def test_who_stops_leaves_the_rest_where_it_is(line: Line) -> None:
    sent = line.send(bytes(2 * READ))
    for _ in reads_of_a_turn(line.transport, bytes(READ)):
        break
    assert line.waiting() == sent


def test_an_end_is_left_to_the_transport_to_find(line: Line) -> None:
    line.far.close()
    assert list(reads_of_a_turn(line.transport, bytes(READ))) == [bytes(READ)]
    assert line.transport.connected


def test_a_transport_that_is_being_closed_is_not_read_on(line: Line) -> None:
    line.send(bytes(READ))
    line.transport.disconnecting = True
    assert list(reads_of_a_turn(line.transport, bytes(READ))) == [bytes(READ)]


def test_what_is_no_socket_is_not_read_on() -> None:
    assert list(reads_of_a_turn(StringTransport(), bytes(READ))) == [bytes(READ)]


def test_a_body_that_is_paused_within_a_turn_is_read_no_further(line: Line) -> None:
    lab = Lab()
    asked = lab.ask()
    connection, _ = lab.lines[0]
    connection.dataReceived(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    connection.transport = line.transport
    sent = line.send(bytes(2 * READ))
    connection.pauseProducing()
    connection.dataReceived(bytes(READ))
    assert len(asked.body.data) == READ
    assert line.waiting() == sent


def test_what_the_socket_has_behind_a_body_is_left_for_the_answer_to_the_next_request(line: Line) -> None:
    lab = Lab()
    asked = lab.ask()
    connection, _ = lab.lines[0]
    connection.dataReceived(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % READ)
    connection.transport = line.transport
    sent = line.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    connection.dataReceived(bytes(READ))
    assert asked.whole
    assert line.waiting() == sent
