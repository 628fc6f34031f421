"""LIST as a principal sees it: the store's pages, filtered, in S3's order, cut where the client asked.

Rules (Amazon S3 API, ListObjectsV2): entries are sorted by the UTF-8 bytes of the key; a common prefix counts
as one entry, stands once, and is not given again after a marker or token that names it. A page that is not
the last holds as many entries as asked: where it ends must not tell how many hidden keys lie between.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from operator import attrgetter
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred

from delta_proxy.delta.flight import both
from delta_proxy.delta.views import RefusedView
from delta_proxy.delta.visibility import Visibility
from delta_proxy.s3.listing import ListQuery, delimited
from delta_proxy.s3.xml import ListedKey, ListResult
from delta_proxy.upstream.client import ListedObject, ListPage
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
    # One more tells that the page is not the last.
    found = _Found(query.max_keys + 1)
    await _collect(tables, query, after, found)
    truncated = found.full
    return _page(found.entries[: query.max_keys], truncated=truncated)


class _Found:
    """The entries found so far, at most `limit` of them.

    `cut` tells that more follow which are not looked for, because a page has no room for them.
    """

    __slots__ = ("cut", "entries", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.entries: list[Entry] = []
        self.cut = False

    @property
    def full(self) -> bool:
        """Whether no more are wanted."""
        return self.cut or len(self.entries) >= self.limit

    def add(self, entries: Iterable[Entry]) -> None:
        """Take as many of these entries as are wanted."""
        self.entries.extend(islice(entries, self.limit - len(self.entries)))

    @property
    def missing(self) -> int:
        """How many fill a page, when it is known that more follow."""
        return max(1, self.limit - 1) - len(self.entries)


def name_of(entry: Entry) -> str:
    """The key of an entry, or the common prefix itself."""
    return entry if isinstance(entry, str) else entry.key


def _page(entries: Sequence[Entry], *, truncated: bool) -> ListResult:
    prefixes = tuple([entry for entry in entries if isinstance(entry, str)])
    keys = tuple([entry for entry in entries if not isinstance(entry, str)])
    return ListResult(keys, prefixes, truncated, name_of(entries[-1]) if truncated else "")


async def _collect(tables: Sequence[ListedTable], query: ListQuery, after: str | None, found: _Found) -> None:
    seen = ""
    for table in sorted(tables, key=lambda table: table.root):
        if found.full:
            return
        root = table.root
        if not (root.startswith(query.prefix) or query.prefix.startswith(root)):
            continue
        group = delimited(root, query.prefix, query.delimiter)
        if group is None:
            await _collect_table(table, query, after, found)
        elif group != seen and _comes_after(group, after):
            seen = group
            found.entries.append(group)


def _comes_after(group: str, after: str | None) -> bool:
    """A common prefix is due unless it was given, or lies wholly before the place where the page starts."""
    return after is None or group > after or (after.startswith(group) and after != group)


async def _collect_table(table: ListedTable, query: ListQuery, after: str | None, found: _Found) -> None:
    root = table.root
    if after is not None and after >= root + _LAST_CODE_POINT:
        return
    prefix = query.prefix[len(root) :]
    # Nothing is shown below them, and a store over a file system would walk them out of the table.
    if leaves_root(prefix.rpartition("/")[0] + "/-"):
        return
    within = after[len(root) :] if after is not None and after.startswith(root) else None
    try:
        await _Scan.of(table, prefix, query.delimiter).collect(within, found)
    except RefusedView:
        if query.prefix.startswith(root):
            raise
        # A closed table holds nothing in a listing of several.


@attrs.frozen
class _Scan:
    """The visible entries of one table below a prefix, page after page of the store, named from `root` on."""

    root: str
    store: Listable
    see: Callable[[], Coroutine[Deferred[Any], Any, Visibility]]
    prefix: str
    delimiter: str

    @classmethod
    def of(cls, table: ListedTable, prefix: str, delimiter: str) -> _Scan:
        """The listing of a table."""

        async def see() -> Visibility:
            return await table.visibility(prefix)

        return cls(table.root, table.store, see, prefix, delimiter)

    async def collect(self, after: str | None, found: _Found) -> None:
        """Add the visible entries after the entry `after`, a path relative to the table root."""
        start: str | None = self._beyond(after or "")
        # What is visible is asked for beside the first page: each is a request to the store.
        visibility, page = await both(self.see(), self._list(start or "", UPSTREAM_PAGE))
        while start is not None:
            before = found.missing
            served = visibility.served(page.objects, await visibility.unserved(page.objects))
            if page.prefixes:
                await self._collect_groups(page, served, visibility, after, found)
            else:
                found.add(self._keys(_sorted(page.objects), served, after))
            if found.full or not page.truncated:
                return
            beyond = self._beyond(max((*map(_path, page.objects), *page.prefixes), default=""))
            start = self._next_start(visibility, beyond)
            if start is not None:
                # What only may follow is looked for: that there is more must not hang on hidden keys.
                found.cut = found.missing <= 0 and visibility.surely_after(beyond, self.prefix)
                if found.cut:
                    return
                page = await self._list(start, _likely(max(1, found.missing), before - found.missing, page))

    async def _collect_groups(
        self,
        page: ListPage,
        served: Mapping[str, str],
        visibility: Visibility,
        after: str | None,
        found: _Found,
    ) -> None:
        """Add what a page with common prefixes shows; whether one shows anything may cost a request."""
        merged: list[ListedObject | str] = [*page.objects, *page.prefixes]
        for entry in sorted(merged, key=_path_of):
            if not isinstance(entry, str):
                found.add(self._keys([entry], served, after))
            elif _comes_after(entry, after) and await self._shows_below(visibility, entry, after):
                found.add([self.root + entry])
            if found.full:
                return

    async def _list(self, start: str, most: int) -> ListPage:
        return await self.store.list(self.prefix, delimiter=self.delimiter, start_after=start, max_keys=most)

    def _keys(
        self, objects: Iterable[ListedObject], served: Mapping[str, str], after: str | None
    ) -> list[ListedKey]:
        """Those that are served, with the ETags that GET gives."""
        root, least = self.root, after or ""
        rows = (
            (root + path, size, etag, modified, storage_class)
            for path, size, _, modified, storage_class in objects
            if (etag := served.get(path)) is not None and (path > least or after is None)
        )
        return list(map(_key, rows))

    def _beyond(self, name: str) -> str:
        """The start-after that leaves an entry behind: the whole group where it is a common prefix."""
        group = delimited(name, self.prefix, self.delimiter) == name
        return name + _LAST_CODE_POINT if group else name

    async def _shows_below(self, visibility: Visibility, group: str, after: str | None) -> bool:
        """Whether any visible entry of a group is due. Where the page starts within the group, those before
        do not count: the store lists it for a hidden key behind, whose name could be found out so.
        """
        within = after if after is not None and after.startswith(group) else None
        known = visibility.below(group)
        if known and within is not None:
            known = visibility.surely_after(within, group) or None
        if known is not None:
            return known

        async def see() -> Visibility:
            return visibility

        any_below = _Found(1)
        await _Scan(self.root, self.store, see, group, "").collect(within, any_below)
        return any_below.full

    def _next_start(self, visibility: Visibility, beyond: str) -> str | None:
        """Where the next page starts: with what may be shown next. None when nothing may."""
        if not beyond:
            return None
        target = visibility.next_after(beyond, self.prefix)
        return None if target is None else max(beyond, _just_before(target))


def _likely(missing: int, shown: int, page: ListPage) -> int:
    """How many keys of the store hold what is missing, when about as many are shown as were of the last
    page; twice that, for asking once more costs more.
    """
    listed = len(page.objects) + len(page.prefixes)
    return min(UPSTREAM_PAGE, 2 * missing * listed // max(1, shown))


def _just_before(name: str) -> str:
    """A text that sorts before `name` with next to nothing between the two."""
    last = ord(name[-1]) - 1
    if last < ord(" ") or _is_surrogate(last):
        return name[:-1]
    return name[:-1] + chr(last) + _LAST_CODE_POINT


def _is_surrogate(code: int) -> bool:
    return 0xD800 <= code <= 0xDFFF


def _sorted(objects: Sequence[ListedObject]) -> Sequence[ListedObject]:
    return sorted(objects, key=_path)


_path = attrgetter("path")
# Past the constructor of a named tuple, which is a function in Python.
_key = partial(tuple.__new__, ListedKey)


def _path_of(entry: ListedObject | str) -> str:
    return entry if isinstance(entry, str) else entry.path
