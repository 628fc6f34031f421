"""A log file that several processes write: each line by one call, at the end, whoever wrote last."""

from __future__ import annotations

import os
from typing import Final, TextIO, cast

from twisted.logger import ILogObserver

from delta_proxy import logs

_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY


class SharedLogFile:
    """A file as twisted.logger writes it. Raises OSError when it cannot be opened."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.descriptor = os.open(path, _FLAGS, 0o640)

    def write(self, text: str) -> None:
        """Write lines."""
        os.write(self.descriptor, text.encode("utf-8", "backslashreplace"))

    def flush(self) -> None:
        """Nothing is held back."""

    def reopen(self) -> None:
        """Go on in a new file of the same name, after a rotation; in the old one when that cannot be."""
        try:
            fresh = os.open(self.path, _FLAGS, 0o640)
        except OSError:
            return
        # The number stays: it is what a worker has as its standard error.
        os.dup2(fresh, self.descriptor, inheritable=self.descriptor <= 2)
        os.close(fresh)

    @classmethod
    def of_standard_error(cls, path: str) -> SharedLogFile:
        """The file that is standard error already."""
        made = cls.__new__(cls)
        made.path, made.descriptor = path, 2
        return made


def observer() -> ILogObserver:
    """The proxy's lines, on standard error, which is the log file."""
    return logs.observer(logs.LogFormat.TEXT, cast(TextIO, SharedLogFile.of_standard_error("")))
