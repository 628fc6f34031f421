"""A small document from the web, such as an issuer's keys: bounded in time and size, no redirects."""

# mypy: allow-untyped-calls
from __future__ import annotations

from http.cookiejar import DefaultCookiePolicy
from typing import Any

from treq.client import HTTPClient
from treq.cookies import IndexableCookieJar
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers

from delta_proxy.upstream.client import LOST, Upstream
from delta_proxy.upstream.relay import drop
from delta_proxy.upstream.retry import bounded
from delta_proxy.upstream.spool import TooLarge

_HEADERS = {"accept": ["application/json"], "user-agent": ["delta-s3-proxy"]}


class NotFetched(Exception):
    """There is no such document, or none that is whole and small enough."""


async def fetch(upstream: Upstream, url: str, *, limit: int) -> bytes:
    """The body of a 200 answer of at most `limit` bytes. Raises NotFetched.

    A body that only the end of the connection ends counts as whole: what it is must be told by its text.
    """
    pacing = upstream.pacing
    seconds = pacing.timeouts.connect + pacing.timeouts.first_byte
    try:
        response = await bounded(_sent(upstream, url), pacing.clock, seconds, drop)
        if response.code != 200:
            drop(response)
            raise NotFetched(f"{url}: status {response.code}")
        body = _Body(limit)
        response.deliverBody(body)
        return await bounded(body.whole, pacing.clock, pacing.timeouts.idle, _nothing)
    except (*LOST, TooLarge, ValueError) as error:
        raise NotFetched(f"{url}: {type(error).__name__} {error}") from None


def _sent(upstream: Upstream, url: str) -> Deferred[Any]:
    """The answer to a GET; its body is not read yet. No cookie is ever sent back."""
    jar = IndexableCookieJar(policy=DefaultCookiePolicy(allowed_domains=[]))
    answer: Deferred[Any] = HTTPClient(upstream.agent, cookiejar=jar).get(
        url,
        headers=Headers(_HEADERS),
        allow_redirects=False,
        unbuffered=True,
        # Only its own time-out would need one; without it treq imports the global reactor.
        reactor=upstream.pacing.clock,  # type: ignore[arg-type]
    )
    return answer


class _Body(Protocol):
    """Gathers a body; one that is too large, or that nobody waits for any more, is aborted."""

    transport: Any

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0
        self.whole: Deferred[bytes] = Deferred(lambda _: self._abort())

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        self._size += len(data)
        self._parts.append(data)
        if self._size > self._limit and not self.whole.called:
            self.whole.errback(TooLarge(f"more than {self._limit} bytes"))
            self._abort()

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: N802
        if self.whole.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.whole.callback(b"".join(self._parts))
        else:
            self.whole.errback(reason)

    def _abort(self) -> None:
        if self.transport is not None:
            # Which aborts: see agent.
            self.transport.stopProducing()


def _nothing(_: bytes) -> None:
    """A body that comes too late needs no clearing away."""
