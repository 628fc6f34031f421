"""One process at a time makes a thing that all processes with the same cache directory share.

Locks are bytes of one file (fcntl(2), advisory record locks), so that nothing is left behind: the lock of a
process that dies is free at once. They belong to the process: within one it is for the caller not to make a
thing twice. Where locks do not work, or take too long to come, everybody makes the thing, which is slower and
no less right: what is made appears whole, under its name, by a rename.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from delta_proxy.upstream.spool import DeferToPool

PATIENCE_SECONDS: Final = 120.0
_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 0.5


class BuildLocks:
    """The locks of a directory, which must exist when the first is taken."""

    def __init__(self, directory: Path, defer_to_pool: DeferToPool, clock: IReactorTime) -> None:
        self._path = directory / "locks"
        self._defer_to_pool = defer_to_pool
        self._clock = clock
        self._descriptor: int | None = None
        self._opening = threading.Lock()

    @asynccontextmanager
    async def held(self, name: str) -> AsyncIterator[bool]:
        """Wait for the lock of a name, at most for `PATIENCE_SECONDS`; whether it is ours meanwhile."""
        offset = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
        locked = await self._lock(offset)
        try:
            yield locked
        finally:
            if locked:
                await self._defer_to_pool(self._unlock, offset)

    async def _lock(self, offset: int) -> bool:
        pause, deadline = _FIRST_PAUSE, self._clock.seconds() + PATIENCE_SECONDS
        while True:
            locked: bool | None = await self._defer_to_pool(self._try, offset)
            if locked is not False:
                return bool(locked)
            if self._clock.seconds() >= deadline:
                return False
            await deferLater(self._clock, pause)
            pause = min(_LONGEST_PAUSE, pause * 2)

    def _try(self, offset: int) -> bool | None:
        """Whether the lock is ours; None where there are no locks."""
        try:
            fcntl.lockf(self._file(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:
            return None
        return True

    def _unlock(self, offset: int) -> None:
        fcntl.lockf(self._file(), fcntl.LOCK_UN, 1, offset)

    def _file(self) -> int:
        # Never closed: that would give up every lock of the process.
        with self._opening:
            if self._descriptor is None:
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            return self._descriptor
