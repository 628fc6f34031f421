"""The HTTP edge of the helper: the proxy's own, with absolute targets, streamed uploads and CONNECT."""

# The names are those of Twisted's interfaces.
# ruff: noqa: N802, N815
# mypy: allow-untyped-calls
from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from attrs import field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.interfaces import IOpenSSLContextFactory, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers as WireHeaders
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from delta_proxy.local_helper.exchange import Asked, Exchange, Upload
from delta_proxy.local_helper.targets import (
    Origin,
    Target,
    host_field,
    parse_absolute,
    parse_authority,
    target_at,
    to_the_client,
)
from delta_proxy.local_helper.tunnel import Tunnel
from delta_proxy.logs import redact_target
from delta_proxy.resources.server import EdgeLimits, EdgeRequest, S3Channel, S3Site
from delta_proxy.s3.errors import InternalError, InvalidRequest, S3Error, ServiceUnavailable
from delta_proxy.upstream.relay import BodyCut, ConsumerGone
from delta_proxy.upstream.retry import Pacing

# An upload is passed on, not kept: its size is the store's to judge. A reader may dwell on what it has got.
LIMITS = EdgeLimits(connections=1024, requests=1024, body=5 * 1024**4, write_seconds=300.0)
_ESTABLISHED = b"HTTP/1.1 200 Connection Established\r\n\r\n"

_log = Logger()


@frozen
class Interception:
    """The https endpoints whose requests the helper reads, and the certificates it shows for them."""

    endpoints: frozenset[Origin]
    context: Callable[[str, datetime], IOpenSSLContextFactory]
    now: Callable[[], datetime]


@frozen
class Helper:
    """What the requests share."""

    reactor: Any
    exchange: Exchange
    pacing: Pacing
    interception: Interception | None = None
    tunnel_idle_seconds: float = 300.0
    limits: EdgeLimits = field(factory=lambda: LIMITS)


class HelperRequest(EdgeRequest):
    """A request to the helper. Its body is held until an upload starts it, and streamed from then on."""

    channel: HelperChannel
    _upload: Upload | None = None

    @property
    def body_length(self) -> int | None:
        """The body's length in bytes, None when it is chunked."""
        return self._length

    def start(self, upload: Upload) -> None:
        """Give the upload what has come; a client that waits for 100 Continue is told to send the rest."""
        self._upload = upload
        held, self._chunks = self._chunks, []
        for data in held:
            upload.received(data)
        if self._body_complete:
            upload.ended()
            return
        if self._expects_continue and not self.bytes_received:
            self.channel.send_continue()
        self.channel.await_body()

    def pause(self) -> None:
        """Take nothing more from the client."""
        if not self._disconnected:
            self.channel.body_ended()

    def resume(self) -> None:
        """Take more from the client, which has the edge's time for it."""
        if not self._disconnected and not self._body_complete:
            self.channel.await_body()

    def handleContentChunk(self, data: bytes) -> None:
        """Body bytes: for the upload, once there is one."""
        if self._upload is None:
            super().handleContentChunk(data)
        elif not self.finished and not self._disconnected:
            self.bytes_received += len(data)
            self.channel.still_coming()
            self._upload.received(data)

    def body_received(self) -> None:
        """That was the last byte of the body."""
        super().body_received()
        if self._upload is not None:
            self.channel.body_ended()
            self._upload.ended()

    def established(self) -> None:
        """The connection speaks TLS from now on: this request is over, without an answer of its own."""
        self.startedWriting = 1
        self.setResponseCode(200)
        self.site.finished(self.record(aborted=False))

    def tunnelled(self, tunnel: Tunnel) -> None:
        """The connection is a tunnel until it is lost, and this request with it."""
        self.startedWriting = 1
        self.setResponseCode(200)
        self.channel.open_tunnel(tunnel)


class HelperChannel(S3Channel):
    """A connection to the helper. After CONNECT it is a tunnel, or speaks TLS as the `inside` origin."""

    site: HelperSite

    def __init__(self) -> None:
        super().__init__()
        self.inside: Origin | None = None
        self._tunnel: Tunnel | None = None

    def dataReceived(self, data: bytes) -> None:
        """Bytes from the client."""
        if self._tunnel is None:
            super().dataReceived(data)
        else:
            self._tunnel.from_client(data)

    def readConnectionLost(self) -> None:
        """The client sends nothing more."""
        if self._tunnel is None:
            super().readConnectionLost()
        else:
            self._tunnel.client_ended()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The client is gone."""
        tunnel, self._tunnel = self._tunnel, None
        if tunnel is not None:
            tunnel.client_lost(reason)
        super().connectionLost(reason)

    def pauseProducing(self) -> None:
        """The client does not take what it is sent."""
        if self._tunnel is None:
            super().pauseProducing()
        else:
            self._tunnel.pause()

    def resumeProducing(self) -> None:
        """The client takes more."""
        if self._tunnel is None:
            super().resumeProducing()
        else:
            self._tunnel.resume()

    def still_coming(self) -> None:
        """A part of an awaited body came: the time for the next part begins."""
        if self._body_awaited:
            self.await_body()

    def open_tunnel(self, tunnel: Tunnel) -> None:
        """From now on bytes go to the tunnel and come from it."""
        self._tunnel = tunnel
        self.transport.write(_ESTABLISHED)
        held = self._take_held()
        if held:
            tunnel.from_client(held)

    def speak_tls(self, request: HelperRequest, inside: Origin, context: IOpenSSLContextFactory) -> None:
        """From now on this is a TLS connection whose requests are for that origin."""
        self.transport.write(_ESTABLISHED)
        self.requests.remove(request)
        request.established()
        self.inside = inside
        held = self._take_held()
        self.transport.startTLS(context)
        self._await_request()
        if held:
            self.transport.protocol.dataReceived(held)

    def _take_held(self) -> bytes:
        held = b"".join(self._dataBuffer)
        self._dataBuffer = []
        self._resume_reading()
        return held


class HelperSite(S3Site):
    """The factory of connections to the helper."""

    protocol: Any = HelperChannel
    requestFactory = HelperRequest

    def __init__(self, helper: Helper) -> None:
        super().__init__(HelperResource(helper), reactor=helper.reactor, limits=helper.limits)


class HelperResource(Resource):
    """Every request: passed on, or a tunnel."""

    isLeaf = True

    def __init__(self, helper: Helper) -> None:
        super().__init__()
        self._helper = helper

    def render(self, request: HelperRequest) -> int:
        """Start the answer; a client that goes away cancels it."""
        handle = self._connect if request.method == b"CONNECT" else self._pass_on
        work = Deferred.fromCoroutine(_guarded(request, handle))
        request.notifyFinish().addErrback(lambda _: work.cancel())
        return NOT_DONE_YET

    async def _pass_on(self, request: HelperRequest) -> None:
        target = _target(request)
        upload = (
            None if request.body_length == 0 else Upload(request, request.body_length, self._helper.pacing)
        )
        asked = Asked(request.method, target, request.raw_headers, upload)
        answer = await self._helper.exchange.open(asked)
        request.setResponseCode(answer.status)
        fields = to_the_client(answer.headers.items)
        # Also the fields that the edge sets: the answer is the upstream's.
        request.responseHeaders = WireHeaders()
        for name, value in fields:
            request.responseHeaders.addRawHeader(name, value)
        await answer.send_body(request)
        request.finish()

    async def _connect(self, request: HelperRequest) -> None:
        if request.channel.inside is not None or request.body_length != 0:
            raise InvalidRequest("CONNECT is for a connection of its own, and has no body.")
        origin = parse_authority(request.uri, "https")
        interception = self._helper.interception
        if interception is not None and origin in interception.endpoints:
            context = interception.context(origin.host, interception.now())
            request.channel.speak_tls(request, origin, context)
        else:
            await self._tunnel(request, origin)

    async def _tunnel(self, request: HelperRequest, origin: Origin) -> None:
        helper = self._helper
        clock: IReactorTime = helper.reactor
        tunnel = Tunnel(request.channel.transport, clock, helper.tunnel_idle_seconds)
        seconds = helper.pacing.timeouts.connect
        endpoint = HostnameEndpoint(helper.reactor, origin.host, origin.port, timeout=seconds)
        try:
            await connectProtocol(endpoint, tunnel)
        except (ConnectError, DNSLookupError) as error:
            _log.warn("{origin}: {reason}", origin=origin.authority, reason=str(error))
            raise ServiceUnavailable(f"The helper cannot reach {origin.authority}.") from None
        request.tunnelled(tunnel)


async def _guarded(request: HelperRequest, handle: Callable[[HelperRequest], Any]) -> None:
    """Handle a request; whatever fails, the client sees an error or a reset, never a short answer."""
    try:
        await handle(request)
    except S3Error as error:
        request.fail(error)
    except BodyCut as cut:
        _log.warn("{target}: the body was cut: {cut}", target=redact_target(request.uri), cut=str(cut))
        request.abort()
    except (CancelledError, ConsumerGone):
        return
    except Exception:  # noqa: BLE001 - the last line of defence: whatever failed, the client gets an answer
        _log.failure("answering {target} failed", target=redact_target(request.uri))
        request.fail(InternalError())


def _target(request: HelperRequest) -> Target:
    """What a request is for: an absolute URI, or below the origin of an intercepted connection."""
    inside = request.channel.inside
    if inside is None:
        return parse_absolute(request.uri)
    target = target_at(inside, request.uri)
    if host_field(target, request.raw_headers) != _sent_host(request):
        raise InvalidRequest("The Host header names another host than the connection was made for.")
    return target


def _sent_host(request: HelperRequest) -> bytes:
    return request.requestHeaders.getRawHeaders(b"host", [b""])[0]
