"""Bodies from the client to the proxy: streamed, bounded in memory and in time."""

from __future__ import annotations

import socket
import threading

import pytest
from attrs import evolve
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread

from delta_proxy.local_helper.site import LIMITS
from tests.upstream.parts import answer, in_reactor, soon, until
from tests.waiting import PATIENCE

from .parts import Listener, Outcome, Peer, helper, outlasting, request

BODY = bytes(range(256)) * 4000


class Taker(Listener):
    """A server that answers once it has the whole body, or at the head when told to."""

    def __init__(self, reply: bytes, *, at_once: bool = False) -> None:
        super().__init__()
        self.reply = reply
        self.at_once = at_once
        self.answered = False

    def received(self, peer: Peer, data: bytes) -> None:
        """Answer when there is nothing more to come."""
        head, blank, body = peer.received.partition(b"\r\n\r\n")
        ended = body.endswith(b"0\r\n\r\n") if b"chunked" in head else len(body) >= len(BODY)
        if blank and not self.answered and (self.at_once or ended):
            self.answered = True
            peer.wire.write(self.reply)


def head_of(peer: Peer) -> bytes:
    return peer.received.partition(b"\r\n\r\n")[0]


def body_of(peer: Peer) -> bytes:
    return peer.received.partition(b"\r\n\r\n")[2]


def chunked(body: bytes) -> bytes:
    pieces = [body[start : start + 50_000] for start in range(0, len(body), 50_000)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def unchunked(body: bytes) -> bytes:
    whole = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        whole, body = whole + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return whole


@in_reactor
async def test_a_body_is_passed_on_with_its_length() -> None:
    taker = Taker(answer(b"stored"))
    async with helper() as running:
        put = request(f"{taker.url}/b/k", {"Content-Length": str(len(BODY))}, method="PUT", body=BODY)
        outcome = await running.ask(put)
    assert (outcome.status, outcome.body) == (200, b"stored")
    assert body_of(taker.peers[0]) == BODY
    assert b"content-length: %d\r\n" % len(BODY) in head_of(taker.peers[0]).lower() + b"\r\n"
    await taker.close()


@in_reactor
async def test_a_chunked_body_is_passed_on_chunked() -> None:
    taker = Taker(answer(b"stored"))
    async with helper() as running:
        fields = {"Transfer-Encoding": "chunked"}
        outcome = await running.ask(request(f"{taker.url}/b", fields, method="POST", body=chunked(BODY)))
    assert outcome.body == b"stored"
    assert unchunked(body_of(taker.peers[0])) == BODY
    await taker.close()


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE"])
@in_reactor
async def test_an_empty_body_keeps_its_length(method: str) -> None:
    taker = Taker(answer(b"stored"), at_once=True)
    async with helper() as running:
        outcome = await running.ask(request(f"{taker.url}/b", {"Content-Length": "0"}, method=method))
    assert outcome.body == b"stored"
    assert head_of(taker.peers[0]).lower().count(b"content-length: 0") == 1
    await taker.close()


@in_reactor
async def test_a_client_that_waits_for_100_continue_is_told_to_go_on() -> None:
    taker = Taker(answer(b"stored"))

    def put(port: int) -> tuple[bytes, bytes]:
        fields = {"Content-Length": str(len(BODY)), "Expect": "100-continue"}
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
            client.sendall(request(f"{taker.url}/b/k", fields, method="PUT"))
            interim = client.recv(65536)
            client.sendall(BODY)
            return interim, b"".join(iter(lambda: client.recv(65536), b""))

    async with helper() as running:
        interim, final = await deferToThread(put, running.port)
    assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert final.endswith(b"stored")
    assert b"expect" not in head_of(taker.peers[0]).lower()
    await taker.close()


@in_reactor
async def test_an_upload_that_is_refused_at_its_head_is_told_so() -> None:
    taker = Taker(answer(b"<Error/>", status="405 Method Not Allowed"), at_once=True)
    async with helper() as running:
        fields = {"Content-Length": str(10 * len(BODY))}
        outcome = await running.ask(request(f"{taker.url}/b", fields, method="PUT", body=BODY))
    assert (outcome.status, outcome.body) == (405, b"<Error/>")
    await taker.close()


@in_reactor
async def test_what_follows_an_answer_at_the_head_keeps_no_connection_to_the_proxy() -> None:
    class Refusing(Taker):
        def received(self, peer: Peer, data: bytes) -> None:
            """Answer at the head, and read nothing more until told to."""
            if not self.answered:
                peer.wire.pauseProducing()
            super().received(peer, data)

    taker = Refusing(answer(b"<Error/>", status="405 Method Not Allowed"), at_once=True)
    async with helper() as running:
        fields = {"Content-Length": str(30 * len(BODY))}
        outcome = await running.ask(request(f"{taker.url}/b", fields, method="PUT", body=30 * BODY))
        assert (outcome.status, outcome.body) == (405, b"<Error/>")
        (peer,) = taker.peers
        peer.wire.resumeProducing()
        await until(lambda: peer.lost.called)
    await taker.close()


@in_reactor
async def test_an_answer_that_is_none_ends_an_upload_under_way() -> None:
    taker = Taker(b"none of HTTP's\r\n\r\n", at_once=True)
    clock = Clock()
    async with helper(clock=clock) as running:
        fields = {"Content-Length": str(len(BODY))}
        asking = running.ask(request(f"{taker.url}/b", fields, method="PUT", body=BODY[:1000]))
        peer = await taker.peer()
        await until(lambda: peer.ended)
        outcome = await outlasting(asking, clock)
    assert outcome.status == 503
    await taker.close()


@in_reactor
async def test_a_proxy_that_takes_nothing_stops_the_client_and_is_given_up() -> None:
    taker = Listener()
    sent: list[int] = []
    clock, stuck = Clock(), threading.Event()

    def flood(port: int) -> Outcome:
        size = 1 << 30
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
            client.sendall(request(f"{taker.url}/b", {"Content-Length": str(size)}, method="PUT"))
            client.settimeout(0.5)
            try:
                while len(sent) < size // 65536:
                    client.sendall(bytes(65536))
                    sent.append(65536)
            except TimeoutError:
                stuck.set()
            client.settimeout(PATIENCE)
            return Outcome(int(client.recv(65536).split()[1]), {}, b"", False)

    async with helper(clock=clock) as running:
        flooding = deferToThread(flood, running.port)
        peer = await taker.peer()
        peer.wire.pauseProducing()
        await until(stuck.is_set)
        outcome = await outlasting(flooding, clock)
    assert outcome.status == 503
    assert sum(sent) < 64 * 1024 * 1024
    await taker.close()


@in_reactor
async def test_a_proxy_that_does_not_answer_a_whole_upload_is_given_up() -> None:
    taker = Listener()
    clock = Clock()
    async with helper(clock=clock) as running:
        put = request(f"{taker.url}/b/k", {"Content-Length": str(len(BODY))}, method="PUT", body=BODY)
        asking = running.ask(put)
        peer = await taker.peer()
        await until(lambda: body_of(peer) == BODY)
        outcome = await outlasting(asking, clock)
    assert outcome.status == 503
    await taker.peers[0].lost
    await taker.close()


@in_reactor
async def test_a_client_that_stops_sending_is_told_so_and_the_upload_is_not_ended() -> None:
    taker = Listener()
    async with helper(limits=evolve(LIMITS, body_seconds=0.3, linger_seconds=0.2)) as running:
        fields = {"Content-Length": str(2 * len(BODY))}
        outcome = await running.ask(request(f"{taker.url}/b/k", fields, method="PUT", body=BODY))
    assert outcome.status == 400
    assert b"RequestTimeout" in outcome.body
    await taker.peers[0].lost
    assert len(body_of(taker.peers[0])) < 2 * len(BODY)
    await taker.close()


@pytest.mark.slow
@in_reactor
async def test_an_upload_lasts_as_long_as_parts_of_it_come() -> None:
    taker = Taker(answer(b"stored"))
    pause = threading.Event()
    async with helper(limits=evolve(LIMITS, body_seconds=10)) as running:

        def dribble() -> bytes:
            with socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE) as client:
                fields = {"Content-Length": str(len(BODY))}
                client.sendall(request(f"{taker.url}/b/k", fields, method="PUT"))
                for start in range(0, len(BODY), len(BODY) // 8):
                    client.sendall(BODY[start : start + len(BODY) // 8])
                    pause.wait(1.5)
                return b"".join(iter(lambda: client.recv(65536), b""))

        assert (await deferToThread(dribble)).endswith(b"stored")
    await taker.close()


@in_reactor
async def test_a_client_that_leaves_in_mid_upload_resets_it() -> None:
    taker = Listener()

    def leave(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
            client.sendall(request(f"{taker.url}/b", {"Content-Length": "10"}, method="PUT", body=b"12345"))
            reading.wait(10)

    reading = threading.Event()
    async with helper() as running:
        leaving = deferToThread(leave, running.port)
        peer = await taker.peer()
        while not peer.received.endswith(b"12345"):
            await soon(0.01)
        reading.set()
        await leaving
        await peer.lost
    await taker.close()
