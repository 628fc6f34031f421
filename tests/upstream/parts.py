"""What the tests of the upstream share: a client over real sockets, and a store that follows a script."""
# ruff: noqa: N802

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

import pytest_twisted
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IConsumer, IReactorTime
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.web.client import HTTPConnectionPool
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface import implementer

from delta_proxy.s3.sigv4 import Credentials
from delta_proxy.upstream.agent import AgentReads, make_agent, make_pool, make_reads
from delta_proxy.upstream.client import TableClient, Upstream
from delta_proxy.upstream.credentials import CredentialSource, StaticCredentials
from delta_proxy.upstream.http1 import ReadClient
from delta_proxy.upstream.retry import RetryPolicy, Timeouts
from delta_proxy.upstream.stores import AddressingStyle, StoreConfig, TableLocation
from tests.waiting import PATIENCE

reactor: Any = _reactor
T = TypeVar("T")
Test = TypeVar("Test", bound=Callable[..., object])
BUCKET = "warehouse"
PREFIX = "lake/trades"
CREDENTIALS = Credentials("test-access-key", "test-secret-key", None)
ETAG = '"0123456789abcdef0123456789abcdef"'
AT_ONCE = RetryPolicy(base=0.0, progress=1)


def in_reactor(test: Test) -> Test:
    """A test that is a coroutine, run by the reactor."""
    return cast(Test, pytest_twisted.ensureDeferred(test))


def wait_for(work: Coroutine[Deferred[Any], Any, T]) -> T:
    """Let the reactor run until the work is done."""
    return cast(T, pytest_twisted.blockon(Deferred.fromCoroutine(work)))


class Notes:
    """An observer that writes down what it is told."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.bytes = 0

    def request_finished(self, operation: str, outcome: str, seconds: float) -> None:
        """One more."""
        self.requests.append((operation, outcome))

    def bytes_received(self, count: int) -> None:
        """Some more."""
        self.bytes += count


class Rig:
    """An Upstream over real sockets; `close` ends what it holds open.

    Objects are read by the lean client, or by Twisted's agent. Small bodies are streamed as large ones are,
    unless `whole` says which come with their head.
    """

    def __init__(
        self,
        *,
        lean: bool = True,
        clock: IReactorTime | None = None,
        timeouts: Timeouts | None = None,
        policy: RetryPolicy | None = None,
        in_flight: int = 16,
        queue: int = 16,
        random: Callable[[], float] = lambda: 0.0,
        whole: int = 0,
    ) -> None:
        self.notes = Notes()
        self.pool: HTTPConnectionPool = make_pool(reactor)
        self.reads: ReadClient | None = make_reads(reactor, clock=clock, whole=whole) if lean else None
        self.upstream = Upstream(
            make_agent(reactor, self.pool),
            clock or reactor,
            deferToThread,
            random,
            self.notes,
            reads=self.reads,
            timeouts=timeouts,
            policy=policy or AT_ONCE,
            in_flight=in_flight,
            queue=queue,
        )

    def table(
        self,
        endpoint: str,
        *,
        prefix: str = PREFIX,
        region: str | None = "us-east-1",
        credentials: CredentialSource | None = None,
        bucket: str = BUCKET,
        style: AddressingStyle = AddressingStyle.AUTO,
    ) -> TableClient:
        """A client for a table in the store at that endpoint."""
        store = StoreConfig(endpoint=endpoint, region=region, addressing_style=style)
        return self.upstream.table(
            TableLocation(bucket, prefix, store), credentials or StaticCredentials(CREDENTIALS)
        )

    async def close(self) -> None:
        """Close the kept connections, and wait for sockets that are going."""
        await self.pool.closeCachedConnections()  # type: ignore[no-untyped-call]
        if self.reads is not None:
            await self.reads.close()

    def trust(self, policy: IPolicyForHTTPS | None) -> None:
        """Trust those whom the policy trusts; None is the platform's."""
        self.upstream.agent = make_agent(reactor, self.pool, policy=policy)
        lean = self.reads is not None
        self.reads = make_reads(reactor, policy=policy) if lean else None
        self.upstream.reads = self.reads or AgentReads(self.upstream.agent, reactor)


def answer(
    body: bytes = b"",
    *,
    status: str = "200 OK",
    length: int | None = None,
    etag: str | None = ETAG,
    headers: dict[str, str] | None = None,
) -> bytes:
    """A response as bytes; `length` announces another number than the body has."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}"]
    lines += [f"ETag: {etag}"] if etag else []
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def part(whole: bytes, first: int, *, etag: str = ETAG, last: int | None = None) -> bytes:
    """A 206 with the bytes from `first` on."""
    last = len(whole) - 1 if last is None else last
    content_range = {"Content-Range": f"bytes {first}-{last}/{len(whole)}"}
    return answer(whole[first : last + 1], status="206 Partial Content", etag=etag, headers=content_range)


class Call:
    """One request that the scripted store got: its head, and the connection it came on."""

    def __init__(self, head: bytes, line: Line) -> None:
        self.head = head
        self.line = line

    @property
    def target(self) -> bytes:
        """The request target, as on the wire."""
        return self.head.split(b" ", 2)[1]

    def header(self, name: str) -> str | None:
        """A request header, or None."""
        for row in self.head.decode("latin-1").split("\r\n")[1:]:
            field, _, value = row.partition(":")
            if field.lower() == name:
                return value.strip()
        return None

    def send(self, data: bytes) -> None:
        """Answer with these bytes and keep the connection."""
        self.line.wire.write(data)

    def send_and_cut(self, data: bytes) -> None:
        """Answer with these bytes and close the connection."""
        self.line.wire.write(data)
        self.line.wire.loseConnection()


class Line(Protocol):
    """A connection to the scripted store."""

    def __init__(self, store: ScriptedStore) -> None:
        self._store = store
        self._received = b""
        self.lost: Deferred[None] = Deferred()

    @property
    def wire(self) -> Any:
        """The transport."""
        return self.transport

    def connectionMade(self) -> None:
        """Counted."""
        self._store.lines.append(self)

    def dataReceived(self, data: bytes) -> None:
        """Wait for whole request heads; there are no bodies."""
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            self._store.called(Call(head, self))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Told to whom it may concern."""
        self.lost.callback(None)


class ScriptedStore(Factory):
    """A server that answers its requests in turn by a script, and by its last step ever after."""

    noisy = False

    def __init__(self, *script: Callable[[Call], object]) -> None:
        self.script = list(script)
        self.calls: list[Call] = []
        self.lines: list[Line] = []
        self._awaited: list[tuple[int, Deferred[Call]]] = []
        self._port: Any = reactor.listenTCP(0, self, interface="127.0.0.1")
        self.endpoint = f"http://127.0.0.1:{self._port.getHost().port}"

    def buildProtocol(self, address: object) -> Line:
        """A connection."""
        return Line(self)

    def called(self, call: Call) -> None:
        """For a connection: a request came."""
        self.calls.append(call)
        number = len(self.calls)
        self.script[min(number, len(self.script)) - 1](call)
        for wanted, waiter in self._awaited:
            if wanted == number:
                waiter.callback(call)

    def call(self, number: int) -> Deferred[Call]:
        """Fires with the request of that number (from 1), now or when it has come and been answered."""
        waiter: Deferred[Call] = Deferred()
        if len(self.calls) >= number:
            waiter.callback(self.calls[number - 1])
        else:
            self._awaited.append((number, waiter))
        return waiter

    async def close(self) -> None:
        """Listen no more and close every connection."""
        await maybeDeferred(self._port.stopListening)
        for line in self.lines:
            if not line.lost.called:
                line.wire.abortConnection()
            await line.lost


def sends(data: bytes) -> Callable[[Call], None]:
    """A step of a script: answer with these bytes."""
    return lambda call: call.send(data)


def cuts(data: bytes) -> Callable[[Call], None]:
    """A step of a script: answer with these bytes and close."""
    return lambda call: call.send_and_cut(data)


def silent(call: Call) -> None:
    """A step of a script: say nothing."""


@implementer(IConsumer)
class Collector:
    """A consumer that keeps what it gets; it may pause its producer after so many bytes."""

    def __init__(self, *, pause_at: int | None = None) -> None:
        self.body = b""
        self.producer: Any = None
        self.paused: Deferred[None] = Deferred()
        self.unregistered = False
        self._pause_at = pause_at

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Kept."""
        assert streaming
        self.producer = producer

    def unregisterProducer(self) -> None:
        """Noted."""
        self.unregistered = True

    def write(self, data: bytes) -> None:
        """Kept."""
        self.body += data
        if self._pause_at is not None and len(self.body) >= self._pause_at:
            self._pause_at = None
            self.producer.pauseProducing()
            self.paused.callback(None)


def names(folder: pathlib.Path) -> list[str]:
    """The names of the files in a folder."""
    return sorted(file.name for file in folder.iterdir())


def soon(seconds: float = 0.05) -> Deferred[None]:
    """Fires after a short time, for what must *not* happen to have had its chance."""
    done: Deferred[None] = Deferred()
    reactor.callLater(seconds, functools.partial(done.callback, None))
    return done


async def until(condition: Callable[[], bool]) -> None:
    """Let the reactor turn until it holds, for as long as a slow machine may take."""
    deadline = reactor.seconds() + PATIENCE
    while not condition():
        assert reactor.seconds() < deadline, "it did not come true"
        await soon(0.002)
