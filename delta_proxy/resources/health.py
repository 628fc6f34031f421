"""The operators' Site: /health/live, /health/ready, /metrics and a status page, on a port of its own."""

# The names are those of Twisted's interfaces.
# ruff: noqa: N802, N815
# mypy: allow-untyped-calls
from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from inspect import isawaitable
from typing import TypeVar

import orjson
from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from delta_proxy.resources.server import EdgeLimits, EdgeRequest, S3Site
from delta_proxy.resources.status import Status, page
from delta_proxy.s3.errors import NoSuchKey


@frozen
class Degraded:
    """A check that holds, with a text that says what is wrong all the same."""

    text: str


T = TypeVar("T")
Asked = Callable[[], T | Awaitable[T]]
"""A question that is answered at once by one process, and later where several are asked."""
Checks = Mapping[str, bool | str | Degraded]
Readiness = Asked[Checks]


class Branch(Resource):
    """A node that has nothing but its children."""

    def getChild(self, path: bytes, request: Request) -> Resource:
        """What is not there: raises NoSuchKey."""
        raise NoSuchKey("There is nothing here.")

    def render(self, request: Request) -> bytes:
        """The node itself is nothing either: raises NoSuchKey."""
        raise NoSuchKey("There is nothing here.")


class Live(Resource):
    """200 as long as the process answers at all."""

    isLeaf = True

    def render_GET(self, request: Request) -> bytes:
        """The word ok."""
        request.setHeader(b"Content-Type", b"text/plain; charset=utf-8")
        return b"ok"


class _Question(Resource):
    """A leaf whose answer may take a while; a client that goes away does not wait for it."""

    isLeaf = True

    def render_GET(self, request: EdgeRequest) -> int:
        """Start the answer."""
        work = Deferred.fromCoroutine(self._serve(request))
        request.notifyFinish().addErrback(lambda _: work.cancel())
        work.addErrback(self._failed, request)
        return NOT_DONE_YET

    async def _serve(self, request: EdgeRequest) -> None:
        request.answer(await self.body(request))

    def _failed(self, failure: Failure, request: EdgeRequest) -> None:
        if not failure.check(CancelledError):
            request.processingFailed(failure)

    async def body(self, request: EdgeRequest) -> bytes:
        """The answer's body; status and header fields are set on the request."""
        raise NotImplementedError


class Ready(_Question):
    """200 when every check holds, else 503; a JSON object names the checks.

    A check is True, False, or a text that says what is wrong; one that is Degraded holds. Checks that raise
    do not make the proxy look ready.
    """

    def __init__(self, readiness: Readiness) -> None:
        super().__init__()
        self._readiness = readiness

    async def body(self, request: EdgeRequest) -> bytes:
        """The checks as JSON: `{"ready": bool, "checks": {name: true | false | text}}`."""
        checks = await _answer(self._readiness)
        ready = all(value is True or isinstance(value, Degraded) for value in checks.values())
        shown = {name: value.text if isinstance(value, Degraded) else value for name, value in checks.items()}
        request.setResponseCode(200 if ready else 503)
        request.setHeader(b"Content-Type", b"application/json")
        request.setHeader(b"Cache-Control", b"no-store")
        return orjson.dumps({"ready": ready, "checks": shown})


class Figures(_Question):
    """What Prometheus scrapes."""

    def __init__(self, render: Asked[bytes], content_type: str) -> None:
        super().__init__()
        self._render = render
        self._content_type = content_type

    async def body(self, request: EdgeRequest) -> bytes:
        """The figures in the exposition format."""
        figures = await _answer(self._render)
        request.setHeader(b"Content-Type", self._content_type.encode("ascii"))
        return figures


class StatusPage(_Question):
    """The page at `/` of the operators' Site."""

    def __init__(self, status: Asked[Status]) -> None:
        super().__init__()
        self._status = status

    async def body(self, request: EdgeRequest) -> bytes:
        """The page as UTF-8."""
        status = await _answer(self._status)
        request.setHeader(b"Content-Type", b"text/html; charset=utf-8")
        request.setHeader(b"Cache-Control", b"no-store")
        request.setHeader(b"Content-Security-Policy", b"default-src 'none'; style-src 'unsafe-inline'")
        return page(status).encode("utf-8")


async def _answer(question: Asked[T]) -> T:
    answer = question()
    return await answer if isawaitable(answer) else answer


def health_tree(readiness: Readiness) -> Branch:
    """`live` and `ready`, to be put under /health."""
    tree = Branch()
    tree.putChild(b"live", Live())
    tree.putChild(b"ready", Ready(readiness))
    return tree


def metrics_site(
    *,
    reactor: IReactorTime,
    readiness: Readiness,
    render: Asked[bytes],
    content_type: str,
    status: Asked[Status],
    limits: EdgeLimits | None = None,
) -> S3Site:
    """The Site of `metricsPort`: /, /metrics, /health/live and /health/ready.

    `render` and `content_type` are those of `delta_proxy.metrics`. Its requests are not counted as the
    proxy's own.
    """
    root = Branch()
    root.putChild(b"", StatusPage(status))
    root.putChild(b"metrics", Figures(render, content_type))
    root.putChild(b"health", health_tree(readiness))
    return S3Site(root, reactor=reactor, limits=limits)
