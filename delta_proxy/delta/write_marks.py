"""When the log of a table was last written to, told to every process that has the same cache directory.

What is remembered of a log (which files it has, how far it goes) holds for as long as nobody wrote to it
through a proxy beside this one: a mark is a file whose time is looked at before what is remembered is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from delta_proxy.delta.directory import private_directory
from delta_proxy.upstream.stores import has_dot_segments

from .paths import LOG_DIRECTORY

Mark = Callable[[str], int]
"""From the identity of a table to a number that changes with each write to its log."""


def unmarked(identity: str) -> int:
    """The mark of tables that are not written to."""
    return 0


def is_of_the_log(path: str) -> bool:
    """Whether a write to this path may change the log.

    A store over a file system walks dot segments and takes slashes in a row for one.
    """
    return path.startswith(LOG_DIRECTORY) or "//" in f"/{path}" or has_dot_segments(path)


class WriteMarks:
    """The marks in a directory, which is made. Reading one costs a call of stat."""

    def __init__(self, directory: Path) -> None:
        self._directory = private_directory(directory / "writes")
        self._files: dict[str, str] = {}

    def of(self, identity: str) -> int:
        """The mark of a table now; 0 for one that was never written to."""
        file = self._files.get(identity) or self._file(identity)
        try:
            return os.stat(file).st_mtime_ns
        except FileNotFoundError:
            self._begin(file)
            return 0

    def set(self, identity: str) -> None:
        """The log of a table was written to, or may have been. Blocks on the disk. Raises OSError."""
        file = self._file(identity)
        os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))
        # The clock of file systems is too coarse to tell two writes in a row apart.
        moment = max(time.time_ns(), os.stat(file).st_mtime_ns + 1)
        os.utime(file, ns=(moment, moment))

    def _begin(self, file: str) -> None:
        """Put a mark of 0 where there is none: to look for a file in vain costs more than to find one."""
        with contextlib.suppress(OSError), tempfile.NamedTemporaryFile(dir=self._directory) as empty:
            os.utime(empty.name, ns=(0, 0))
            # Unlike a rename it never takes the place of a mark that was set meanwhile.
            os.link(empty.name, file)

    def _file(self, identity: str) -> str:
        file = f"{self._directory}/{hashlib.sha256(identity.encode()).hexdigest()[:32]}"
        # As many as there are tables.
        self._files[identity] = file
        return file
