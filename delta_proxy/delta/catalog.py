"""What the last listings told of a table's log files: enough to know, without asking again, that a file kept
on disk is still the store's.

Commits and checkpoints never change once they are written (Delta PROTOCOL, "File Types"), so what one
listing said holds until the next says otherwise; it is asked anew after `ttl` seconds all the same, for a
table may be replaced by another.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import partial
from typing import Any, Final

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from delta_proxy.delta.flight import Successive
from delta_proxy.delta.paths import LOG_DIRECTORY, LogKind, classify_log_name
from delta_proxy.upstream.client import ListedObject, ListPage, ObjectStat, TableClient

PageName = tuple[str, str, str, int]
"""Prefix, delimiter, where the page begins, and how many keys it may hold."""

_REMEMBERED: Final = 100_000
_IMMUTABLE: Final = frozenset(
    {LogKind.COMMIT, LogKind.CHECKPOINT, LogKind.CHECKPOINT_PART, LogKind.CHECKPOINT_V2, LogKind.SIDECAR}
)


def is_immutable(path: str) -> bool:
    """Whether a path is that of a log file which never changes once it is written."""
    return path.startswith(LOG_DIRECTORY) and classify_log_name(path[len(LOG_DIRECTORY) :]).kind in _IMMUTABLE


def stat_of(listed: ListedObject) -> ObjectStat:
    """What a listing says of a file, its time as an HTTP date."""
    moment = datetime.fromisoformat(listed.last_modified).astimezone(UTC)
    return ObjectStat(listed.size, listed.etag, format_datetime(moment, usegmt=True))


@attrs.frozen
class CatalogedStore:
    """A table's LIST that remembers what it saw of the log."""

    store: TableClient
    catalog: LogCatalog

    async def list(
        self, prefix: str = "", *, delimiter: str = "", start_after: str = "", max_keys: int = 1000
    ) -> ListPage:
        """One page of the store's listing, as of a request sent after this call: those who ask for the same
        page while one is under way share the next. Raises S3Error.
        """
        ask = partial(self._list, prefix, delimiter, start_after, max_keys)
        return await self.catalog.shared((prefix, delimiter, start_after, max_keys), ask).ask()

    async def _list(self, prefix: str, delimiter: str, start_after: str, max_keys: int) -> ListPage:
        page = await self.store.list(prefix, delimiter=delimiter, start_after=start_after, max_keys=max_keys)
        self.catalog.learn_all(page.objects)
        return page


@attrs.frozen
class _Knowledge:
    """What the store has, when it first said so, and when it said so last."""

    stat: ObjectStat
    since: float
    told: float


class LogCatalog:
    """The immutable log files of one table, as last listed or asked for; the oldest knowledge goes first.

    `mark` changes when the table's log is written to: nothing that was known before holds then.
    """

    def __init__(self, clock: IReactorTime, ttl: float, mark: Callable[[], int] = int) -> None:
        self._clock = clock
        self._ttl = ttl
        self._mark = mark
        self._marked = mark()
        self._known: OrderedDict[str, _Knowledge] = OrderedDict()
        self._pages: dict[PageName, Successive[ListPage]] = {}

    def shared(
        self, page: PageName, ask: Callable[[], Coroutine[Deferred[Any], Any, ListPage]]
    ) -> Successive[ListPage]:
        """The requests for a page of the listing, kept for as long as any is under way."""
        found = self._pages.get(page)
        if found is None:
            self._pages = {name: pages for name, pages in self._pages.items() if not pages.idle}
            found = self._pages[page] = Successive(ask)
        return found

    def learn(self, path: str, stat: ObjectStat) -> None:
        """Take in what the store just said of a path; anything but an immutable log file is not kept."""
        if not is_immutable(path):
            return
        known, now = self._known.get(path), self._clock.seconds()
        since = known.since if known is not None and known.stat.etag == stat.etag else now
        self._known[path] = _Knowledge(stat, since, now)
        self._known.move_to_end(path)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    def learn_all(self, listed: Iterable[ListedObject]) -> None:
        """Take in a page of a listing."""
        for file in listed:
            # Most pages are of data: to ask more of a thousand paths takes ten times as long.
            if file.path.startswith(LOG_DIRECTORY) and is_immutable(file.path):
                self.learn(file.path, stat_of(file))

    def find(self, path: str) -> ObjectStat | None:
        """What is known of a path and not too old."""
        marked = self._mark()
        if marked != self._marked:
            self._marked = marked
            self._known.clear()
        found = self._known.get(path)
        if found is None or self._clock.seconds() - found.told > self._ttl:
            return None
        return found.stat

    def since(self, path: str) -> float:
        """When the store first said what it has said of a path ever since, by the clock; now, when nothing is
        known.
        """
        found = self._known.get(path)
        return self._clock.seconds() if found is None else found.since

    def forget(self, path: str) -> None:
        """Drop what turned out wrong."""
        self._known.pop(path, None)

    def forget_all(self) -> None:
        """Drop everything: the table may be another by now."""
        self._known.clear()
