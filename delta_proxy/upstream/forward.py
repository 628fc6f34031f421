"""Requests that the client signed for the real bucket: which store they are for, and sending them on.

Nothing is signed here. Host, path, query and header fields go on as they came, so the store verifies what
the client signed; the connection goes to the configured endpoint of a table, never to a host that only the
client named.
"""

from __future__ import annotations

import re
from bisect import bisect_right, insort
from collections.abc import Mapping
from functools import cached_property
from operator import itemgetter

from attrs import frozen
from twisted.logger import Logger
from twisted.web._newclient import RequestGenerationFailed
from twisted.web.http_headers import Headers as WireHeaders
from twisted.web.iweb import IResponse

from delta_proxy.s3.errors import InvalidRequest, InvalidURI, ServiceUnavailable
from delta_proxy.s3.request import S3Request
from delta_proxy.upstream.client import LOST, Upstream
from delta_proxy.upstream.origin import DEFAULT_REGION, Origin, aws_partition
from delta_proxy.upstream.relay import BodyCut, UpstreamResponse, drop
from delta_proxy.upstream.retry import bounded
from delta_proxy.upstream.spool import MemorySpool, TooLarge
from delta_proxy.upstream.stores import AddressingStyle, TableLocation
from delta_proxy.upstream.upload import Exchange, Source, whole

MODE_HEADER = "x-proxy-auth-mode"

# Fields of the connection (RFC 9110 section 7.6.1), and those that are for the proxy alone.
_NOT_SENT = frozenset(
    {
        *("connection", "content-length", "expect", "host", "keep-alive", "proxy-authenticate"),
        *("proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
        MODE_HEADER,
    }
)
_SIGNING = frozenset({"authorization", "host"})
_AWS = re.compile(
    r"(?:[a-z0-9][a-z0-9.-]*\.)?(s3(?:[.-](?:dualstack\.)?[a-z]{2}(?:-[a-z]+)+-[0-9])?\.amazonaws\.com(?:\.cn)?)"
)
_PRINTABLE = re.compile(rb"[!-~]+")
_TRIES = 3
# A store that puts together or copies gigabytes may be silent meanwhile.
_WRITE_SECONDS = 300.0
_SMALL = 64 * 1024

_log = Logger()


@frozen
class Route:
    """The store a host name belongs to: where it is reached, and the host below which its buckets are.

    `store` is equal for all names of one store.
    """

    store: str
    scheme: str
    netloc: str

    @property
    def domain(self) -> str:
        """The host without its port."""
        return re.sub(r":[0-9]+$", "", self.netloc)


@frozen
class ForwardMap:
    """The tables by where they really lie."""

    tables: Mapping[str, TableLocation]

    def route(self, authority: str) -> Route | None:
        """The store that a host (and port) of a request belongs to; None for any other.

        A host with a bucket in it belongs to AWS and to stores of virtual-host style alone.
        """
        name = re.sub(r":(80|443)$", "", authority.lower())
        for location in self.tables.values():
            if location.store.endpoint is None:
                found = _AWS.fullmatch(name)
                if found is not None and aws_partition(found[1]) == aws_partition(_regional(location)):
                    return Route(_store_of(location), "https", found[1])
                continue
            origin = Origin.of(location.store, "")
            host = origin.host.lower()
            # A store without virtual hosts takes the bucket from the path, whatever stands before its name.
            virtual = location.store.addressing_style is AddressingStyle.VIRTUAL
            if name == host or (virtual and name.endswith("." + host)):
                return Route(_store_of(location), origin.scheme, origin.host)
        return None

    def below(self, route: Route, bucket: str) -> tuple[tuple[str, TableLocation], ...]:
        """The tables in a bucket of a store, with their aliases; "" is every bucket."""
        return tuple(
            (alias, location)
            for alias, location in sorted(self.tables.items())
            if _store_of(location) == route.store and bucket in {"", location.bucket}
        )

    def locate(self, route: Route, bucket: str, key: str) -> tuple[str, str] | None:
        """The alias and the path below the table's root that a key is; None outside every table."""
        roots = self._roots.get((route.store, bucket), ())
        # No table holds another, so it can be none but the last that begins before the key.
        at = bisect_right(roots, key, key=itemgetter(0)) - 1
        if at < 0 or not key.startswith(roots[at][0]):
            return None
        root, alias = roots[at]
        return alias, key[len(root) :]

    @cached_property
    def _roots(self) -> Mapping[tuple[str, str], list[tuple[str, str]]]:
        """Where the tables of each bucket of each store begin, in order, with their aliases."""
        found: dict[tuple[str, str], list[tuple[str, str]]] = {}
        for alias, location in self.tables.items():
            place = (_store_of(location), location.bucket)
            insort(found.setdefault(place, []), (location.key(""), alias))
        return found


class Forwarder:
    """Sends a request on as it came."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def send(self, route: Route, s3: S3Request) -> UpstreamResponse:
        """The store's answer, whatever it is; take its body or discard it.

        A connection that is lost before there was an answer is tried again. Raises ServiceUnavailable when
        the store does not answer, SlowDown when too many requests are in flight, InvalidURI for a target that
        HTTP cannot carry or that stores read in two ways, InvalidRequest when Connection names a field of the
        signature.
        """
        url = _url(route, s3)
        slot = await self._upstream.slots(route.store).acquire(streamed=s3.method == "GET")
        try:
            response = await self._exchange(s3, url)
        except BaseException:
            slot.release()
            raise
        return UpstreamResponse(
            response,
            pacing=self._upstream.pacing,
            observer=self._upstream.observer,
            release=slot.release,
            bodiless=s3.method == "HEAD",
        )

    async def write(
        self, route: Route, s3: S3Request, length: int | None, source: Source | None
    ) -> UpstreamResponse:
        """The store's answer to a write, whatever it is; take its body or discard it.

        `source` writes the body as it came, `length` bytes or as many as there are; None where there is none.
        Nothing is sent twice. Raises as `send`, and what the source raises.
        """
        pacing, url, headers = self._upstream.pacing, _url(route, s3), _fields(s3)
        slot = await self._upstream.slots(route.store).acquire(streamed=True)
        started = pacing.clock.seconds()
        exchange = Exchange(pacing.clock, idle=pacing.timeouts.idle, patience=_WRITE_SECONDS)
        try:
            response = await exchange.run(
                self._upstream.agent, s3.method, url, headers, length, source or whole(b"")
            )
        except (*LOST, RequestGenerationFailed) as error:
            slot.release()
            self._observe(s3, type(error).__name__, started)
            _log.warn("{host}: {error}", host=s3.host, error=str(error))
            raise ServiceUnavailable from None
        except BaseException:
            slot.release()
            raise
        self._observe(s3, str(response.code), started)
        return UpstreamResponse(
            response, pacing=pacing, observer=self._upstream.observer, release=slot.release
        )

    async def _exchange(self, s3: S3Request, url: bytes) -> IResponse:
        pacing, headers = self._upstream.pacing, _fields(s3)
        for attempt in range(_TRIES):
            started = pacing.clock.seconds()
            seconds = pacing.timeouts.connect + pacing.timeouts.first_byte
            try:
                sending = self._upstream.agent.request(s3.method.encode(), url, headers, None)
                response: IResponse = await bounded(sending, pacing.clock, seconds, drop)
            except LOST as error:
                self._observe(s3, type(error).__name__, started)
                _log.warn("{host}: {error}", host=s3.host, error=str(error))
                if attempt + 1 < _TRIES:
                    await pacing.sleep(pacing.jitter(attempt))
            else:
                self._observe(s3, str(response.code), started)
                return response
        raise ServiceUnavailable

    def _observe(self, s3: S3Request, outcome: str, started: float) -> None:
        seconds = self._upstream.pacing.clock.seconds() - started
        self._upstream.observer.request_finished(s3.operation.value, outcome, seconds)


async def small_body(answer: UpstreamResponse) -> bytes:
    """The body of an answer that should be small, b"" when it cannot be had or is not."""
    spool = MemorySpool(_SMALL)
    try:
        await answer.send_body(spool)
    except (BodyCut, TooLarge):
        return b""
    return spool.body


def _store_of(location: TableLocation) -> str:
    if location.store.endpoint is None:
        return aws_partition(_regional(location))
    return Origin.of(location.store, "").host.lower()


def _regional(location: TableLocation) -> str:
    return f"s3.{location.store.region or DEFAULT_REGION}."


def _url(route: Route, s3: S3Request) -> bytes:
    return b"%b://%b%b" % (route.scheme.encode(), route.netloc.encode("ascii"), _target(s3))


def _target(s3: S3Request) -> bytes:
    target = s3.raw_path + (b"?" + s3.raw_query if s3.raw_query else b"")
    # AWS takes a plus for a space, and some servers a semicolon for the end of a name or of a parameter: they
    # would answer another request than was judged. SDKs encode both.
    if b"+" in s3.raw_path or b";" in target:
        raise InvalidURI
    # Agent would refuse it by an error that is no answer.
    if not _PRINTABLE.fullmatch(target):
        raise InvalidURI
    return target


def _fields(s3: S3Request) -> WireHeaders:
    named = {token.strip().lower() for value in s3.headers.all("connection") for token in value.split(",")}
    if any(name in _SIGNING or name.startswith("x-amz-") for name in named):
        # Without them the store would answer somebody else than the one who the proxy takes the client for.
        raise InvalidRequest("What the store verifies is no field of the connection.")
    wire = WireHeaders({"host": [s3.host]})
    for name, value in s3.headers.items:
        if name not in _NOT_SENT and name not in named:
            wire.addRawHeader(name.encode("ascii"), value.encode("latin-1"))
    return wire
