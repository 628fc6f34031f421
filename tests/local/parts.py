"""The helper in the reactor of the tests, and a client of it on a socket of its own."""
# ruff: noqa: N802
# mypy: allow-untyped-calls

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, TypeVar

from attrs import evolve, frozen
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IHalfCloseableProtocol, IReactorTime
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.web.client import HTTPConnectionPool
from zope.interface import implementer

from delta_proxy.local_helper.exchange import Exchange, Origins
from delta_proxy.local_helper.signing import Signer
from delta_proxy.local_helper.site import LIMITS, Helper, HelperSite, Interception
from delta_proxy.resources.server import EdgeLimits
from delta_proxy.upstream.agent import make_endpoints, make_pool
from delta_proxy.upstream.retry import Pacing, Timeouts
from tests.upstream.parts import AT_ONCE, reactor, soon
from tests.waiting import PATIENCE

T = TypeVar("T")
PRESIGNED = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-SignedHeaders=host&X-Amz-Signature=abc"
TIMEOUTS = Timeouts(connect=PATIENCE, first_byte=PATIENCE, idle=PATIENCE)
"""Who waits for the end of one gives the helper a clock, and lets it go."""


class RunningHelper:
    """A helper on a free port."""

    def __init__(self, site: HelperSite, port: Any) -> None:
        self.site = site
        self.port = int(port.getHost().port)

    def ask(self, request: bytes) -> Deferred[Outcome]:
        """Send a request from a thread; fires with all that came back until the connection ended."""
        return deferToThread(ask, self.port, request)

    def look_in(self, request: bytes) -> Deferred[bytes]:
        """Send a request, wait for the first bytes of the answer, and leave."""
        return deferToThread(look_in, self.port, request)

    def get(
        self, url: str, fields: Mapping[str, str] | None = None, method: str = "GET"
    ) -> Deferred[Outcome]:
        """A request as a client of a proxy sends it."""
        return self.ask(request(url, fields, method=method))


@contextlib.asynccontextmanager
async def helper(
    *,
    clock: IReactorTime | None = None,
    limits: EdgeLimits | None = None,
    signer: Signer | None = None,
    interception: Interception | None = None,
    tunnel_idle_seconds: float = 60.0,
) -> AsyncIterator[RunningHelper]:
    """A helper for the length of the block; afterwards nothing of it is left. `clock` bounds its requests."""
    kept = make_pool(reactor)
    single = HTTPConnectionPool(reactor, persistent=False)
    single.retryAutomatically = False
    pacing = Pacing(clock or reactor, lambda: 0.0, TIMEOUTS, AT_ONCE)
    exchange = Exchange(Origins(make_endpoints(reactor, timeouts=TIMEOUTS), kept, single), pacing, signer)
    site = HelperSite(
        Helper(
            reactor,
            exchange,
            pacing,
            interception,
            tunnel_idle_seconds,
            limits or evolve(LIMITS, linger_seconds=1.0),
        )
    )
    port = reactor.listenTCP(0, site, interface="127.0.0.1")
    try:
        yield RunningHelper(site, port)
    finally:
        await maybeDeferred(port.stopListening)
        await site.drained(PATIENCE)
        await kept.closeCachedConnections()


@frozen
class Outcome:
    """What a client saw: status (0 without an answer), fields, body, and whether the end was a reset."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    reset: bool

    @property
    def is_whole(self) -> bool:
        """Whether a client would take this for a whole answer."""
        length = self.headers.get("content-length")
        if self.headers.get("transfer-encoding") == "chunked":
            return self.body.endswith(b"0\r\n\r\n")
        return not self.reset and (length is None or int(length) == len(self.body))


async def outlasting(outcome: Deferred[T], clock: Clock) -> T:
    """The outcome, which comes when the clock has gone on for long enough."""
    while not outcome.called:
        clock.advance(1.0)
        await soon(0.001)
    return await outcome


def request(
    url: str, fields: Mapping[str, str] | None = None, *, method: str = "GET", body: bytes = b""
) -> bytes:
    """A request in absolute form that closes its connection."""
    authority = url.partition("://")[2].partition("/")[0]
    lines = [f"{method} {url} HTTP/1.1"]
    lines += [] if "Host" in (fields or {}) else [f"Host: {authority}"]
    lines += [f"{name}: {value}" for name, value in (fields or {}).items()]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1") + body


def look_in(port: int, data: bytes) -> bytes:
    """Send bytes, read once, and close."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
        client.sendall(data)
        return client.recv(65536)


def ask(port: int, data: bytes, begun: Callable[[], object] = bool) -> Outcome:
    """Send bytes and read to the end; tells when an answer has begun."""
    received, reset = b"", False
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
        try:
            client.sendall(data)
            received = client.recv(65536)
            begun()
            while part := client.recv(65536):
                received += part
        except ConnectionError:
            reset = True
    head, _, body = received.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    return Outcome(int(lines[0].split()[1]) if lines[0] else 0, headers, body, reset)


def reset_on_close(client: socket.socket) -> None:
    """Let closing this socket reset the connection."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@implementer(IHalfCloseableProtocol)
class Peer(Protocol):
    """A connection to a `Listener`."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self.received = b""
        self.ended = False
        self.lost: Deferred[BaseException | None] = Deferred()

    @property
    def wire(self) -> Any:
        """The transport."""
        return self.transport

    def connectionMade(self) -> None:
        """Counted."""
        self._listener.peers.append(self)
        waiting, self._listener.waiting = self._listener.waiting, []
        for each in waiting:
            each.callback(self)

    def dataReceived(self, data: bytes) -> None:
        """Kept, and told."""
        self.received += data
        self._listener.received(self, data)

    def readConnectionLost(self) -> None:
        """The other side says no more: unless there is something to be said, that is all."""
        self.ended = True

    def writeConnectionLost(self) -> None:
        """Nothing more can be said."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Told to whom it may concern."""
        self.lost.callback(reason.value)


class Listener(Factory):
    """A TCP server whose connections the test drives; `received` may be replaced to answer."""

    noisy = False

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self.waiting: list[Deferred[Peer]] = []
        self._port: Any = reactor.listenTCP(0, self, interface="127.0.0.1")
        self.port = int(self._port.getHost().port)
        self.url = f"http://127.0.0.1:{self.port}"

    def buildProtocol(self, address: object) -> Peer:
        """A connection."""
        return Peer(self)

    def received(self, peer: Peer, data: bytes) -> None:
        """Nothing is answered unless a test says what."""

    def peer(self) -> Deferred[Peer]:
        """The next connection, or the one that is there."""
        waiter: Deferred[Peer] = Deferred()
        if self.peers:
            waiter.callback(self.peers[-1])
        else:
            self.waiting.append(waiter)
        return waiter

    async def close(self) -> None:
        """Listen no more and close every connection."""
        await maybeDeferred(self._port.stopListening)
        for peer in self.peers:
            if not peer.lost.called:
                peer.wire.abortConnection()
                await peer.lost
