"""The HTTP edge: what stands between a socket and the resources.

twisted.web's channel, request and site, made strict. A request's head is parsed in one piece by
`delta_proxy.resources.head`; what is malformed is answered in S3's XML and the connection is closed after the
client had the chance to read the answer. A request is processed as soon as its head is there, before its
body, so that a refusal costs no upload; a resource that wants the body asks for it with
`EdgeRequest.read_body`. Every wait for a client is bounded.
"""

# The names are those of Twisted's interfaces.
# ruff: noqa: N802, N815
# mypy: allow-untyped-calls
from __future__ import annotations

from collections.abc import Callable
from time import time
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from twisted.web import http, server
from twisted.web.resource import IResource

from delta_proxy.logs import READY, redact_target
from delta_proxy.resources.answer_head import SERVER
from delta_proxy.resources.channel import S3Channel, error_answer
from delta_proxy.resources.edge_notes import (
    REFUSED,
    EdgeLimits,
    RequestNote,
    RequestRecord,
    new_request_id,
)
from delta_proxy.resources.edge_request import EdgeRequest, peer_host
from delta_proxy.resources.head import method_of
from delta_proxy.s3.errors import S3Error, SlowDown

__all__ = [
    "REFUSED",
    "EdgeLimits",
    "EdgeRequest",
    "RequestNote",
    "RequestRecord",
    "S3Channel",
    "S3Site",
    "new_request_id",
]


class _Refusal(Protocol):
    """A connection beyond the cap: the first bytes are answered with 503 SlowDown, then it is closed."""

    transport: Any

    def __init__(self, site: S3Site) -> None:
        self._site = site
        self._timer: IDelayedCall | None = None

    def connectionMade(self) -> None:
        self._timer = self._site.reactor.callLater(self._site.limits.linger_seconds, self._give_up)

    def dataReceived(self, data: bytes) -> None:
        if not self.transport.disconnecting:
            request_id = new_request_id()
            self._site.refused(SlowDown(), method_of(data), request_id, peer_host(self.transport))
            self.transport.write(error_answer(SlowDown(), request_id, self._site.date()))
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._site.refusals.discard(self)
        self._site.connection_lost()

    def abort(self) -> None:
        """Reset the connection at once."""
        self.transport.abortConnection()

    def _give_up(self) -> None:
        self._timer = None
        self.abort()


class S3Site(server.Site):
    """The factory of client connections, and the count of what is under way.

    `prepare` is called with each request before it is answered; it may set header fields, which the answer
    keeps whatever it is. `on_finished` is called with a RequestRecord after each request, also after one that
    could not be understood. One line a request goes to `log` at info. Nothing is started by making one;
    listening is up to the caller.
    """

    protocol: Any = S3Channel
    requestFactory: type[EdgeRequest] = EdgeRequest
    _log = Logger(namespace="delta_proxy.access")

    def __init__(
        self,
        resource: IResource,
        *,
        reactor: IReactorTime,
        limits: EdgeLimits | None = None,
        on_finished: Callable[[RequestRecord], None] | None = None,
        log: Logger | None = None,
        prepare: Callable[[EdgeRequest], None] | None = None,
    ) -> None:
        super().__init__(resource, reactor=reactor, parsePOSTFormSubmission=False)
        # The channel keeps its own time; TimeoutMixin's would be reset by every byte of a slow client.
        self.timeOut = None
        # The time by the injected reactor, past a method of our own.
        self.seconds: Callable[[], float] = reactor.seconds
        self.limits = EdgeLimits() if limits is None else limits
        self.channels: set[S3Channel] = set()
        self.refusals: set[_Refusal] = set()
        self.in_flight = 0
        self.draining = False
        self.prepare = prepare
        self._on_finished = on_finished
        self._log = self._log if log is None else log
        self._waiting: list[Deferred[bool]] = []
        self._date = (-1, b"")
        self._standing = (-1, "")

    def date(self) -> bytes:
        """The Date header of this second."""
        second = int(self.reactor.seconds())
        if self._date[0] != second:
            self._date = (second, http.datetimeToString(second))
        return self._date[1]

    def standing_fields(self) -> str:
        """The lines of the fields that every answer of this second has."""
        second = int(self.seconds())
        if self._standing[0] != second:
            text = f"Server: {SERVER.decode('ascii')}\r\nDate: {self.date().decode('ascii')}\r\n"
            self._standing = (second, text)
        return self._standing[1]

    def acceptableProtocols(self) -> list[bytes]:
        """What TLS may negotiate: the strict channel speaks HTTP/1 alone."""
        return [b"http/1.1"]

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """A channel; beyond the cap one that refuses; none while draining or when too many are refused."""
        if self.draining or len(self.refusals) >= self.limits.refusals:
            return None
        if len(self.channels) < self.limits.connections:
            return super().buildProtocol(addr)
        refusal = _Refusal(self)
        self.refusals.add(refusal)
        return refusal

    def getResourceFor(self, request: http.Request) -> IResource:
        """What answers a request: the resource itself where it is a leaf, which needs no walk to be found."""
        root = cast(IResource, self.resource)
        return root if root.isLeaf else cast(IResource, super().getResourceFor(request))

    def startFactory(self) -> None:
        """Nothing: twisted.web would start its own access log and its clock."""

    def stopFactory(self) -> None:
        """Nothing: there is no log file to close."""

    def log(self, request: http.Request) -> None:
        """twisted.web calls this when an answer is finished."""
        self.finished(cast(EdgeRequest, request).record(aborted=False))

    def finished(self, record: RequestRecord) -> None:
        """A request is over."""
        self.in_flight -= 1
        self._tell(record)

    def refused(self, error: S3Error, method: bytes, request_id: str, source: str) -> None:
        """A request was refused before there was one; `source` is the address it came from."""
        note = RequestNote(decision=REFUSED, reason=error.code, source=source)
        name = method.decode("latin-1") or "-"
        self._tell(RequestRecord(name, b"-", error.status, 0, 0, 0.0, request_id, note=note))

    def _tell(self, record: RequestRecord) -> None:
        log, note, target = self._log, record.note, redact_target(record.uri)
        principal, milliseconds = note.principal or "-", record.seconds * 1000
        # Past Logger.info, which looks through all levels to find that this is one.
        log.observer(
            {
                "log_logger": log,
                "log_level": LogLevel.info,
                "log_namespace": log.namespace,
                "log_source": log.source,
                "log_format": READY,
                "log_time": time(),
                "line": f"{record.method} {target} {record.status} {record.bytes_sent}B "
                f"{milliseconds:.1f}ms principal={principal} request={record.request_id}",
                "method": record.method,
                "target": target,
                "status": record.status,
                "bytes_sent": record.bytes_sent,
                "bytes_received": record.bytes_received,
                "milliseconds": milliseconds,
                "principal": principal,
                "operation": note.operation,
                "table": note.table,
                "decision": note.decision,
                "aborted": record.aborted,
                "request_id": record.request_id,
            }
        )
        if self._on_finished is not None:
            self._on_finished(record)

    def log_failure(self, reason: Failure, request_id: str) -> None:
        """Log a fault of the proxy."""
        self._log.failure("a request failed, request={request_id}", failure=reason, request_id=request_id)

    def stop_accepting(self) -> None:
        """Take no more connections, close the idle ones, the others when their request is answered."""
        self.draining = True
        for channel in list(self.channels):
            channel.close_if_idle()

    def drained(self, timeout_seconds: float) -> Deferred[bool]:
        """True when the last connection is closed; False when that took too long and the rest were reset."""
        waiting: Deferred[bool] = Deferred()
        if not self.channels and not self.refusals:
            waiting.callback(True)
            return waiting
        self._waiting.append(waiting)
        timer = self.reactor.callLater(timeout_seconds, self._give_up, waiting)
        waiting.addBoth(_cancelling, timer)
        return waiting

    def connection_lost(self) -> None:
        """A connection is gone; the last one ends the waiting."""
        if not self.channels and not self.refusals:
            waiting, self._waiting = self._waiting, []
            for one in waiting:
                one.callback(True)

    def _give_up(self, waiting: Deferred[bool]) -> None:
        self._waiting.remove(waiting)
        for channel in list(self.channels):
            channel.abort()
        for refusal in list(self.refusals):
            refusal.abort()
        waiting.callback(False)


def _cancelling(result: bool, timer: IDelayedCall) -> bool:
    if timer.active():
        timer.cancel()
    return result
