"""Answers that a store takes long for: white space that keeps the client waiting, as S3 sends it.

The status must be told before, so it is 200 whatever becomes of the request, and an error is a document in
the body. Source: "CompleteMultipartUpload" and "CopyObject" in the Amazon S3 API reference.
"""

# mypy: allow-untyped-calls
from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from delta_proxy.logs import redact_target
from delta_proxy.resources.base import XML, Answer, Rest, annotate
from delta_proxy.resources.server import REFUSED, EdgeRequest
from delta_proxy.s3.errors import S3Error
from delta_proxy.s3.xml import DECLARATION, error_document

SECONDS: Final = 10.0
"""How long a client gets nothing. Until then an answer has its own status."""

_BEGINNING: Final = DECLARATION.encode("ascii")


async def kept_waiting(
    request: EdgeRequest, work: Coroutine[Deferred[Any], Any, Answer], clock: IReactorTime
) -> Answer | Rest:
    """What `work` answers with a document of S3, or what is left to send of it. Raises S3Error."""
    patience = _Patience(request, clock)
    try:
        answer = await Deferred.fromCoroutine(work)
    except S3Error as error:
        if not request.startedWriting:
            raise
        # The status says that it was carried out.
        annotate(request, decision=REFUSED, reason=error.code)
        named = redact_target(request.path)
        document = error_document(error, resource=named, request_id=request.request_id)
        return Rest(document.removeprefix(_BEGINNING))
    finally:
        patience.end()
    return Rest(answer.body.removeprefix(_BEGINNING)) if request.startedWriting else answer


class _Patience:
    """Writes the beginning of a document after a while, and a space after each further one."""

    def __init__(self, request: EdgeRequest, clock: IReactorTime) -> None:
        self._request = request
        self._clock = clock
        self._timer: IDelayedCall = clock.callLater(SECONDS, self._go_on)

    def end(self) -> None:
        """The answer is there, or nobody waits for it."""
        if self._timer.active():
            self._timer.cancel()

    def _go_on(self) -> None:
        request = self._request
        self._timer = self._clock.callLater(SECONDS, self._go_on)
        if request.startedWriting:
            request.write(b" ")
            return
        request.setResponseCode(200)
        for name, value in XML:
            request.setHeader(name, value)
        request.write(_BEGINNING)
