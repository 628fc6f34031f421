"""The audit log: who asked what, and what was decided; one JSON line a decision.

**Complete or closed.** A request takes a place in the queue before it is decided and gives it back with its
record; when no place is free (the disk is full, the reader of the pipe stands still) the request is refused
with ServiceUnavailable. So nothing is ever read that could not be recorded, and the price is availability.
Only a record that is still queued when the process must end, or a process that is killed, loses lines; the
former is counted and said.

The reactor only appends to a queue. One thread writes, whole lines by single `write` calls on a descriptor
opened with O_APPEND, so that the lines of several workers never mix in a file. There is no field for a
secret, a signature or a token.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

import attrs
import orjson

from delta_proxy.s3.errors import ServiceUnavailable

DEFAULT_CAPACITY = 16_384
STANDARD_OUTPUT = "-"
_BATCH_BYTES = 1 << 18
_PIPE_BYTES = 4_096  # POSIX: what a pipe takes in one piece
_RETRY_SECONDS = 1.0


class AuditUnavailable(ServiceUnavailable):
    """The request is refused because it could not be recorded."""

    code = "ServiceUnavailable"


@attrs.frozen(kw_only=True)
class AuditRecord:
    """One decision. `time` has a zone; `duration` is in seconds; `bytes_sent` are those of the
    answer's body, `bytes` in the line, `bytes_received` those of the request's.

    `copied_from` is the key that a copy is made of, None for all else.

    `partitions` are the sets of partition values that the path ever had, `grant` the fingerprint of the
    grant that was applied. `path` is relative to the table, None for a request about no table.
    """

    time: datetime
    request_id: str
    principal: str
    auth: str
    access_key: str | None = None
    source: str
    operation: str
    table: str | None = None
    path: str | None = None
    copied_from: str | None = None
    partitions: Sequence[Mapping[str, str | None]] = ()
    grant: str | None = None
    decision: str
    reason: str | None = None
    status: int
    bytes_sent: int
    bytes_received: int = 0
    duration: float

    def line(self) -> bytes:
        """The record as a line of JSON, newline and all; the time in UTC with microseconds."""
        fields: dict[str, object] = attrs.asdict(self, recurse=False)
        fields["time"] = self.time.astimezone(UTC).isoformat(timespec="microseconds")
        fields["bytes"] = fields.pop("bytes_sent")
        fields["partitions"] = [dict(values) for values in self.partitions]
        try:
            return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)
        except orjson.JSONEncodeError:
            # Text that is not UTF-8 (a lone surrogate) must not cost the record.
            return json.dumps(fields, separators=(",", ":")).encode("ascii") + b"\n"


@attrs.define(eq=False)
class Place:
    """A request's place in the queue: used once, by `record` or by `release`."""

    _log: AuditLog | None

    def record(self, record: AuditRecord) -> None:
        """Queue the record; never fails and never blocks. A second call does nothing."""
        log, self._log = self._log, None
        if log is not None:
            log._put(record.line())

    def release(self) -> None:
        """Give the place back without a record: nothing was decided."""
        log, self._log = self._log, None
        if log is not None:
            log._put(None)


class AuditLog:
    """The log in a file, or on standard output for `-`.

    `report` is told in one line when writing begins to fail, works again, or lost records; it is called on
    the writer's thread. OSError when the file cannot be opened at the start.
    """

    def __init__(self, path: str, *, report: Callable[[str], None], capacity: int = DEFAULT_CAPACITY) -> None:
        self._path, self._report, self._capacity = path, report, capacity
        self._output = _Output.open(path)
        self._lines: deque[bytes] = deque()
        self._places = 0
        self._changed = threading.Condition()
        self._reopening = False
        self._closing = self._ended = False
        self._written = 0
        self._dropped = 0
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)

    def start(self) -> None:
        """Begin to write. Not before the process has become a daemon: a thread does not survive the fork."""
        self._thread.start()

    def reserve(self) -> Place:
        """A place for the record of a request that begins. AuditUnavailable when none is free."""
        with self._changed:
            if self._closing or self._places >= self._capacity:
                raise AuditUnavailable
            self._places += 1
        return Place(self)

    def reopen(self) -> None:
        """Go on in a new file of the same name (SIGUSR1, after a rotation); queued lines may go to either."""
        with self._changed:
            self._reopening = True
            self._changed.notify()

    def close(self, timeout: float = 5.0) -> int:
        """Write what is queued, then stop; how many records were lost because `timeout` seconds did not do.

        Blocks: call it at the very end, or on a thread.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is None:
            self._output.close()
        else:
            self._thread.join(timeout)
        with self._changed:
            lost = len(self._lines)
            self._dropped += lost
            self._lines.clear()
        if lost:
            self._report(f"audit: {lost} records could not be written and are lost")
        return lost

    @property
    def waiting(self) -> int:
        """Places taken: requests under way and records not yet written."""
        return self._places

    @property
    def written(self) -> int:
        """Records written so far."""
        return self._written

    @property
    def dropped(self) -> int:
        """Records lost so far."""
        return self._dropped

    @property
    def failure(self) -> str | None:
        """Why nothing can be written at the moment; None when all is well. For readiness."""
        return self._failure

    @property
    def ready(self) -> bool:
        """Whether a request could be recorded now."""
        return not self._closing and self._places < self._capacity

    def _put(self, line: bytes | None) -> None:
        with self._changed:
            if line is None or self._ended:
                self._places -= 1
                self._dropped += line is not None
                return
            self._lines.append(line)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._lines or self._reopening or self._closing):
                    self._changed.wait()
                if self._closing and not self._lines:
                    self._ended = True
                    break
                reopening, self._reopening = self._reopening, False
                batch = self._batch()
            if reopening:
                self._reopen()
            if batch and not self._write(batch):
                self._pause()
        self._output.close()

    def _pause(self) -> None:
        """Between two tries; not ended by new lines, only by a reopened file or the end."""
        with self._changed:
            if self._closing:
                self._changed.wait(_RETRY_SECONDS / 20)
            else:
                self._changed.wait_for(lambda: self._reopening or self._closing, _RETRY_SECONDS)

    def _batch(self) -> list[bytes]:
        """The next lines that go into one call; they stay in the queue until they are written."""
        batch: list[bytes] = []
        size = 0
        for line in self._lines:
            size += len(line)
            if batch and size > self._output.piece:
                break
            batch.append(line)
        return batch

    def _write(self, batch: list[bytes]) -> bool:
        done, error = self._output.write(batch)
        with self._changed:
            # close() may have given the lines up while the call was under way.
            for _ in range(min(done, len(self._lines))):
                self._lines.popleft()
            self._places -= done
            self._written += done
        self._tell(None if error is None else f"audit: cannot write to {self._path}: {error.strerror}")
        return error is None

    def _reopen(self) -> None:
        try:
            fresh = _Output.open(self._path)
        except OSError as error:
            self._report(f"audit: cannot reopen {self._path}, going on in the old file: {error.strerror}")
            return
        self._output.close()
        self._output = fresh

    def _tell(self, failure: str | None) -> None:
        before, self._failure = self._failure, failure
        if failure is not None and before is None:
            self._report(failure)
        elif failure is None and before is not None:
            self._report(f"audit: writing to {self._path} works again")


@attrs.define
class _Output:
    """The open descriptor.

    `piece`: how many bytes go into one call without mixing. `torn`: the last line written is incomplete.
    """

    descriptor: int
    piece: int
    owned: bool
    torn: bool = False

    @classmethod
    def open(cls, path: str) -> _Output:
        if path == STANDARD_OUTPUT:
            descriptor = os.dup(1)
        else:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
            descriptor = os.open(path, flags, 0o640)
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        return cls(descriptor, _BATCH_BYTES if regular else _PIPE_BYTES, path != STANDARD_OUTPUT)

    def write(self, lines: Sequence[bytes]) -> tuple[int, OSError | None]:
        """Write whole lines by one call; how many are complete, and the error if not all are."""
        # After a short write another worker's line may stand behind the torn one: end it, and repeat ours.
        start = b"\n" if self.torn else b""
        data = start + b"".join(lines)
        try:
            size = os.write(self.descriptor, data)
        except OSError as error:
            return 0, error
        if size == len(data):
            self.torn = False
            return len(lines), None
        return self._short(lines, size - len(start))

    def _short(self, lines: Sequence[bytes], size: int) -> tuple[int, OSError]:
        done = 0
        for line in lines:
            if size < len(line):
                break
            size -= len(line)
            done += 1
        self.torn = self.torn if size < 0 else size > 0
        return done, OSError(errno.ENOSPC, "the device took only part of it")

    def close(self) -> None:
        try:
            if self.owned:
                os.fsync(self.descriptor)
        except OSError:
            # A terminal or a pipe has nothing to be synchronised.
            self.owned = False
        os.close(self.descriptor)
