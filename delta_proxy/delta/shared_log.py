"""The log of a table as its index reads it: large files come from the cache that serves clients."""

from __future__ import annotations

import os
from pathlib import Path

import attrs

from delta_proxy.delta.catalog import CatalogedStore, is_immutable
from delta_proxy.delta.disk_cache import DiskCache
from delta_proxy.delta.views import Replaced, TableViews, original, original_key
from delta_proxy.upstream.client import ListPage, SmallObject
from delta_proxy.upstream.spool import DeferToPool


@attrs.frozen
class SharedLog:
    """The LogSource of one table. What it lists the views know; what it downloads they need not."""

    table: TableViews
    disk: DiskCache
    defer_to_pool: DeferToPool

    async def list(
        self, prefix: str = "", *, delimiter: str = "", start_after: str = "", max_keys: int = 1000
    ) -> ListPage:
        """One page of the listing. Raises S3Error."""
        store = CatalogedStore(self.table.store, self.table.catalog)
        return await store.list(prefix, delimiter=delimiter, start_after=start_after, max_keys=max_keys)

    async def read(self, path: str, *, limit: int) -> SmallObject:
        """A small object, whole; what never changes is kept for the views. Raises S3Error."""
        found = await self.table.store.read(path, limit=limit)
        if is_immutable(path):
            self.table.recent.put(original_key(self.table, path, found.etag), found.body)
        return found

    async def download(self, path: str, into: Path) -> None:
        """A file of the log, as another name of the cached one where that is possible. Raises S3Error."""
        stat = self.table.catalog.find(path) or await self.table.store.stat(path)
        key, make = original(self.table, path, stat, self.defer_to_pool)
        try:
            cached = await self.disk.get(key, make, kind="log")
            await self.defer_to_pool(os.link, cached.path, into)
        except (Replaced, OSError):
            # The store has another file by now, this one was evicted, or the disk knows no links.
            await self.table.store.download(path, into)
