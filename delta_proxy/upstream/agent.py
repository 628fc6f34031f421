"""The HTTP client side of the proxy: a pool of kept connections whose requests can be aborted at once."""

from __future__ import annotations

from typing import Any, Protocol, cast

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IReactorTime, IStreamClientEndpoint
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.web.client import (
    URI,
    Agent,
    BrowserLikePolicyForHTTPS,
    HTTPConnectionPool,
    _HTTP11ClientFactory,
)
from twisted.web.http_headers import Headers as WireHeaders
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IPolicyForHTTPS, IResponse
from zope.interface import implementer

from delta_proxy.upstream.bulk_tls import BulkTLSFactory
from delta_proxy.upstream.http1 import Origin, Pairs, ReadClient
from delta_proxy.upstream.relay import drop
from delta_proxy.upstream.retry import Timeouts, bounded

# Below the 60 s after which stores and load balancers drop an idle connection.
_KEEP_SECONDS = 55


WHOLE = 64 * 1024
"""Bodies of up to so many bytes are waited for: in one piece with the head, they need no relay."""


class Reads(Protocol):
    """Sends GET and HEAD, which may be repeated."""

    def request(
        self, method: str, origin: Origin, target: str, fields: Pairs, seconds: float
    ) -> Deferred[IResponse]:
        """The answer's head; cancelling it ends the request. `fields` go as they are, Host among them.

        Fails with TookTooLong after so many seconds.
        """
        ...


class AgentReads:
    """Reads by an agent: the way for what is no socket, and what `ReadClient` is held to."""

    def __init__(self, agent: IAgent, clock: IReactorTime) -> None:
        self._agent = agent
        self._clock = clock

    def request(
        self, method: str, origin: Origin, target: str, fields: Pairs, seconds: float
    ) -> Deferred[IResponse]:
        """The answer's head."""
        wire = WireHeaders()
        for name, value in fields:
            wire.addRawHeader(name.encode("latin-1"), value.encode("latin-1"))
        url = f"{origin[0]}://{origin[1]}{target}".encode("ascii")
        sending = self._agent.request(method.encode("ascii"), url, wire, None)
        return bounded(sending, self._clock, seconds, drop)


class _AbortingTransport(ProtocolWrapper):
    """A transport that is aborted when its producer side is stopped.

    A response body reaches its transport only through pause, resume, stop and loseConnection. The last one
    waits on TLS for the peer's close_notify, which a paused connection never reads; so stopping means to
    abort.
    """

    def stopProducing(self) -> None:  # noqa: N802
        self.abortConnection()


class _AbortingFactory(WrappingFactory):
    protocol = _AbortingTransport
    noisy = False


def _unwrapped(wrapper: IProtocol) -> IProtocol:
    return cast(ProtocolWrapper, wrapper).wrappedProtocol


@implementer(IStreamClientEndpoint)
class _AbortingEndpoint:
    def __init__(self, endpoint: IStreamClientEndpoint) -> None:
        self._endpoint = endpoint

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:  # noqa: N803
        connected = self._endpoint.connect(_AbortingFactory(protocolFactory))  # type: ignore[no-untyped-call]
        return connected.addCallback(_unwrapped)


@implementer(IStreamClientEndpoint)
class _TLSEndpoint:
    """As Twisted's `wrapClientTLS` makes it, with the protocol that is made for bodies."""

    def __init__(self, creator: Any, endpoint: IStreamClientEndpoint, clock: Any) -> None:
        self._creator = creator
        self._endpoint = endpoint
        self._clock = clock

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:  # noqa: N803
        secure = BulkTLSFactory(self._creator, True, protocolFactory, self._clock)
        connected = self._endpoint.connect(secure)
        return connected.addCallback(_unwrapped)


@implementer(IAgentEndpointFactory)
class _Endpoints:
    """`aborting` is for protocols that know no other way to end a connection than to stop its reading."""

    def __init__(
        self, reactor: object, policy: IPolicyForHTTPS, connect_timeout: float, *, aborting: bool
    ) -> None:
        self._reactor = reactor
        self._policy = policy
        self._timeout = connect_timeout
        self._aborting = aborting

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:  # noqa: N802
        endpoint: IStreamClientEndpoint = HostnameEndpoint(
            self._reactor, uri.host, uri.port, timeout=self._timeout
        )
        if uri.scheme == b"https":
            creator = self._policy.creatorForNetloc(uri.host, uri.port)
            endpoint = _TLSEndpoint(creator, endpoint, self._reactor)
        return _AbortingEndpoint(endpoint) if self._aborting else endpoint


class _QuietFactory(_HTTP11ClientFactory):
    """Makes connections without two lines in the log for each."""

    noisy = False


def make_pool(reactor: object, *, connections: int = 256) -> HTTPConnectionPool:
    """A pool that keeps up to `connections` idle connections a host. Retries are the caller's, not the
    pool's.
    """
    pool = HTTPConnectionPool(reactor, persistent=True)  # type: ignore[no-untyped-call]
    pool.maxPersistentPerHost = connections
    pool.cachedConnectionTimeout = _KEEP_SECONDS
    pool.retryAutomatically = False
    pool._factory = _QuietFactory
    return pool


def make_endpoints(
    reactor: object, *, timeouts: Timeouts | None = None, policy: IPolicyForHTTPS | None = None
) -> IAgentEndpointFactory:
    """Where an agent's connections go; they are aborted when their reading is stopped. TLS by the platform's
    trust roots unless a policy is given.
    """
    return _endpoints(reactor, timeouts, policy, aborting=True)


def _endpoints(
    reactor: object, timeouts: Timeouts | None, policy: IPolicyForHTTPS | None, *, aborting: bool
) -> IAgentEndpointFactory:
    trust = policy or BrowserLikePolicyForHTTPS()  # type: ignore[no-untyped-call]
    return _Endpoints(reactor, trust, (timeouts or Timeouts()).connect, aborting=aborting)


def make_agent(
    reactor: object,
    pool: HTTPConnectionPool,
    *,
    timeouts: Timeouts | None = None,
    policy: IPolicyForHTTPS | None = None,
) -> IAgent:
    """An agent over that pool; TLS by the platform's trust roots unless a policy is given."""
    endpoints = make_endpoints(reactor, timeouts=timeouts, policy=policy)
    agent: IAgent = Agent.usingEndpointFactory(reactor, endpoints, pool)  # type: ignore[no-untyped-call]
    return agent


def make_reads(
    reactor: IReactorTime,
    *,
    clock: IReactorTime | None = None,
    connections: int = 256,
    whole: int = WHOLE,
    timeouts: Timeouts | None = None,
    policy: IPolicyForHTTPS | None = None,
) -> ReadClient:
    """A client for reads that keeps up to `connections` idle connections an origin; trust as `make_agent`
    has it. Its own timers are the clock's, if one is given. Bodies of up to `whole` bytes come with their
    head.
    """
    return ReadClient(
        clock or reactor,
        _endpoints(reactor, timeouts, policy, aborting=False),
        connections=connections,
        whole=whole,
    )
