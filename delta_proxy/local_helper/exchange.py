"""A request passed on to the proxy it names, and the proxy's 307 followed to the store.

The client's method, path, query and signed fields reach the proxy as they were sent, so that its signature
stays valid there. The store gets what the presigned URL says, with the client's range and conditions.
A body from the store that is cut is asked for again from where it ended, by the same URL and, when that has
expired, by a new one; a body from the proxy is not, as its range may be among the signed fields.
"""

# mypy: allow-untyped-calls
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import IConsumer, IDelayedCall
from twisted.logger import Logger
from twisted.web._newclient import HTTP11ClientProtocol, ParseError, Request, RequestGenerationFailed
from twisted.web.client import URI, HTTPConnectionPool
from twisted.web.http_headers import Headers as WireHeaders
from twisted.web.iweb import UNKNOWN_LENGTH, IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from delta_proxy.local_helper.signing import Signer
from delta_proxy.local_helper.targets import (
    Fields,
    Target,
    first,
    host_field,
    presigned,
    to_the_proxy,
    to_the_store,
)
from delta_proxy.s3.errors import ServiceUnavailable
from delta_proxy.upstream.client import LOST
from delta_proxy.upstream.relay import Silence, Span, UpstreamResponse, drop
from delta_proxy.upstream.retry import Pacing, bounded
from delta_proxy.upstream.upload import reset

_REDIRECT, _DENIED, _NOT_MODIFIED = 307, 403, 304
_REPEATABLE = frozenset({b"GET", b"HEAD"})
# No upload lasts so long: its waits are bounded one by one.
_LONGEST_UPLOAD = 7 * 24 * 3600.0

_log = Logger()


class BodySource(Protocol):
    """The body of a client's request: nothing of it comes before it is started."""

    def start(self, upload: Upload) -> None:
        """Give the upload what has come, and from now on what comes."""

    def pause(self) -> None:
        """Take nothing more from the client."""

    def resume(self) -> None:
        """Take more from the client, which has to send it in time."""


@implementer(IBodyProducer)
class Upload:
    """A client's body on its way to the proxy, with back-pressure; `length` in bytes, None for chunked.

    While the proxy is to move (it takes nothing more, or has everything and does not answer), it has
    `seconds` for that.
    """

    def __init__(self, source: BodySource, length: int | None, pacing: Pacing) -> None:
        self.length: Any = UNKNOWN_LENGTH if length is None else length
        self.timed_out = False
        self._source = source
        self._pacing = pacing
        self._consumer: IConsumer | None = None
        self._done: Deferred[None] | None = None
        self._timer: IDelayedCall | None = None
        self._give_up: Callable[[], object] | None = None

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:  # noqa: N802
        self._consumer = consumer
        self._done = Deferred()
        done = self._done
        self._source.start(self)
        return done

    def pauseProducing(self) -> None:  # noqa: N802
        if self._done is not None:
            self._source.pause()
            self._expect()

    def resumeProducing(self) -> None:  # noqa: N802
        if self._done is not None:
            self._relax()
            self._source.resume()

    def stopProducing(self) -> None:  # noqa: N802
        if self._done is not None:
            self._done = None
            self._source.pause()
            # The answer tells why, or the connection; nobody tells of an answer that is none of HTTP's.
            self._expect()

    def received(self, data: bytes) -> None:
        """For the source: body bytes."""
        if self._done is not None and self._consumer is not None:
            self._consumer.write(data)

    def ended(self) -> None:
        """For the source: that was all."""
        done, self._done = self._done, None
        if done is not None:
            self._expect()
            done.callback(None)

    def watch(self, give_up: Callable[[], object]) -> None:
        """Call `give_up` once the proxy lets the upload wait for too long."""
        self._give_up = give_up

    def answered(self) -> None:
        """The proxy has answered, or never will: it gets nothing more of the body."""
        self._give_up = None
        self._relax()
        if self._done is not None:
            self._done = None
            reset(self._consumer)

    def _expect(self) -> None:
        self._relax()
        if self._give_up is not None:
            self._timer = self._pacing.clock.callLater(self._pacing.timeouts.first_byte, self._expired)

    def _relax(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _expired(self) -> None:
        self._timer = None
        self.timed_out = True
        if self._give_up is not None:
            self._give_up()


class Origins:
    """Requests to any origin, with the request target byte for byte as given.

    Agent is not used: it takes a URI apart and builds the target anew. A read goes by a kept connection when
    there is one, everything else by a new one, as it could not be repeated when the kept one proves dead.
    """

    def __init__(
        self, endpoints: IAgentEndpointFactory, kept: HTTPConnectionPool, single: HTTPConnectionPool
    ) -> None:
        self._endpoints = endpoints
        self._kept = kept
        self._single = single

    def request(
        self, method: bytes, target: Target, fields: Fields, body: IBodyProducer | None
    ) -> Deferred[IResponse]:
        """The answer's head."""
        pool = self._kept if method in _REPEATABLE and body is None else self._single
        origin = target.origin
        endpoint = self._endpoints.endpointForURI(URI.fromBytes(f"{origin.url}/".encode("ascii")))
        wire = WireHeaders()
        for name, value in fields:
            wire.addRawHeader(name, value)
        request = Request(method, target.raw, wire, body, persistent=pool.persistent)
        connecting = pool.getConnection((origin.scheme, origin.host, origin.port), endpoint)

        def connected(connection: HTTP11ClientProtocol) -> Deferred[IResponse]:
            return connection.request(request)

        return connecting.addCallback(connected)


@frozen
class Asked:
    """A client's request: what it sent, taken apart."""

    method: bytes
    target: Target
    fields: Fields
    upload: Upload | None = None


class Exchange:
    """Gets the answer to a client's request. `signer` signs for clients that do not."""

    def __init__(self, origins: Origins, pacing: Pacing, signer: Signer | None = None) -> None:
        self._origins = origins
        self._pacing = pacing
        self._signer = signer

    async def open(self, asked: Asked) -> UpstreamResponse:
        """The answer of the store when the proxy sends there, else that of the proxy.

        Its body must be taken with `send_body` or given up with `discard`. Raises ServiceUnavailable when one
        of them cannot be reached or does not answer.
        """
        response = await self._ask(asked)
        store = _redirection(asked, response)
        if store is None:
            return self._answer(asked, response, None)
        drop(response)
        response = await self._fetch(store, to_the_store(store, asked.fields))
        if 300 <= response.code < 400 and response.code != _NOT_MODIFIED:
            drop(response)
            raise ServiceUnavailable("The store sends the request elsewhere.")
        return self._answer(asked, response, store)

    def _answer(self, asked: Asked, response: IResponse, store: Target | None) -> UpstreamResponse:
        return UpstreamResponse(
            response,
            pacing=self._pacing,
            observer=Silence(),
            release=_nothing,
            reopen=None if store is None else functools.partial(self._reopen, asked, store),
            bodiless=asked.method == b"HEAD",
        )

    async def _ask(self, asked: Asked) -> IResponse:
        fields = to_the_proxy(asked.target, asked.fields)
        if self._signer is not None:
            host = host_field(asked.target, asked.fields)
            fields = await self._signer.sign(asked.method, asked.target, host, fields)
        if asked.method in _REPEATABLE and asked.upload is None:
            return await self._repeat(asked.method, asked.target, fields)
        if asked.upload is None and first(asked.fields, b"content-length") is not None:
            fields = (*fields, *_empty_body(asked.method))
        return await self._send_once(asked, fields)

    async def _fetch(self, store: Target, fields: Fields) -> IResponse:
        return await self._repeat(b"GET", store, fields)

    async def _reopen(self, asked: Asked, store: Target, span: Span) -> IResponse:
        """The rest of a body: by the same URL, or by a new one when the store does not take that any more."""
        rest = (
            (b"range", b"bytes=%d-%d" % (span.first, span.last)),
            (b"if-match", span.etag.encode("ascii")),
        )
        response = await self._fetch(store, to_the_store(store, rest))
        if response.code != _DENIED:
            return response
        drop(response)
        response = await self._ask(asked)
        renewed = _redirection(asked, response)
        drop(response)
        if renewed is None:
            raise ServiceUnavailable("The proxy does not send to the store any more.")
        return await self._fetch(renewed, to_the_store(renewed, rest))

    async def _repeat(self, method: bytes, target: Target, fields: Fields) -> IResponse:
        """A read, repeated when its connection was lost before there was an answer."""
        clock, timeouts = self._pacing.clock, self._pacing.timeouts
        retries = 0
        while True:
            sending = self._origins.request(method, target, fields, None)
            try:
                return await bounded(sending, clock, timeouts.connect + timeouts.first_byte, drop)
            except (*LOST, ParseError) as error:
                retries += 1
                if not _is_lost_connection(error) or retries >= self._pacing.policy.tries:
                    raise _unreachable(target, error) from None
            await self._pacing.sleep(self._pacing.jitter(retries - 1))

    async def _send_once(self, asked: Asked, fields: Fields) -> IResponse:
        """A request that changes something. Only a missing answer to a whole request is waited for."""
        clock, timeouts, upload = self._pacing.clock, self._pacing.timeouts, asked.upload
        sending = self._origins.request(asked.method, asked.target, fields, upload)
        seconds = timeouts.connect + timeouts.first_byte if upload is None else _LONGEST_UPLOAD
        outcome = bounded(sending, clock, seconds, drop)
        if upload is not None:
            upload.watch(outcome.cancel)
        try:
            return await outcome
        except (*LOST, ParseError, RequestGenerationFailed) as error:
            raise _unreachable(asked.target, error) from None
        except CancelledError as error:
            if upload is None or not upload.timed_out:
                raise
            raise _unreachable(asked.target, error) from None
        finally:
            if upload is not None:
                upload.answered()


def _redirection(asked: Asked, response: IResponse) -> Target | None:
    """Where a 307 sends a GET that the helper can follow, else None."""
    if asked.method != b"GET" or response.code != _REDIRECT:
        return None
    named = response.headers.getRawHeaders(b"location") or []
    return presigned(named[0]) if len(named) == 1 else None


def _empty_body(method: bytes) -> Fields:
    """Content-Length for an empty body, where the HTTP client does not write it by itself."""
    return () if method in {b"PUT", b"POST"} else ((b"content-length", b"0"),)


def _is_lost_connection(error: BaseException) -> bool:
    """Whether a connection was made and then closed or reset: a kept one may have been dead already."""
    reasons = [reason.value for reason in getattr(error, "reasons", None) or ()] or [error]
    return all(isinstance(reason, ConnectionClosed) for reason in reasons)


def _unreachable(target: Target, error: BaseException) -> ServiceUnavailable:
    reasons = getattr(error, "reasons", None) or ()
    text = "; ".join((f"{type(error).__name__} {error}", *(str(reason.value) for reason in reasons)))
    _log.warn("{origin}: {reason}", origin=target.origin.url, reason=text)
    return ServiceUnavailable(f"The helper got no answer from {target.origin.url}.")


def _nothing() -> None:
    """There is no slot to give back."""
