"""What reaches the proxy and the store, and what the client sees of answers, cuts, stalls and refusals."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Callable

import pytest
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread

from tests.ports import free_port
from tests.upstream.parts import (
    ETAG,
    Call,
    ScriptedStore,
    answer,
    cuts,
    in_reactor,
    part,
    sends,
    silent,
    until,
)

from .parts import PRESIGNED, ask, helper, outlasting, request

BODY = bytes(range(256)) * 800
PATH = "/datalake/t/a%2Fb//..%20%C3%BC~?partNumber=1&x-id=GetObject&y"


@contextlib.asynccontextmanager
async def scripted(*script: Callable[[Call], object]) -> AsyncIterator[ScriptedStore]:
    """A server that follows a script, for the length of the block."""
    server = ScriptedStore(*script)
    try:
        yield server
    finally:
        await server.close()


def redirect(location: str) -> Callable[[Call], None]:
    """A step of the proxy's script: 307."""
    return sends(answer(status="307 Temporary Redirect", etag=None, headers={"Location": location}))


@contextlib.asynccontextmanager
async def redirecting(
    *script: Callable[[Call], object],
) -> AsyncIterator[tuple[ScriptedStore, ScriptedStore]]:
    """A proxy that sends every GET to a store that follows a script."""
    async with scripted(*script) as store, scripted(redirect(f"{store.endpoint}/b/k?{PRESIGNED}")) as proxy:
        yield proxy, store


def named(call: Call) -> dict[str, str]:
    """The fields of a request."""
    rows = (line.partition(": ") for line in call.head.decode("latin-1").split("\r\n")[1:])
    return {name.lower(): value for name, _, value in rows}


@in_reactor
async def test_the_proxy_gets_what_the_client_signed_byte_for_byte_and_the_announcement() -> None:
    fields = {
        "Authorization": "AWS4-HMAC-SHA256 Credential=x",
        "x-amz-date": "20260101T000000Z",
        "X-Amz-Meta-A": "b  c",
        "User-Agent": "Boto3/1.44.5",
        "Range": "bytes=1-2",
    }
    async with scripted(sends(answer(b"hello"))) as proxy, helper() as running:
        outcome = await running.get(proxy.endpoint + PATH, fields)
    assert (outcome.status, outcome.body) == (200, b"hello")
    assert proxy.calls[0].head.startswith(f"GET {PATH} HTTP/1.1\r\n".encode())
    assert named(proxy.calls[0]) == {
        "host": proxy.endpoint.removeprefix("http://"),
        **{name.lower(): value for name, value in fields.items()},
        "x-delta-proxy-helper": "1",
    }


@in_reactor
async def test_a_path_that_begins_with_two_slashes_stays_as_it_is() -> None:
    async with scripted(sends(answer(b""))) as proxy, helper() as running:
        await running.get(proxy.endpoint + "//a//b?")
    assert proxy.calls[0].target == b"//a//b?"


@in_reactor
async def test_fields_of_the_connection_end_at_the_helper() -> None:
    fields = {
        "Proxy-Connection": "keep-alive",
        "Proxy-Authorization": "Basic eDp5",
        "TE": "trailers",
        "Upgrade": "h2c",
        "Keep-Alive": "timeout=5",
        "X-Delta-Proxy-Helper": "2",
    }
    async with scripted(sends(answer(b"hello"))) as proxy, helper() as running:
        await running.get(proxy.endpoint + "/b", fields)
    assert set(named(proxy.calls[0])) == {"host", "x-delta-proxy-helper"}
    assert named(proxy.calls[0])["x-delta-proxy-helper"] == "1"


@in_reactor
async def test_the_host_of_the_target_wins_over_another_host_field() -> None:
    async with scripted(sends(answer(b""))) as proxy, helper() as running:
        await running.get(proxy.endpoint + "/b", {"Host": "elsewhere.example"})
    assert named(proxy.calls[0])["host"] == proxy.endpoint.removeprefix("http://")


@in_reactor
async def test_an_answer_of_the_proxy_keeps_its_fields_but_for_those_of_the_connection() -> None:
    fields = {"x-amz-request-id": "F00D", "Server": "S", "Keep-Alive": "timeout=5", "Date": "today"}
    async with (
        scripted(sends(answer(b"no", status="403 Forbidden", headers=fields))) as proxy,
        helper() as running,
    ):
        outcome = await running.get(proxy.endpoint + "/b")
    assert (outcome.status, outcome.body) == (403, b"no")
    assert dict(outcome.headers) == {
        "x-amz-request-id": "F00D",
        "server": "S",
        "date": "today",
        "content-length": "2",
        "etag": ETAG,
        "connection": "close",
    }


@in_reactor
async def test_a_redirect_is_followed_with_range_and_conditions_and_nothing_else_of_the_client() -> None:
    sent = {
        "Authorization": "AWS4-HMAC-SHA256 Credential=x",
        "x-amz-security-token": "token",
        "x-amz-date": "20260101T000000Z",
        "Cookie": "a=b",
        "User-Agent": "Boto3/1.44.5",
        "Accept-Encoding": "gzip",
    }
    conditions = {"Range": "bytes=10-", "If-Match": ETAG, "If-Unmodified-Since": "x", "If-Range": ETAG}
    async with redirecting(sends(part(BODY, 10))) as (proxy, store), helper() as running:
        outcome = await running.get(proxy.endpoint + PATH, sent | conditions)
    assert (outcome.status, outcome.body) == (206, BODY[10:])
    assert outcome.headers["content-range"] == f"bytes 10-{len(BODY) - 1}/{len(BODY)}"
    assert store.calls[0].target == f"/b/k?{PRESIGNED}".encode()
    assert named(store.calls[0]) == {
        "host": store.endpoint.removeprefix("http://"),
        "user-agent": "delta-s3-proxy-local",
        "accept-encoding": "identity",
        **{name.lower(): value for name, value in conditions.items()},
    }


@pytest.mark.parametrize(
    "location",
    [
        "http://elsewhere.example/b/k",
        "http://elsewhere.example/b/k?" + PRESIGNED.replace("=host", "=host%3Bx-amz-date"),
        "ftp://elsewhere.example/b/k?" + PRESIGNED,
        "/b/k?" + PRESIGNED,
    ],
)
@in_reactor
async def test_a_redirect_that_needs_more_than_a_bare_get_is_left_to_the_client(location: str) -> None:
    async with scripted(redirect(location)) as proxy, helper() as running:
        outcome = await running.get(proxy.endpoint + PATH)
    assert (outcome.status, outcome.headers["location"]) == (307, location)


@pytest.mark.parametrize("method", ["HEAD", "DELETE", "PUT"])
@in_reactor
async def test_only_a_get_is_followed(method: str) -> None:
    async with redirecting(sends(answer(BODY))) as (proxy, store), helper() as running:
        outcome = await running.get(proxy.endpoint + PATH, method=method)
    assert outcome.status == 307
    assert store.calls == []


@pytest.mark.parametrize(
    "status", ["403 Forbidden", "404 Not Found", "412 Precondition Failed", "503 Slow Down"]
)
@in_reactor
async def test_what_the_store_refuses_is_told_to_the_client(status: str) -> None:
    async with redirecting(sends(answer(b"<Error/>", status=status))) as (proxy, _), helper() as running:
        outcome = await running.get(proxy.endpoint + PATH)
    assert (outcome.status, outcome.body) == (int(status[:3]), b"<Error/>")


@in_reactor
async def test_a_store_that_redirects_again_is_an_error() -> None:
    async with redirecting(redirect("http://elsewhere.example/")) as (proxy, _), helper() as running:
        outcome = await running.get(proxy.endpoint + PATH)
    assert outcome.status == 503
    assert "location" not in outcome.headers


@in_reactor
async def test_an_unchanged_object_is_304_without_a_body() -> None:
    unchanged = b"HTTP/1.1 304 Not Modified\r\nETag: %b\r\n\r\n" % ETAG.encode()
    async with redirecting(sends(unchanged)) as (proxy, _), helper() as running:
        outcome = await running.get(proxy.endpoint + PATH, {"If-None-Match": ETAG})
    assert (outcome.status, outcome.headers["etag"], outcome.body) == (304, ETAG, b"")


@in_reactor
async def test_a_head_has_the_length_of_the_object_and_no_body() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n"
    async with scripted(sends(head)) as proxy, helper() as running:
        outcome = await running.get(proxy.endpoint + PATH, method="HEAD")
    assert (outcome.headers["content-length"], outcome.body) == ("12345", b"")


@in_reactor
async def test_a_body_that_the_store_cuts_is_resumed_with_range_and_if_match() -> None:
    short = answer(BODY[:70_000], length=len(BODY))
    async with redirecting(cuts(short), sends(part(BODY, 70_000))) as (proxy, store), helper() as running:
        outcome = await running.get(proxy.endpoint + PATH)
    assert (outcome.status, outcome.body, outcome.is_whole) == (200, BODY, True)
    resumed = named(store.calls[1])
    assert (resumed["range"], resumed["if-match"]) == (f"bytes=70000-{len(BODY) - 1}", ETAG)
    assert len(proxy.calls) == 1


@in_reactor
async def test_a_url_that_has_expired_meanwhile_is_renewed_by_the_proxy() -> None:
    short = answer(BODY[:70_000], length=len(BODY))
    expired = sends(answer(b"<Error/>", status="403 Forbidden"))
    script = (cuts(short), expired, sends(part(BODY, 70_000)))
    async with redirecting(*script) as (proxy, _), helper() as running:
        outcome = await running.get(proxy.endpoint + PATH, {"Authorization": "signed"})
    assert (outcome.body, outcome.is_whole) == (BODY, True)
    assert named(proxy.calls[1]) == named(proxy.calls[0])


@pytest.mark.parametrize(
    "then",
    [
        cuts(b""),
        sends(answer(b"<Error/>", status="412 Precondition Failed")),
        sends(answer(BODY)),
        sends(part(BODY, 70_000, etag='"another"')),
        sends(part(BODY, 69_999)),
    ],
    ids=["cut again", "replaced", "whole", "another version", "another range"],
)
@in_reactor
async def test_a_body_that_cannot_be_resumed_ends_in_a_reset(then: Callable[[Call], object]) -> None:
    short = answer(BODY[:70_000], length=len(BODY))
    async with redirecting(cuts(short), then) as (proxy, _), helper() as running:
        outcome = await running.get(proxy.endpoint + PATH)
    assert outcome.reset
    assert not outcome.is_whole
    assert BODY.startswith(outcome.body)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"


@pytest.mark.parametrize(
    "short",
    [answer(BODY[:70_000], length=len(BODY)), CHUNKED, b"HTTP/1.1 200 OK\r\n\r\nhello"],
    ids=["length", "chunked", "until close"],
)
@in_reactor
async def test_a_body_that_the_proxy_cuts_ends_in_a_reset(short: bytes) -> None:
    async with scripted(cuts(short)) as proxy, helper() as running:
        outcome = await running.get(proxy.endpoint + PATH)
    assert outcome.reset
    assert len(proxy.calls) == 1


@in_reactor
async def test_a_chunked_answer_is_passed_on_to_its_end() -> None:
    async with scripted(sends(CHUNKED + b"0\r\n\r\n")) as proxy, helper() as running:
        outcome = await running.get(proxy.endpoint + PATH)
    assert outcome.body == b"5\r\nhello\r\n0\r\n\r\n"


@in_reactor
async def test_a_store_that_stalls_in_mid_body_ends_in_a_reset() -> None:
    short = sends(answer(BODY[:70_000], length=len(BODY)))
    clock, begun = Clock(), threading.Event()
    async with redirecting(short, silent) as (proxy, _), helper(clock=clock) as running:
        asking = deferToThread(ask, running.port, request(proxy.endpoint + PATH), begun.set)
        await until(begun.is_set)
        outcome = await outlasting(asking, clock)
    assert outcome.reset
    assert not outcome.is_whole


@in_reactor
async def test_a_proxy_and_a_store_that_do_not_answer_are_503() -> None:
    clock = Clock()
    async with scripted(silent) as proxy, helper(clock=clock) as running:
        asking = running.get(proxy.endpoint + PATH)
        await proxy.call(1)
        assert (await outlasting(asking, clock)).status == 503
    async with redirecting(silent) as (proxy, store), helper(clock=clock) as running:
        asking = running.get(proxy.endpoint + PATH)
        await store.call(1)
        assert (await outlasting(asking, clock)).status == 503


@in_reactor
async def test_a_proxy_and_a_store_that_refuse_connections_are_503_in_xml() -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    async with helper() as running:
        outcome = await running.get(nowhere + PATH)
    assert (outcome.status, b"<Code>ServiceUnavailable</Code>" in outcome.body) == (503, True)
    async with scripted(redirect(f"{nowhere}/b/k?{PRESIGNED}")) as proxy, helper() as running:
        outcome = await running.get(proxy.endpoint + PATH)
    assert (outcome.status, len(proxy.calls)) == (503, 1)


@in_reactor
async def test_an_answer_that_is_no_http_is_503() -> None:
    async with scripted(cuts(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")) as proxy, helper() as running:
        assert (await running.get(proxy.endpoint + PATH)).status == 503


@in_reactor
async def test_a_read_is_repeated_when_a_kept_connection_proves_dead() -> None:
    async with scripted(cuts(b""), sends(answer(b"hello"))) as proxy, helper() as running:
        outcome = await running.get(proxy.endpoint + PATH)
    assert (outcome.body, len(proxy.calls)) == (b"hello", 2)


@pytest.mark.parametrize("method", ["DELETE", "POST"])
@in_reactor
async def test_what_changes_something_is_never_repeated(method: str) -> None:
    async with scripted(cuts(b""), sends(answer(b"hello"))) as proxy, helper() as running:
        outcome = await running.get(proxy.endpoint + PATH, method=method)
    assert (outcome.status, len(proxy.calls)) == (503, 1)


@in_reactor
async def test_a_client_that_leaves_ends_the_request_to_the_store() -> None:
    unfinished = sends(answer(b"x", length=1000))
    async with redirecting(unfinished) as (proxy, store), helper() as running:
        await running.look_in(request(proxy.endpoint + "/b"))
        await store.calls[0].line.lost


@pytest.mark.parametrize(
    "target",
    [
        "/b/k",
        "b",
        "*",
        "https:///b",
        "ftp://h/b",
        "http://h:0/b",
        "http://h:65536/",
        "http://u@h/",
        "http://h/\x80",
    ],
)
@in_reactor
async def test_what_is_no_request_to_a_proxy_is_refused(target: str) -> None:
    async with helper() as running:
        outcome = await running.ask(
            f"GET {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode("latin-1")
        )
    assert outcome.status == 400
