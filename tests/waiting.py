"""Waiting in tests: until something is so, for as long as a slow machine may take."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

PATIENCE: Final = 240.0
"""Seconds after which a test gives up; nothing that passes comes near it."""


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Return when the condition holds; fail when it does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)
