"""Header fields as a frozen value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attrs import field, frozen


@frozen
class Headers:
    """Header fields in order of arrival: lower-case names, values as latin-1 text without outer spaces."""

    items: tuple[tuple[str, str], ...] = ()
    # Most fields are asked for by name, some several times a request.
    _first: Mapping[str, str] = field(init=False, eq=False, repr=False)

    @_first.default
    def _first_values(self) -> Mapping[str, str]:
        return dict(reversed(self.items))

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]]) -> Headers:
        """Headers from pairs whose names may have any case."""
        return cls(tuple((name.lower(), value.strip(" \t")) for name, value in pairs))

    @property
    def repeats(self) -> bool:
        """Whether any field came more than once."""
        return len(self._first) != len(self.items)

    def get(self, name: str) -> str | None:
        """The first value of a field, or None."""
        value = self._first.get(name)
        return value if value is not None or name.islower() else self._first.get(name.lower())

    def all(self, name: str) -> tuple[str, ...]:
        """Every value of a field, in order."""
        value = self.get(name)
        if value is None:
            return ()
        if len(self._first) == len(self.items):
            return (value,)
        wanted = name.lower()
        return tuple(value for field, value in self.items if field == wanted)

    def lacks(self, names: frozenset[str]) -> bool:
        """Whether no field has any of these names, which are in lower case."""
        return names.isdisjoint(self._first)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._first


def wire_text(value: str) -> str:
    """A header value such that its UTF-8 form is the bytes on the wire, which are what is signed.

    Bytes that are no UTF-8 are surrogates, as "surrogateescape" has them.
    """
    return value if value.isascii() else value.encode("latin-1").decode("utf-8", "surrogateescape")
