"""TCP ports for the servers that tests start: nobody else gets them between the choice and the listening.

The ports lie above the demo's and below those that the system gives outgoing connections. Each is reserved
by a lock on a file for as long as this process lives, so that parallel runs of the tests do not meet.
"""

from __future__ import annotations

import fcntl
import os
import pathlib
import random
import socket
import tempfile

_LOWEST, _BEHIND = 20_000, 32_000
_choice = random.SystemRandom()
_reserved: list[int] = []


def free_port() -> int:
    """A free port of the loopback interface, reserved for this process."""
    for _ in range(1_000):
        port = _choice.randrange(_LOWEST, _BEHIND)
        if _reserve(port):
            return port
    raise AssertionError("no port is free")


def _reserve(port: int) -> bool:
    folder = pathlib.Path(tempfile.gettempdir()) / f"delta-s3-proxy-ports-{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(folder / str(port), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
    except OSError:
        os.close(lock)
        return False
    _reserved.append(lock)
    return True
