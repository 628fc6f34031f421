"""Forward mode: the client signed for the real bucket and comes to the proxy as to an HTTP proxy.

The store decides whether it is who it says; the policy of its access key, what it may see. So each request
goes to the store first, with the client's own signature, and only when the store has accepted it does the
proxy decide. What the store refuses is handed on as the store says it, whether or not a table lies there.
"""

# mypy: allow-untyped-calls
from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable
from datetime import datetime

import attrs

from delta_proxy.access.identity import AuthKind, Principal
from delta_proxy.access.permission_feed import Unavailable
from delta_proxy.access.policy import Reason
from delta_proxy.access.principals import Principals
from delta_proxy.config import AuthMode
from delta_proxy.delta.gate import GrantedTable, Served, Use
from delta_proxy.resources.base import XML, Answer, AnyAnswer, Fields, S3Resource, Streamed, annotate
from delta_proxy.resources.bucket import CREATED, listed
from delta_proxy.resources.forward_writes import ForwardedWrite
from delta_proxy.resources.listing import ListedTable
from delta_proxy.resources.object import ObjectResource
from delta_proxy.resources.refusals import NO_SIGNATURE, denied
from delta_proxy.resources.server import EdgeRequest
from delta_proxy.resources.services import Services
from delta_proxy.s3 import xml
from delta_proxy.s3.errors import (
    AccessDenied,
    InvalidArgument,
    InvalidRequest,
    MethodNotAllowed,
    NoSuchKey,
    NotImplementedByProxy,
    ServiceUnavailable,
)
from delta_proxy.s3.headers import Headers
from delta_proxy.s3.listing import ListQuery, encode_token
from delta_proxy.s3.operation import Operation
from delta_proxy.s3.request import Addressing, S3Request, parse_request
from delta_proxy.s3.verify import presented
from delta_proxy.upstream.forward import MODE_HEADER, Forwarder, ForwardMap, Route, small_body
from delta_proxy.upstream.relay import UpstreamResponse

_ABSOLUTE = re.compile(rb"https?://([^/?]*)", re.IGNORECASE)
_ACCEPTED = frozenset({200, 206, 304, 412, 416})
"""What a store answers only to a request whose signature and permission it has checked."""

_NOT_HANDED_BACK = frozenset(
    {
        *("connection", "date", "keep-alive", "location", "proxy-authenticate", "server", "set-cookie"),
        *("te", "trailer", "transfer-encoding", "upgrade", "x-amz-id-2", "x-amz-request-id"),
    }
)
_MAC_DIGITS = 32


@attrs.frozen
class Forwarding:
    """What forward mode needs. `key` (any secret bytes, the same in all replicas) vouches for list tokens."""

    tables: ForwardMap
    forwarder: Forwarder
    principals: Principals
    default: AuthMode
    by_header: bool
    now: Callable[[], datetime]
    key: bytes = attrs.field(repr=False)

    def takes(self, request: EdgeRequest) -> bool:
        """Whether the store verifies this request. STS is always the proxy's own."""
        if request.method == b"POST" and request.uri.partition(b"?")[0] == b"/":
            return False
        return self._mode(request) is AuthMode.FORWARD

    def _mode(self, request: EdgeRequest) -> AuthMode:
        """Raises InvalidArgument for a mode that is none."""
        wanted = request.headers.all(MODE_HEADER)
        if not self.by_header or not wanted:
            return self.default
        try:
            (mode,) = wanted
            return AuthMode(mode)
        except ValueError:
            raise InvalidArgument(f"{MODE_HEADER} must be iam or forward, once.") from None

    def route(self, request: EdgeRequest) -> Route:
        """The store of a request. Raises InvalidRequest when it is none of a table's."""
        found = _ABSOLUTE.match(request.uri)
        if found is None:
            raise InvalidRequest(
                "The store verifies requests here: sign them for the real bucket, and set this proxy as the "
                "HTTP proxy."
            )
        route = self.tables.route(found[1].decode("latin-1"))
        if route is None:
            raise InvalidRequest("The proxy does not forward requests to this host.")
        return route


class ForwardResource(S3Resource):
    """One request on its way to the store."""

    def __init__(self, services: Services, forwarding: Forwarding, route: Route, s3: S3Request) -> None:
        super().__init__(services, s3)
        self._forwarding = forwarding
        self._route = route

    @classmethod
    def of(cls, services: Services, forwarding: Forwarding, request: EdgeRequest) -> ForwardResource:
        """The resource for a request that forwarding takes. Raises S3Error."""
        route = forwarding.route(request)
        addressing = Addressing("", (route.domain,))
        s3 = parse_request(request.method, request.uri, request.headers, addressing)
        return cls(services, forwarding, route, s3)

    async def _authenticated_answer(self, request: EdgeRequest) -> AnyAnswer:
        """The store is asked first; the policy speaks only when it has accepted the request."""
        read_only = self.services.settings.read_only
        if self.s3.operation is Operation.STS or (self.s3.operation.is_write and read_only):
            raise MethodNotAllowed("The proxy is read-only.", fields={"Method": self.s3.method})
        access_key = self._access_key(request)
        principal = self._principal(access_key)
        if self.s3.operation.is_write:
            annotate(request, principal=principal.id)
            return await ForwardedWrite(self, self._forwarding, self._route, request).answer(principal)
        upstream = await self._forwarding.forwarder.send(self._route, self.s3)
        try:
            return await self._after(upstream, principal, access_key, request)
        except BaseException:
            upstream.discard()
            raise

    def _access_key(self, request: EdgeRequest) -> str:
        found = presented(self.s3)
        if found is None:
            raise AccessDenied(NO_SIGNATURE)
        annotate(request, auth=AuthKind.FORWARD.value, access_key=found.access_key)
        if MODE_HEADER in found.signed_headers:
            raise InvalidRequest(f"{MODE_HEADER} is not sent to the store, so it must not be signed.")
        return found.access_key

    def _principal(self, access_key: str) -> Principal:
        """The user of the access key; whoever else the store accepts has only what everyone has."""
        try:
            known = self._forwarding.principals.find(access_key, self._forwarding.now(), AuthKind.FORWARD)
        except Unavailable:
            raise ServiceUnavailable from None
        if known is not None:
            return known.principal
        return Principal(f"key:{access_key}", frozenset(), AuthKind.FORWARD)

    async def _after(
        self, upstream: UpstreamResponse, principal: Principal, access_key: str, request: EdgeRequest
    ) -> AnyAnswer:
        if upstream.status not in _ACCEPTED:
            refusal = await self._refusal(upstream, access_key)
            if refusal is not None:
                annotate(request, decision="refused", reason=f"the store answered {upstream.status}")
                return refusal
        annotate(request, principal=principal.id)
        # Not before: until the store has accepted it, anybody could take the places of an access key.
        await self.take_place(principal)
        return await self._accepted(upstream, principal, access_key, request)

    async def _accepted(
        self, upstream: UpstreamResponse, principal: Principal, access_key: str, request: EdgeRequest
    ) -> AnyAnswer:
        match self.s3.operation:
            case Operation.GET_OBJECT | Operation.HEAD_OBJECT:
                return await self._object(upstream, principal, request)
            case Operation.HEAD_BUCKET | Operation.GET_BUCKET_LOCATION:
                self._admitted(principal)
                return self.handed_on(upstream)
            case Operation.LIST_OBJECTS | Operation.LIST_OBJECTS_V2:
                upstream.discard()
                self.describe_key(self.s3.param("prefix") or "", principal, request)
                return await self._list(principal, access_key, request)
            case Operation.LIST_BUCKETS:
                upstream.discard()
                return self._buckets(principal)
            case _:
                raise NotImplementedByProxy

    def handed_on(self, upstream: UpstreamResponse) -> Streamed:
        """The store's own answer, but for a redirect: it would lead past the proxy."""
        if 300 <= upstream.status < 400 and upstream.status != 304:
            raise ServiceUnavailable
        return Streamed(upstream.status, _handed_back(upstream.headers), upstream)

    async def _object(
        self, upstream: UpstreamResponse, principal: Principal, request: EdgeRequest
    ) -> AnyAnswer:
        """The store's answer where the policy leaves it as it is; else the proxy's own."""
        found = self._forwarding.tables.locate(self._route, self.s3.bucket, self.s3.key)
        if found is None:
            annotate(request, decision="no_table")
            # In the words of a closed table: where those lie is told to nobody.
            raise denied(Reason.NO_GRANT)
        alias, path = found
        own = ObjectResource(self.services, self._as_own(f"{alias}/{path}"))
        try:
            table = self.services.gate.open(principal, alias)
            if isinstance(table, GrantedTable):
                verdict = await self.services.gate.judge(table, path)
                if isinstance(verdict, Served) and (verdict.use is Use.DATA or table.grant.is_everything):
                    annotate(request, table=alias, decision="allowed", proxied=True)
                    return self.handed_on(upstream)
            upstream.discard()
            return await own.answer(principal, request)
        except NoSuchKey:
            raise NoSuchKey(fields={"Key": self.s3.key}) from None
        finally:
            self.describe_key(self.s3.key, principal, request)

    def describe_key(self, key: str, principal: Principal, request: EdgeRequest) -> None:
        """Tell the audit log which table the key of the store lies in."""
        found = self._forwarding.tables.locate(self._route, self.s3.bucket, key)
        if found is not None and request.note.place is not None:
            ObjectResource(self.services, self._as_own("/".join(found))).describe(principal, request)

    def _as_own(self, key: str) -> S3Request:
        return attrs.evolve(self.s3, bucket=self.services.settings.addressing.bucket, key=key)

    def _admitted(self, principal: Principal) -> list[tuple[GrantedTable, str]]:
        """The tables of the bucket (or of all) that are open to the principal, and the prefixes they lie at.

        Raises AccessDenied when there are none.
        """
        opened = [
            (self.services.gate.open(principal, alias), location.key(""))
            for alias, location in self._forwarding.tables.below(self._route, self.s3.bucket)
        ]
        admitted = [(table, root) for table, root in opened if isinstance(table, GrantedTable)]
        if not admitted:
            raise denied(Reason.NO_GRANT)
        return admitted

    def _buckets(self, principal: Principal) -> Answer:
        tables = self._forwarding.tables.tables
        buckets = {tables[table.alias].bucket for table, _ in self._admitted(principal)}
        return Answer(200, XML, xml.list_buckets(sorted(buckets), created=CREATED))

    async def _list(self, principal: Principal, access_key: str, request: EdgeRequest) -> Answer:
        query = ListQuery.parse(self._without_mac())
        tables = [self._listed(table, root) for table, root in self._admitted(principal)]
        result = await listed(tables, query, request)
        document = xml.list_objects_v2 if query.version == 2 else xml.list_objects_v1
        body = document(result, query, bucket=self.s3.bucket)
        token = encode_token(result.last)
        sealed = f"{token}.{self._mac(access_key, token)}"
        tag = "<NextContinuationToken>{}</NextContinuationToken>"
        return Answer(200, XML, body.replace(tag.format(token).encode(), tag.format(sealed).encode()))

    def _listed(self, table: GrantedTable, root: str) -> ListedTable:
        gate = self.services.gate
        listable = gate.listable(table.alias)
        return ListedTable(table.alias, listable, lambda prefix: gate.visibility(table, prefix), root)

    async def _refusal(self, upstream: UpstreamResponse, access_key: str) -> AnyAnswer | None:
        """What the store refuses the request with; None when it only wonders at a list token of ours.

        Such a token proves that the store accepted the request for the page before, and a store looks at it
        only after the signature.
        """
        if upstream.status != 400 or not self._continues(access_key):
            return self.handed_on(upstream)
        headers, body = _handed_back(upstream.headers), await small_body(upstream)
        if _is_about_the_token(body):
            return None
        kept = tuple(pair for pair in headers if pair[0] != "content-length")
        return Answer(upstream.status, kept, body)

    def _continues(self, access_key: str) -> bool:
        token = self.s3.param("continuation-token") or ""
        bare, _, mac = token.rpartition(".")
        return hmac.compare_digest(mac.encode(), self._mac(access_key, bare).encode())

    def _without_mac(self) -> S3Request:
        query = tuple(
            (name, value.rpartition(".")[0] if name == "continuation-token" else value)
            for name, value in self.s3.query
        )
        return attrs.evolve(self.s3, query=query)

    def _mac(self, access_key: str, token: str) -> str:
        """What only the proxy can add to a token: it holds for one access key, bucket and prefix."""
        parts = (access_key, self.s3.bucket, self.s3.param("prefix") or "", token)
        text = "\0".join(parts).encode()
        return hmac.digest(self._forwarding.key, text, hashlib.sha256).hex()[:_MAC_DIGITS]


def _handed_back(headers: Headers) -> Fields:
    return tuple((name, value) for name, value in headers.items if name not in _NOT_HANDED_BACK)


def _is_about_the_token(body: bytes) -> bool:
    try:
        error = xml.parse_error(body)
    except xml.MalformedDocument:
        return False
    return error.code == "InvalidArgument" and "continuation" in error.message.lower()
