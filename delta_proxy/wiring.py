"""What the service and the admin commands make of a configuration alike, so that both read tables by the same
rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial

from twisted.internet.interfaces import IReactorTime

from delta_proxy.config import Config, LogView
from delta_proxy.delta.cache import MetadataCache
from delta_proxy.delta.catalog import LogCatalog
from delta_proxy.delta.disk_cache import DiskCache, MemoryCache
from delta_proxy.delta.gate import Gate
from delta_proxy.delta.masks import GrantMasks
from delta_proxy.delta.paths import TableRoot
from delta_proxy.delta.views import LogViews, TableViews, no_commits
from delta_proxy.upstream.client import Upstream
from delta_proxy.upstream.credentials import CredentialSource
from delta_proxy.upstream.retry import Timeouts
from delta_proxy.upstream.spool import DeferToPool
from delta_proxy.upstream.stores import TableLocation


def make_timeouts(config: Config) -> Timeouts:
    """How long a store is waited for."""
    limits = config.limits
    return Timeouts(
        connect=limits.upstream_connect_timeout_seconds,
        first_byte=limits.upstream_idle_timeout_seconds,
        idle=limits.upstream_idle_timeout_seconds,
    )


def identity_of(location: TableLocation) -> str:
    """What tells a table from every other: the store and the place in it."""
    return f"{location.store.endpoint or 'aws'} {location.uri}"


def make_tables(
    config: Config,
    upstream: Upstream,
    chain: Callable[[str | None], CredentialSource],
    clock: IReactorTime,
    mark: Callable[[str], int],
) -> dict[str, TableViews]:
    """The tables by alias.

    `chain` gives the credentials of a profile, `mark` the state of a table's writes by its identity.
    """
    recent = no_commits()
    return {
        alias: TableViews(
            identity := identity_of(location),
            TableRoot(location.bucket, location.prefix),
            upstream.table(location, chain(location.store.profile)),
            LogCatalog(clock, config.cache.metadata_ttl_seconds, partial(mark, identity)),
            recent,
        )
        for alias, location in config.table_mapping.items()
    }


def make_gate(
    config: Config,
    tables: Mapping[str, TableViews],
    *,
    cache: MetadataCache,
    disk: DiskCache,
    memory_bytes: int,
    defer_to_pool: DeferToPool,
    now: Callable[[], datetime],
) -> Gate:
    """The one place where a path meets a grant, with views that keep up to `memory_bytes` in memory."""
    masks = GrantMasks()
    views = LogViews(
        tables,
        cache=cache,
        disk=disk,
        memory=MemoryCache(memory_bytes),
        masks=masks,
        defer_to_pool=defer_to_pool,
        now=now,
    )
    return Gate(config.policy, cache, views, masks, now, filtered=config.log_view is LogView.FILTERED)
