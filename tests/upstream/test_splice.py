"""Large bodies that the kernel moves: whole, cut, stalled, slow and left, over real sockets.

The store follows a script, the proxy's end is its own site, and the client is a bare socket.
"""
# ruff: noqa: N815

from __future__ import annotations

import contextlib
import gc
import os
import pathlib
import resource
import socket
from collections.abc import AsyncIterator
from typing import Any, ClassVar, cast

import attrs
import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from delta_proxy.resources.server import EdgeLimits, EdgeRequest, RequestRecord, S3Site
from delta_proxy.upstream.client import TableClient
from delta_proxy.upstream.http1 import Reply
from delta_proxy.upstream.relay import BodyCut, ConsumerGone
from delta_proxy.upstream.retry import Timeouts
from delta_proxy.upstream.splice import Splicing

from .conftest import MakeRig, MakeStore
from .parts import Call, Collector, Rig, answer, cuts, in_reactor, part, reactor, sends, soon, until

pytestmark = pytest.mark.skipif(not hasattr(os, "splice"), reason="this system has no splice")

BODY = os.urandom(1024 * 1024) * 24
"""More than the sockets of a client that does not read can hold."""
GET = b"GET /x HTTP/1.1\r\nHost: proxy\r\n\r\n"


class Passing(Resource):
    """Passes an object on, as the proxy does."""

    isLeaf: ClassVar[bool] = True  # type: ignore[misc]

    def __init__(self, table: TableClient) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._table = table
        self.requests: list[EdgeRequest] = []

    def render(self, request: Any) -> int:
        """The object's bytes."""
        self.requests.append(request)
        sending = Deferred.fromCoroutine(self._send(request))
        request.notifyFinish().addErrback(lambda _: sending.cancel())
        return NOT_DONE_YET

    async def _send(self, request: EdgeRequest) -> None:
        try:
            upstream = await self._table.open("GET", "x")
            request.setHeader(b"Content-Length", b"%d" % (upstream.length or 0))  # type: ignore[no-untyped-call]
            await upstream.send_body(request)
            request.finish()
        except BodyCut:
            request.abort()
        except (CancelledError, ConsumerGone):
            return


@attrs.define
class Edge:
    """The proxy's end: its port, what it served, and the pipes."""

    port: int
    passing: Passing
    splicing: Splicing
    records: list[RequestRecord]
    spliced: list[int]

    def connect(self, *, receive: int = 0) -> socket.socket:
        """A client that has sent its request; `receive` bounds what the kernel takes in for it."""
        client = socket.socket()
        if receive:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        client.settimeout(60)
        client.connect(("127.0.0.1", self.port))
        client.sendall(GET)
        return client


class Noted(Splicing):
    """Notes how often a pipe was asked for."""

    def __init__(self, asked: list[int], **options: Any) -> None:
        super().__init__(reactor, **options)
        self._asked = asked

    def take(self) -> Any:
        """Noted."""
        self._asked.append(1)
        return super().take()


@contextlib.asynccontextmanager
async def edge(
    rig: Rig, endpoint: str, *, clock: Any = None, limits: EdgeLimits | None = None, **options: Any
) -> AsyncIterator[Edge]:
    """The proxy's end before the store. Afterwards every descriptor must be closed again."""
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    asked: list[int] = []
    rig.upstream.splicing = splicing = Noted(asked, **options)
    passing = Passing(rig.table(endpoint))
    records: list[RequestRecord] = []
    site = S3Site(passing, reactor=clock or reactor, limits=limits, on_finished=records.append)
    port = reactor.listenTCP(0, site, interface="127.0.0.1")
    try:
        yield Edge(port.getHost().port, passing, splicing, records, asked)
    finally:
        await port.stopListening()
        site.stop_accepting()
        for channel in list(site.channels):
            channel.abort()
        while site.channels:
            await soon(0.001)
        await rig.close()
        splicing.close()
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before + 2)


def received(client: socket.socket) -> bytes:
    """The body of an answer with a length, read to its end."""
    with client, client.makefile("rb") as stream:
        length = None
        while (line := stream.readline()) not in (b"\r\n", b""):
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        assert length is not None
        return stream.read(length)


@in_reactor
async def test_a_body_goes_whole_from_socket_to_socket(rig: Rig, make_store: MakeStore) -> None:
    store = make_store(sends(answer(BODY)))
    async with edge(rig, store.endpoint) as proxy:
        for _ in range(2):
            assert await deferToThread(received, proxy.connect()) == BODY
        await until(lambda: len(proxy.records) == 2)
        assert proxy.spliced
        assert [(r.status, r.bytes_sent, r.aborted) for r in proxy.records] == [(200, len(BODY), False)] * 2
        assert rig.notes.bytes == 2 * len(BODY)
        assert len(store.lines) == 1


@in_reactor
async def test_a_small_body_takes_over_no_socket(rig: Rig, make_store: MakeStore) -> None:
    store = make_store(sends(answer(BODY[:200_000])))
    async with edge(rig, store.endpoint) as proxy:
        assert await deferToThread(received, proxy.connect()) == BODY[:200_000]
        assert not proxy.spliced


@in_reactor
async def test_requests_follow_each_other_on_one_connection(rig: Rig, make_store: MakeStore) -> None:
    store = make_store(sends(answer(BODY)), sends(answer(b"small")), sends(answer(BODY)))
    async with edge(rig, store.endpoint) as proxy:
        client = proxy.connect()
        client.sendall(GET * 2)

        def read() -> list[int]:
            sizes = []
            with client, client.makefile("rb") as stream:
                for _ in range(3):
                    length = 0
                    while (line := stream.readline()) != b"\r\n":
                        name, _, value = line.partition(b":")
                        length = int(value) if name.lower() == b"content-length" else length
                    sizes.append(len(stream.read(length)))
            return sizes

        assert await deferToThread(read) == [len(BODY), 5, len(BODY)]


@in_reactor
async def test_a_client_that_does_not_read_holds_the_store_back(rig: Rig, make_store: MakeStore) -> None:
    store = make_store(sends(answer(BODY)))
    async with edge(rig, store.endpoint, clock=Clock()) as proxy:
        client = proxy.connect(receive=65536)
        await until(lambda: bool(proxy.spliced) and rig.notes.bytes > 0)
        last = -1
        while last != rig.notes.bytes:
            last = rig.notes.bytes
            await soon(0.2)
        assert rig.notes.bytes < len(BODY)
        assert await deferToThread(received, client) == BODY


@in_reactor
async def test_a_client_that_never_reads_is_reset_in_time(rig: Rig, make_store: MakeStore) -> None:
    store, clock = make_store(sends(answer(BODY))), Clock()
    async with edge(rig, store.endpoint, clock=clock) as proxy:
        client = proxy.connect(receive=65536)
        await until(lambda: rig.notes.bytes > 0)
        while not proxy.records:
            # Twice the bound between two looks at what it took: whoever takes nothing is gone soon.
            clock.advance(EdgeLimits().write_seconds)
            await soon(0.05)
        assert proxy.records[0].aborted
        assert proxy.records[0].bytes_sent < len(BODY)
        await store.lines[0].lost
        client.close()


@in_reactor
async def test_a_client_that_reads_slowly_is_waited_for(rig: Rig, make_store: MakeStore) -> None:
    store, clock = make_store(sends(answer(BODY))), Clock()
    async with edge(rig, store.endpoint, clock=clock) as proxy:
        client, got = proxy.connect(receive=65536), 0
        await until(lambda: rig.notes.bytes > 0)
        while got < len(BODY):
            got += len(await deferToThread(client.recv, 1024 * 1024))
            if got < 4 * 1024 * 1024:
                await soon(0.01)
                clock.advance(EdgeLimits().write_seconds - 1)
        await until(lambda: len(proxy.records) == 1)
        assert not proxy.records[0].aborted
        client.close()


@pytest.mark.parametrize("reading", [True, False], ids=["reading", "full"])
@in_reactor
async def test_a_client_that_leaves_ends_the_transfer(rig: Rig, make_store: MakeStore, reading: bool) -> None:
    store = make_store(sends(answer(BODY, length=2 * len(BODY))))
    async with edge(rig, store.endpoint) as proxy:
        client = proxy.connect(receive=65536)
        await until(lambda: bool(proxy.spliced))
        if reading:
            for _ in range(40):
                await deferToThread(client.recv, 1024 * 1024)
        client.close()
        await store.lines[0].lost
        await until(lambda: len(proxy.records) == 1)
        assert proxy.records[0].aborted


@in_reactor
async def test_a_cut_body_is_resumed_and_goes_on_by_the_kernel(rig: Rig, make_store: MakeStore) -> None:
    at = 10_000_001
    store = make_store(cuts(answer(BODY[:at], length=len(BODY))), sends(part(BODY, at)))
    async with edge(rig, store.endpoint) as proxy:
        assert await deferToThread(received, proxy.connect()) == BODY
        assert store.calls[1].header("range") == f"bytes={at}-{len(BODY) - 1}"
        assert rig.notes.bytes == len(BODY)


@in_reactor
async def test_what_cannot_be_resumed_is_reset(rig: Rig, make_store: MakeStore) -> None:
    store = make_store(cuts(answer(BODY[:9_000_000], length=len(BODY), etag=None)))
    async with edge(rig, store.endpoint) as proxy:
        with pytest.raises(ConnectionResetError):
            assert len(await deferToThread(received, proxy.connect())) == len(BODY)


@in_reactor
async def test_a_store_that_falls_silent_is_left_for_a_new_connection(
    make_rig: MakeRig, make_store: MakeStore
) -> None:
    at, clock = 9_000_000, Clock()
    store = make_store(sends(answer(BODY[:at], length=len(BODY))), sends(part(BODY, at)))
    rig = make_rig(clock=clock, timeouts=Timeouts(idle=30))
    async with edge(rig, store.endpoint) as proxy:
        reading = deferToThread(received, proxy.connect())
        await until(lambda: rig.notes.bytes == at)
        clock.advance(30)
        await store.lines[0].lost
        clock.advance(0)
        assert await reading == BODY


@in_reactor
async def test_bytes_behind_the_body_reach_nobody(rig: Rig, make_store: MakeStore) -> None:
    evil = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    store = make_store(sends(answer(BODY) + evil), sends(answer(b"good")))
    async with edge(rig, store.endpoint) as proxy:
        assert await deferToThread(received, proxy.connect()) == BODY
        assert await deferToThread(received, proxy.connect()) == b"good"
        assert len(store.lines) == 2


@in_reactor
async def test_without_a_free_pipe_the_rest_goes_the_ordinary_way(rig: Rig, make_store: MakeStore) -> None:
    store = make_store(sends(answer(BODY)))
    async with edge(rig, store.endpoint, most=0) as proxy:
        assert await deferToThread(received, proxy.connect()) == BODY
        await until(lambda: len(proxy.records) == 1)
        assert proxy.records[0].bytes_sent == len(BODY)


@pytest.mark.parametrize("left", [0, 1])
@in_reactor
async def test_without_a_free_descriptor_the_rest_goes_the_ordinary_way(
    rig: Rig, make_store: MakeStore, left: int
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def takes_descriptors(call: Call) -> None:
        lowest = os.open(os.devnull, os.O_RDONLY)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + left, limits[1]))
        call.send(answer(BODY))

    store = make_store(takes_descriptors)
    async with edge(rig, store.endpoint) as proxy:
        reading = deferToThread(received, proxy.connect())
        try:
            await until(lambda: rig.notes.bytes == len(BODY))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert await reading == BODY
        assert not proxy.spliced


@in_reactor
async def test_many_share_few_pipes(rig: Rig, make_store: MakeStore) -> None:
    store = make_store(sends(answer(BODY)))
    async with edge(rig, store.endpoint, most=1) as proxy:
        clients = [deferToThread(received, proxy.connect()) for _ in range(4)]
        for reading in clients:
            assert await reading == BODY


class RefusingSink:
    """A sink that splice refuses with EINVAL: a file that is appended to."""

    def __init__(self, file: Any, consumer: Collector) -> None:
        self.socket: Any = file
        self._consumer = consumer

    def flush(self) -> bool:
        """Nothing waits."""
        return True

    def moved(self, count: int) -> None:
        """Never."""
        raise AssertionError(count)

    def full(self) -> None:
        """As a channel does."""
        self._consumer.producer.pauseProducing()

    def free(self) -> None:
        """As a channel does."""
        self._consumer.producer.resumeProducing()

    def abort(self) -> None:
        """Never."""
        raise AssertionError


class Refusing(Collector):
    """A consumer with such a sink."""

    def __init__(self, file: Any) -> None:
        super().__init__()
        self._file = file

    def splice_sink(self) -> RefusingSink:
        """The file."""
        return RefusingSink(self._file, self)


@in_reactor
async def test_where_the_kernel_refuses_no_byte_is_lost(
    rig: Rig, make_store: MakeStore, tmp_path: pathlib.Path
) -> None:
    body = BODY[: 2 * 1024 * 1024]

    def in_two(call: Call) -> None:
        call.send(answer(body[:1000], length=len(body)))
        reactor.callLater(0.05, call.send, body[1000:])

    store = make_store(in_two)
    rig.upstream.splicing = splicing = Splicing(reactor)
    with (tmp_path / "appended").open("ab") as file:
        consumer = Refusing(file)
        response = await rig.table(store.endpoint).open("GET", "x")
        assert await response.send_body(consumer) == len(body)
    assert consumer.body == body
    assert splicing.take() is None
    assert (tmp_path / "appended").read_bytes() == b""


@in_reactor
async def test_a_reply_that_is_here_already_has_no_connection(rig: Rig, make_store: MakeStore) -> None:
    """It has gone back to the pool: pausing or aborting the body must not touch it."""
    store = make_store(sends(answer(b"small")))
    origin = ("http", store.endpoint.removeprefix("http://"))
    reply = cast(Reply, await rig.upstream.reads.request("GET", origin, "/", (("host", "x"),), 30))

    assert (reply.whole, reply.connection) == (b"small", None)
