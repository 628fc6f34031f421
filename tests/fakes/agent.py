"""An HTTP agent whose other end is a FakeStore in the same process: requests are answered at once."""
# The names are those of Twisted's interfaces.
# ruff: noqa: N802, N803, N815
# mypy: allow-untyped-calls

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IProtocol
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IResponse
from zope.interface import implementer

from .store import FakeStore


class _Asked:
    """The part of a twisted.web request that a FakeStore uses."""

    def __init__(self, method: bytes, uri: bytes, headers: Headers | None, body: bytes) -> None:
        self.method = method
        self.uri = uri
        self.requestHeaders = headers or Headers()
        self.responseHeaders = Headers()
        self.code = 200
        self.content = io.BytesIO(body)

    def setResponseCode(self, code: int) -> None:
        """Take the status."""
        self.code = code


@implementer(IResponse)
@attrs.define
class _Response:
    """An answer whose body is there already."""

    code: int
    headers: Headers
    body: bytes
    length: int
    version: tuple[bytes, int, int] = (b"HTTP", 1, 1)
    phrase: bytes = b""
    request: Any = None
    previousResponse: Any = None

    def deliverBody(self, protocol: IProtocol) -> None:
        """The whole body, and its end."""
        protocol.makeConnection(StringTransport())
        if self.body:
            protocol.dataReceived(self.body)
        protocol.connectionLost(Failure(ResponseDone()))

    def setPreviousResponse(self, response: Any) -> None:
        """There is none."""


class _Sent:
    """What a producer has written."""

    def __init__(self) -> None:
        self.body = b""

    def write(self, data: bytes) -> None:
        """Some more."""
        self.body += data


@implementer(IAgent)
class MemoryAgent:
    """Requests go to the store without a network. `before` is told of each, and may change the store.

    The answer to a request with a body waits for what `answering` gives.
    """

    def __init__(self, store: FakeStore) -> None:
        self._store = store
        self.before: Callable[[str], object] = str
        self.answering: Callable[[], Deferred[None] | None] = lambda: None

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: Any = None
    ) -> Deferred[IResponse]:
        """The store's answer, once it has the whole body; a body given up never reaches it."""
        target = b"/" + uri.split(b"/", 3)[3]
        if bodyProducer is None:
            return succeed(self._answer(method, target, headers, b""))
        sent = _Sent()
        produced: Deferred[None] = bodyProducer.startProducing(sent)
        produced.addCallback(lambda _: self.answering())
        return produced.addCallback(lambda _: self._whole(method, target, headers, sent, bodyProducer.length))

    def _whole(
        self, method: bytes, target: bytes, headers: Headers | None, sent: _Sent, length: int
    ) -> IResponse:
        assert len(sent.body) == length
        return self._answer(method, target, headers, sent.body)

    def _answer(self, method: bytes, target: bytes, headers: Headers | None, body: bytes) -> IResponse:
        self.before(f"{method.decode()} {target.decode()}")
        asked: Any = _Asked(method, target, headers, body)
        answer = self._store.render(asked)
        lengths = asked.responseHeaders.getRawHeaders("content-length")
        length = int(lengths[0]) if lengths else len(answer)
        response: IResponse = _Response(asked.code, asked.responseHeaders, answer, length)
        return response
