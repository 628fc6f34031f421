"""Large objects pass in little memory, whole or visibly not, and no longer than somebody wants them."""

from __future__ import annotations

import hashlib
import http.client
import os
import pathlib
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from tests.waiting import PATIENCE, wait_until

from . import servers
from .raw import get, quoted
from .servers import BUCKET, Link, Proxy, Store

MIB = 1024 * 1024
LARGE = 1024 * MIB
MEDIUM = 48 * MIB
GROWTH = 32 * MIB


@pytest.fixture(scope="module")
def objects(gateway_store: Store) -> Store:
    """An object of 1 GiB, a hole in the store's directory, and one of 48 MiB of known bytes."""
    assert gateway_store.folder is not None
    client = gateway_store.boto3()
    client.put_object(Bucket=BUCKET, Key="big/medium", Body=medium_body())
    client.put_object(Bucket=BUCKET, Key="big/large", Body=b"")
    os.truncate(gateway_store.folder / BUCKET / "big" / "large", LARGE)
    return gateway_store


@pytest.fixture(params=["kernel", pytest.param("process", marks=pytest.mark.slow)])
def streaming(
    request: pytest.FixtureRequest, objects: Store, tmp_path: pathlib.Path
) -> Iterator[tuple[Proxy, Link]]:
    """A proxy of its own, with a link to the store that the test watches and cuts.

    Bodies are moved by the kernel from socket to socket, or pass through the process.
    """
    with servers.link(objects) as link:
        config = servers.configuration(
            link.endpoint,
            tableMapping={"big": f"s3://{BUCKET}/big"},
            getMode="proxy",
            limits={"spliceBytes": 262_144 if request.param == "kernel" else 0},
        )
        with servers.proxy(link.endpoint, config, tmp_path) as proxy:
            yield proxy, link


def medium_body() -> bytes:
    """48 MiB in which no two blocks are alike."""
    return b"".join(hashlib.sha256(b"%d" % number).digest() * 2048 for number in range(MEDIUM // 65536))


def opened(proxy: Proxy, key: str) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    """A GET of which the body is still to be read, through a small receive buffer."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=PATIENCE)
    connection.request("GET", quoted(key))
    assert connection.sock is not None
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    answer = connection.getresponse()
    assert answer.status == 200
    return connection, answer


def settled(count: Callable[[], int]) -> int:
    """The count, once it has stayed the same for half a second."""
    last, since = count(), time.monotonic()
    while time.monotonic() - since < 0.5:
        time.sleep(0.05)
        if count() != last:
            last, since = count(), time.monotonic()
    return last


def test_a_gigabyte_passes_in_little_memory_also_when_the_reader_is_slow(
    streaming: tuple[Proxy, Link],
) -> None:
    proxy, link = streaming
    get(proxy, "big/medium", {"Range": "bytes=0-9"})
    before = proxy.resident_bytes()
    connection, answer = opened(proxy, "big/large")
    answer.read(MIB)
    # The reader stops here: what the store has sent by now is all that may wait in buffers.
    stalled_at = settled(lambda: link.passed)
    most = proxy.resident_bytes()
    received, block = MIB, bytearray(MIB)
    while size := answer.readinto(block):
        received += size
        if received % (64 * MIB) < MIB:
            most = max(most, proxy.resident_bytes())
    connection.close()
    assert received == LARGE
    assert stalled_at < 64 * MIB
    assert most - before < GROWTH


def test_a_client_that_goes_away_ends_the_upstream_request(streaming: tuple[Proxy, Link]) -> None:
    proxy, link = streaming
    idle = link.connections
    connection, answer = opened(proxy, "big/large")
    answer.read(MIB)
    assert link.connections > idle
    connection.close()
    answer.close()
    wait_until(lambda: link.connections <= idle)
    passed = link.passed
    assert settled(lambda: link.passed) == passed < LARGE


def test_a_body_that_the_store_cuts_is_resumed(streaming: tuple[Proxy, Link]) -> None:
    proxy, link = streaming
    link.cut_after = [5 * MIB, 7 * MIB, 11 * MIB]
    answer = get(proxy, "big/medium")
    assert answer.status == 200
    assert hashlib.sha256(answer.body).digest() == hashlib.sha256(medium_body()).digest()


def test_a_range_that_the_store_cuts_is_resumed(streaming: tuple[Proxy, Link]) -> None:
    proxy, link = streaming
    link.cut_after = [MIB, MIB]
    answer = get(proxy, "big/medium", {"Range": f"bytes=1000-{20 * MIB}"})
    assert answer.status == 206
    assert answer.body == medium_body()[1000 : 20 * MIB + 1]


def test_a_body_that_cannot_be_resumed_never_looks_complete(streaming: tuple[Proxy, Link]) -> None:
    proxy, link = streaming
    link.cut_after = [2 * MIB] + [200] * 100
    with pytest.raises((ConnectionError, http.client.IncompleteRead)):
        get(proxy, "big/medium")
    link.cut_after = []
    assert get(proxy, "big/medium", {"Range": "bytes=0-9"}).body == medium_body()[:10]


def test_an_object_that_is_replaced_while_it_is_resumed_is_not_mixed(
    streaming: tuple[Proxy, Link], objects: Store
) -> None:
    proxy, link = streaming
    client = objects.boto3()
    client.put_object(Bucket=BUCKET, Key="big/changing", Body=medium_body())
    # So far that the proxy cannot have come to the cut when the object is replaced.
    link.cut_after = [40 * MIB]
    connection, answer = opened(proxy, "big/changing")
    first = answer.read(MIB)
    client.put_object(Bucket=BUCKET, Key="big/changing", Body=bytes(MEDIUM))
    with pytest.raises((ConnectionError, http.client.IncompleteRead)):
        first += answer.read()
    assert medium_body().startswith(first)
    connection.close()


def test_a_store_that_is_gone_is_503_and_the_proxy_lives(tmp_path: pathlib.Path) -> None:
    nowhere = servers.Endpoint("http://127.0.0.1:9")
    config = servers.configuration(nowhere, tableMapping={"big": f"s3://{BUCKET}/big"}, getMode="proxy")
    path, port, metrics_port = servers.write_configuration(config, tmp_path)
    env = servers.proxy_environment(nowhere)
    with servers.proxy_process(path, metrics_port, tmp_path, env, check="live") as child:
        proxy = Proxy("", port=port, metrics_port=metrics_port, pid=child.pid)
        assert get(proxy, "big/medium").status == 503
        assert proxy.is_alive()
