"""What a key is for a principal: the one place where a path meets a grant.

Every rule of the table "What a key is for a restricted principal" stands here. The answers are values;
the words of S3 are the resources'.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from enum import Enum
from functools import partial

import attrs
from twisted.logger import Logger

from delta_proxy.access.identity import Principal
from delta_proxy.access.policy import Denied, Grant, Policy, Reason
from delta_proxy.delta.actions import LogError
from delta_proxy.delta.cache import MetadataCache
from delta_proxy.delta.catalog import CatalogedStore, is_immutable
from delta_proxy.delta.deletion_vectors import Region
from delta_proxy.delta.masks import GrantMasks, authorise_entries, closed
from delta_proxy.delta.paths import LOG_DIRECTORY
from delta_proxy.delta.view_names import view_file
from delta_proxy.delta.views import LogViews, RefusedView, ViewedFile
from delta_proxy.delta.visibility import (
    ClosedLog,
    GrantedPaths,
    LogOfView,
    OpenLog,
    Visibility,
    WholeTable,
    shown_regions,
)
from delta_proxy.upstream.stores import leaves_root

_log = Logger()


class Use(Enum):
    """What a served path is, which decides how it may travel."""

    DATA = "data"
    LOG = "log"
    DELETION_VECTOR = "deletion_vector"


@attrs.frozen
class Served:
    """The path is served. `shown` are the bytes of a deletion vector file that are; None: all of it. `view`
    is the key of the view that a log file is in, None where it is shown as it is.
    """

    use: Use
    shown: tuple[Region, ...] | None = None
    view: str | None = None


_SERVED_DATA = Served(Use.DATA)


@attrs.frozen
class Refused:
    """The path is denied; unless it is `alone` the reason is one of the whole table."""

    reason: Reason
    alone: bool = False


@attrs.frozen
class Absent:
    """For this principal there is no such path."""


Verdict = Served | Refused | Absent


@attrs.frozen
class GrantedTable:
    """A table that a principal has a grant for."""

    alias: str
    grant: Grant


class Gate:
    """Joins policy, metadata cache and views; `now` is what relative dates of a grant refer to.

    `filtered` tells whether restricted principals see views of the log, or the log as it is.
    """

    def __init__(
        self,
        policy: Policy,
        cache: MetadataCache,
        views: LogViews,
        masks: GrantMasks,
        now: Callable[[], datetime],
        *,
        filtered: bool,
    ) -> None:
        self._policy = policy
        self._cache = cache
        self._views = views
        self._masks = masks
        self._now = now
        self._filtered = filtered

    def tables(self, principal: Principal) -> tuple[GrantedTable, ...]:
        """The tables the principal has a grant for, in the order of their aliases."""
        opened = (self.open(principal, alias) for alias in sorted(self._policy.tables))
        return tuple(table for table in opened if isinstance(table, GrantedTable))

    def open(self, principal: Principal, alias: str) -> GrantedTable | Refused | Absent:
        """The table behind an alias. Where tables are closed by default an unknown alias looks closed too."""
        if self._policy.admits(principal, alias):
            return GrantedTable(alias, self._policy.grant(principal, alias))
        closed = alias in self._policy.tables or self._policy.deny_by_default
        return Refused(Reason.NO_GRANT) if closed else Absent()

    async def judge(self, table: GrantedTable, path: str) -> Verdict:
        """What the path (relative to the table root) is for a principal with this grant. Raises S3Error.

        A path whose dot segments leave the table is nothing to anybody: to the store it may be another's.
        """
        if leaves_root(path):
            return Absent()
        if table.grant.is_everything:
            return Served(_use_of(path))
        return await self._judge_restricted(table, path)

    async def _judge_restricted(self, table: GrantedTable, path: str) -> Verdict:
        if path.startswith(LOG_DIRECTORY):
            return await self._judge_log(table, path)
        try:
            index, entries = await self._cache.locate(table.alias, path)
        except LogError as error:
            _log.error("table {alias}: {error}", alias=table.alias, error=str(error))
            return Refused(Reason.UNREADABLE_LOG)
        if not entries:
            return Absent()
        now = self._now()
        # A mask is right for a minute; a grant that moves with the clock is held to the very moment.
        if not table.grant.is_relative and self._masks.allows_data(index, table.grant, entries, now):
            return _SERVED_DATA
        decision = authorise_entries(index, table.grant, entries, now)
        if isinstance(decision, Denied):
            return Refused(decision.reason, alone=closed(index, table.grant) is None)
        shown = shown_regions(self._masks.of(index, table.grant, now), entries)
        return _SERVED_DATA if shown is None else Served(Use.DELETION_VECTOR, shown)

    async def content(self, table: GrantedTable, served: Served, path: str) -> ViewedFile | None:
        """The local content of a served path; None when it is the store's to send.

        Log files never change, so one copy serves all who may see them as they are. Raises S3Error and
        RefusedView.
        """
        restricted = not table.grant.is_everything
        if served.use is Use.LOG and restricted and self._filtered:
            return await self._views.log_file(table.alias, table.grant, path, served.view)
        if served.use is Use.LOG and is_immutable(path):
            return await self._views.original(table.alias, path)
        if served.shown is not None:
            return await self._views.vector(table.alias, path, served.shown)
        return None

    def listable(self, alias: str) -> CatalogedStore:
        """The LIST of a table's store."""
        return self._views.listable(alias)

    async def visibility(self, table: GrantedTable, prefix: str) -> Visibility:
        """What a listing of the table below `prefix` shows, as of the newest commit.

        Raises S3Error, and RefusedView when the table is closed to the principal.
        """
        if table.grant.is_everything:
            return WholeTable()
        try:
            log = await self._visible_log(table)
            if prefix.startswith(LOG_DIRECTORY):
                return log
            # A listing costs the store one of its own in any case: no need to make it wait.
            index = await self._cache.refreshed(table.alias, 0.0)
            if not index.complete:
                index = await self._cache.complete(table.alias)
        except LogError as error:
            _log.error("table {alias}: {error}", alias=table.alias, error=str(error))
            raise RefusedView(Reason.UNREADABLE_LOG) from None
        return GrantedPaths(self._masks.of(index, table.grant, self._now()), log)

    async def _visible_log(self, table: GrantedTable) -> LogOfView:
        if self._filtered:
            key = await self._views.key(table.alias, table.grant)
            return LogOfView(key, partial(self._views.unserved, table.alias))
        return ClosedLog() if table.grant.is_nothing else OpenLog()

    async def _judge_log(self, table: GrantedTable, path: str) -> Verdict:
        """The files that a view has; passed through, the log is closed to whom nothing is granted."""
        if not self._filtered:
            return Refused(Reason.NO_GRANT) if table.grant.is_nothing else Served(Use.LOG)
        if view_file(path[len(LOG_DIRECTORY) :]) is None:
            return Absent()
        try:
            key = await self._views.key(table.alias, table.grant)
        except RefusedView as refused:
            return Refused(refused.reason)
        return Served(Use.LOG, view=key)


def _use_of(path: str) -> Use:
    """What an unrestricted principal's path is, by its name: only data may be redirected."""
    if path.startswith(LOG_DIRECTORY):
        return Use.LOG
    name = path.rpartition("/")[2]
    vector = name.startswith("deletion_vector_") and name.endswith(".bin")
    return Use.DELETION_VECTOR if vector else Use.DATA
