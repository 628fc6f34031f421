"""What a key is for a principal: the one place where a path meets a grant.

Every rule of the table "What a key is for a restricted principal" stands here. The answers are values;
the words of S3 are the resources'.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from enum import Enum

import attrs
from twisted.logger import Logger

from delta_proxy.access.identity import Principal
from delta_proxy.access.policy import Denied, Grant, Policy, Reason
from delta_proxy.delta.actions import LogError
from delta_proxy.delta.cache import MetadataCache
from delta_proxy.delta.deletion_vectors import Region, regions
from delta_proxy.delta.masks import GrantMask, GrantMasks, authorise
from delta_proxy.delta.rows import FileKind
from delta_proxy.delta.visibility import LOG_PREFIX, GrantedPaths, Visibility, WholeTable
from delta_proxy.s3.errors import AccessDenied

_log = Logger()


class Use(Enum):
    """What a served path is, which decides how it may travel."""

    DATA = "data"
    LOG = "log"
    DELETION_VECTOR = "deletion_vector"


@attrs.frozen
class Served:
    """The path is served. `shown` are the bytes of a deletion vector file that are; None: all of it."""

    use: Use
    shown: tuple[Region, ...] | None = None


@attrs.frozen
class Refused:
    """The path, or the whole table, is denied."""

    reason: Reason


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
    """Joins policy, metadata cache and clock; `now` is what relative dates of a grant refer to."""

    def __init__(self, policy: Policy, cache: MetadataCache, now: Callable[[], datetime]) -> None:
        self._policy = policy
        self._cache = cache
        self._now = now
        self._masks = GrantMasks()

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
        """What the path (relative to the table root) is for a principal with this grant."""
        if table.grant.is_everything:
            return Served(_use_of(path))
        if path.startswith(LOG_PREFIX):
            return _judge_log(table.grant)
        try:
            index, entries = await self._cache.locate(table.alias, path)
        except LogError as error:
            _log.error("table {alias}: {error}", alias=table.alias, error=str(error))
            return Refused(Reason.UNREADABLE_LOG)
        if not entries:
            return Absent()
        decision = authorise(index, table.grant, path, self._now())
        if isinstance(decision, Denied):
            return Refused(decision.reason)
        return _served(self._masks.of(index, table.grant, self._now()), path)

    async def visibility(self, table: GrantedTable, prefix: str) -> Visibility:
        """What a listing of the table below `prefix` shows, as of the newest commit. Raises S3Error."""
        if table.grant.is_everything:
            return WholeTable()
        try:
            index = await self._cache.refreshed(table.alias)
        except LogError as error:
            _log.error("table {alias}: {error}", alias=table.alias, error=str(error))
            raise AccessDenied() from None
        mask = self._masks.of(index, table.grant, self._now())
        log = isinstance(_judge_log(table.grant), Served)
        return GrantedPaths(mask, lambda path: log)


def _use_of(path: str) -> Use:
    """What an unrestricted principal's path is, by its name: only data may be redirected."""
    if path.startswith(LOG_PREFIX):
        return Use.LOG
    name = path.rpartition("/")[2]
    vector = name.startswith("deletion_vector_") and name.endswith(".bin")
    return Use.DELETION_VECTOR if vector else Use.DATA


def _judge_log(grant: Grant) -> Verdict:
    """The log as it is; closed to a principal that is granted nothing, who has no use for it."""
    return Refused(Reason.NO_GRANT) if grant.is_nothing else Served(Use.LOG)


def _served(mask: GrantMask, path: str) -> Served:
    entries = mask.index.lookup(path)
    vectors = [entry for entry in entries if entry.kind is FileKind.DELETION_VECTOR]
    if not vectors:
        return Served(Use.DATA)
    granted = [(entry.offset, entry.size or 0) for entry in vectors if mask.allows_vector(entry)]
    denied = [(entry.offset, entry.size or 0) for entry in vectors if not mask.allows_vector(entry)]
    return Served(Use.DELETION_VECTOR, regions(granted, denied))
