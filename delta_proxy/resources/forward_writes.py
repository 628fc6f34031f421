"""Writes in forward mode: the policy of the access key first, then the store with the client's own signature.

A write cannot be asked of the store before it is decided, so what an access key may write is decided on its
word; that it is the client's is for the store to verify, before it stores anything. Head and body go on as
they came.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from delta_proxy.access.identity import Principal
from delta_proxy.access.writing import Bar, writing_barred
from delta_proxy.delta.gate import GrantedTable
from delta_proxy.resources.base import AnyAnswer, annotate
from delta_proxy.resources.bodies import whole
from delta_proxy.resources.refusals import OTHER_SOURCE, barred
from delta_proxy.resources.server import EdgeRequest
from delta_proxy.resources.writing import admitted, by_alias, common_beginning, line_for_each
from delta_proxy.s3 import write_xml
from delta_proxy.s3.copying import HEADER as COPY_SOURCE
from delta_proxy.s3.copying import copy_source
from delta_proxy.s3.errors import AccessDenied, InvalidArgument, MissingContentLength
from delta_proxy.s3.operation import Operation
from delta_proxy.s3.payload import payload_of
from delta_proxy.upstream.documents import parsed
from delta_proxy.upstream.forward import Route
from delta_proxy.upstream.relay import UpstreamResponse
from delta_proxy.upstream.upload import Outgoing, Source

if TYPE_CHECKING:
    from delta_proxy.resources.forward import Forwarding, ForwardResource

_COPIES = frozenset({Operation.COPY_OBJECT, Operation.UPLOAD_PART_COPY})
_UNDONE = frozenset({400, 401, 403})
"""What a store answers that has stored nothing, to anybody who knows an access key: it must cost nothing."""
_PIECE = 64 * 1024


class ForwardedWrite:
    """One write on its way to the store."""

    def __init__(
        self, resource: ForwardResource, forwarding: Forwarding, route: Route, request: EdgeRequest
    ) -> None:
        self._resource = resource
        self._services = resource.services
        self._s3 = resource.s3
        self._forwarding = forwarding
        self._route = route
        self._request = request

    async def answer(self, principal: Principal) -> AnyAnswer:
        """The store's answer, as it is. Raises S3Error."""
        length = self._request.length
        source: Source | None = None if length == 0 else partial(_as_it_comes, self._request)
        if self._s3.operation is Operation.DELETE_OBJECTS:
            paths, source = await self._deleted(principal)
        else:
            paths = [await self._admitted(principal, self._s3.key or self._s3.param("prefix") or "")]
        if self._s3.operation in _COPIES:
            self._check_source(principal)
        upstream = await self._sent(paths, length, source)
        try:
            if upstream.status not in _UNDONE:
                await self._tell(paths)
            if upstream.status >= 300:
                self._refused_by_store(upstream.status)
            return self._resource.handed_on(upstream)
        except BaseException:
            upstream.discard()
            raise

    async def _sent(
        self, paths: list[tuple[str, str]], length: int | None, source: Source | None
    ) -> UpstreamResponse:
        try:
            return await self._forwarding.forwarder.write(self._route, self._s3, length, source)
        except BaseException:
            # Nobody knows what became of it.
            await self._tell(paths)
            raise

    async def _admitted(self, principal: Principal, key: str) -> tuple[str, str]:
        """The table and path of a key that may be written to. Raises S3Error."""
        alias, path = self._located(self._s3.bucket, key, _closed_to(principal))
        await self._table_admitted(principal, alias, [path])
        return alias, path

    def _located(self, bucket: str, key: str, closed: AccessDenied) -> tuple[str, str]:
        """The table and path of a key. Beside all of them raises what a closed one would: where those lie is
        told to nobody.
        """
        found = self._forwarding.tables.locate(self._route, bucket, key)
        if found is None:
            annotate(self._request, decision="no_table")
            raise closed
        return found

    def _check_source(self, principal: Principal) -> None:
        source = copy_source(self._s3.headers)
        if "+" in (self._s3.headers.get(COPY_SOURCE) or ""):
            # Some stores take it for a space. SDKs encode it.
            raise InvalidArgument("A plus in x-amz-copy-source must be encoded.")
        alias, path = self._located(source.bucket, source.key, AccessDenied(OTHER_SOURCE))
        annotate(self._request, copied_from=f"{alias}/{path}")
        opened = self._services.gate.open(principal, alias)
        if not isinstance(opened, GrantedTable) or not opened.grant.is_everything:
            annotate(self._request, decision="restricted_source", reason=f"the source is {source.key}")
            raise AccessDenied(OTHER_SOURCE)
        self._services.tables[alias].location.object_key(path)

    async def _deleted(self, principal: Principal) -> tuple[list[tuple[str, str]], Source]:
        """What is deleted, all of it or nothing: the document is signed, so no key can be left out of it."""
        if self._request.body_length is None:
            raise MissingContentLength
        wire: list[bytes] = []
        payload = payload_of(self._s3, self._request.body_length, None)
        body, _ = await whole(self._request, payload, self._request.site.limits.body, wire)
        write_xml.check_plain(body)
        asked = await parsed(write_xml.parse_delete, body, self._services.defer_to_pool)
        closed = _closed_to(principal)
        paths = [self._located(self._s3.bucket, key, closed) for key in asked.keys]
        tables = by_alias(paths)
        for alias, those in tables.items():
            await self._table_admitted(principal, alias, those)
        for _ in line_for_each(self._resource, principal, tables, self._request):
            annotate(self._request, decision="allowed")
        return paths, partial(_as_it_came, b"".join(wire))

    async def _table_admitted(self, principal: Principal, alias: str, paths: list[str]) -> None:
        """Raises S3Error unless all of these paths of a table may be written to."""
        annotate(self._request, table=alias)
        if self._request.note.place is not None:
            self._resource.describe_path(alias, common_beginning(paths), principal, self._request)
        writer = await admitted(self._services, principal, alias, self._request, self._s3)
        for path in paths:
            writer.location.object_key(path or "-")

    def _refused_by_store(self, status: int) -> None:
        note = self._request.note
        for each in (*note.before, note):
            each.decision, each.reason = "refused", f"the store answered {status}"

    async def _tell(self, paths: list[tuple[str, str]]) -> None:
        if self._services.writing is not None:
            for alias, written in by_alias(paths).items():
                await self._services.writing.written(alias, *written)


def _closed_to(principal: Principal) -> AccessDenied:
    """What a closed table answers to a write of the principal."""
    return barred(writing_barred(principal, None, read_only=False) or Bar.NO_GRANT)


async def _as_it_comes(request: EdgeRequest, outgoing: Outgoing) -> None:
    while data := await request.read_some(_PIECE):
        await outgoing.write(data)


async def _as_it_came(body: bytes, outgoing: Outgoing) -> None:
    await outgoing.write(body)
