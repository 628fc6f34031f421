"""LIST as a principal sees it: the store's pages, filtered, in S3's order, cut where the client asked.

Rules (Amazon S3 API, ListObjectsV2): entries are sorted by the UTF-8 bytes of the key; a common prefix counts
as one entry, stands once, and is not given again after a marker or token that names it. A page may hold fewer
entries than asked, never none while a visible one follows.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Protocol

import attrs

from delta_proxy.delta.views import RefusedView
from delta_proxy.delta.visibility import Visibility
from delta_proxy.s3.listing import ListQuery, delimited
from delta_proxy.s3.xml import ListedKey, ListResult
from delta_proxy.upstream.client import ListPage
from delta_proxy.upstream.stores import leaves_root

UPSTREAM_PAGE = 1000
"""Keys asked of the store at once: S3's own maximum."""

_LAST_CODE_POINT = "\U0010ffff"

Entry = ListedKey | str
"""A key, or a common prefix."""


class Listable(Protocol):
    """The store of one table: its LIST, with paths relative to the table root."""

    async def list(
        self, prefix: str = "", *, delimiter: str = "", start_after: str = "", max_keys: int = UPSTREAM_PAGE
    ) -> ListPage:
        """One page of the store's listing."""
        ...


@attrs.frozen
class ListedTable:
    """One table as LIST reads it; its visibility is asked for only when it is listed.

    `root` is what its keys begin with: the alias and a slash, unless they are those of the store.
    """

    alias: str
    store: Listable
    visibility: Callable[[str], Awaitable[Visibility]]
    root: str = attrs.Factory(lambda self: self.alias + "/", takes_self=True)


async def list_page(tables: Sequence[ListedTable], query: ListQuery, after: str | None) -> ListResult:
    """At most `query.max_keys` entries that come after the entry `after` (None: from the start).

    Raises S3Error, and RefusedView when the one table that is asked for is closed to the principal.
    """
    if query.max_keys == 0:
        return ListResult()
    entries: list[Entry] = []
    async with aclosing(_entries(tables, query, after)) as found:
        async for entry in found:
            if len(entries) == query.max_keys:
                return _page(entries, truncated=True)
            entries.append(entry)
    return _page(entries, truncated=False)


def name_of(entry: Entry) -> str:
    """The key of an entry, or the common prefix itself."""
    return entry if isinstance(entry, str) else entry.key


def _page(entries: Sequence[Entry], *, truncated: bool) -> ListResult:
    keys = tuple(entry for entry in entries if not isinstance(entry, str))
    prefixes = tuple(entry for entry in entries if isinstance(entry, str))
    return ListResult(keys, prefixes, truncated, name_of(entries[-1]) if truncated else "")


async def _entries(
    tables: Sequence[ListedTable], query: ListQuery, after: str | None
) -> AsyncGenerator[Entry, None]:
    seen = ""
    for table in sorted(tables, key=lambda table: table.root):
        root = table.root
        if not (root.startswith(query.prefix) or query.prefix.startswith(root)):
            continue
        group = delimited(root, query.prefix, query.delimiter)
        if group is None:
            async with aclosing(_table_entries(table, query, after)) as found:
                async for entry in found:
                    yield entry
        elif group != seen and _comes_after(group, after):
            seen = group
            yield group


def _comes_after(group: str, after: str | None) -> bool:
    """A common prefix is due unless it was given, or lies wholly before the place where the page starts."""
    return after is None or group > after or (after.startswith(group) and after != group)


async def _table_entries(
    table: ListedTable, query: ListQuery, after: str | None
) -> AsyncGenerator[Entry, None]:
    root = table.root
    if after is not None and after >= root + _LAST_CODE_POINT:
        return
    prefix = query.prefix[len(root) :]
    # Nothing is shown below them, and a store over a file system would walk them out of the table.
    if leaves_root(prefix.rpartition("/")[0] + "/-"):
        return
    try:
        visibility = await table.visibility(prefix)
    except RefusedView:
        if query.prefix.startswith(root):
            raise
        # A closed table holds nothing in a listing of several.
        return
    scan = _Scan(table.store, visibility, prefix, query.delimiter)
    within = after[len(root) :] if after is not None and after.startswith(root) else None
    async with aclosing(scan.entries(within)) as found:
        async for entry in found:
            yield _with_alias(root, entry)


def _with_alias(root: str, entry: Entry) -> Entry:
    return root + entry if isinstance(entry, str) else attrs.evolve(entry, key=root + entry.key)


@attrs.frozen
class _Scan:
    """The visible entries of one table below a prefix, page after page of the store."""

    store: Listable
    visibility: Visibility
    prefix: str
    delimiter: str

    async def entries(self, after: str | None) -> AsyncGenerator[Entry, None]:
        """Visible entries after the entry `after`, with paths relative to the table root."""
        start: str | None = self._beyond(after or "")
        while start is not None:
            page = await self.store.list(
                self.prefix, delimiter=self.delimiter, start_after=start, max_keys=UPSTREAM_PAGE
            )
            merged, unserved = _merged(page), await self.visibility.unserved(page.objects)
            shown = False
            for entry in merged:
                if name_of(entry) not in unserved and await self._due(entry, after):
                    shown = True
                    yield entry if isinstance(entry, str) else self._as_served(entry)
            start = self._next_start(merged, shown=shown) if page.truncated else None

    def _as_served(self, entry: ListedKey) -> ListedKey:
        """With the ETag that GET gives."""
        return attrs.evolve(entry, etag=self.visibility.etag(entry.key, entry.etag))

    def _beyond(self, name: str) -> str:
        """The start-after that leaves an entry behind: the whole group where it is a common prefix."""
        group = delimited(name, self.prefix, self.delimiter) == name
        return name + _LAST_CODE_POINT if group else name

    async def _due(self, entry: Entry, after: str | None) -> bool:
        if isinstance(entry, str):
            return _comes_after(entry, after) and await self._shows_below(entry)
        return (after is None or entry.key > after) and self.visibility.shows(entry.key)

    async def _shows_below(self, group: str) -> bool:
        known = self.visibility.below(group)
        if known is not None:
            return known
        below = _Scan(self.store, self.visibility, group, "")
        async with aclosing(below.entries(None)) as found:
            async for _ in found:
                return True
        return False

    def _next_start(self, merged: Sequence[Entry], *, shown: bool) -> str | None:
        """Where the next page starts; one with nothing to show is followed by a jump to what may be shown."""
        if not merged:
            return None
        last = name_of(merged[-1])
        target = last if shown else self.visibility.next_after(last, self.prefix)
        return None if target is None else max(self._beyond(last), _just_before(target))


def _just_before(name: str) -> str:
    """A text that sorts before `name` with next to nothing between the two."""
    last = ord(name[-1]) - 1
    if last < ord(" ") or _is_surrogate(last):
        return name[:-1]
    return name[:-1] + chr(last) + _LAST_CODE_POINT


def _is_surrogate(code: int) -> bool:
    return 0xD800 <= code <= 0xDFFF


def _merged(page: ListPage) -> list[Entry]:
    keys: list[Entry] = [
        ListedKey(item.path, item.size, item.etag, item.last_modified, item.storage_class)
        for item in page.objects
    ]
    return sorted([*keys, *page.prefixes], key=name_of)
