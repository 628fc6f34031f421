"""Writing to one table's store: every path is relative to the table's root, as `client` has it.

Nothing is sent twice once a byte of its body went: a write that was carried out, but whose answer was lost,
would be refused by its own condition when it is repeated.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Coroutine, Mapping
from types import MappingProxyType
from typing import Any, Final

from attrs import field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.logger import Logger
from twisted.web._newclient import RequestGenerationFailed, RequestNotSent
from twisted.web.iweb import IResponse

from delta_proxy.s3 import errors, xml
from delta_proxy.s3.chunked import ChunkSigning
from delta_proxy.s3.errors import AccessDenied, InternalError, S3Error, ServiceUnavailable
from delta_proxy.s3.headers import Headers
from delta_proxy.upstream.client import (
    LOST,
    Refusal,
    Signed,
    StoreRequest,
    TableClient,
    error_for,
    http_date,
    log_refusal,
)
from delta_proxy.upstream.documents import Told, parsed
from delta_proxy.upstream.origin import is_region
from delta_proxy.upstream.relay import BodyCut, UpstreamResponse
from delta_proxy.upstream.spool import MemorySpool, TooLarge
from delta_proxy.upstream.upload import Exchange, Outgoing, Source, whole

Pairs = tuple[tuple[str, str], ...]

_TRIES: Final = 3
# A listing of 1000 parts or uploads, with keys of 1024 escaped bytes.
_MAX_DOCUMENT: Final = 8 * 1024 * 1024
_OK: Final = frozenset({200, 204})
_ASSEMBLING: Final = frozenset({"CompleteMultipartUpload", "CopyObject", "UploadPartCopy"})
# A store that copies gigabytes may be silent meanwhile.
_ASSEMBLY_SECONDS: Final = 300.0
_NOT_SENT = (ConnectError, DNSLookupError, RequestNotSent)

_TOLD: Final[Mapping[str, type[S3Error]]] = MappingProxyType(
    {
        each.code: each
        for each in (
            errors.BadDigest,
            errors.ConditionalRequestConflict,
            errors.EntityTooLarge,
            errors.EntityTooSmall,
            errors.IncompleteBody,
            errors.InvalidArgument,
            errors.InvalidDigest,
            errors.InvalidPart,
            errors.InvalidPartOrder,
            errors.InvalidRange,
            errors.InvalidRequest,
            errors.KeyTooLongError,
            errors.MalformedXML,
            errors.MetadataTooLarge,
            errors.NoSuchKey,
            errors.NoSuchUpload,
            errors.NotImplementedByProxy,
            errors.OperationAborted,
            errors.PreconditionFailed,
            errors.SlowDown,
            errors.XAmzContentSHA256Mismatch,
        )
    }
)
"""What the client is told by the store's own code; the words are the proxy's."""

_log = Logger()


Feed = Callable[[ChunkSigning, Outgoing], Coroutine[Deferred[Any], Any, None]]
"""Writes the framed body; the signing is that of the request it belongs to."""


@frozen
class Streamed:
    """A body that comes while it is sent: its size on the wire, what signs it, and what writes it."""

    size: int
    payload_hash: str
    feed: Feed


@frozen
class Write:
    """One request that changes the store, or asks about uploads. `path` None is the bucket.

    `headers` go on as they are, those of `x-amz-*` signed.
    """

    operation: str
    method: str
    path: str | None
    query: Pairs = ()
    headers: Pairs = ()
    body: bytes | Streamed = field(default=b"", repr=False)


@frozen
class Written:
    """The store's answer to a write that it carried out."""

    status: int
    headers: Headers
    body: bytes = field(repr=False)


class TableWriter:
    """Writes to the table of a client, with its credentials.

    Errors are S3Error: the store's own where its code is known, AccessDenied when it refuses the proxy,
    SlowDown when too many requests are in flight, ServiceUnavailable when it does not answer.
    """

    def __init__(self, client: TableClient) -> None:
        self.client = client
        self.location = client.location
        self._upstream = client.upstream

    async def send(self, write: Write) -> Written:
        """Carry out a write. Raises S3Error, and what writes a streamed body raises.

        Cancelling it resets the connection to the store.
        """
        slot = await self.client.slots.acquire(streamed=isinstance(write.body, Streamed))
        try:
            return await self._exchange(write)
        finally:
            slot.release()

    async def told(self, written: Written, parse: Callable[[bytes], Told]) -> Told:
        """What the document of an answer says. Raises InternalError for one that cannot be understood."""
        try:
            return await parsed(parse, written.body.strip(), self._upstream.defer_to_pool)
        except xml.MalformedDocument as error:
            _log.error("the store's answer is no document of S3: {error}", error=str(error))
            raise InternalError from None

    async def _exchange(self, write: Write) -> Written:
        request = self._request(write)
        learned: set[str] = set()
        pacing = self._upstream.pacing
        for attempt in range(_TRIES):
            signed = await self.client.signed(request)
            try:
                outcome = await self._attempt(request, signed, write.body)
            except _NOT_SENT as error:
                if isinstance(write.body, Streamed) or attempt + 1 == _TRIES:
                    raise self._lost(request, error) from None
                await pacing.sleep(pacing.jitter(attempt))
                continue
            except (*LOST, RequestGenerationFailed) as error:
                raise self._lost(request, error) from None
            if isinstance(outcome, Written):
                return outcome
            if not self.client.learn(outcome, learned):
                raise outcome.error
            if isinstance(write.body, Streamed):
                # Only the client has it to send again, and then it is signed with what was learned.
                raise ServiceUnavailable
        raise ServiceUnavailable

    def _request(self, write: Write) -> StoreRequest:
        key = None if write.path is None else self.location.object_key(write.path)
        if isinstance(write.body, Streamed):
            payload_hash = write.body.payload_hash
        else:
            payload_hash = hashlib.sha256(write.body).hexdigest()
        return StoreRequest(write.operation, write.method, key, write.query, write.headers, payload_hash)

    async def _attempt(
        self, request: StoreRequest, signed: Signed, body: bytes | Streamed
    ) -> Written | Refusal:
        pacing, started = self._upstream.pacing, self._upstream.pacing.clock.seconds()
        assembling = request.operation in _ASSEMBLING
        patience = _ASSEMBLY_SECONDS if assembling else pacing.timeouts.first_byte
        exchange = Exchange(pacing.clock, idle=pacing.timeouts.idle, patience=patience)
        size, source = len(body) if isinstance(body, bytes) else body.size, self._source(signed, body)
        url = signed.url.encode("ascii")
        try:
            response = await exchange.run(
                self._upstream.agent, request.method, url, signed.wire, size, source
            )
        except LOST as error:
            self._observe(request, type(error).__name__, started)
            raise
        self._observe(request, str(response.code), started)
        return await self._outcome(request, signed, response)

    def _source(self, signed: Signed, body: bytes | Streamed) -> Source:
        if isinstance(body, bytes):
            return whole(body)
        return functools.partial(body.feed, self._chunk_signing(signed))

    def _chunk_signing(self, signed: Signed) -> ChunkSigning:
        added = dict(signed.added)
        timestamp = added["x-amz-date"]
        scope = f"{timestamp[:8]}/{signed.region}/s3/aws4_request"
        key = self._upstream.keys.get(signed.credentials.secret_key, timestamp[:8], signed.region, "s3")
        return ChunkSigning(key, timestamp, scope, added["authorization"].rpartition("=")[2])

    async def _outcome(self, request: StoreRequest, signed: Signed, response: IResponse) -> Written | Refusal:
        answer = UpstreamResponse(
            response,
            pacing=self._upstream.pacing,
            observer=self._upstream.observer,
            release=_nothing,
        )
        body = await self._body(answer)
        if answer.status in _OK:
            code = _told_in_vain(body) if request.operation in _ASSEMBLING else None
            if code is None:
                return Written(answer.status, answer.headers, body)
        else:
            code = _code(body)
        status = answer.status if answer.status not in _OK else _status_of(code)
        log_refusal(status, self.location.uri, request, code, "")
        region = answer.headers.get("x-amz-bucket-region") or _region(body)
        return Refusal(
            _error(status, code, answer.headers),
            retryable=False,
            signed=signed,
            status=status,
            code=code,
            region=region if status in {301, 307, 400} and region and is_region(region) else None,
            date=http_date(answer.headers.get("date")),
        )

    async def _body(self, answer: UpstreamResponse) -> bytes:
        """The document of an answer. Whether the write was carried out is not known without it."""
        spool = MemorySpool(_MAX_DOCUMENT)
        try:
            await answer.send_body(spool)
        except (BodyCut, TooLarge) as error:
            _log.warn("{uri}: the answer of the store: {error}", uri=self.location.uri, error=str(error))
            raise ServiceUnavailable from None
        return spool.body

    def _lost(self, request: StoreRequest, error: Exception) -> S3Error:
        _log.warn(
            "{uri}: {operation}: {kind} {error}",
            uri=self.location.uri,
            operation=request.operation,
            kind=type(error).__name__,
            error=str(error),
        )
        return ServiceUnavailable()

    def _observe(self, request: StoreRequest, outcome: str, started: float) -> None:
        seconds = self._upstream.pacing.clock.seconds() - started
        self._upstream.observer.request_finished(request.operation, outcome, seconds)


def _told_in_vain(body: bytes) -> str | None:
    """The code of an error that came with status 200: the store had begun its answer before it failed."""
    try:
        root = xml.parse_document(body.strip())
    except xml.MalformedDocument:
        return "InternalError"
    return _code(body.strip()) if xml.local_name(root) == "Error" else None


def _code(body: bytes) -> str:
    try:
        return xml.parse_error(body.strip()).code
    except xml.MalformedDocument:
        return ""


def _region(body: bytes) -> str | None:
    try:
        fields = {xml.local_name(child): child.text for child in xml.parse_document(body.strip())}
    except xml.MalformedDocument:
        return None
    return fields.get("Region")


def _status_of(code: str) -> int:
    told = _TOLD.get(code)
    return 500 if told is None else told.status


def _error(status: int, code: str, headers: Headers) -> S3Error:
    told = _TOLD.get(code)
    if told is not None and status >= 400:
        return told()
    if status == 409:
        return errors.ConditionalRequestConflict()
    if status == 403 and code not in {"", "AccessDenied"}:
        _log.error("the store refuses the proxy's credentials: {code}", code=code)
        return AccessDenied("the store refused the proxy's credentials")
    return error_for(status, headers)


def _nothing() -> None:
    """The place is given back when all of the exchange is over."""
