"""What the resources that write share: who is let in, and what is told when something was written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

import attrs
from twisted.logger import Logger

from delta_proxy.access.identity import Principal
from delta_proxy.access.writing import Bar, writing_barred
from delta_proxy.delta.commit_probe import CommitProbes
from delta_proxy.delta.gate import GrantedTable
from delta_proxy.delta.write_marks import is_of_the_log
from delta_proxy.resources.base import S3Resource, annotate
from delta_proxy.resources.refusals import barred
from delta_proxy.resources.server import EdgeRequest
from delta_proxy.resources.services import Services
from delta_proxy.s3.cors import is_foreign
from delta_proxy.s3.errors import MethodNotAllowed
from delta_proxy.s3.request import S3Request
from delta_proxy.upstream.spool import DeferToPool
from delta_proxy.upstream.writer import TableWriter

_log = Logger()


@attrs.frozen
class Writing:
    """What carries out writes, by alias.

    `mark(alias)` tells every process that the log of the table was written to; it blocks on the disk.
    """

    writers: Mapping[str, TableWriter]
    probes: CommitProbes
    mark: Callable[[str], None]
    defer_to_pool: DeferToPool

    async def written(self, alias: str, *paths: str) -> None:
        """Something was written, or may have been: what is remembered of the log does not hold any more.

        A mark that cannot be set is logged: it undoes nothing that the store has accepted.
        """
        if any(map(is_of_the_log, paths)):
            try:
                await self.defer_to_pool(self.mark, alias)
            except OSError as error:
                _log.error(
                    "{alias}: its log is not marked as written to: {error}", alias=alias, error=str(error)
                )


def line_for_each(
    resource: S3Resource, principal: Principal, tables: Mapping[str, Collection[str]], request: EdgeRequest
) -> Iterator[str]:
    """The aliases of the paths that a request is about; what is decided meanwhile is told of that table.

    Each gets a line in the audit log, with the common beginning of its paths. Raises AuditUnavailable.
    """
    audit = resource.services.audit
    for number, (alias, paths) in enumerate(tables.items()):
        note = request.note
        if number:
            place = None if audit is None else audit.reserve()
            note.before = (*note.before, attrs.evolve(note, before=()))
            annotate(request, place=place, decision="", reason="")
        annotate(request, table="", path=common_beginning(paths), grant=None, partitions=())
        if alias:
            resource.describe_path(alias, note.path or "", principal, request)
        yield alias


def by_alias(located: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """The paths by the aliases that stand before them, in order."""
    found: dict[str, list[str]] = {}
    for alias, path in located:
        found.setdefault(alias, []).append(path)
    return found


def common_beginning(texts: Collection[str]) -> str:
    """What all of them begin with."""
    first, last = min(texts), max(texts)
    differ = (place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    return first[: next(differ, len(first))]


def let_in(services: Services, principal: Principal, alias: str, request: EdgeRequest) -> Writing:
    """The way to write to a table, for whom it is open. Raises AccessDenied, MethodNotAllowed."""
    opened = services.gate.open(principal, alias)
    grant = opened.grant if isinstance(opened, GrantedTable) else None
    settings = services.settings
    foreign = is_foreign(settings.cors, request.headers.all("origin"), request.method.decode("latin-1"))
    bar = writing_barred(principal, grant, read_only=settings.read_only, foreign_page=foreign)
    writing = services.writing
    if bar is None and writing is not None:
        annotate(request, decision="allowed")
        return writing
    bar = bar or Bar.READ_ONLY_PROXY
    annotate(request, decision=bar.name.lower(), reason=bar.value)
    if bar is Bar.READ_ONLY_PROXY:
        raise MethodNotAllowed("The proxy is read-only.")
    raise barred(bar)


async def admitted(
    services: Services, principal: Principal, alias: str, request: EdgeRequest, s3: S3Request
) -> TableWriter:
    """What writes to a table, for whom it is open and when its store can be trusted with such a commit.

    Raises AccessDenied, MethodNotAllowed, and as `CommitProbes.check`.
    """
    writing = let_in(services, principal, alias, request)
    writer = writing.writers[alias]
    await writing.probes.check(writer, s3)
    return writer
