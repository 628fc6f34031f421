"""Header fields as a frozen value."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen


@frozen
class Headers:
    """Header fields in order of arrival: lower-case names, values as latin-1 text without outer spaces."""

    items: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]]) -> Headers:
        """Headers from pairs whose names may have any case."""
        return cls(tuple((name.lower(), value.strip(" \t")) for name, value in pairs))

    def get(self, name: str) -> str | None:
        """The first value of a field, or None."""
        wanted = name.lower()
        return next((value for field, value in self.items if field == wanted), None)

    def all(self, name: str) -> tuple[str, ...]:
        """Every value of a field, in order."""
        wanted = name.lower()
        return tuple(value for field, value in self.items if field == wanted)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None
