"""Bodies that end here: small ones in memory, large ones in a file, both with a bound."""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import IO, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IProducer, IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

# What may wait for the disk before the store is asked to pause.
_HIGH_WATER = 1024 * 1024


# Runs blocking work in the thread pool: (function, *arguments) → its result, as deferToThread does.
DeferToPool = Callable[..., Deferred[Any]]


class TooLarge(Exception):
    """A body is larger than whoever asked for it is ready to hold."""


@implementer(IConsumer)
class MemorySpool:
    """A consumer that keeps a body of at most `limit` bytes in memory."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._chunks: list[bytes] = []

    @property
    def body(self) -> bytes:
        """What has been written so far."""
        return b"".join(self._chunks)

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:  # noqa: N802
        """Memory takes everything at once: the producer is never paused."""

    def unregisterProducer(self) -> None:  # noqa: N802
        """Nothing to let go."""

    def write(self, data: bytes) -> None:
        """Keep the bytes. Raises TooLarge beyond the limit."""
        self._size += len(data)
        if self._size > self._limit:
            self._chunks.clear()
            raise TooLarge(f"more than {self._limit} bytes")
        self._chunks.append(data)


@implementer(IConsumer)
class FileSpool:
    """A consumer that writes a body to a file in the thread pool.

    One write is in flight at a time; what comes meanwhile is joined into the next one, and beyond 1 MiB the
    producer is paused. The file takes its name only in `commit`; until then, and after `rollback`, nothing
    of that name appears.
    """

    def __init__(
        self, target: pathlib.Path, defer_to_pool: DeferToPool, *, high_water: int = _HIGH_WATER
    ) -> None:
        self._target = target
        self._defer_to_pool = defer_to_pool
        self._high_water = high_water
        self._file: IO[bytes] | None = None
        self._chunks: list[bytes] = []
        self._waiting = 0
        self._writing = False
        self._error: Failure | None = None
        self._settled: Deferred[None] | None = None
        self._producer: IPushProducer | None = None
        self._paused = False

    async def open(self) -> None:
        """Make the temporary file beside the target. Raises OSError."""
        opened: Deferred[None] = Deferred()

        def keep(file: IO[bytes]) -> None:
            if opened.called:
                # Cancelled meanwhile, which does not stop a thread.
                self._defer_to_pool(_remove, file)
            else:
                self._file = file
                opened.callback(None)

        self._defer_to_pool(_temporary, self._target).addCallback(keep).addErrback(opened.errback)
        await opened

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:  # noqa: N802
        """Take a push producer, to pause it when the disk is slower."""
        self._producer = IPushProducer(producer)

    def unregisterProducer(self) -> None:  # noqa: N802
        """Let the producer go."""
        self._producer = None

    def write(self, data: bytes) -> None:
        """Have the bytes written. Raises the OSError of an earlier write."""
        if self._error is not None:
            self._error.raiseException()
        self._chunks.append(data)
        self._waiting += len(data)
        if not self._writing:
            self._flush()
        elif self._waiting >= self._high_water and not self._paused and self._producer is not None:
            self._paused = True
            self._producer.pauseProducing()

    async def commit(self) -> None:
        """Give the finished file its name. Raises OSError when the disk did not take it all."""
        await self._until_written()
        if self._error is not None:
            self._error.raiseException()
        file = self._opened()
        await self._defer_to_pool(_publish, file, self._target)
        self._file = None

    async def rollback(self) -> None:
        """Remove what has been written; harmless after `commit` and before `open`."""
        self._chunks.clear()
        await self._until_written()
        file, self._file = self._file, None
        if file is not None:
            await self._defer_to_pool(_remove, file)

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            raise RuntimeError("the spool is not open")
        return self._file

    def _flush(self) -> None:
        chunks, self._chunks, self._waiting = self._chunks, [], 0
        self._writing = True
        self._defer_to_pool(_write, self._opened(), chunks).addBoth(self._written)

    def _written(self, result: int | Failure) -> None:
        self._writing = False
        if isinstance(result, Failure):
            self._error = result
            self._chunks.clear()
        if self._chunks:
            self._flush()
        self._resume()
        settled = self._settled
        if settled is not None and not self._writing:
            self._settled = None
            settled.callback(None)

    def _resume(self) -> None:
        # After a failure too: the next write raises it, which ends the transfer.
        if self._paused:
            self._paused = False
            if self._producer is not None:
                self._producer.resumeProducing()

    async def _until_written(self) -> None:
        if self._writing:
            self._settled = Deferred()
            await self._settled


def _temporary(target: pathlib.Path) -> IO[bytes]:
    # The caller closes it, in _publish or _remove.
    return tempfile.NamedTemporaryFile(
        prefix=f".{target.name[:100]}.", suffix=".part", dir=target.parent, delete=False, buffering=0
    )


def _write(file: IO[bytes], chunks: list[bytes]) -> int:
    data = memoryview(b"".join(chunks))
    written = 0
    while written < len(data):
        written += file.write(data[written:])
    return written


def _publish(file: IO[bytes], target: pathlib.Path) -> None:
    file.close()
    os.replace(file.name, target)


def _remove(file: IO[bytes]) -> None:
    file.close()
    pathlib.Path(file.name).unlink(missing_ok=True)
