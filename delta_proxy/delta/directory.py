"""The cache directory: file names and statistics of whole tables lie there, so it is its owner's alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class UnusableDirectory(OSError):
    """The cache directory cannot be used; the text is one line for the operator."""


def private_directory(path: Path) -> Path:
    """The directory, made if it is not there. Raises UnusableDirectory when it is not ours alone."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
    except OSError as error:
        raise UnusableDirectory(f"cache.directory: {path}: {error.strerror}") from None
    if found.st_uid != os.geteuid():
        raise UnusableDirectory(f"cache.directory: {path} belongs to another user")
    if found.st_mode & _OTHERS:
        raise UnusableDirectory(f"cache.directory: {path} is open to other users; expected mode 0700")
    return path


def raise_if_of_the_machine(error: BaseException) -> None:
    """Raise an OSError again that the system gave (a full disk, no descriptor left): the file is not it.

    Those that pyarrow makes of a file's contents have no number.
    """
    if isinstance(error, OSError) and error.errno is not None:
        raise error
