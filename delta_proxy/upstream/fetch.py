"""A small document from the web, such as an issuer's keys: bounded in time and size, no redirects."""

from __future__ import annotations

from twisted.web.http_headers import Headers

from delta_proxy.upstream.client import LOST, Upstream
from delta_proxy.upstream.relay import BodyCut, Silence, UpstreamResponse, drop
from delta_proxy.upstream.retry import bounded
from delta_proxy.upstream.spool import MemorySpool, TooLarge

_HEADERS = {"accept": ["application/json"], "user-agent": ["delta-s3-proxy"]}


class NotFetched(Exception):
    """There is no such document, or none that is whole and small enough."""


async def fetch(upstream: Upstream, url: str, *, limit: int) -> bytes:
    """The body of a 200 answer of at most `limit` bytes. Raises NotFetched."""
    pacing = upstream.pacing
    seconds = pacing.timeouts.connect + pacing.timeouts.first_byte
    try:
        sending = upstream.agent.request(b"GET", url.encode("ascii"), Headers(_HEADERS), None)
        response = await bounded(sending, pacing.clock, seconds, drop)
    except (*LOST, ValueError) as error:
        raise NotFetched(f"{url}: {type(error).__name__} {error}") from None
    answer = UpstreamResponse(response, pacing=pacing, observer=Silence(), release=_nothing)
    spool = MemorySpool(limit)
    try:
        if answer.status != 200:
            raise NotFetched(f"{url}: status {answer.status}")
        await answer.send_body(spool)
    except (BodyCut, TooLarge) as error:
        raise NotFetched(f"{url}: {error}") from None
    finally:
        answer.discard()
    return spool.body


def _nothing() -> None:
    """No slot to give back."""
