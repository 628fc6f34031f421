# mypy: allow-untyped-calls
"""Forward mode: the store first, then the policy; what it lists, and how its lists go on."""

from __future__ import annotations

import re
from typing import Any, cast

import pytest
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from delta_proxy.access.identity import Principal
from delta_proxy.access.keys import Secret
from delta_proxy.access.policy import EVERYTHING, Reason
from delta_proxy.access.principals import ConfiguredUser, Principals
from delta_proxy.config import AuthMode, GetMode
from delta_proxy.delta.gate import GrantedTable, Refused
from delta_proxy.delta.views import RefusedView
from delta_proxy.delta.visibility import WholeTable
from delta_proxy.resources.forward import Forwarding
from delta_proxy.resources.root import RootResource
from delta_proxy.resources.server import S3Site
from delta_proxy.resources.services import Anonymous, Services, Settings
from delta_proxy.s3.headers import Headers
from delta_proxy.s3.request import S3Request
from delta_proxy.s3.sigv4 import EMPTY_SHA256, Credentials, SigningKeys, canonical_query, sign
from delta_proxy.upstream.forward import ForwardMap, Route
from delta_proxy.upstream.stores import StoreConfig, TableLocation
from tests.resources.test_listing import SortedStore
from tests.s3.wire import ADDRESSING, NOW, REGION, Pairs

HOST = "store.test:9000"
TABLES = ForwardMap({"a": TableLocation("lake", "t/a", StoreConfig(f"http://{HOST}"))})
ALICE = ConfiguredUser("alice", "AKALICE", Secret("not the store's"))
TOKEN_ERROR = (
    b"<Error><Code>InvalidArgument</Code>"
    b"<Message>The continuation token provided is incorrect</Message></Error>"
)
AUTH_ERROR = b"<Error><Code>AuthorizationHeaderMalformed</Code><Message>continuation</Message></Error>"


class StoresAnswer:
    """An answer of the store."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status, self._body = status, body
        self.headers = Headers((("content-length", str(len(body))), ("location", "http://elsewhere")))
        self.discarded = False

    def discard(self) -> None:
        self.discarded = True

    def take_whole(self) -> bytes | None:
        return None

    async def send_body(self, consumer: Any) -> int:
        consumer.write(self._body)
        return len(self._body)


class Store:
    """Answers what it is told to; remembers what it was asked."""

    def __init__(self, status: int = 200, body: bytes = b"the store's") -> None:
        self.status, self.body = status, body
        self.asked: list[S3Request] = []

    async def send(self, route: Route, s3: S3Request) -> StoresAnswer:
        self.asked.append(s3)
        return StoresAnswer(self.status, self.body)


class OpenGate:
    """Grants alice everything, nobody else anything; `asked` tells whether the policy was asked."""

    def __init__(self) -> None:
        self.asked = False

    def open(self, principal: Principal, alias: str) -> GrantedTable | Refused:
        self.asked = True
        if principal.id == "alice":
            return GrantedTable(alias, EVERYTHING)
        return Refused(Reason.NO_GRANT)

    def listable(self, alias: str) -> SortedStore:
        return SortedStore(["f1", "f2", "f3"], 1000)

    async def visibility(self, table: GrantedTable, prefix: str) -> WholeTable:
        return WholeTable()


def ask(
    store: Store,
    path: str = "/lake",
    query: Pairs = (),
    *,
    key: str = "AKALICE",
    method: str = "GET",
    extra: Pairs = (),
    gate: OpenGate | None = None,
    by_header: bool = False,
) -> bytes:
    """What a signed, absolute-form request is answered."""
    forwarding = Forwarding(
        TABLES,
        cast(Any, store),
        Principals.of([ALICE], {}),
        AuthMode.FORWARD,
        by_header,
        lambda: NOW,
        b"key",
    )
    settings = Settings(ADDRESSING, REGION, True, GetMode.PROXY, False, 300, ())
    services = Services(
        settings, Anonymous(), cast(Any, gate or OpenGate()), {}, cast(Any, None), forward=forwarding
    )
    site = S3Site(RootResource(services), reactor=Clock())
    added = sign(
        method, HOST, path, query, extra, EMPTY_SHA256, Credentials(key, "s"), REGION, NOW, SigningKeys()
    )
    target = f"http://{HOST}{path}" + (f"?{canonical_query(query)}" if query else "")
    head = [f"{method} {target} HTTP/1.1", f"Host: {HOST}", *(f"{n}: {v}" for n, v in (*extra, *added))]
    transport = StringTransport()
    channel = site.buildProtocol(None)
    channel.makeConnection(transport)
    channel.dataReceived("\r\n".join([*head, "", ""]).encode())
    said: bytes = transport.value()
    return said


def first_page() -> tuple[bytes, str]:
    """A first page with one key, and the token it ends with."""
    said = ask(Store(), query=(("list-type", "2"), ("max-keys", "1"), ("prefix", "t/")))
    found = re.search(rb"<NextContinuationToken>([^<]+)<", said)
    assert found is not None
    return said, found[1].decode()


def next_page(store: Store, token: str, *, key: str = "AKALICE", prefix: str = "t/") -> bytes:
    query = (("continuation-token", token), ("list-type", "2"), ("prefix", prefix))
    return ask(store, query=query, key=key)


def test_a_list_has_the_keys_of_the_real_bucket() -> None:
    said, _ = first_page()
    assert re.findall(rb"<Key>([^<]+)<", said) == [b"t/a/f1"]
    assert b"<Name>lake</Name>" in said


def test_a_list_goes_on_where_it_ended_though_the_store_wonders_at_the_token() -> None:
    _, token = first_page()
    for store in (Store(), Store(400, TOKEN_ERROR)):
        assert re.findall(rb"<Key>([^<]+)<", next_page(store, token)) == [b"t/a/f2", b"t/a/f3"]


def test_a_token_opens_nothing_that_the_store_refuses() -> None:
    _, token = first_page()
    for store in (Store(403, b"<Error/>"), Store(400, AUTH_ERROR), Store(400, b"not xml")):
        said = next_page(store, token)
        assert b" 40" in said.partition(b"\r\n")[0]
        assert b"<Key>" not in said


@pytest.mark.parametrize(
    ("change", "key", "prefix"),
    [("0" * 32, "AKALICE", "t/"), (None, "AKMALLORY", "t/"), (None, "AKALICE", "t/a/")],
)
def test_a_token_holds_for_whom_and_what_it_was_made(change: str | None, key: str, prefix: str) -> None:
    _, token = first_page()
    forged = token if change is None else f"{token.rpartition('.')[0]}.{change}"
    assert b"<Key>" not in next_page(Store(400, TOKEN_ERROR), forged, key=key, prefix=prefix)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500, 503])
def test_what_the_store_refuses_is_told_as_the_store_tells_it(status: int) -> None:
    gate = OpenGate()
    said = ask(Store(status, b"words of the store"), "/lake/t/a/f1", gate=gate)
    assert said.startswith(b"HTTP/1.1 %d " % status)
    assert said.endswith(b"words of the store")
    assert not gate.asked


def test_a_redirect_of_the_store_leads_nobody_past_the_proxy() -> None:
    said = ask(Store(307), "/lake/t/a/f1")
    assert said.startswith(b"HTTP/1.1 503 ")
    assert b"elsewhere" not in said


def test_an_unknown_key_that_the_store_knows_has_what_everyone_has() -> None:
    for path in ("/lake", "/lake/outside/f"):
        said = ask(Store(), path, key="AKSTORE")
        assert said.startswith(b"HTTP/1.1 403 ")
        assert b"<Code>AccessDenied</Code>" in said


def test_a_listing_of_a_closed_table_is_refused() -> None:
    class ClosedGate(OpenGate):
        async def visibility(self, table: GrantedTable, prefix: str) -> WholeTable:
            raise RefusedView(Reason.UNKNOWN_FEATURE)

    query = (("list-type", "2"), ("prefix", "t/a/"))
    assert b"403 Forbidden" in ask(Store(), query=query, gate=ClosedGate())


def test_a_key_outside_every_table_is_denied_only_when_the_store_has_accepted() -> None:
    store = Store()
    assert ask(store, "/lake/outside/f").startswith(b"HTTP/1.1 403 ")
    assert len(store.asked) == 1


def test_where_closed_tables_lie_is_told_to_nobody() -> None:
    closed, none = (ask(Store(), f"/lake/{path}/f", key="AKSTORE") for path in ("t/a", "outside"))
    assert message(closed) == message(none)


def message(said: bytes) -> bytes:
    """The words of an error."""
    found = re.search(rb"<Message>(.+)</Message>", said)
    assert found is not None
    return found[1]


def test_a_write_is_refused_before_anything_is_sent() -> None:
    store = Store()
    assert ask(store, "/lake/t/a/f1", method="DELETE").startswith(b"HTTP/1.1 405 ")
    assert store.asked == []


def test_a_header_that_is_not_sent_on_must_not_be_signed() -> None:
    store = Store()
    said = ask(store, extra=(("x-proxy-auth-mode", "forward"),), by_header=True)
    assert b"<Code>InvalidRequest</Code>" in said
    assert store.asked == []
