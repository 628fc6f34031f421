"""What a store must do for the table client: the fake and two real servers are held to it."""

from __future__ import annotations

import contextlib
import pathlib
import urllib.request
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from twisted.internet.threads import deferToThread

from delta_proxy.s3.errors import (
    AccessDenied,
    InternalError,
    InvalidRange,
    NoSuchKey,
    NotModified,
    PreconditionFailed,
)
from delta_proxy.s3.sigv4 import Credentials
from delta_proxy.upstream.client import TableClient
from delta_proxy.upstream.credentials import StaticCredentials
from tests.fakes.store import FakeStore
from tests.integration import servers
from tests.waiting import PATIENCE

from .conftest import MakeRig, both_clients
from .parts import BUCKET, Collector, in_reactor, names, reactor, wait_for

pytest_generate_tests = both_clients

ODD_PATHS = (
    "d=2024-01-01 00%3A00/part-0 a.parquet",
    "MIC=XLON/é+ü.parquet",
    "MIC=XLON/e\u0301.parquet",
    "q?a=1&b=2#c;d,e/@:$!'()*.parquet",
    'quote"<>&.parquet',
    "%2520/double.parquet",
    "日本/🎉.parquet",
)
BODY = bytes(range(256)) * 8
LOG = tuple(f"_delta_log/{version:020}.json" for version in range(5))


@attrs.frozen
class Place:
    """A store with the objects of the contract below the prefix."""

    kind: str
    endpoint: str
    prefix: str


def objects(prefix: str) -> dict[str, bytes]:
    """What lies in each store."""
    inside = dict.fromkeys((*LOG, *ODD_PATHS), BODY) | {"empty.parquet": b""}
    return {f"{prefix}/{path}": body for path, body in inside.items()} | {f"{prefix}-other/x": b"not ours"}


@contextlib.contextmanager
def fake(folder: pathlib.Path) -> Iterator[Place]:
    """The fake, on a socket."""
    store = FakeStore(BUCKET)
    for key, body in objects("fake/table").items():
        store.put(key, body)
    port = reactor.listenTCP(0, store.site(), interface="127.0.0.1")
    yield Place("fake", f"http://127.0.0.1:{port.getHost().port}", "fake/table")
    wait_for(closed(port))


async def closed(port: Any) -> None:
    """The port listens no more."""
    await port.stopListening()


@contextlib.contextmanager
def real(kind: str, folder: pathlib.Path) -> Iterator[Place]:
    """moto or versitygw."""
    binary = servers.versitygw_path()
    if kind == "versitygw" and binary is None:
        pytest.skip("versitygw is not built: bin/test builds it where Go is installed")
    started = servers.moto(folder) if kind == "moto" else servers.versitygw(folder, str(binary))
    with started as store:
        client = store.boto3()
        for key, body in objects("contract/table").items():
            client.put_object(Bucket=servers.BUCKET, Key=key, Body=body)
        yield Place(kind, store.url, "contract/table")


@pytest.fixture(scope="module", params=["fake", "moto", "versitygw"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Each store in turn."""
    folder = tmp_path_factory.mktemp("store")
    with fake(folder) if request.param == "fake" else real(request.param, folder) as found:
        yield found


@pytest.fixture
def table(place: Place, make_rig: MakeRig) -> TableClient:
    """A client for the table in the store."""
    return make_rig().table(place.endpoint, prefix=place.prefix)


@in_reactor
async def test_every_object_is_listed_by_its_path_and_only_those_of_the_table(table: TableClient) -> None:
    page = await table.list()

    assert sorted(o.path for o in page.objects) == sorted((*LOG, *ODD_PATHS, "empty.parquet"))
    assert not page.truncated
    assert {o.size for o in page.objects} == {len(BODY), 0}


@in_reactor
async def test_the_pages_of_a_listing_continue_each_other(table: TableClient) -> None:
    paths: list[str] = []
    token = ""
    while True:
        page = await table.list(max_keys=3, token=token)
        assert len(page.objects) <= 3
        paths += [o.path for o in page.objects]
        if not page.truncated:
            break
        token = page.token or ""

    assert paths == [o.path for o in (await table.list()).objects]


@in_reactor
async def test_a_listing_starts_after_a_path(table: TableClient) -> None:
    page = await table.list("_delta_log/", start_after=LOG[2])

    assert [o.path for o in page.objects] == list(LOG[3:])


@in_reactor
async def test_a_delimiter_rolls_keys_up(table: TableClient) -> None:
    page = await table.list(delimiter="/")

    assert set(page.prefixes) == {path.partition("/")[0] + "/" for path in (*LOG, *ODD_PATHS) if "/" in path}
    assert {o.path for o in page.objects} == {path for path in ODD_PATHS if "/" not in path} | {
        "empty.parquet"
    }


@pytest.mark.parametrize("path", ODD_PATHS)
@in_reactor
async def test_a_path_reaches_the_store_as_it_is(table: TableClient, path: str) -> None:
    assert (await table.read(path, limit=len(BODY))).body == BODY


@in_reactor
async def test_a_small_object_has_the_etag_of_the_listing(table: TableClient) -> None:
    listed = (await table.list("_delta_log/")).objects[0]
    found = await table.read(listed.path, limit=len(BODY))

    assert found.etag == listed.etag
    assert found.last_modified.endswith("GMT")


@in_reactor
async def test_an_object_beyond_the_limit_is_refused(table: TableClient) -> None:
    with pytest.raises(InternalError):
        await table.read(LOG[0], limit=len(BODY) - 1)


@in_reactor
async def test_what_is_not_there_is_no_such_key(table: TableClient) -> None:
    for method in ("GET", "HEAD"):
        with pytest.raises(NoSuchKey):
            await table.open(method, "nothing.parquet")


@in_reactor
async def test_a_whole_object_is_sent_with_its_length(table: TableClient) -> None:
    response = await table.open("GET", LOG[0])
    consumer = Collector()

    assert (response.status, response.headers.get("content-length")) == (200, str(len(BODY)))
    assert await response.send_body(consumer) == len(BODY)
    assert consumer.body == BODY


@pytest.mark.parametrize(
    ("asked", "expected"),
    [("bytes=10-19", BODY[10:20]), ("bytes=-7", BODY[-7:]), ("bytes=2040-", BODY[2040:])],
)
@in_reactor
async def test_a_range_is_answered_with_that_part(table: TableClient, asked: str, expected: bytes) -> None:
    response = await table.open("GET", LOG[0], headers=(("Range", asked),))
    consumer = Collector()
    await response.send_body(consumer)

    assert response.status == 206
    assert str(response.headers.get("content-range")).endswith(f"/{len(BODY)}")
    assert consumer.body == expected


@in_reactor
async def test_a_range_beyond_the_object_is_invalid(table: TableClient) -> None:
    with pytest.raises(InvalidRange):
        await table.open("GET", LOG[0], headers=(("range", "bytes=9999-"),))


@in_reactor
async def test_conditions_are_the_store_s_to_judge(table: TableClient) -> None:
    etag = (await table.read(LOG[0], limit=len(BODY))).etag

    with pytest.raises(NotModified) as unchanged:
        await table.open("GET", LOG[0], headers=(("if-none-match", etag),))
    with pytest.raises(PreconditionFailed):
        await table.open("GET", LOG[0], headers=(("if-match", '"00000000000000000000000000000000"'),))
    (await table.open("GET", LOG[0], headers=(("if-match", etag),))).discard()
    assert dict(unchanged.value.headers).get("etag") in {etag, None}


@in_reactor
async def test_head_tells_the_length_and_sends_nothing(table: TableClient) -> None:
    response = await table.open("HEAD", LOG[0])
    consumer = Collector()

    assert response.headers.get("content-length") == str(len(BODY))
    assert await response.send_body(consumer) == 0


@in_reactor
async def test_an_empty_object_is_empty(table: TableClient) -> None:
    assert (await table.read("empty.parquet", limit=0)).body == b""


@in_reactor
async def test_a_download_is_the_object_as_a_file(table: TableClient, tmp_path: pathlib.Path) -> None:
    into = tmp_path / "commit.json"
    found = await table.download(LOG[0], into)

    assert into.read_bytes() == BODY
    assert (found.size, found.etag) == (len(BODY), (await table.read(LOG[0], limit=len(BODY))).etag)
    assert names(tmp_path) == ["commit.json"]


@in_reactor
async def test_a_presigned_url_can_be_fetched_by_anyone(table: TableClient) -> None:
    for path in (LOG[0], *ODD_PATHS):
        url = await table.presign(path, headers=(("x-amz-request-payer", "requester"),), expires=60)
        request = urllib.request.Request(url, headers={"x-amz-request-payer": "requester"})
        assert await deferToThread(_fetch, request) == BODY


@in_reactor
async def test_a_wrong_secret_is_refused_without_naming_the_store(place: Place, make_rig: MakeRig) -> None:
    if place.kind != "versitygw":
        pytest.skip(f"{place.kind} checks no signature")
    wrong = StaticCredentials(Credentials("test-access-key", "wrong", None))
    table = make_rig().table(place.endpoint, prefix=place.prefix, credentials=wrong)

    with pytest.raises(AccessDenied) as refused:
        await table.read(LOG[0], limit=len(BODY))
    assert refused.value.message == "the store refused the proxy's credentials"


def _fetch(request: urllib.request.Request) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=PATIENCE) as response:
        body: bytes = response.read()
        return body
