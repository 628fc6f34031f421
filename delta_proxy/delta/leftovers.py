"""Names that tell which process made a thing, so that what a killed one left behind is found and removed."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import socket
from pathlib import Path
from typing import Final

OWNER: Final = r"(?P<host>[0-9a-f]{8})-(?P<pid>[0-9]{1,10})-(?P<token>[0-9a-f]{8})"
"""What `owner` gives, as a regular expression."""
_STALE_SECONDS: Final = 3600.0

_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
# Tells this process from an earlier one with the same id, which is usual in containers.
_TOKEN = secrets.token_hex(4)


def owner() -> str:
    """The part of a name that stands for this process."""
    return f"{_HOST}-{os.getpid()}-{_TOKEN}"


def is_gone(made_by: re.Match[str]) -> bool:
    """Whether a match of `OWNER` stands for a process of this host that has ended."""
    pid = int(made_by["pid"])
    if made_by["host"] != _HOST:
        return False
    return made_by["token"] != _TOKEN if pid == os.getpid() else not _is_alive(pid)


def is_stale(made_by: re.Match[str], age: float) -> bool:
    """Whether a temporary belongs to a process of this host that is gone, or has not grown for an hour."""
    return age > _STALE_SECONDS or is_gone(made_by)


def remove_folders(directory: Path, *kinds: str, now: float | None = None) -> None:
    """Remove this user's folders `KIND-OWNER-...` of processes that are gone; it blocks.

    With `now`, the time of day, also those that nothing was written to for an hour. Raises OSError when the
    directory cannot be read.
    """
    name = re.compile(rf"(?:{'|'.join(map(re.escape, kinds))})-{OWNER}-.*")
    with os.scandir(directory) as entries:
        for entry in entries:
            made_by = name.fullmatch(entry.name)
            if made_by is not None and _is_left(entry, made_by, now):
                shutil.rmtree(entry.path, ignore_errors=True)


def _is_left(entry: os.DirEntry[str], made_by: re.Match[str], now: float | None) -> bool:
    try:
        if not entry.is_dir(follow_symlinks=False) or entry.stat().st_uid != os.geteuid():
            return False
        return is_gone(made_by) if now is None else is_stale(made_by, now - _last_written(entry.path))
    except OSError:
        return False


def _last_written(folder: str) -> float:
    """A file that grows does not touch its folder."""
    with os.scandir(folder) as entries:
        files = [entry.stat(follow_symlinks=False).st_mtime for entry in entries]
    return max(os.stat(folder).st_mtime, *files) if files else os.stat(folder).st_mtime


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
