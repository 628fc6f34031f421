"""The operators' Site: /health/live, /health/ready, /metrics and a status page, on a port of its own."""

# The names are those of Twisted's interfaces.
# ruff: noqa: N802, N815
# mypy: allow-untyped-calls
from __future__ import annotations

from collections.abc import Callable, Mapping

import orjson
from attrs import frozen
from twisted.internet.interfaces import IReactorTime
from twisted.web.resource import Resource
from twisted.web.server import Request

from delta_proxy.resources.server import EdgeLimits, S3Site
from delta_proxy.resources.status import Status, StatusPage
from delta_proxy.s3.errors import NoSuchKey


@frozen
class Degraded:
    """A check that holds, with a text that says what is wrong all the same."""

    text: str


Readiness = Callable[[], Mapping[str, bool | str | Degraded]]


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


class Ready(Resource):
    """200 when every check holds, else 503; a JSON object names the checks.

    A check is True, False, or a text that says what is wrong; one that is Degraded holds. Checks that raise
    do not make the proxy look ready.
    """

    isLeaf = True

    def __init__(self, readiness: Readiness) -> None:
        super().__init__()
        self._readiness = readiness

    def render_GET(self, request: Request) -> bytes:
        """The checks as JSON: `{"ready": bool, "checks": {name: true | false | text}}`."""
        checks = dict(self._readiness())
        ready = all(value is True or isinstance(value, Degraded) for value in checks.values())
        shown = {name: value.text if isinstance(value, Degraded) else value for name, value in checks.items()}
        request.setResponseCode(200 if ready else 503)
        request.setHeader(b"Content-Type", b"application/json")
        request.setHeader(b"Cache-Control", b"no-store")
        return orjson.dumps({"ready": ready, "checks": shown})


class Figures(Resource):
    """What Prometheus scrapes."""

    isLeaf = True

    def __init__(self, render: Callable[[], bytes], content_type: str) -> None:
        super().__init__()
        self._render = render
        self._content_type = content_type

    def render_GET(self, request: Request) -> bytes:
        """The figures in the exposition format."""
        request.setHeader(b"Content-Type", self._content_type.encode("ascii"))
        return self._render()


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
    render: Callable[[], bytes],
    content_type: str,
    status: Callable[[], Status],
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
