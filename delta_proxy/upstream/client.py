"""The store as one table sees it: every path is relative to the table's root, so what was authorised is
what is asked.

A request is signed with SigV4, sent, and repeated while that is safe: only reads, and only before the first
byte of the answer has been passed on. What the store says of a failure goes to the log; the client gets
S3's code and nothing of the store.

Sources: "Error responses" and "ListObjectsV2" in the Amazon S3 API reference; "Making requests" there for
region redirects.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple

import attrs
from attrs import field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError, ConnectionClosed, DNSLookupError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web._newclient import RequestNotSent
from twisted.web.client import RequestTransmissionFailed, ResponseFailed
from twisted.web.http_headers import Headers as WireHeaders
from twisted.web.iweb import IAgent, IResponse

from delta_proxy.s3 import sigv4, xml
from delta_proxy.s3.errors import (
    AccessDenied,
    InternalError,
    InvalidPartNumber,
    InvalidRange,
    InvalidRequest,
    NoSuchKey,
    NotImplementedByProxy,
    NotModified,
    PreconditionFailed,
    S3Error,
    ServiceUnavailable,
)
from delta_proxy.s3.headers import Headers, wire_text
from delta_proxy.upstream.agent import AgentReads, Reads
from delta_proxy.upstream.credentials import CredentialSource
from delta_proxy.upstream.origin import DEFAULT_REGION, Address, Origin, address, is_region
from delta_proxy.upstream.relay import BodyCut, Span, UpstreamObserver, UpstreamResponse
from delta_proxy.upstream.retry import (
    RETRYABLE_STATUSES,
    Pacing,
    RetryBudget,
    RetryPolicy,
    Timeouts,
    TookTooLong,
    parse_retry_after,
)
from delta_proxy.upstream.slots import Slots
from delta_proxy.upstream.splice import Splicing
from delta_proxy.upstream.spool import DeferToPool, FileSpool, MemorySpool, TooLarge
from delta_proxy.upstream.stores import TableLocation

Pairs = tuple[tuple[str, str], ...]

# A page of 1000 keys of 1024 escaped bytes is about 4 MB.
_MAX_LISTING = 16 * 1024 * 1024
_MAX_ERROR_DOCUMENT = 64 * 1024
# S3 refuses requests that are off by 15 minutes; a smaller difference is not what made it refuse.
_SKEW_THAT_MATTERS = 300.0
_USER_AGENT = "delta-s3-proxy"
# Set here and by the HTTP client, never by the caller.
_OWN_HEADERS = frozenset(
    {
        *("accept-encoding", "authorization", "connection", "content-length", "cookie", "host", "keep-alive"),
        *("proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
        *("user-agent", "x-amz-content-sha256", "x-amz-date", "x-amz-security-token"),
    }
)
_CONDITIONS = frozenset(
    {"range", "if-range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since"}
)
_NOT_MODIFIED_HEADERS = frozenset({"cache-control", "etag", "expires", "last-modified"})
# What Agent and ReadClient fail with when there was no answer.
LOST = (
    ConnectError,
    ConnectionClosed,
    DNSLookupError,
    RequestNotSent,
    RequestTransmissionFailed,
    ResponseFailed,
    TookTooLong,
)
_REFUSED = "the store refused the proxy's credentials"
# Faults of what a client sent, and what the trial of a store asks for.
_OF_THE_BODY: Final = frozenset({"BadDigest", "XAmzContentSHA256Mismatch"})

_log = Logger()


class ListedObject(NamedTuple):
    """An object in a listing: path relative to the table root, size in bytes, quoted ETag, ISO 8601 time.

    A page has a thousand of them, and a tuple is made in a fifth of the time.
    """

    path: str
    size: int
    etag: str
    last_modified: str
    storage_class: str


# Past the constructor of a named tuple, which is a function in Python.
_listed = functools.partial(tuple.__new__, ListedObject)


@frozen
class ListPage:
    """A page of a listing, sorted. `token` continues a truncated one."""

    objects: tuple[ListedObject, ...]
    prefixes: tuple[str, ...]
    truncated: bool
    token: str | None = None


@frozen
class SmallObject:
    """A whole object, its quoted ETag and its Last-Modified as the store wrote it."""

    body: bytes
    etag: str
    last_modified: str


@frozen
class ObjectStat:
    """An object's size in bytes, its quoted ETag and its Last-Modified as the store wrote it."""

    size: int
    etag: str
    last_modified: str


@frozen
class Downloaded:
    """The size in bytes and the quoted ETag of an object that is now a file."""

    size: int
    etag: str


@frozen
class StoreRequest:
    """A request to the store; `key` is the object's, None is the bucket. `payload_hash` signs the body."""

    operation: str
    method: str
    key: str | None
    query: Pairs = ()
    headers: Pairs = ()
    payload_hash: str = sigv4.EMPTY_SHA256
    # The body goes to a client, who decides how long that takes.
    streamed: bool = False


@frozen
class Signed:
    """A request as it goes over the wire, and what it was signed with; `fields` are its header."""

    at: Address
    target: str
    fields: Pairs
    region: str
    moment: datetime
    credentials: sigv4.Credentials
    added: Pairs = field(repr=False)

    @property
    def url(self) -> str:
        """The absolute URL."""
        return f"{self.at.scheme}://{self.at.host}{self.target}"

    @property
    def wire(self) -> WireHeaders:
        """The header as Agent takes it."""
        wire = WireHeaders()
        for name, value in self.fields:
            wire.addRawHeader(name.encode("latin-1"), value.encode("latin-1"))
        return wire


@frozen
class Refusal:
    """An attempt that brought no body: the error to raise and what repeating it needs to know."""

    error: S3Error
    retryable: bool
    signed: Signed
    status: int | None = None
    code: str = ""
    region: str | None = None
    date: datetime | None = None
    retry_after: float | None = None


class _Host:
    """What the requests to one host share."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.budget = RetryBudget()


class Upstream:
    """The way to all stores. Agent, clock, thread pool, chance (numbers in [0, 1)) and observer are given.

    Objects are read by `reads`, which is the agent unless given; large bodies between plain sockets go by
    `splicing`.

    `in_flight` requests go to one host at a time, `queue` more wait for a place; the next is told to slow
    down.
    """

    def __init__(
        self,
        agent: IAgent,
        clock: IReactorTime,
        defer_to_pool: DeferToPool,
        random: Callable[[], float],
        observer: UpstreamObserver,
        *,
        reads: Reads | None = None,
        splicing: Splicing | None = None,
        timeouts: Timeouts | None = None,
        policy: RetryPolicy | None = None,
        in_flight: int = 256,
        queue: int = 1024,
    ) -> None:
        self.agent = agent
        self.reads = AgentReads(agent, clock) if reads is None else reads
        self.splicing = splicing
        self.pacing = Pacing(clock, random, timeouts or Timeouts(), policy or RetryPolicy())
        self.defer_to_pool = defer_to_pool
        self.observer = observer
        self.keys = sigv4.SigningKeys()
        self._in_flight = in_flight
        self._queue = queue
        self._hosts: dict[str, _Host] = {}

    def table(self, location: TableLocation, credentials: CredentialSource) -> TableClient:
        """A client for one table. Raises ValueError for an endpoint or region that cannot be one."""
        region = location.store.region
        if region is not None and not is_region(region):
            raise ValueError(f'"{region}" is not a region')
        return TableClient(
            self, location, credentials, self._host(Origin.of(location.store, region or "").host)
        )

    def slots(self, host: str) -> Slots:
        """The places for requests to a host, or whatever else the caller counts by: never a client's word."""
        return self._host(host).slots

    def _host(self, name: str) -> _Host:
        host = self._hosts.get(name)
        if host is None:
            clock, seconds = self.pacing.clock, self.pacing.timeouts.queue
            slots = Slots(clock, limit=self._in_flight, queue=self._queue, seconds=seconds)
            host = self._hosts[name] = _Host(slots)
        return host


class TableClient:
    """One table in its store, read with one set of credentials. Every method takes paths relative to the
    table root.

    Errors are S3Error: NoSuchKey, PreconditionFailed, NotModified, InvalidRange and InvalidPartNumber as
    the store has them, AccessDenied when it refuses the proxy, SlowDown when too many requests are in
    flight, ServiceUnavailable when it does not answer.
    """

    def __init__(
        self, upstream: Upstream, location: TableLocation, credentials: CredentialSource, host: _Host
    ) -> None:
        self.location = location
        self.upstream = self._upstream = upstream
        self._pacing = upstream.pacing
        self._credentials = credentials
        self._host = host
        self._region = location.store.region
        self._skew = 0.0

    @property
    def slots(self) -> Slots:
        """The places for requests to the table's host."""
        return self._host.slots

    async def list(
        self,
        prefix: str = "",
        *,
        delimiter: str = "",
        start_after: str = "",
        max_keys: int = 1000,
        token: str = "",
    ) -> ListPage:
        """A page of the objects below a prefix, by ListObjectsV2.

        `prefix` and `start_after` are relative to the table root; `token` is that of the page before.
        Directory markers are objects like others.
        """
        query = self._list_query(prefix, delimiter, start_after, max_keys, token)
        request = StoreRequest("ListObjectsV2", "GET", None, query=query)
        response = await self._open(request)
        body = await self._body(response, _MAX_LISTING)
        try:
            page = xml.parse_list_result(body)
        except xml.MalformedDocument as error:
            _log.error("{uri}: not a listing: {reason}", uri=self.location.uri, reason=str(error))
            raise InternalError() from None
        return self._list_page(page)

    async def read(self, path: str, *, limit: int, unless: str = "") -> SmallObject:
        """An object of at most `limit` bytes, in memory. Raises InternalError when it is larger, NotModified
        when it has the ETag `unless`.
        """
        response = await self._open_object("GET", path, (("if-none-match", unless),) if unless else ())
        body = await self._body(response, limit)
        headers = response.headers
        return SmallObject(body, headers.get("etag") or "", headers.get("last-modified") or "")

    async def download(self, path: str, into: pathlib.Path) -> Downloaded:
        """An object as a file, which appears only when it is complete. Its folder must exist.

        Raises InternalError when the disk does not take it, ServiceUnavailable when the body cannot be had
        whole.
        """
        response = await self._open_object("GET", path)
        spool = FileSpool(into, self._upstream.defer_to_pool)
        try:
            await spool.open()
            size = await response.send_body(spool)
            await spool.commit()
        except BodyCut as cut:
            self._log_failure(path, cut)
            raise ServiceUnavailable() from None
        except OSError as error:
            self._log_failure(path, error)
            raise InternalError() from None
        finally:
            response.discard()
            await spool.rollback()
        return Downloaded(size, response.headers.get("etag") or "")

    async def open(
        self, method: str, path: str, *, headers: Pairs = (), query: Pairs = ()
    ) -> UpstreamResponse:
        """GET or HEAD an object; the answer's body is not read yet.

        `headers` are the client's to pass on (Range, conditions, x-amz-*); those that belong to the
        connection or to the signature are left out. The caller must take the body with `send_body` or give
        it up with `discard`.
        """
        return await self._open_object(method, path, headers, query, streamed=method == "GET")

    async def _open_object(
        self, method: str, path: str, headers: Pairs = (), query: Pairs = (), *, streamed: bool = False
    ) -> UpstreamResponse:
        if method not in {"GET", "HEAD"}:
            raise ValueError(f"{method} is not a read")
        operation = "GetObject" if method == "GET" else "HeadObject"
        kept = tuple((name.lower(), value) for name, value in headers if name.lower() not in _OWN_HEADERS)
        return await self._open(
            StoreRequest(operation, method, self.location.object_key(path), query, kept, streamed=streamed)
        )

    async def stat(self, path: str) -> ObjectStat:
        """Size, ETag and Last-Modified of an object, by HEAD. Raises S3Error."""
        response = await self.open("HEAD", path)
        response.discard()
        headers = response.headers
        size = headers.get("content-length") or ""
        if not size.isdecimal():
            self._log_failure(path, ValueError("the store tells no size"))
            raise ServiceUnavailable()
        return ObjectStat(int(size), headers.get("etag") or "", headers.get("last-modified") or "")

    async def presign(self, path: str, *, headers: Pairs = (), query: Pairs = (), expires: int) -> str:
        """An absolute URL that GETs one object for `expires` seconds; `headers` are signed besides the
        host.
        """
        key = self.location.object_key(path)
        credentials = await self._credentials.get()
        region = self._region or await self._signing_region()
        at = address(self.location.store, region, self.location.bucket, key)
        now, keys = self._now(), self._upstream.keys
        signed = sigv4.presign(
            "GET", at.host, at.raw_path, query, headers, credentials, region, now, expires, keys
        )
        return f"{at.url}?{signed}"

    async def _open(self, request: StoreRequest) -> UpstreamResponse:
        slot = await self._host.slots.acquire(streamed=request.streamed)
        try:
            response = await self._exchange(request)
        except BaseException:
            slot.release()
            raise
        return UpstreamResponse(
            response,
            pacing=self._pacing,
            observer=self._upstream.observer,
            release=slot.release,
            reopen=None if request.key is None else functools.partial(self._reopen, request),
            bodiless=request.method == "HEAD",
            splicing=self._upstream.splicing,
        )

    async def _reopen(self, request: StoreRequest, span: Span) -> IResponse:
        kept = tuple((name, value) for name, value in request.headers if name not in _CONDITIONS)
        wanted = (("range", f"bytes={span.first}-{span.last}"), ("if-match", span.etag))
        # No store takes a range of a part, and the span is one of the whole object.
        query = tuple(pair for pair in request.query if pair[0] != "partNumber")
        return await self._exchange(attrs.evolve(request, headers=(*kept, *wanted), query=query))

    async def _body(self, response: UpstreamResponse, limit: int) -> bytes:
        spool = MemorySpool(limit)
        try:
            if response.length is not None and response.length > limit:
                raise TooLarge(f"{response.length} bytes where {limit} are the limit")
            await response.send_body(spool)
        except TooLarge as error:
            self._log_failure("a small object", error)
            raise InternalError() from None
        except BodyCut as error:
            self._log_failure("a small object", error)
            raise ServiceUnavailable() from None
        finally:
            response.discard()
        return spool.body

    async def _exchange(self, request: StoreRequest) -> IResponse:
        """The store's answer to a request, repeated as the policy has it. Raises S3Error for any but a
        2xx.
        """
        policy, budget = self._pacing.policy, self._host.budget
        deadline = self._pacing.clock.seconds() + policy.give_up_after
        learned: set[str] = set()
        retries = 0
        while True:
            outcome = await self._attempt(request)
            if not isinstance(outcome, Refusal):
                budget.give_back()
                return outcome
            if self.learn(outcome, learned):
                continue
            delay = self._pacing.jitter(retries, outcome.retry_after)
            retries += 1
            in_time = self._pacing.clock.seconds() + delay < deadline
            if not (outcome.retryable and retries < policy.tries and in_time and budget.take()):
                raise outcome.error
            await self._pacing.sleep(delay)

    async def _attempt(self, request: StoreRequest) -> IResponse | Refusal:
        signed = await self.signed(request)
        clock, timeouts = self._pacing.clock, self._pacing.timeouts
        started = clock.seconds()
        try:
            response = await self._send(request, signed, timeouts.connect + timeouts.first_byte)
        except LOST as error:
            self._observe(request, type(error).__name__, started)
            self._log_failure(request.operation, error)
            return Refusal(ServiceUnavailable(), retryable=True, signed=signed)
        self._observe(request, str(response.code), started)
        return response if response.code in {200, 206} else await self._refusal(request, signed, response)

    def _observe(self, request: StoreRequest, outcome: str, started: float) -> None:
        seconds = self._pacing.clock.seconds() - started
        self._upstream.observer.request_finished(request.operation, outcome, seconds)

    def _send(self, request: StoreRequest, signed: Signed, seconds: float) -> Deferred[IResponse]:
        origin = (signed.at.scheme, signed.at.host)
        return self._upstream.reads.request(request.method, origin, signed.target, signed.fields, seconds)

    async def signed(self, request: StoreRequest) -> Signed:
        """The request, signed now. Raises S3Error when there are no credentials."""
        credentials = await self._credentials.get()
        region = self._region or await self._signing_region()
        now = self._now()
        at = address(self.location.store, region, self.location.bucket, request.key)
        signed = sigv4.sign(
            request.method,
            at.host,
            at.raw_path,
            request.query,
            [(name, wire_text(value)) for name, value in request.headers if name.startswith("x-amz-")],
            request.payload_hash,
            credentials,
            region,
            now,
            self._upstream.keys,
        )
        # What an object is must come as it lies in the store, not packed.
        own = (("host", at.host), ("user-agent", _USER_AGENT), ("accept-encoding", "identity"))
        target = _with_query(at, request.query)
        fields = (*own, *request.headers, *signed)
        return Signed(at, target, fields, region, now, credentials, signed)

    async def _signing_region(self) -> str:
        if self._region is None:
            found = await self._credentials.region()
            self._region = found if found is not None and is_region(found) else DEFAULT_REGION
        return self._region

    def _now(self) -> datetime:
        return _moment(int(self._pacing.clock.seconds() + self._skew))

    def learn(self, refusal: Refusal, learned: set[str]) -> bool:
        """Whether the store told something that makes the request worth repeating at once; each thing once.

        It is held against what this request was signed with: another one may have learned it meanwhile.
        """
        signed = refusal.signed
        if refusal.region is not None and refusal.region != signed.region and "region" not in learned:
            learned.add("region")
            _log.info("{uri} is in region {region}", uri=self.location.uri, region=refusal.region)
            self._region = refusal.region
            return True
        if refusal.status != 403 or refusal.date is None or "skew" in learned:
            return False
        off = (refusal.date - signed.moment) / timedelta(seconds=1)
        if abs(off) <= _SKEW_THAT_MATTERS or refusal.code not in {"", "RequestTimeTooSkewed"}:
            return False
        learned.add("skew")
        self._skew = refusal.date.timestamp() - self._pacing.clock.seconds()
        _log.warn("{uri}: the store's clock is {off:.0f} s ahead", uri=self.location.uri, off=self._skew)
        return True

    async def _refusal(self, request: StoreRequest, signed: Signed, response: IResponse) -> Refusal:
        answer = UpstreamResponse(
            response,
            pacing=self._pacing,
            observer=self._upstream.observer,
            release=_nothing,
            bodiless=request.method == "HEAD",
        )
        code, message, region = told_error(await error_body(answer))
        region = answer.headers.get("x-amz-bucket-region") or region
        log_refusal(answer.status, self.location.uri, request, code, message)
        return Refusal(
            error_for(answer.status, answer.headers, code),
            retryable=answer.status in RETRYABLE_STATUSES,
            signed=signed,
            status=answer.status,
            code=code,
            region=region if answer.status in {301, 307, 400} and region and is_region(region) else None,
            date=http_date(answer.headers.get("date")),
            retry_after=parse_retry_after(answer.headers.get("retry-after")),
        )

    def _list_query(self, prefix: str, delimiter: str, start_after: str, max_keys: int, token: str) -> Pairs:
        given = {
            "delimiter": delimiter,
            "start-after": self.location.key(start_after) if start_after else "",
            "continuation-token": token,
        }
        return (
            ("list-type", "2"),
            ("encoding-type", "url"),
            ("max-keys", str(max_keys)),
            ("prefix", self.location.key(prefix)),
            *((name, value) for name, value in given.items() if value),
        )

    def _list_page(self, page: xml.UpstreamPage) -> ListPage:
        root = self.location.key("")
        names, sizes, etags, times, classes = page.columns
        keys = (*names, *page.prefixes)
        # What lies between two keys below the root lies below it too.
        outside = [key for key in (min(keys), max(keys)) if not key.startswith(root)] if keys else ()
        if outside:
            _log.error(
                "{uri}: the store lists {key}, which lies outside", uri=self.location.uri, key=outside[0]
            )
            raise InternalError()
        start = len(root)
        rows = zip([name[start:] for name in names], sizes, etags, times, classes, strict=True)
        objects = tuple(map(_listed, rows))
        prefixes = tuple(prefix[start:] for prefix in page.prefixes)
        return ListPage(objects, prefixes, page.truncated, page.next_token)

    def _log_failure(self, what: str, error: Exception) -> None:
        reason = _reason(error)
        _log.warn("{uri}: {what}: {reason}", uri=self.location.uri, what=what, reason=reason)


@functools.lru_cache(maxsize=16)
def _moment(second: int) -> datetime:
    """A second of POSIX time; signatures are not finer."""
    return datetime.fromtimestamp(second, UTC)


def _nothing() -> None:
    """No slot to give back."""


def _with_query(at: Address, query: Pairs) -> str:
    return f"{at.raw_path}?{sigv4.canonical_query(query)}" if query else at.raw_path


async def error_body(answer: UpstreamResponse) -> bytes:
    """The body of an answer that is an error, b"" when it cannot be had."""
    spool = MemorySpool(_MAX_ERROR_DOCUMENT)
    try:
        await answer.send_body(spool)
    except (BodyCut, TooLarge):
        return b""
    return spool.body


def told_error(body: bytes) -> tuple[str, str, str | None]:
    """The code, message and region of an error document; empty for what is none."""
    try:
        error = xml.parse_error(body)
        fields = {xml.local_name(child): child.text for child in xml.parse_document(body)}
    except xml.MalformedDocument:
        return "", "", None
    return error.code, error.message, fields.get("Region")


def error_for(status: int, headers: Headers, code: str = "") -> S3Error:
    """What the client is told when the store answers with this status, and this code if it told one."""
    if status == 304:
        kept = tuple((name, value) for name, value in headers.items if name in _NOT_MODIFIED_HEADERS)
        return NotModified(headers=kept)
    if status == 416 and code == InvalidPartNumber.__name__:
        return InvalidPartNumber()
    if status == 416:
        return InvalidRange(headers=tuple(("content-range", v) for v in headers.all("content-range")))
    if status == 403:
        return AccessDenied(_REFUSED)
    known: dict[int, type[S3Error]] = {404: NoSuchKey, 412: PreconditionFailed, 501: NotImplementedByProxy}
    if status in known:
        return known[status]()
    return InvalidRequest() if 400 <= status < 500 and status != 429 else ServiceUnavailable()


def log_refusal(status: int, uri: str, request: StoreRequest, code: str, message: str) -> None:
    """Tell the operator what the store said, but for what is an ordinary answer."""
    if status in {304, 412, 416} or code in _OF_THE_BODY or (status == 404 and code in {"", "NoSuchKey"}):
        return
    _log.warn(
        "{uri}: the store answered {operation} with {status} {told}",
        uri=uri,
        operation=request.operation,
        status=status,
        told=": ".join(filter(None, (code, message[:500]))),
    )


def http_date(value: str | None) -> datetime | None:
    """The moment a Date header tells; None for what is none."""
    try:
        return parsedate_to_datetime(value or "").astimezone(UTC)
    except ValueError:
        return None


def _reason(error: Exception) -> str:
    """The text of an error; Agent wraps the reasons it has."""
    reasons = getattr(error, "reasons", None) or ()
    return "; ".join((f"{type(error).__name__} {error}", *(str(reason.value) for reason in reasons)))
