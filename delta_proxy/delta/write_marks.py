"""When the log of a table was last written to, told to every process that has the same cache directory.

What is remembered of a log (which files it has, how far it goes) holds for as long as nobody wrote to it
through a proxy beside this one: a mark is a number in a file, looked at before what is remembered is used.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from delta_proxy.delta.directory import UnusableDirectory, private_directory
from delta_proxy.upstream.stores import has_dot_segments

from .paths import LOG_DIRECTORY

_MARK: Final = struct.Struct("=q")
_PLACES: Final = 4096

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
    """The marks in a directory, which is made; one file holds those of all tables.

    It is mapped into memory, so that reading one costs no call of the system. Of four thousand pairs of
    tables one shares a mark: then a write to either is one to both, which costs a listing. Raises
    UnusableDirectory.
    """

    def __init__(self, directory: Path) -> None:
        self._file = private_directory(directory / "writes") / "marks"
        self._places: dict[str, int] = {}
        try:
            self._marks = _mapped(self._file)
        except OSError as error:
            raise UnusableDirectory(f"cache.directory: {self._file}: {error.strerror}") from None

    def of(self, identity: str) -> int:
        """The mark of a table now; 0 for one that was never written to."""
        place = self._places.get(identity)
        return self._marks[self._place(identity) if place is None else place]

    def set(self, identity: str) -> None:
        """The log of a table was written to, or may have been. Blocks on the disk. Raises OSError."""
        # The clock may be too coarse to tell two writes in a row apart.
        moment = max(time.time_ns(), self.of(identity) + 1)
        descriptor = os.open(self._file, os.O_WRONLY | os.O_CLOEXEC)
        try:
            # By a call, not through the mapping: there a disk that fails is a signal that ends the process.
            os.pwrite(descriptor, _MARK.pack(moment), self._place(identity) * _MARK.size)
        finally:
            os.close(descriptor)

    def _place(self, identity: str) -> int:
        digest = hashlib.sha256(identity.encode()).digest()
        # As many as there are tables.
        place = self._places[identity] = int.from_bytes(digest[:8], "big") % _PLACES
        return place


def _mapped(file: Path) -> memoryview:
    """The numbers in a file, which is made of zeros if there is none; they follow what is written to it."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # No holes: to read one takes room on the disk, and there may be none.
        os.posix_fallocate(descriptor, 0, _PLACES * _MARK.size)
        mapping = mmap.mmap(descriptor, _PLACES * _MARK.size, prot=mmap.PROT_READ)
    finally:
        os.close(descriptor)
    return memoryview(mapping).cast("q")
