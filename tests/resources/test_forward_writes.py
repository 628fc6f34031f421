# mypy: allow-untyped-calls
"""Forward mode for writes: decided by the policy, verified by the store, with the bytes as they came."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from typing import Any, cast

import pytest
from twisted.internet.defer import maybeDeferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from delta_proxy.access.identity import Principal
from delta_proxy.access.keys import Secret
from delta_proxy.access.policy import EVERYTHING, Reason, parse_filters
from delta_proxy.access.principals import ConfiguredUser, Principals
from delta_proxy.config import AuthMode, GetMode
from delta_proxy.delta.gate import GrantedTable, Refused
from delta_proxy.resources.forward import Forwarding
from delta_proxy.resources.root import RootResource
from delta_proxy.resources.server import RequestNote, S3Site
from delta_proxy.resources.services import Anonymous, Services, Settings
from delta_proxy.resources.writing import Writing
from delta_proxy.s3.errors import ServiceUnavailable
from delta_proxy.s3.headers import Headers
from delta_proxy.s3.request import S3Request
from delta_proxy.s3.sigv4 import UNSIGNED_PAYLOAD, Credentials, SigningKeys, canonical_query, sign
from delta_proxy.upstream.forward import ForwardMap, Route
from delta_proxy.upstream.stores import StoreConfig, TableLocation
from tests.s3.wire import ADDRESSING, NOW, REGION, Pairs

HOST = "store.test:9000"
COMMIT = "/lake/t/a/_delta_log/1.json"
LOCATIONS = {
    alias: TableLocation("lake", f"t/{alias}", StoreConfig(f"http://{HOST}"))
    for alias in ("a", "b", "c", "d")
}
USERS = [
    ConfiguredUser("alice", "AKALICE", Secret("not the store's")),
    ConfiguredUser("reader", "AKREADER", Secret("not the store's"), read_only=True),
]


class Answered:
    """An answer of the store; `given_up` once nobody is to read it."""

    headers = Headers((("etag", '"1"'), ("content-length", "0")))

    def __init__(self, status: int) -> None:
        self.status = status
        self.given_up = False

    def discard(self) -> None:
        self.given_up = True

    def take_whole(self) -> bytes | None:
        return None

    async def send_body(self, consumer: Any) -> int:
        return 0


class Store:
    """Remembers the writes that reach it, with the bytes of their bodies, and what it answered."""

    def __init__(self, status: int = 200, failure: Exception | None = None) -> None:
        self.answer, self._failure = Answered(status), failure
        self.writes: list[tuple[S3Request, int | None, bytes]] = []

    async def write(self, route: Route, s3: S3Request, length: int | None, source: Any) -> Answered:
        body = _Body()
        if source is not None:
            await source(body)
        self.writes.append((s3, length, body.received))
        if self._failure is not None:
            raise self._failure
        return self.answer


class _Body:
    def __init__(self) -> None:
        self.received = b""

    async def write(self, data: bytes) -> None:
        self.received += data


class GateOfA:
    """Everybody has everything of `a` and `c`, a part of `b`, nothing of `d`."""

    def open(self, principal: Principal, alias: str) -> GrantedTable | Refused:
        if alias in {"a", "c"}:
            return GrantedTable(alias, EVERYTHING)
        return GrantedTable(alias, parse_filters([{"p": "x"}])) if alias == "b" else Refused(Reason.NO_GRANT)


class Writer:
    def __init__(self, location: TableLocation) -> None:
        self.location = location


class NoProbes:
    def __init__(self) -> None:
        self.checked: list[str] = []

    async def check(self, writer: Any, request: S3Request) -> None:
        """Every store is trusted."""
        self.checked.append(writer.location.prefix)


def ask(
    store: Store,
    method: str,
    path: str,
    body: bytes = b"",
    *,
    query: Pairs = (),
    extra: Pairs = (),
    key: str = "AKALICE",
    read_only: bool = False,
    chunked: bool = False,
    mark: Callable[[str], None] | None = None,
    notes: list[RequestNote] | None = None,
    probes: NoProbes | None = None,
    said: list[bytes] | None = None,
) -> tuple[int, list[str]]:
    """The status of a signed request in absolute form, and the aliases that were told to have changed."""
    told: list[str] = []
    principals = Principals.of(USERS, {})
    forwarding = Forwarding(
        ForwardMap(LOCATIONS), cast(Any, store), principals, AuthMode.FORWARD, False, lambda: NOW, b"key"
    )
    writing = Writing(
        cast(Any, {alias: Writer(location) for alias, location in LOCATIONS.items()}),
        cast(Any, probes or NoProbes()),
        mark or told.append,
        cast(Any, maybeDeferred),
    )
    services = Services(
        Settings(ADDRESSING, REGION, read_only, GetMode.PROXY, False, 300, ()),
        Anonymous(),
        cast(Any, GateOfA()),
        cast(Any, {alias: Writer(location) for alias, location in LOCATIONS.items()}),
        cast(Any, None),
        forward=forwarding,
        writing=writing,
        partitions=lambda alias, path: (),
    )
    finished = None if notes is None else lambda record: notes.extend((*record.note.before, record.note))
    site = S3Site(RootResource(services), reactor=Clock(), on_finished=finished)
    credentials = Credentials(key, "s")
    added = sign(method, HOST, path, query, extra, UNSIGNED_PAYLOAD, credentials, REGION, NOW, SigningKeys())
    target = f"http://{HOST}{path}" + (f"?{canonical_query(query)}" if query else "")
    framing = ("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(len(body)))
    head = [f"{method} {target} HTTP/1.1", f"Host: {HOST}", f"{framing[0]}: {framing[1]}"]
    head += [f"{name}: {value}" for name, value in (*extra, *added)]
    transport = StringTransport()
    channel: Any = site.buildProtocol(None)
    channel.makeConnection(transport)
    sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    channel.dataReceived("\r\n".join([*head, "", ""]).encode() + sent)
    if said is not None:
        said.append(transport.value())
    return int(transport.value().split()[1]), told


@pytest.mark.parametrize("chunked", [False, True])
def test_a_write_goes_to_the_store_as_it_came(chunked: bool) -> None:
    store, body = Store(), os.urandom(300_000)
    extra = (("x-amz-meta-colour", "blue"), ("if-none-match", "*"))
    status, told = ask(store, "PUT", "/lake/t/a/_delta_log/1.json", body, extra=extra, chunked=chunked)
    ((s3, length, received),) = store.writes
    assert (status, received, length) == (200, body, None if chunked else len(body))
    assert (s3.headers.get("x-amz-meta-colour"), s3.headers.get("if-none-match")) == ("blue", "*")
    assert "Credential=AKALICE/" in (s3.headers.get("authorization") or "")
    assert told == ["a"]


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"path": "/lake/t/b/x"}, 403),
        ({"path": "/lake/t/d/x"}, 403),
        ({"path": "/lake/x"}, 403),
        ({"path": "/pond/t/a/x"}, 403),
        ({"path": "/lake/t/a/../b/x"}, 404),
        ({"path": "/lake/t/a/x", "key": "AKREADER"}, 403),
        ({"path": "/lake/t/a/x", "read_only": True}, 405),
        ({"path": "/lake/t/a/x", "extra": (("x-amz-copy-source", "/lake/t/b/x"),)}, 403),
        ({"path": "/lake/t/a/x", "extra": (("x-amz-copy-source", "/pond/t/a/x"),)}, 403),
        ({"path": "/lake/t/a/x", "extra": (("x-amz-copy-source", "/lake/t/a/..%2Fb/x"),)}, 404),
        ({"path": "/lake/t/a/x", "extra": (("x-amz-copy-source", "/lake/t/a/x+y"),)}, 400),
        (
            {
                "path": "/lake/t/a/x",
                "extra": (("x-amz-copy-source", "/lake/t/a/x"), ("x-amz-copy-source", "/lake/t/b/x")),
            },
            400,
        ),
    ],
)
def test_what_may_not_be_written_never_reaches_the_store(options: dict[str, Any], status: int) -> None:
    store = Store()
    assert ask(store, "PUT", **options)[0] == status
    assert store.writes == []


@pytest.mark.parametrize(
    ("status", "told"), [(200, ["a"]), (412, ["a"]), (500, ["a"]), (400, []), (401, []), (403, [])]
)
def test_only_a_write_that_may_have_been_carried_out_is_told_of(status: int, told: list[str]) -> None:
    assert ask(Store(status), "PUT", COMMIT, b"{}") == (status, told)


def test_a_write_is_told_of_when_nobody_knows_what_became_of_it() -> None:
    assert ask(Store(failure=ServiceUnavailable()), "PUT", COMMIT, b"{}") == (503, ["a"])


def test_a_redirect_that_is_not_handed_on_holds_no_connection() -> None:
    store = Store(307)
    assert ask(store, "PUT", COMMIT, b"{}")[0] == 503
    assert store.answer.given_up


def test_a_write_that_the_store_accepted_succeeds_though_it_cannot_be_told_of() -> None:
    def full(alias: str) -> None:
        raise OSError(errno.ENOSPC, "no space")

    store = Store()
    assert ask(store, "PUT", COMMIT, b"{}", mark=full)[0] == 200
    assert not store.answer.given_up


def test_an_answer_that_is_not_handed_on_because_of_a_fault_holds_no_connection() -> None:
    def broken(alias: str) -> None:
        raise RuntimeError(alias)

    store = Store()
    assert ask(store, "PUT", COMMIT, b"{}", mark=broken)[0] == 500
    assert store.answer.given_up


def deletion(*keys: str) -> bytes:
    return b"<Delete>%b</Delete>" % b"".join(b"<Object><Key>%b</Key></Object>" % key.encode() for key in keys)


def test_keys_that_may_be_deleted_are_deleted_together() -> None:
    store, body = Store(), deletion("t/a/x", "t/a/_delta_log/1.json")
    assert ask(store, "POST", "/lake", body, query=(("delete", ""),)) == (200, ["a"])
    assert store.writes[0][2] == body


@pytest.mark.parametrize("key", ["AKALICE", "AKREADER"])
@pytest.mark.parametrize("header", [False, True], ids=["key", "source"])
def test_where_closed_tables_lie_is_told_to_no_writer(header: bool, key: str) -> None:
    said: list[bytes] = []
    for place in ("/lake/t/d/x", "/lake/elsewhere/x", "/pond/x"):
        extra = (("x-amz-copy-source", place),) if header else ()
        ask(Store(), "PUT", "/lake/t/a/x" if header else place, extra=extra, key=key, said=said)
    assert len({re.search(rb"<Message>.+</Message>", answer)[0] for answer in said}) == 1  # type: ignore[index]


def test_a_table_is_decided_about_once_however_many_of_its_keys_are_deleted() -> None:
    probes, body = NoProbes(), deletion("t/a/1", "t/c/1", "t/a/2", "t/a/3", "t/c/2")
    assert ask(Store(), "POST", "/lake", body, query=(("delete", ""),), probes=probes)[0] == 200
    assert probes.checked == ["t/a", "t/c"]


@pytest.mark.parametrize("last", ["t/a/../x", "t/c/./../x", "t/b/x", "t/x"])
def test_the_last_key_of_many_is_judged_as_the_first(last: str) -> None:
    store, body = Store(), deletion("t/c/1", "t/a/1", "t/a/2", last)
    assert ask(store, "POST", "/lake", body, query=(("delete", ""),))[0] in {403, 404}
    assert store.writes == []


@pytest.mark.parametrize(("status", "decision"), [(200, "allowed"), (403, "refused")])
def test_a_deletion_in_several_tables_is_told_of_for_each(status: int, decision: str) -> None:
    notes: list[RequestNote] = []
    body = deletion("t/a/part-1", "t/c/x", "t/a/part-2")
    assert ask(Store(status), "POST", "/lake", body, query=(("delete", ""),), notes=notes)[0] == status
    told = [(note.table, note.path, note.decision) for note in notes]
    assert told == [("a", "part-", decision), ("c", "x", decision)]


@pytest.mark.parametrize(
    "body",
    [
        deletion("t/a/x", "t/b/x"),
        deletion("t/a/x", "elsewhere"),
        b"<Delete><Object><Key>t/a/x</Key><Key>t/b/x</Key></Object></Delete>",
        b"<Delete><Object><Key>t/<!-- -->a/x</Key></Object></Delete>",
        b"<Delete><Object><Key>t/a/x<b/>y</Key></Object></Delete>",
        b"<Delete><Object><Key><![CDATA[t/a/x]]></Key></Object></Delete>",
        b'<?xml version="1.0" encoding="latin-1"?>' + deletion("t/a/x"),
    ],
)
def test_one_key_that_may_not_be_deleted_or_be_read_in_two_ways_refuses_all(body: bytes) -> None:
    store = Store()
    assert ask(store, "POST", "/lake", body, query=(("delete", ""),))[0] in {400, 403}
    assert store.writes == []


@pytest.mark.parametrize(("prefix", "status"), [("t/a/", 200), ("t/b/", 403), ("t/", 403), ("", 403)])
def test_only_the_uploads_of_a_table_that_is_open_are_listed(prefix: str, status: int) -> None:
    query = (("prefix", prefix), ("uploads", ""))
    assert ask(Store(), "GET", "/lake", query=query)[0] == status
