"""A local file, or bytes, served as an S3 object: what the answer is, and the sending of it.

Sources: "GetObject" and "HeadObject" in the Amazon S3 API reference; RFC 9110, sections 13 and 14.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Final, Protocol

import attrs
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IConsumer, IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from delta_proxy.s3.conditions import check
from delta_proxy.s3.errors import InvalidArgument, InvalidPartNumber, InvalidRequest
from delta_proxy.s3.headers import Headers
from delta_proxy.s3.ranges import ByteRange, parse_range
from delta_proxy.upstream.relay import BodyCut, ConsumerGone
from delta_proxy.upstream.spool import DeferToPool

DEFAULT_CONTENT_TYPE: Final = "binary/octet-stream"
"""What S3 says of an object that was put without a content type."""

_BLOCK: Final = 256 * 1024
AT_ONCE: Final = 64 * 1024
"""Bytes that are written without asking whether the client takes them."""

_OVERRIDES: Final = {
    "response-cache-control": "cache-control",
    "response-content-disposition": "content-disposition",
    "response-content-encoding": "content-encoding",
    "response-content-language": "content-language",
    "response-content-type": "content-type",
    "response-expires": "expires",
}

_log = Logger()


@attrs.frozen
class Plan:
    """The answer to a read: status 200 or 206, all header fields of the object, and which bytes follow.

    `length` is the Content-Length; a HEAD has the same, and sends none of the bytes.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    first: int
    length: int


def plan(
    headers: Headers,
    *,
    size: int,
    etag: str,
    last_modified: str,
    content_type: str = DEFAULT_CONTENT_TYPE,
    overrides: Iterable[tuple[str, str]] = (),
    part_number: int | None = None,
) -> Plan:
    """What to answer to a GET or HEAD of an object with `size` bytes, a quoted `etag` and an HTTP date.

    `overrides` are parameters of the query; those that are `response-*` set the field they name.
    `part_number` 1 is the whole object as a range, because it has one part; S3 then tells no number of
    parts. If-Range is kept as RFC 9110 section 13.1.5 says: S3 heeds it, though its reference is silent.

    Raises PreconditionFailed, NotModified, InvalidRange (conditions come before ranges), InvalidRequest for
    a range together with a part number, InvalidPartNumber for a part beyond the first, InvalidArgument for
    an override that is no header value, and ValueError when `last_modified` is no date.
    """
    fields = {
        "accept-ranges": "bytes",
        "content-type": content_type,
        "etag": etag,
        "last-modified": last_modified,
        **_overriding(overrides),
    }
    check(headers, etag, _moment(last_modified))
    span = _span(headers, size, etag, last_modified, part_number)
    if span is None:
        return Plan(200, (*fields.items(), ("content-length", str(size))), 0, size)
    part = {"content-length": str(span.length), "content-range": span.content_range(size)}
    return Plan(206, (*fields.items(), *part.items()), span.first, span.length)


@lru_cache(maxsize=1024)
def _moment(last_modified: str) -> datetime:
    return parsedate_to_datetime(last_modified)


def _span(
    headers: Headers, size: int, etag: str, last_modified: str, part_number: int | None
) -> ByteRange | None:
    wanted = headers.get("range")
    if part_number is not None:
        if wanted is not None:
            raise InvalidRequest("Cannot specify both Range header and partNumber query parameter")
        if part_number > 1:
            requested = {"ActualPartCount": "1", "PartNumberRequested": str(part_number)}
            raise InvalidPartNumber(fields=requested)
        # There is no way to write the range of an empty object.
        return ByteRange(0, size - 1) if size else None
    if_range = headers.get("if-range")
    if if_range is not None and if_range not in {etag, etag.strip('"'), last_modified}:
        return None
    return parse_range(wanted, size)


def _overriding(parameters: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {_OVERRIDES[name]: override(name, value) for name, value in parameters if name in _OVERRIDES}


def override(name: str, value: str) -> str:
    """The value of a `response-*` parameter, which must not be able to end its header field, here or in a
    store that is less careful: what follows would be taken for the answer to the next request.

    Raises InvalidArgument.
    """
    fields = {"ArgumentName": name, "ArgumentValue": value}
    if any(ord(char) > 0xFF for char in value):
        raise InvalidArgument("Header value cannot be represented using ISO-8859-1.", fields=fields)
    if any((ord(char) < 0x20 and char != "\t") or ord(char) == 0x7F for char in value):
        raise InvalidArgument("Header value cannot hold control characters.", fields=fields)
    return value


class ReadableFile(Protocol):
    """An open file, as `delta_proxy.delta.disk_cache.OpenFile` is one."""

    def read_at(self, first: int, length: int) -> bytes:
        """At most `length` bytes from `first` on, none only at the end. Blocks. Raises OSError."""
        ...

    def close(self) -> None:
        """Give the file back. Blocks."""
        ...


async def send_file(
    consumer: IConsumer, file: ReadableFile, first: int, length: int, defer_to_pool: DeferToPool
) -> int:
    """Write `length` bytes of a file from `first` on to the consumer, as its push producer; the number sent.

    One block of 256 KiB at a time is read in the pool, when the consumer is ready for it. The file is closed
    in the pool in any case, after the last read. Raises BodyCut when the file ends early or cannot be read:
    the connection must then be aborted; ConsumerGone when the consumer stops its producer. Cancelling ends it
    at once. The consumer is not finished, only unregistered from.
    """
    reader = _PooledReader(file, defer_to_pool)
    try:
        return await _send(consumer, lambda sent, most: reader.read(first + sent, most), length)
    finally:
        reader.close()


async def send_bytes(consumer: IConsumer, data: bytes, first: int, length: int) -> int:
    """Write `length` bytes of `data` from `first` on to the consumer; the number sent.

    Up to 64 KiB at once, more in blocks with back-pressure. Raises as `send_file` does.
    """
    view = memoryview(data)[first : first + length]
    if len(view) == length and length <= AT_ONCE:
        if length:
            consumer.write(bytes(view))
        return length
    return await _send(consumer, lambda sent, most: succeed(bytes(view[sent : sent + most])), length)


async def _send(consumer: IConsumer, read: Callable[[int, int], Awaitable[bytes]], length: int) -> int:
    gate = _Gate()
    consumer.registerProducer(gate, True)
    try:
        await _send_blocks(consumer, gate, read, length)
    except CancelledError:
        # A twisted.web request whose client is gone has lost the channel it would unregister from.
        raise
    except BaseException:
        if not gate.stopped:
            consumer.unregisterProducer()
        raise
    if not gate.stopped:
        consumer.unregisterProducer()
    return length


async def _send_blocks(
    consumer: IConsumer, gate: _Gate, read: Callable[[int, int], Awaitable[bytes]], length: int
) -> None:
    sent = 0
    while sent < length:
        await gate.opened()
        block = await read(sent, min(_BLOCK, length - sent))
        if gate.stopped:
            raise ConsumerGone()
        if not block:
            raise BodyCut(f"the file ended after {sent} of {length} bytes")
        consumer.write(block)
        sent += len(block)


@implementer(IPushProducer)
class _Gate:
    """Open while the consumer takes more."""

    def __init__(self) -> None:
        self.stopped = False
        self._paused = False
        self._waiter: Deferred[None] | None = None

    def opened(self) -> Deferred[None]:
        """Fires when the consumer takes more; fails with ConsumerGone when it never will."""
        waiter: Deferred[None] = Deferred(self._forget)
        if self._paused or self.stopped:
            self._waiter = waiter
        else:
            waiter.callback(None)
        if self.stopped:
            self.stopProducing()
        return waiter

    def pauseProducing(self) -> None:  # noqa: N802
        """No more for now."""
        self._paused = True

    def resumeProducing(self) -> None:  # noqa: N802
        """More."""
        self._paused = False
        waiter = self._take_waiter()
        if waiter is not None:
            waiter.callback(None)

    def stopProducing(self) -> None:  # noqa: N802
        """No more ever."""
        self.stopped = True
        waiter = self._take_waiter()
        if waiter is not None:
            waiter.errback(ConsumerGone())

    def _forget(self, _: Deferred[None]) -> None:
        self._waiter = None

    def _take_waiter(self) -> Deferred[None] | None:
        waiter, self._waiter = self._waiter, None
        return waiter


class _PooledReader:
    """Reads a file in the pool and closes it there, never while it is being read."""

    def __init__(self, file: ReadableFile, defer_to_pool: DeferToPool) -> None:
        self._file = file
        self._defer_to_pool = defer_to_pool
        self._reading = False
        self._closing = False

    def read(self, first: int, length: int) -> Deferred[bytes]:
        """A block; fails with BodyCut when it cannot be read. Cancelling leaves the thread to its work."""
        block: Deferred[bytes] = Deferred()

        def done(outcome: bytes | Failure) -> None:
            self._reading = False
            if self._closing:
                self._close()
            elif isinstance(outcome, Failure):
                block.errback(BodyCut(f"reading failed: {outcome.getErrorMessage()}"))
            else:
                block.callback(outcome)

        self._reading = True
        self._defer_to_pool(self._file.read_at, first, length).addBoth(done)
        return block

    def close(self) -> None:
        """Close the file as soon as nobody reads it."""
        self._closing = True
        if not self._reading:
            self._close()

    def _close(self) -> None:
        self._defer_to_pool(self._file.close).addErrback(_not_closed)


def _not_closed(failure: Failure) -> None:
    _log.failure("closing a file failed", failure)
