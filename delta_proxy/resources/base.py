"""What every S3 resource does alike: authenticate, answer, and turn errors into S3's XML."""

# isLeaf is twisted.web's name.
# ruff: noqa: N815
# mypy: allow-untyped-calls
from __future__ import annotations

import errno
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from delta_proxy.access.identity import AuthKind, Principal
from delta_proxy.delta.disk_cache import OpenFile
from delta_proxy.delta.gate import GrantedTable
from delta_proxy.logs import redact_target
from delta_proxy.resources.files import AT_ONCE, Plan, send_bytes, send_file
from delta_proxy.resources.server import REFUSED, EdgeRequest
from delta_proxy.resources.services import Services
from delta_proxy.s3.errors import InternalError, MethodNotAllowed, NoSuchBucket, S3Error, ServiceUnavailable
from delta_proxy.s3.operation import Operation
from delta_proxy.s3.request import S3Request, split_key
from delta_proxy.upstream.relay import BodyCut, ConsumerGone, UpstreamResponse
from delta_proxy.upstream.slots import Slot

Fields = tuple[tuple[str, str], ...]

XML: Fields = (("content-type", "application/xml"),)

# To ask a member of an Enum for its value is slow.
_NAMES = {operation: operation.value for operation in Operation}

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

_log = Logger()


@attrs.frozen
class Answer:
    """A whole answer: status, header fields, body."""

    status: int
    headers: Fields = ()
    body: bytes = b""


@attrs.frozen
class Rest:
    """What is left of the body of an answer that has begun."""

    body: bytes


@attrs.frozen
class Streamed:
    """An answer whose body comes from the store while it is sent."""

    status: int
    headers: Fields
    upstream: UpstreamResponse


@attrs.frozen
class Stored:
    """An answer whose body lies in memory or in an open file, which sending closes."""

    plan: Plan
    content: OpenFile | bytes
    services: Services


AnyAnswer = Answer | Rest | Streamed | Stored


class S3Resource(Resource):
    """A leaf that answers one parsed request; `answer` is what a subclass adds."""

    isLeaf = True

    def __init__(self, services: Services, s3: S3Request) -> None:
        super().__init__()
        self.services = services
        self.s3 = s3
        self._place: Slot | None = None

    def render(self, request: EdgeRequest) -> int:
        """Start the answer; a client that goes away cancels it."""
        work = started(self._serve(request))
        if work is not None:
            request.notifyFinish().addErrback(lambda _: work.cancel())
        return NOT_DONE_YET

    async def answer(self, principal: Principal, request: EdgeRequest) -> AnyAnswer:
        """What the principal gets. Raises S3Error."""
        raise NotImplementedError

    async def _serve(self, request: EdgeRequest) -> None:
        try:
            await send(request, await self._decided_answer(request))
        except S3Error as error:
            self._note_refusal(request, error)
            request.fail(error)
        except BodyCut as cut:
            _log.warn("{target}: the store cut the body: {cut}", target=redact_target(request.uri), cut=cut)
            request.abort()
        except (CancelledError, ConsumerGone):
            return
        except Exception as error:  # noqa: BLE001 - the last line of defence: whatever failed, the client gets S3's answer
            refusal = _logged(error, redact_target(request.uri))
            self._note_refusal(request, refusal)
            request.fail(refusal)
        finally:
            if self._place is not None:
                self._place.release()

    async def _decided_answer(self, request: EdgeRequest) -> AnyAnswer:
        """The answer of a request that has its place in the audit log, and its decision in the note."""
        note = request.note
        note.operation, note.source = _NAMES[self.s3.operation], getattr(request.client, "host", "")
        if self.services.audit is not None:
            note.place = self.services.audit.reserve()
        answer = await self._authenticated_answer(request)
        if not note.decision:
            note.decision = "allowed"
        return answer

    def _note_refusal(self, request: EdgeRequest, error: S3Error) -> None:
        """What was answered by an error without a decision of the policy was refused for that error."""
        if not request.note.decision:
            annotate(request, decision=REFUSED, reason=error.code)

    async def _authenticated_answer(self, request: EdgeRequest) -> AnyAnswer:
        """Who asks is settled before anything that exists is named."""
        principal = await self.services.authenticator.authenticate(self.s3, request)
        request.note.principal = principal.id
        try:
            await self.take_place(principal)
            return await self._answer_to(principal, request)
        finally:
            if request.note.place is not None:
                self.describe(principal, request)

    async def take_place(self, principal: Principal) -> None:
        """Count the request among its principal's until it is answered. Raises SlowDown.

        Anonymous clients are all the same principal, so there is nobody to be fair to.
        """
        places = self.services.places
        if places is not None and principal.auth is not AuthKind.ANONYMOUS:
            self._place = await places.acquire(principal.id)

    async def _answer_to(self, principal: Principal, request: EdgeRequest) -> AnyAnswer:
        if self.s3.bucket and self.s3.bucket != self.services.settings.addressing.bucket:
            raise NoSuchBucket(fields={"BucketName": self.s3.bucket})
        if self.s3.operation.is_write and self.services.settings.read_only:
            raise MethodNotAllowed("The proxy is read-only.", fields={"Method": self.s3.method})
        return await self.answer(principal, request)

    def describe(self, principal: Principal, request: EdgeRequest) -> None:
        """Tell the audit log what was asked for, and under which grant it was decided.

        A listing is about its prefix.
        """
        name = self.s3.key or self.s3.param("prefix")
        if not name or self.s3.bucket != self.services.settings.addressing.bucket:
            return
        self.describe_path(*split_key(name), principal, request)

    def describe_path(self, alias: str, path: str | None, principal: Principal, request: EdgeRequest) -> None:
        """`describe` for a path of a table."""
        opened = self.services.gate.open(principal, alias)
        grant = opened.grant.fingerprint if isinstance(opened, GrantedTable) else None
        values = self.services.partitions(alias, path or "")
        annotate(request, table=alias, path=path, grant=grant, partitions=values)


class ErrorResource(Resource):
    """Answers a request that could not be parsed."""

    isLeaf = True

    def __init__(self, error: S3Error) -> None:
        super().__init__()
        self._error = error

    def render(self, request: EdgeRequest) -> int:
        """The error, as S3 words it."""
        source = getattr(request.getClientAddress(), "host", "")
        annotate(request, decision=REFUSED, reason=self._error.code, source=source)
        request.fail(self._error)
        return NOT_DONE_YET


def started(work: Coroutine[Deferred[Any], Any, None]) -> Deferred[None] | None:
    """Run a coroutine until it waits; None when it ended without waiting, as most do."""
    try:
        waiting = work.send(None)
    except StopIteration:
        return None
    return Deferred.fromCoroutine(_rest(work, waiting))


def _logged(error: Exception, target: str) -> S3Error:
    """What the client is told of an error that nothing foresaw. A full disk is no fault in the program: one
    line says so, and the client may come back.
    """
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        _log.error("answering {target} failed: {error}", target=target, error=str(error))
        return ServiceUnavailable()
    _log.failure("answering {target} failed", target=target)
    return InternalError()


def _rest(
    work: Coroutine[Deferred[Any], Any, None], waiting: Deferred[Any]
) -> Generator[Deferred[Any], Any, None]:
    """What remains of a coroutine that waits for a Deferred."""
    while True:
        go_on: Callable[[], Deferred[Any]] = partial(work.send, None)
        try:
            yield waiting
        except GeneratorExit:
            work.close()
            raise
        except BaseException as error:  # noqa: BLE001 - it belongs to the coroutine
            go_on = partial(work.throw, error)
        try:
            waiting = go_on()
        except StopIteration:
            return


async def send(request: EdgeRequest, answer: AnyAnswer) -> None:
    """Write an answer; returns when its last byte is written."""
    if isinstance(answer, Answer):
        length = ("content-length", str(len(answer.body)))
        request.answer_whole(answer.status, (*answer.headers, length), answer.body)
        return
    if isinstance(answer, Rest):
        request.write(answer.body)
        request.finish()
        return
    if isinstance(answer, Stored):
        await _send_stored(request, answer)
        return
    whole = answer.upstream.take_whole()
    if whole is not None:
        request.answer_whole(answer.status, answer.headers, whole)
        return
    _begin(request, answer.status, answer.headers)
    await answer.upstream.send_body(request)
    request.finish()


def _begin(request: EdgeRequest, status: int, fields: Fields) -> None:
    request.setResponseCode(status)
    for name, value in fields:
        request.responseHeaders.addRawHeader(name.encode("ascii"), value.encode("latin-1"))


async def _send_stored(request: EdgeRequest, answer: Stored) -> None:
    """The planned bytes of a local copy, from memory or read in the thread pool."""
    planned, content = answer.plan, answer.content
    first, length = planned.first, 0 if request.method == b"HEAD" else planned.length
    if isinstance(content, bytes) and planned.length <= AT_ONCE:
        request.answer_whole(planned.status, planned.headers, content[first : first + planned.length])
        return
    _begin(request, planned.status, planned.headers)
    if isinstance(answer.content, bytes):
        await send_bytes(request, answer.content, first, length)
    else:
        await send_file(request, answer.content, first, length, answer.services.defer_to_pool)
    request.finish()


def annotate(request: EdgeRequest, **changes: Any) -> None:
    """Add to what the access log and the metrics are told of the request."""
    for name, value in changes.items():
        setattr(request.note, name, value)
