"""Which paths of a table a listing shows, and under which ETags: those that GET would give."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Protocol

import attrs

from delta_proxy.delta.deletion_vectors import Region, regions
from delta_proxy.delta.masks import GrantMask
from delta_proxy.delta.paths import LOG_DIRECTORY
from delta_proxy.delta.rows import FileKind
from delta_proxy.delta.segment import Entry
from delta_proxy.delta.view_names import view_file
from delta_proxy.delta.views import derived_etag, vector_key
from delta_proxy.upstream.client import ListedObject
from delta_proxy.upstream.stores import leaves_root

_BEHIND_LOG: Final = LOG_DIRECTORY + "\U0010ffff"
_ENDLESS: Final = 1 << 62


class Visibility(Protocol):
    """What a principal may see of one table's paths (relative to the table root)."""

    def served(self, listed: Sequence[ListedObject], unserved: frozenset[str]) -> Mapping[str, str]:
        """The listed paths that GET would serve, save those of `unserved`, with the quoted ETags it gives."""
        ...

    async def unserved(self, listed: Sequence[ListedObject]) -> frozenset[str]:
        """Those of the listed paths that GET does not serve although they are of a kind that is shown."""
        ...

    def below(self, prefix: str) -> bool | None:
        """Whether anything shown exists below a common prefix; None when only the store can tell."""
        ...

    def next_after(self, path: str, prefix: str) -> str | None:
        """The smallest path after `path` that starts with `prefix` and may be shown, or None."""
        ...

    def surely_after(self, path: str, prefix: str) -> bool:
        """Whether any path after `path` that starts with `prefix` is shown, as far as that can be told
        without the store. False may just mean: only the store can tell.
        """
        ...


@attrs.frozen
class WholeTable:
    """An unrestricted principal sees the table as it is."""

    def served(self, listed: Sequence[ListedObject], unserved: frozenset[str]) -> Mapping[str, str]:
        """Every path but those that no GET is for."""
        return {item.path: item.etag for item in listed if not leaves_root(item.path)}

    async def unserved(self, listed: Sequence[ListedObject]) -> frozenset[str]:
        """None."""
        return frozenset()

    def below(self, prefix: str) -> bool | None:
        """The store lists only prefixes that hold something, though it may be nothing that is shown."""
        return None if leaves_root(prefix) else True

    def next_after(self, path: str, prefix: str) -> str | None:
        """Nothing is hidden, so the next path is the store's to tell."""
        return path

    def surely_after(self, path: str, prefix: str) -> bool:
        """Nothing is hidden, so what the store has more of is shown."""
        return True


@attrs.frozen
class LogOfView:
    """The log directory of a view: the files that views have, under ETags of their own."""

    key: str
    ask: Callable[[Sequence[ListedObject]], Awaitable[frozenset[str]]]

    def shows(self, path: str) -> bool:
        """Commits, checkpoints, sidecars and the hint."""
        return path.startswith(LOG_DIRECTORY) and view_file(path[len(LOG_DIRECTORY) :]) is not None

    def etag(self, path: str, etag: str) -> str:
        """The ETag of the file in the view."""
        return derived_etag(etag, self.key)

    def served(self, listed: Sequence[ListedObject], unserved: frozenset[str]) -> Mapping[str, str]:
        """Those shown."""
        return {
            item.path: self.etag(item.path, item.etag)
            for item in listed
            if item.path not in unserved and self.shows(item.path)
        }

    async def unserved(self, listed: Sequence[ListedObject]) -> frozenset[str]:
        """Sidecars and hints that are none of the view."""
        return await self.ask(listed)

    def below(self, prefix: str) -> bool | None:
        """The log itself exists; of the rest only the store can tell."""
        return True if prefix == LOG_DIRECTORY else None

    def next_after(self, path: str, prefix: str) -> str | None:
        """The log directory, or what the store has behind the path."""
        overlap = LOG_DIRECTORY.startswith(prefix) or prefix.startswith(LOG_DIRECTORY)
        return max(LOG_DIRECTORY, prefix) if overlap and path < _BEHIND_LOG else None

    def surely_after(self, path: str, prefix: str) -> bool:
        """The log itself exists."""
        return path < LOG_DIRECTORY and LOG_DIRECTORY.startswith(prefix)


async def _all_served(_: Sequence[ListedObject]) -> frozenset[str]:
    return frozenset()


@attrs.frozen
class OpenLog(LogOfView):
    """The log directory where it is passed through as it is."""

    key: str = ""
    ask: Callable[[Sequence[ListedObject]], Awaitable[frozenset[str]]] = _all_served

    def shows(self, path: str) -> bool:
        """Every file of it."""
        return path.startswith(LOG_DIRECTORY)

    def etag(self, path: str, etag: str) -> str:
        """The store's."""
        return etag


@attrs.frozen
class ClosedLog(LogOfView):
    """The log directory where it does not exist for the principal."""

    key: str = ""
    ask: Callable[[Sequence[ListedObject]], Awaitable[frozenset[str]]] = _all_served

    def shows(self, path: str) -> bool:
        """No file of it."""
        return False

    def below(self, prefix: str) -> bool | None:
        """Nothing is."""
        return False

    def next_after(self, path: str, prefix: str) -> str | None:
        """Nothing is."""
        return None

    def surely_after(self, path: str, prefix: str) -> bool:
        """Nothing is."""
        return False


@attrs.frozen
class GrantedPaths:
    """A restricted principal sees the granted paths of the index, and its view of the log."""

    mask: GrantMask
    log: LogOfView

    def served(self, listed: Sequence[ListedObject], unserved: frozenset[str]) -> Mapping[str, str]:
        """Log files of the view, and the paths whose every partition value is granted.

        A deletion vector that is not shown as it is has an ETag of its own.
        """
        of_log = [item for item in listed if item.path.startswith(LOG_DIRECTORY)]
        served = dict(self.log.served(of_log, unserved)) if of_log else {}
        data = [item for item in listed if not item.path.startswith(LOG_DIRECTORY)] if of_log else listed
        granted, closer = self.mask.index.granted_among([item.path for item in data], self.mask.bits)
        served.update({path: etag for path, _, etag, _, _ in data if path in granted})
        if closer:
            served.update(
                (item.path, etag) for item in data if item.path in closer and (etag := self._etag(item))
            )
        for path in unserved:
            served.pop(path, None)
        return served

    def _etag(self, item: ListedObject) -> str | None:
        """The ETag under which an object is shown that several statements are about; None for not at all."""
        entries = self.mask.index.lookup(item.path)
        if not self.mask.allows(entries):
            return None
        shown = shown_regions(self.mask, entries)
        return item.etag if shown is None else derived_etag(item.etag, vector_key(shown))

    async def unserved(self, listed: Sequence[ListedObject]) -> frozenset[str]:
        """Those of the log."""
        return await self.log.unserved(listed)

    def below(self, prefix: str) -> bool | None:
        """A live granted file exists by the protocol; of a tombstoned one only the store can tell."""
        if prefix.startswith(LOG_DIRECTORY):
            return self.log.below(prefix)
        if self.mask.index.has_live_below(prefix, self.mask.bits):
            return True
        maybe = self._next_data(prefix, prefix) is not None or LOG_DIRECTORY.startswith(prefix)
        return None if maybe else False

    def next_after(self, path: str, prefix: str) -> str | None:
        """The next granted path of the index, or the log directory when that comes first."""
        candidates = (self._next_data(path, prefix), self.log.next_after(path, prefix))
        return min((found for found in candidates if found is not None), default=None)

    def surely_after(self, path: str, prefix: str) -> bool:
        """A live granted file exists by the protocol, and so does the log."""
        index, bits = self.mask.index, self.mask.bits
        live = index.next_visible(path, prefix, bits, live=True)
        return live is not None or self.log.surely_after(path, prefix)

    def _next_data(self, path: str, prefix: str) -> str | None:
        return self.mask.index.next_visible(path, prefix, self.mask.bits)


def shown_regions(mask: GrantMask, entries: tuple[Entry, ...]) -> tuple[Region, ...] | None:
    """What is shown of a file with these entries when it holds deletion vectors, else None."""
    vectors = [entry for entry in entries if entry.kind is FileKind.DELETION_VECTOR]
    if not vectors:
        return None
    granted = [(entry.offset, entry.size or 0) for entry in vectors if mask.allows_vector(entry)]
    hidden = [entry for entry in vectors if not mask.allows_vector(entry)]
    # One that does not say where it ends may go on to the end of the file.
    denied = [(entry.offset, _ENDLESS if entry.size is None else entry.size) for entry in hidden]
    return regions(granted, denied)
