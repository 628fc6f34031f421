# The names are those of Twisted's interfaces.
# ruff: noqa: N802, N815, PT009
# mypy: allow-untyped-calls
"""The edge on real sockets under trial, which fails a test that leaves a timer or a socket behind."""

from __future__ import annotations

import socket
from typing import Any, cast

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from delta_proxy.resources.server import EdgeLimits, EdgeRequest, S3Site

reactor = cast(Any, global_reactor)
GET = b"GET /datalake/t/a HTTP/1.1\r\nHost: proxy\r\n\r\n"


class Answers(Resource):
    """`/slow` is never answered, everything else at once."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.slow: Deferred[EdgeRequest] = Deferred()

    def render_GET(self, request: EdgeRequest) -> bytes | int:
        if request.uri == b"/slow":
            self.slow.callback(request)
            return NOT_DONE_YET
        return b"hello"


def ask(port: int, data: bytes, size: int = 65_536) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=120) as client:
        client.sendall(data)
        return client.recv(size)


def ask_to_the_end(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=120) as client:
        client.sendall(data)
        return b"".join(iter(lambda: client.recv(65_536), b""))


class EdgeTests(TestCase):
    """Starts the edge on an ephemeral port, and stops it as the service does."""

    timeout = 240

    def setUp(self) -> None:
        self.answers = Answers()
        self.site = S3Site(self.answers, reactor=reactor, limits=EdgeLimits(linger_seconds=0.5))
        self.listening = reactor.listenTCP(0, self.site, interface="127.0.0.1")
        self.port: int = self.listening.getHost().port

    async def stop(self, timeout_seconds: float = 120.0) -> bool:
        await self.listening.stopListening()
        self.site.stop_accepting()
        drained = await self.site.drained(timeout_seconds)
        # A reset connection is lost in the reactor's next turn.
        await deferLater(reactor, 0.01, lambda: None)
        return drained

    def test_an_answered_request_leaves_nothing_behind(self) -> Deferred[None]:
        async def run() -> None:
            received = await deferToThread(ask, self.port, GET)
            self.assertIn(b"200 OK", received)
            self.assertTrue(await self.stop())

        return Deferred.fromCoroutine(run())

    def test_an_idle_connection_is_closed_by_the_stop(self) -> Deferred[None]:
        async def run() -> None:
            client = socket.create_connection(("127.0.0.1", self.port), timeout=120)
            client.sendall(GET)
            # Idle is who has the answer.
            self.assertIn(b"200 OK", await deferToThread(client.recv, 65_536))
            self.assertEqual(len(self.site.channels), 1)
            self.assertTrue(await self.stop())
            client.close()

        return Deferred.fromCoroutine(run())

    def test_a_request_under_way_is_answered_before_the_stop_ends(self) -> Deferred[None]:
        async def run() -> None:
            asking = deferToThread(ask_to_the_end, self.port, GET.replace(b"/datalake/t/a", b"/slow"))
            request = await self.answers.slow
            stopping = Deferred.fromCoroutine(self.stop())
            await deferLater(reactor, 0.05, lambda: None)
            self.assertFalse(stopping.called)
            request.answer(b"at last")
            self.assertTrue(await stopping)
            self.assertTrue((await asking).endswith(b"at last"))

        return Deferred.fromCoroutine(run())

    def test_a_request_that_is_never_answered_is_reset_by_the_stop(self) -> Deferred[None]:
        async def run() -> None:
            client = socket.create_connection(("127.0.0.1", self.port))
            client.sendall(GET.replace(b"/datalake/t/a", b"/slow"))
            request = await self.answers.slow
            lost = request.notifyFinish()
            self.assertFalse(await self.stop(0.05))
            await self.assertFailure(lost, Exception)
            client.close()

        return Deferred.fromCoroutine(run())

    def test_malformed_requests_leave_nothing_behind(self) -> Deferred[None]:
        async def run() -> None:
            for data in (
                b"\x16\x03\x01\x00",
                b"GET /" + b"a" * 1_000_000,
                b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
            ):
                received = await deferToThread(ask_to_the_end, self.port, data)
                self.assertTrue(received.startswith(b"HTTP/1.1 4"))
                self.assertIn(b"<Error>", received)
            self.assertTrue(await self.stop())

        return Deferred.fromCoroutine(run())
