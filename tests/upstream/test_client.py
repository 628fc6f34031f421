"""What goes over the wire, what is repeated, and what the client is told."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from urllib.parse import parse_qsl, urlsplit

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.web.client import Agent

from delta_proxy.s3.errors import (
    AccessDenied,
    InternalError,
    InvalidRequest,
    NoSuchKey,
    NotImplementedByProxy,
    NotModified,
    S3Error,
    ServiceUnavailable,
)
from delta_proxy.s3.sigv4 import Credentials
from delta_proxy.upstream.client import StoreRequest, log_refusal
from delta_proxy.upstream.credentials import StaticCredentials
from delta_proxy.upstream.origin import address, parse_endpoint
from delta_proxy.upstream.retry import RetryPolicy, Timeouts
from delta_proxy.upstream.stores import AddressingStyle, StoreConfig

from .conftest import MakeRig, MakeStore
from .parts import (
    BUCKET,
    PREFIX,
    Call,
    Collector,
    Rig,
    answer,
    cuts,
    in_reactor,
    reactor,
    sends,
    silent,
    soon,
    until,
)

BODY = b"some bytes"


def error(status: str, code: str, more: str = "", headers: dict[str, str] | None = None) -> bytes:
    """An error document of a store."""
    document = f"<Error><Code>{code}</Code><Message>secret-bucket says {code}</Message>{more}</Error>"
    return answer(document.encode(), status=status, etag=None, headers=headers)


def region_of(call: Call) -> str:
    """The region a request was signed for."""
    return str(call.header("authorization")).split("/")[2]


@pytest.mark.parametrize(
    ("path", "raw"),
    [
        ("a//b", b"a//b"),
        (".a/..b/c.", b".a/..b/c."),
        ("a;b;/c;", b"a%3Bb%3B/c%3B"),
        ("100%/%41+b c", b"100%25/%2541%2Bb%20c"),
        ("é/e\u0301/日", b"%C3%A9/e%CC%81/%E6%97%A5"),
        ("q?x=1#f", b"q%3Fx%3D1%23f"),
        ("~a*b'(c)!", b"~a%2Ab%27%28c%29%21"),
        ("dir/", b"dir/"),
        ("/lead", b"/lead"),
        ("./a/../b", b"./a/../b"),
        ("a\nb\\c", b"a%0Ab%5Cc"),
    ],
)
@in_reactor
async def test_a_key_is_on_the_wire_encoded_once_and_never_normalised(
    rig: Rig, make_store: MakeStore, path: str, raw: bytes
) -> None:
    store = make_store(sends(answer(BODY)))
    await rig.table(store.endpoint).read(path, limit=100)
    await rig.table(store.endpoint, prefix="").read(path, limit=100)

    assert store.calls[0].target == f"/{BUCKET}/{PREFIX}/".encode() + raw
    assert store.calls[1].target == f"/{BUCKET}/".encode() + raw


@pytest.mark.parametrize(
    ("prefix", "path"),
    [
        (PREFIX, "../x"),
        (PREFIX, "a/../../x"),
        (PREFIX, "x/.././../y"),
        (PREFIX, "a/.."),
        ("", "../x"),
        ("", ""),
    ],
)
@in_reactor
async def test_a_path_that_could_lead_out_of_the_table_is_never_asked_for(
    rig: Rig, make_store: MakeStore, prefix: str, path: str
) -> None:
    store = make_store(sends(answer(BODY)))
    table = rig.table(store.endpoint, prefix=prefix)
    with pytest.raises(NoSuchKey):
        await table.open("GET", path)
    with pytest.raises(NoSuchKey):
        await table.presign(path, expires=9)

    assert store.calls == []


@in_reactor
async def test_a_listing_asks_below_the_table_only(rig: Rig, make_store: MakeStore) -> None:
    store = make_store(
        sends(answer(b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"))
    )
    await rig.table(store.endpoint).list("a +%&é/", delimiter="/", start_after="b c", max_keys=7)
    asked = urlsplit(store.calls[0].target.decode())

    assert asked.path == f"/{BUCKET}"
    assert dict(parse_qsl(asked.query)) == {
        "list-type": "2",
        "encoding-type": "url",
        "prefix": f"{PREFIX}/a +%&é/",
        "delimiter": "/",
        "start-after": f"{PREFIX}/b c",
        "max-keys": "7",
    }


@in_reactor
async def test_a_store_that_lists_what_lies_outside_the_table_is_not_believed(
    rig: Rig, make_store: MakeStore
) -> None:
    for listed in ([f"{PREFIX}-other/x"], [f"{PREFIX}/a", f"{PREFIX}0"], ["a", f"{PREFIX}/a"]):
        keys = "".join(
            f"<Contents><Key>{key}</Key><Size>1</Size><LastModified>t</LastModified></Contents>"
            for key in listed
        )
        store = make_store(sends(answer(f"<ListBucketResult>{keys}</ListBucketResult>".encode())))

        with pytest.raises(InternalError):
            await rig.table(store.endpoint).list()


@in_reactor
async def test_every_request_is_signed_with_its_token_and_the_empty_hash(
    rig: Rig, make_store: MakeStore
) -> None:
    store = make_store(sends(answer(BODY)))
    credentials = StaticCredentials(Credentials("AKID", "secret", "the-token"))
    table = rig.table(store.endpoint, credentials=credentials)
    await table.open("HEAD", "x", headers=(("X-Amz-Checksum-Mode", "ENABLED"),))
    call = store.calls[0]

    assert call.header("x-amz-security-token") == "the-token"
    assert str(call.header("x-amz-content-sha256")).startswith("e3b0c44298fc1c14")
    assert call.header("host") == store.endpoint.removeprefix("http://")
    assert call.header("accept-encoding") == "identity"
    signed = "host;x-amz-checksum-mode;x-amz-content-sha256;x-amz-date;x-amz-security-token"
    assert f"SignedHeaders={signed}," in str(call.header("authorization"))


@in_reactor
async def test_headers_of_the_connection_and_of_the_signature_are_never_the_client_s(
    rig: Rig, make_store: MakeStore
) -> None:
    store = make_store(sends(answer(BODY)))
    theirs = tuple(
        (name, "theirs")
        for name in (
            "Host",
            "Authorization",
            "X-Amz-Security-Token",
            "X-Amz-Date",
            "Cookie",
            "Connection",
            "TE",
        )
    )
    await rig.table(store.endpoint).open("HEAD", "x", headers=theirs)

    assert b"theirs" not in store.calls[0].head


@in_reactor
async def test_a_cookie_of_the_store_is_not_sent_back(rig: Rig, make_store: MakeStore) -> None:
    store = make_store(sends(answer(b"<ListBucketResult/>", headers={"Set-Cookie": "a=b; Path=/"})))
    table = rig.table(store.endpoint)
    await table.list()
    await table.list()

    assert store.calls[1].header("cookie") is None


@pytest.mark.parametrize("status", ["429 Slow", "500 x", "502 x", "503 Slow Down", "504 x"])
@in_reactor
async def test_a_passing_failure_is_tried_again(rig: Rig, make_store: MakeStore, status: str) -> None:
    store = make_store(
        sends(error(status, "SlowDown")), sends(error(status, "InternalError")), sends(answer(BODY))
    )

    assert (await rig.table(store.endpoint).read("x", limit=100)).body == BODY
    assert [outcome for _, outcome in rig.notes.requests] == [status[:3], status[:3], "200"]


@in_reactor
async def test_a_lasting_failure_is_given_up_after_four_tries(rig: Rig, make_store: MakeStore) -> None:
    store = make_store(sends(error("503 Slow Down", "SlowDown")))

    with pytest.raises(ServiceUnavailable):
        await rig.table(store.endpoint).read("x", limit=100)
    assert len(store.calls) == 4


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("403 Forbidden", AccessDenied),
        ("404 Not Found", NoSuchKey),
        ("400 Bad Request", InvalidRequest),
        ("501 Not Implemented", NotImplementedByProxy),
        ("302 Found", ServiceUnavailable),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@in_reactor
async def test_a_refusal_is_asked_once_and_tells_nothing_of_the_store(
    rig: Rig, make_store: MakeStore, status: str, kind: type[S3Error], method: str
) -> None:
    refusal = error(status, "Whatever", headers={"Location": "http://127.0.0.1:1/elsewhere"})
    store = make_store(sends(refusal if method == "GET" else refusal.partition(b"<Error>")[0]))

    with pytest.raises(kind) as refused:
        await rig.table(store.endpoint).open(method, "x")
    assert "secret-bucket" not in f"{refused.value} {refused.value.fields} {refused.value.headers}"
    assert len(store.calls) == 1


@in_reactor
async def test_not_modified_carries_the_validators(rig: Rig, make_store: MakeStore) -> None:
    store = make_store(sends(b'HTTP/1.1 304 Not Modified\r\nETag: "e"\r\nServer: inner\r\n\r\n'))

    with pytest.raises(NotModified) as unchanged:
        await rig.table(store.endpoint).open("GET", "x")
    assert unchanged.value.headers == (("etag", '"e"'),)


@in_reactor
async def test_a_connection_lost_before_the_answer_is_tried_again(rig: Rig, make_store: MakeStore) -> None:
    store = make_store(cuts(b""), cuts(b"HTTP/1.1 200 OK\r\nContent-"), sends(answer(BODY)))

    assert (await rig.table(store.endpoint).read("x", limit=100)).body == BODY


@in_reactor
async def test_a_store_that_is_not_there_is_unavailable(rig: Rig, make_store: MakeStore) -> None:
    store = make_store()
    await store.close()

    with pytest.raises(ServiceUnavailable):
        await rig.table(store.endpoint).read("x", limit=100)
    assert rig.notes.requests == [("GetObject", "ConnectionRefusedError")] * 4


@in_reactor
async def test_a_store_that_does_not_answer_is_tried_on_another_connection(
    make_rig: MakeRig, make_store: MakeStore
) -> None:
    clock = Clock()
    rig = make_rig(clock=clock, timeouts=Timeouts(connect=5, first_byte=30))
    store = make_store(silent, sends(answer(BODY)))
    reading = Deferred.fromCoroutine(rig.table(store.endpoint).read("x", limit=100))
    await store.call(1)
    clock.advance(35)
    clock.advance(0)

    assert (await reading).body == BODY
    await store.lines[0].lost
    assert rig.notes.requests == [("GetObject", "TookTooLong"), ("GetObject", "200")]


@in_reactor
async def test_cancelling_before_the_answer_aborts_the_request_and_repeats_nothing(
    rig: Rig, make_store: MakeStore
) -> None:
    store = make_store(silent)
    opening = Deferred.fromCoroutine(rig.table(store.endpoint).open("GET", "x"))
    await store.call(1)
    opening.cancel()

    with pytest.raises(CancelledError):
        await opening
    await store.lines[0].lost
    await soon()
    assert len(store.calls) == 1


def waits_for(clock: Clock, seconds: float) -> bool:
    """Whether something is due in so many seconds."""
    return seconds in {round(call.getTime() - clock.seconds(), 3) for call in clock.getDelayedCalls()}


@in_reactor
async def test_retries_wait_as_long_as_the_store_asks_within_a_bound(
    make_rig: MakeRig, make_store: MakeStore
) -> None:
    clock = Clock()
    rig = make_rig(clock=clock, policy=RetryPolicy(retry_after_bound=10.0))
    busy = sends(error("503 Slow Down", "SlowDown", headers={"Retry-After": "7"}))
    very_busy = sends(error("503 Slow Down", "SlowDown", headers={"Retry-After": "99999"}))
    store = make_store(busy, very_busy, sends(answer(BODY)))
    reading = Deferred.fromCoroutine(rig.table(store.endpoint).read("x", limit=100))
    for number, seconds in ((1, 7), (2, 10)):
        # The refusal has arrived when the next try has its time.
        await until(partial(waits_for, clock, seconds))
        clock.advance(seconds - 0.1)
        await soon()
        assert len(store.calls) == number
        clock.advance(0.2)

    assert (await reading).body == BODY


@in_reactor
async def test_a_store_that_fails_as_a_whole_is_not_stormed_with_retries(
    rig: Rig, make_store: MakeStore
) -> None:
    store = make_store(sends(error("503 Slow Down", "SlowDown")))
    table = rig.table(store.endpoint)
    for _ in range(60):
        with pytest.raises(ServiceUnavailable):
            await table.read("x", limit=100)

    assert len(store.calls) == 60 + 100


@pytest.mark.parametrize(
    "redirect",
    [
        error("301 Moved Permanently", "PermanentRedirect", headers={"x-amz-bucket-region": "eu-west-1"}),
        error(
            "400 Bad Request", "AuthorizationHeaderMalformed", headers={"x-amz-bucket-region": "eu-west-1"}
        ),
        error("400 Bad Request", "AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>"),
    ],
)
@in_reactor
async def test_the_region_of_a_bucket_is_learned_once(
    rig: Rig, make_store: MakeStore, redirect: bytes
) -> None:
    store = make_store(sends(redirect), sends(answer(BODY)))
    table = rig.table(store.endpoint)
    await table.read("x", limit=100)
    await table.read("x", limit=100)

    assert [region_of(call) for call in store.calls] == ["us-east-1", "eu-west-1", "eu-west-1"]


@in_reactor
async def test_requests_that_learn_the_region_at_the_same_time_all_succeed(
    rig: Rig, make_store: MakeStore
) -> None:
    redirect = error(
        "301 Moved Permanently", "PermanentRedirect", headers={"x-amz-bucket-region": "eu-west-1"}
    )
    held: list[Call] = []
    store = make_store(held.append, held.append, held.append, sends(answer(BODY)))
    table = rig.table(store.endpoint)
    reading = [Deferred.fromCoroutine(table.read("x", limit=100)) for _ in range(3)]
    await store.call(3)
    for call in held:
        call.send(redirect)

    assert [(await each).body for each in reading] == [BODY] * 3


@in_reactor
async def test_a_region_that_is_none_is_not_learned(rig: Rig, make_store: MakeStore) -> None:
    store = make_store(
        sends(error("301 Moved", "PermanentRedirect", headers={"x-amz-bucket-region": "evil.example/"}))
    )

    with pytest.raises(ServiceUnavailable):
        await rig.table(store.endpoint).read("x", limit=100)
    assert len(store.calls) == 1


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@in_reactor
async def test_the_clock_of_the_store_is_learned_once(
    make_rig: MakeRig, make_store: MakeStore, method: str
) -> None:
    clock = Clock()
    clock.advance(datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC).timestamp())
    theirs = datetime(2026, 3, 1, 13, 0, 0, tzinfo=UTC)
    skewed = error(
        "403 Forbidden", "RequestTimeTooSkewed", headers={"Date": format_datetime(theirs, usegmt=True)}
    )
    skewed = skewed if method == "GET" else skewed.partition(b"<Error>")[0]
    store = make_store(sends(skewed), sends(answer(length=0)), sends(skewed))
    table = make_rig(clock=clock).table(store.endpoint)
    (await table.open(method, "x")).discard()
    with pytest.raises(AccessDenied):
        await table.open(method, "x")

    dates = [call.header("x-amz-date") for call in store.calls]
    assert dates == ["20260301T120000Z", "20260301T130000Z", "20260301T130000Z"]
    assert "X-Amz-Date=20260301T130000Z" in await table.presign("x", expires=60)


@in_reactor
async def test_a_refusal_with_the_right_time_says_nothing_of_the_clock(
    make_rig: MakeRig, make_store: MakeStore
) -> None:
    clock = Clock()
    now = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
    clock.advance(now.timestamp())
    date = {"Date": format_datetime(now + timedelta(seconds=60), usegmt=True)}
    store = make_store(sends(error("403 Forbidden", "RequestTimeTooSkewed", headers=date)))

    with pytest.raises(AccessDenied):
        await make_rig(clock=clock).table(store.endpoint).read("x", limit=1)
    assert len(store.calls) == 1


@in_reactor
async def test_the_region_comes_from_the_credentials_when_the_store_has_none(
    rig: Rig, make_store: MakeStore
) -> None:
    store = make_store(sends(answer(BODY)))
    beside = StaticCredentials(Credentials("a", "b", None), region="ap-south-1")
    await rig.table(store.endpoint, region=None, credentials=beside).read("x", limit=100)
    await rig.table(store.endpoint, region=None).read("x", limit=100)

    assert [region_of(call) for call in store.calls] == ["ap-south-1", "us-east-1"]


@in_reactor
async def test_only_reads_are_opened(rig: Rig) -> None:
    with pytest.raises(ValueError, match="PUT"):
        await rig.table("http://127.0.0.1:9").open("PUT", "x")


@in_reactor
async def test_a_presigned_url_names_the_host_of_the_bucket(rig: Rig) -> None:
    virtual = rig.table("https://s3.example.com", style=AddressingStyle.VIRTUAL)
    url = await virtual.presign(
        "a b", headers=(("x-amz-date", "t"),), query=(("response-content-type", "a/b"),), expires=9
    )

    assert url.startswith(f"https://{BUCKET}.s3.example.com/{PREFIX}/a%20b?")
    query = dict(parse_qsl(urlsplit(url).query))
    assert (query["X-Amz-Expires"], query["response-content-type"]) == ("9", "a/b")
    assert query["X-Amz-SignedHeaders"] == "host;x-amz-date"
    assert re.fullmatch("[0-9a-f]{64}", query["X-Amz-Signature"])


AWS = StoreConfig()


@pytest.mark.parametrize(
    ("store", "bucket", "key", "url"),
    [
        (AWS, "plain", "a/b", "https://plain.s3.eu-west-1.amazonaws.com/a/b"),
        (AWS, "with.dots", "a/b", "https://s3.eu-west-1.amazonaws.com/with.dots/a/b"),
        (AWS, "plain", "/lead", "https://s3.eu-west-1.amazonaws.com/plain//lead"),
        (AWS, "plain", None, "https://plain.s3.eu-west-1.amazonaws.com/"),
        (
            StoreConfig(addressing_style=AddressingStyle.PATH),
            "plain",
            None,
            "https://s3.eu-west-1.amazonaws.com/plain",
        ),
        (StoreConfig("http://minio:9000"), "plain", "a", "http://minio:9000/plain/a"),
        (StoreConfig("http://MinIO:80/"), "plain", "a", "http://minio/plain/a"),
        (StoreConfig("https://[::1]:443"), "plain", "a", "https://[::1]/plain/a"),
        (
            StoreConfig("https://s3.local", addressing_style=AddressingStyle.VIRTUAL),
            *("plain", "a", "https://plain.s3.local/a"),
        ),
    ],
)
def test_where_a_bucket_is_reached(store: StoreConfig, bucket: str, key: str | None, url: str) -> None:
    assert address(store, "eu-west-1", bucket, key).url == url


@pytest.mark.parametrize(
    "endpoint",
    [
        "minio:9000",
        "ftp://minio",
        "http://",
        "http://minio/base",
        "http://minio?x",
        "http://a:b@minio",
        "http://m:x",
    ],
)
def test_an_endpoint_that_is_more_or_less_than_an_origin_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - urlsplit words one of them
        parse_endpoint(endpoint)


@in_reactor
async def test_any_agent_will_do(rig: Rig, make_store: MakeStore) -> None:
    """Twisted's own too: it cannot abort, but it reads."""
    store = make_store(sends(answer(BODY)))
    rig.upstream.agent = Agent(reactor)  # type: ignore[no-untyped-call]
    consumer = Collector()
    await (await rig.table(store.endpoint).open("GET", "x")).send_body(consumer)

    assert consumer.body == BODY


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (400, "XAmzContentSHA256Mismatch", []),
        (400, "BadDigest", []),
        (404, "NoSuchKey", []),
        (404, "NoSuchBucket", ["s3://b/t: the store answered PutObject with 404 NoSuchBucket"]),
        (403, "AccessDenied", ["s3://b/t: the store answered PutObject with 403 AccessDenied"]),
    ],
)
def test_the_operator_reads_of_what_only_the_operator_can_mend(
    status: int, code: str, told: list[str]
) -> None:
    with capturedLogs() as said:
        log_refusal(status, "s3://b/t", StoreRequest("PutObject", "PUT", "t/x"), code, "")
    assert [formatEvent(event) for event in said] == told
