"""GetObject and HeadObject: what a key is for the principal, then a redirect, a local copy or a stream."""

from __future__ import annotations

from functools import lru_cache

from delta_proxy.access.identity import AuthKind, Principal
from delta_proxy.config import GetMode
from delta_proxy.delta.gate import Absent, GrantedTable, Refused, Served, Use, Verdict
from delta_proxy.delta.views import RefusedView, ViewedFile
from delta_proxy.resources.base import (
    Answer,
    AnyAnswer,
    Fields,
    S3Resource,
    Stored,
    Streamed,
    annotate,
)
from delta_proxy.resources.customer_keys import FIELDS, TOLD, brings_key, check_key_is_safe
from delta_proxy.resources.files import override, plan
from delta_proxy.resources.refusals import denied
from delta_proxy.resources.server import EdgeRequest
from delta_proxy.s3.errors import NoSuchKey, NotImplementedByProxy, S3Error
from delta_proxy.s3.headers import Headers
from delta_proxy.s3.operation import Operation
from delta_proxy.s3.request import split_key
from delta_proxy.s3.user_agents import FOR_THE_HELPER, HELPER_HEADER, RedirectRule, redirect_rule
from delta_proxy.upstream.client import TableClient
from delta_proxy.upstream.stores import has_dot_segments

_SENT_ON = frozenset(
    {
        *("range", "if-range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since"),
        "x-amz-checksum-mode",
    }
    | FIELDS
)
"""Request fields the store gets with a streamed read; everything else is the client's own business."""

_HANDED_BACK = frozenset(
    {
        "accept-ranges",
        "cache-control",
        "content-disposition",
        "content-encoding",
        "content-language",
        "content-length",
        "content-range",
        "content-type",
        "etag",
        "expires",
        "last-modified",
        "x-amz-mp-parts-count",
        "x-amz-server-side-encryption",
        "x-amz-server-side-encryption-aws-kms-key-id",
        "x-amz-server-side-encryption-bucket-key-enabled",
        "x-amz-storage-class",
    }
    | TOLD
)
_HANDED_BACK_PREFIXES = ("x-amz-meta-", "x-amz-checksum-")

_PRESIGN_PREFIX = "x-amz-"
_SESSION_TOKEN = "x-amz-security-token"  # noqa: S105 - a header's name


class ObjectResource(S3Resource):
    """`/<bucket>/<key>`."""

    async def answer(self, principal: Principal, request: EdgeRequest) -> AnyAnswer:
        """The object, when the grant allows it."""
        if self.s3.operation not in {Operation.GET_OBJECT, Operation.HEAD_OBJECT}:
            raise NotImplementedByProxy()
        alias, path = split_key(self.s3.key)
        request.note.table = alias
        table = self._table(principal, alias, request)
        if path is None:
            raise NoSuchKey(fields={"Key": self.s3.key})
        keyed = self._brings_safe_key(request)
        served = self._admitted(await self.services.gate.judge(table, path), request)
        client = self.services.tables[alias]
        if keyed and (served.use is Use.DATA or table.grant.is_everything):
            # Only the store can tell whether it is the object's key, and not every client sends it again.
            request.note.proxied = True
            return await self._stream(client, path)
        rule = self._rule() if self._may_redirect(served) else None
        if rule is not None and rule.follows and not self._brings_our_token(principal, rule):
            return await self._redirect(client, path, rule)
        request.note.proxied = True
        viewed = await self._viewed(table, served, path, request)
        return await self._stream(client, path) if viewed is None else self._stored(viewed)

    def _brings_safe_key(self, request: EdgeRequest) -> bool:
        """Whether a key of SSE-C comes along. Raises S3Error where it must not travel."""
        keyed = brings_key(self.s3.headers)
        if keyed:
            check_key_is_safe(self.s3.headers, request)
        return keyed

    def _table(self, principal: Principal, alias: str, request: EdgeRequest) -> GrantedTable:
        opened = self.services.gate.open(principal, alias)
        if isinstance(opened, GrantedTable):
            return opened
        raise self._refusal(opened, request)

    def _admitted(self, verdict: Verdict, request: EdgeRequest) -> Served:
        if isinstance(verdict, Served):
            request.note.decision = "allowed"
            return verdict
        raise self._refusal(verdict, request)

    def _refusal(self, verdict: Refused | Absent, request: EdgeRequest) -> S3Error:
        if isinstance(verdict, Refused):
            annotate(request, decision=verdict.reason.name.lower(), reason=verdict.reason.value)
            return denied(verdict.reason, alone=verdict.alone)
        annotate(request, decision="absent")
        return NoSuchKey(fields={"Key": self.s3.key})

    async def _viewed(
        self, table: GrantedTable, served: Served, path: str, request: EdgeRequest
    ) -> ViewedFile | None:
        try:
            return await self.services.gate.content(table, served, path)
        except RefusedView as refused:
            raise self._refusal(Refused(refused.reason), request) from None
        except NoSuchKey:
            raise self._refusal(Absent(), request) from None

    def _stored(self, viewed: ViewedFile) -> Stored:
        """The local copy, answered as S3 would: range, conditions and overrides are held against the view."""
        part = self.s3.param("partNumber")
        try:
            planned = plan(
                self.s3.headers,
                size=viewed.size,
                etag=viewed.etag,
                last_modified=viewed.last_modified,
                overrides=self.s3.query,
                part_number=int(part) if part else None,
            )
        except BaseException:
            self.services.close(viewed.content)
            raise
        return Stored(planned, viewed.content, self.services)

    def _may_redirect(self, served: Served) -> bool:
        """Never for HEAD, log files or deletion vectors."""
        settings = self.services.settings
        if settings.get_mode is not GetMode.PRESIGNED_URL or served.use is not Use.DATA:
            return False
        if self.s3.operation is not Operation.GET_OBJECT or has_dot_segments(self.s3.key):
            return False
        return not (settings.proxy_partial and "range" in self.s3.headers)

    def _brings_our_token(self, principal: Principal, rule: RedirectRule) -> bool:
        """Whether the client re-sends a session token of ours, which no store takes."""
        ours = principal.auth is AuthKind.SESSION and _SESSION_TOKEN in self.s3.headers
        return ours and rule.resends_token

    def _rule(self) -> RedirectRule:
        if HELPER_HEADER in self.s3.headers:
            return FOR_THE_HELPER
        return redirect_rule(self.s3.headers.get("user-agent") or "", self.services.settings.never_redirect)

    async def _redirect(self, client: TableClient, path: str, rule: RedirectRule) -> Answer:
        """307 to a URL for exactly this object, presigned with the `x-amz-*` fields that come again."""
        signed = self._sent_again(rule) if rule.resends_fields else ()
        url = await client.presign(
            path,
            headers=signed,
            query=self._read_query(),
            expires=self.services.settings.presign_expiry_seconds,
        )
        return Answer(307, (("location", url), ("cache-control", "no-store")))

    def _sent_again(self, rule: RedirectRule) -> Fields:
        dropped = None if rule.resends_token else _SESSION_TOKEN
        return tuple(
            [
                (name, value)
                for name, value in self.s3.headers.items
                if name.startswith(_PRESIGN_PREFIX) and name != dropped
            ]
        )

    async def _stream(self, client: TableClient, path: str) -> Streamed:
        headers = tuple([pair for pair in self.s3.headers.items if pair[0] in _SENT_ON])
        upstream = await client.open(self.s3.method, path, headers=headers, query=self._read_query())
        return Streamed(upstream.status, _handed_back(upstream.headers), upstream)

    def _read_query(self) -> tuple[tuple[str, str], ...]:
        """The parameters of a read that the store must see: part number and response overrides."""
        return tuple(
            (name, override(name, value))
            for name, value in self.s3.query
            if name == "partNumber" or name.startswith("response-")
        )


def _handed_back(headers: Headers) -> Fields:
    return tuple([pair for pair in headers.items if _is_handed_back(pair[0])])


@lru_cache(maxsize=256)
def _is_handed_back(name: str) -> bool:
    return name in _HANDED_BACK or name.startswith(_HANDED_BACK_PREFIXES)
