"""The counters of a worker: kept in memory, and written to the file that the parent reads when it asks.

A write to the file for each count costs more than the rest of counting, half a dozen times a request.
"""

# mypy: allow-untyped-calls
from __future__ import annotations

from threading import Lock
from typing import Any

from prometheus_client import values


def counting(number: str) -> type[Any]:
    """A value class of prometheus-client for the worker of this number, which goes on with the files of the
    one it replaces.
    """
    written: Any = values.MultiProcessValue(lambda: number)

    class CountedValue(written):  # type: ignore[misc]
        """A value of a file, and what was added since."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._held = 0.0
            self._holding = Lock()
            super().__init__(*args, **kwargs)
            _made.append(self)

        def inc(self, amount: float) -> None:
            with self._holding:
                self._held += amount

        def set(self, value: float, timestamp: float | None = None) -> None:
            with self._holding:
                self._held = 0.0
                super().set(value, timestamp)

        def get(self) -> float:
            with self._holding:
                return float(super().get()) + self._held

        def write(self) -> None:
            """Add what is held to the file."""
            with self._holding:
                held, self._held = self._held, 0.0
                if held:
                    super().inc(held)

    return CountedValue


_made: list[Any] = []


def write_counts() -> None:
    """Write what every counter of this process holds; nothing where they are not of `counting`."""
    for value in tuple(_made):
        value.write()
