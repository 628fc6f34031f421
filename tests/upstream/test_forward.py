"""Which store a host belongs to, and what of a request goes on to it."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.web.http_headers import Headers as WireHeaders

from delta_proxy.s3.errors import InvalidRequest, InvalidURI, ServiceUnavailable, SlowDown
from delta_proxy.s3.request import Addressing, S3Request, parse_request
from delta_proxy.upstream.client import Upstream
from delta_proxy.upstream.forward import Forwarder, ForwardMap, Route
from delta_proxy.upstream.relay import Silence
from delta_proxy.upstream.stores import AddressingStyle, StoreConfig, TableLocation
from tests.helpers import result_of

MINIO = StoreConfig("http://minio.test:9000", addressing_style=AddressingStyle.VIRTUAL)
TABLES = ForwardMap(
    {
        "a": TableLocation("lake", "t/a", MINIO),
        "b": TableLocation("lake", "t/b", MINIO),
        "whole": TableLocation("own", "", MINIO),
        "aws": TableLocation("cloud", "t", StoreConfig()),
        "gov": TableLocation("state", "t", StoreConfig(region="us-gov-west-1")),
        "china": TableLocation("east", "t", StoreConfig(region="cn-north-1")),
        "tls": TableLocation("safe", "t", StoreConfig("https://store.test")),
    }
)


@pytest.mark.parametrize(
    ("authority", "domain"),
    [
        ("minio.test:9000", "minio.test"),
        ("MinIO.test:9000", "minio.test"),
        ("lake.minio.test:9000", "minio.test"),
        ("store.test", "store.test"),
        ("store.test:443", "store.test"),
        ("store.test:80", "store.test"),
        ("s3.amazonaws.com", "s3.amazonaws.com"),
        ("s3.eu-west-1.amazonaws.com", "s3.eu-west-1.amazonaws.com"),
        ("cloud.s3.eu-west-1.amazonaws.com", "s3.eu-west-1.amazonaws.com"),
        ("with.dots.s3.us-gov-west-1.amazonaws.com", "s3.us-gov-west-1.amazonaws.com"),
        ("s3.cn-north-1.amazonaws.com.cn", "s3.cn-north-1.amazonaws.com.cn"),
    ],
)
def test_a_host_of_a_store_is_known_with_and_without_a_bucket(authority: str, domain: str) -> None:
    route = TABLES.route(authority)
    assert route is not None
    assert route.domain == domain


@pytest.mark.parametrize(
    "authority",
    [
        "minio.test",
        "minio.test:9001",
        "evil-minio.test:9000",
        "minio.test:9000.evil.test",
        "s3.amazonaws.com.evil.test",
        "xs3.amazonaws.com",
        "169.254.169.254",
        "localhost:18080",
        "safe.store.test",
        "",
    ],
)
def test_any_other_host_is_not_forwarded_to(authority: str) -> None:
    assert TABLES.route(authority) is None


def test_a_key_is_mapped_back_to_alias_and_path() -> None:
    route = TABLES.route("minio.test:9000")
    assert route is not None
    assert TABLES.locate(route, "lake", "t/a/x=1/f") == ("a", "x=1/f")
    assert TABLES.locate(route, "own", "x/f") == ("whole", "x/f")
    for bucket, key in (("lake", "t/ab/f"), ("lake", "t/a"), ("cloud", "t/f"), ("none", "t/a/f")):
        assert TABLES.locate(route, bucket, key) is None


def test_tables_whose_names_begin_alike_are_told_apart() -> None:
    prefixes = ["t", "t-", "t-1", "t0", "tt", "a/b", "a/b-", "a/b0", "b"]
    near = ForwardMap({prefix: TableLocation("lake", prefix, MINIO) for prefix in prefixes})
    route = near.route("minio.test:9000")
    assert route is not None
    for prefix in prefixes:
        assert near.locate(route, "lake", f"{prefix}/f") == (prefix, "f")
        assert near.locate(route, "lake", f"{prefix}/") == (prefix, "")
        assert near.locate(route, "lake", f"{prefix}!/f") is None


def test_a_bucket_of_that_name_in_another_store_is_another_bucket() -> None:
    route = TABLES.route("store.test")
    assert route is not None
    assert TABLES.locate(route, "lake", "t/a/f") is None


def test_a_bucket_of_that_name_in_another_partition_of_aws_may_be_anybody_s() -> None:
    hosts = ["s3.eu-west-1.amazonaws.com", "s3.us-gov-east-1.amazonaws.com", "s3.cn-north-1.amazonaws.com.cn"]
    owners = {"cloud": "aws", "state": "gov", "east": "china"}
    found = []
    for host in hosts:
        route = TABLES.route(host)
        assert route is not None
        found.append([alias for bucket, alias in owners.items() if TABLES.locate(route, bucket, "t/f")])
    assert found == [["aws"], ["gov"], ["china"]]
    alone = ForwardMap({"aws": TABLES.tables["aws"]})
    assert [alone.route(host) is None for host in hosts] == [False, True, True]
    assert alone.route("s3-us-gov-west-1.amazonaws.com") is None
    for host in (
        "s3.amazonaws.com.cn",
        "cloud.s3.eu-west-1.amazonaws.com.cn",
        "s3-us-gov-west-1.amazonaws.com.cn",
    ):
        assert alone.route(host) is None
    assert ForwardMap({"gov": TABLES.tables["gov"]}).route("s3.us-gov-west-1.amazonaws.com.cn") is None


class Response:
    code, length = 200, 0
    headers = WireHeaders()


class Agent:
    """Remembers what it was asked; answers what it is told to."""

    def __init__(self, *outcomes: Deferred[Any]) -> None:
        self.asked: list[tuple[bytes, bytes, dict[bytes, Any]]] = []
        self._outcomes = list(outcomes)

    def request(self, method: bytes, uri: bytes, headers: WireHeaders, body: object) -> Deferred[Any]:
        assert body is None
        self.asked.append((method, uri, dict(headers.getAllRawHeaders())))
        return self._outcomes.pop(0)


def parsed(target: bytes, *headers: tuple[bytes, bytes]) -> S3Request:
    return parse_request(b"GET", target, headers, Addressing("", ("minio.test",)))


def forwarder(agent: Agent, clock: Clock) -> Forwarder:
    upstream: Any = Upstream(agent, clock, lambda *_: Deferred(), lambda: 0.0, Silence())  # type: ignore[arg-type]
    return Forwarder(upstream)


ROUTE = Route("minio.test:9000", "http", "minio.test:9000")


def test_what_the_client_signed_goes_on_as_it_came() -> None:
    agent = Agent(succeed(Response()))
    s3 = parsed(
        b"http://lake.minio.test:9000/t/a/c%20d%2F?x-id=%7e",
        (b"Host", b"lake.minio.test:9000"),
        (b"Authorization", b"AWS4-HMAC-SHA256 x"),
        (b"X-Amz-Date", b"20260101T000000Z"),
        (b"Range", b"bytes=0-3"),
    )
    result_of(forwarder(agent, Clock()).send(ROUTE, s3))
    ((method, uri, headers),) = agent.asked
    assert (method, uri) == (b"GET", b"http://minio.test:9000/t/a/c%20d%2F?x-id=%7e")
    assert headers == {
        b"Host": [b"lake.minio.test:9000"],
        b"Authorization": [b"AWS4-HMAC-SHA256 x"],
        b"X-Amz-Date": [b"20260101T000000Z"],
        b"Range": [b"bytes=0-3"],
    }


def test_what_is_for_the_proxy_or_the_connection_stays_here() -> None:
    agent = Agent(succeed(Response()))
    s3 = parsed(
        b"http://minio.test:9000/lake/k",
        (b"Host", b"minio.test:9000"),
        (b"X-Proxy-Auth-Mode", b"forward"),
        (b"Proxy-Authorization", b"Basic x"),
        (b"Connection", b"keep-alive, X-Hop"),
        (b"X-Hop", b"1"),
        (b"TE", b"trailers"),
    )
    result_of(forwarder(agent, Clock()).send(ROUTE, s3))
    assert agent.asked[0][2] == {b"Host": [b"minio.test:9000"]}


@pytest.mark.parametrize("named", ["authorization", "close, Authorization", "X-Amz-Date", "host"])
def test_a_client_cannot_have_its_signature_left_out_as_a_field_of_the_connection(named: str) -> None:
    agent = Agent(succeed(Response()))
    s3 = parsed(
        b"http://minio.test:9000/lake/k",
        (b"Host", b"minio.test:9000"),
        (b"Authorization", b"AWS4-HMAC-SHA256 somebody else's"),
        (b"Connection", named.encode()),
    )
    with pytest.raises(InvalidRequest):
        result_of(forwarder(agent, Clock()).send(ROUTE, s3))
    assert agent.asked == []


def test_a_lost_connection_is_tried_again_and_then_given_up() -> None:
    clock, s3 = Clock(), parsed(b"http://minio.test:9000/lake/k", (b"Host", b"minio.test:9000"))
    agent = Agent(fail(ConnectionLost()), succeed(Response()))
    sending = Deferred.fromCoroutine(forwarder(agent, clock).send(ROUTE, s3))
    clock.advance(5)
    assert result_of(sending).status == 200
    agent = Agent(*(fail(ConnectionLost()) for _ in range(3)))
    sending = Deferred.fromCoroutine(forwarder(agent, clock).send(ROUTE, s3))
    clock.pump([5, 5, 5])
    with pytest.raises(ServiceUnavailable):
        result_of(sending)


def test_a_target_that_http_cannot_carry_is_refused() -> None:
    s3 = parsed(b"http://minio.test:9000/lake/\xc3\xa9", (b"Host", b"minio.test:9000"))
    with pytest.raises(InvalidURI):
        result_of(forwarder(Agent(), Clock()).send(ROUTE, s3))


@pytest.mark.parametrize(
    "target",
    [
        b"/lake/t/p=R+D/x",
        b"/lake/t/a/x;y",
        b"/lake?location&x-id=1;versions",
        b"/lake/t/a/x?x-id=GetObject;acl",
        b"/lake/t/a/x?X-Amz-SignedHeaders=host;acl",
    ],
)
def test_what_a_store_could_read_otherwise_is_not_sent(target: bytes) -> None:
    agent = Agent()
    s3 = parsed(b"http://minio.test:9000" + target, (b"Host", b"minio.test:9000"))
    for sent in (
        forwarder(agent, Clock()).send(ROUTE, s3),
        forwarder(agent, Clock()).write(ROUTE, s3, 0, None),
    ):
        with pytest.raises(InvalidURI):
            result_of(sent)
    assert agent.asked == []


def test_the_names_of_one_store_share_its_places_however_many_a_client_makes_up() -> None:
    agent = Agent(Deferred())
    any_agent: Any = agent
    upstream = Upstream(
        any_agent, Clock(), lambda *_: Deferred(), lambda: 0.0, Silence(), in_flight=1, queue=0
    )
    for region in ("eu-made-1", "eu-up-1"):
        host = f"s3.{region}.amazonaws.com"
        route = TABLES.route(host)
        assert route is not None
        s3 = parsed(f"http://{host}/cloud/t/k".encode(), (b"Host", host.encode()))
        sending = Deferred.fromCoroutine(Forwarder(upstream).send(route, s3))
    assert len(agent.asked) == 1
    with pytest.raises(SlowDown):
        result_of(sending)
