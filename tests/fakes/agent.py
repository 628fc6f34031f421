"""An HTTP agent whose other end is a FakeStore in the same process: requests are answered at once."""
# The names are those of Twisted's interfaces.
# ruff: noqa: N802, N803, N815
# mypy: allow-untyped-calls

from __future__ import annotations

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

    def __init__(self, method: bytes, uri: bytes, headers: Headers | None) -> None:
        self.method = method
        self.uri = uri
        self.requestHeaders = headers or Headers()
        self.responseHeaders = Headers()
        self.code = 200

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


@implementer(IAgent)
class MemoryAgent:
    """Requests go to the store without a network. `before` is told of each, and may change the store."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store
        self.before: Callable[[str], object] = str

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: Any = None
    ) -> Deferred[IResponse]:
        """The store's answer."""
        target = b"/" + uri.split(b"/", 3)[3]
        self.before(f"{method.decode()} {target.decode()}")
        asked: Any = _Asked(method, target, headers)
        body = self._store.render(asked)
        lengths = asked.responseHeaders.getRawHeaders("content-length")
        length = int(lengths[0]) if lengths else len(body)
        response: IResponse = _Response(asked.code, asked.responseHeaders, body, length)
        return succeed(response)
