"""Uploads that are cut or that lie leave nothing in the store; those that are right arrive."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import pytest

from .conftest import ProxyFor
from .servers import ACCESS_KEY, BUCKET, SECRET_KEY, Proxy, Store
from .uploading import Upload, answered, plain, signed_chunks, trailed_chunks

MIB = 1024 * 1024
SIZES = [3_000, 1_500_000]
PREFIX = "uploads"


@pytest.fixture
def proxy(store: Store, proxy_for: ProxyFor) -> Proxy:
    """A proxy that verifies, with a user who may write."""
    user = {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY, "allowedPartitions": {"up": [{}]}}
    return proxy_for(
        store, tableMapping={"up": f"s3://{BUCKET}/{PREFIX}"}, readOnly=False, users={"writer": user}
    )


def stored(store: Store) -> list[str]:
    """What the store holds of uploads: objects, and multipart uploads that are open."""
    client = store.boto3()
    objects = client.list_objects_v2(Bucket=BUCKET, Prefix=PREFIX).get("Contents", [])
    uploads = client.list_multipart_uploads(Bucket=BUCKET, Prefix=PREFIX).get("Uploads", [])
    return [found["Key"] for found in (*objects, *uploads)]


def as_plain(proxy: Proxy, key: str, body: bytes) -> Upload:
    return plain(proxy, key, body)


def over_https(proxy: Proxy, key: str, body: bytes) -> Upload:
    """As boto3 sends it over https: a trailer, and no length of the whole."""
    upload = trailed_chunks(proxy, key, body)
    pieces = (upload.body[start : start + 70_000] for start in range(0, len(upload.body), 70_000))
    chunked = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    fields = (*upload.without("content-length").fields, ("Transfer-Encoding", "chunked"))
    return Upload(upload.method, upload.target, fields, chunked)


WAYS: list[Callable[[Proxy, str, bytes], Upload]] = [
    as_plain,
    signed_chunks,
    trailed_chunks,
    over_https,
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", WAYS)
def test_an_upload_that_is_what_it_says_arrives(
    proxy: Proxy, store: Store, way: Callable[[Proxy, str, bytes], Upload], size: int
) -> None:
    body = os.urandom(size)
    assert answered(proxy, way(proxy, "up/right", body).wire()) == 200
    client = store.boto3()
    assert client.get_object(Bucket=BUCKET, Key=f"{PREFIX}/right")["Body"].read() == body
    client.delete_object(Bucket=BUCKET, Key=f"{PREFIX}/right")


def wrong_hash(proxy: Proxy, body: bytes) -> bytes:
    return plain(proxy, "up/bad", body, "0" * 64).wire()


def wrong_md5(proxy: Proxy, body: bytes) -> bytes:
    return plain(proxy, "up/bad", body).with_fields(("Content-MD5", "AAAAAAAAAAAAAAAAAAAAAA==")).wire()


def wrong_checksum(proxy: Proxy, body: bytes) -> bytes:
    return plain(proxy, "up/bad", body, extra=(("x-amz-checksum-crc32c", "AAAAAA=="),)).wire()


def wrong_request_signature(proxy: Proxy, body: bytes) -> bytes:
    return plain(proxy, "up/bad", body).wire().replace(b"up/bad", b"up/worse", 1)


def wrong_chunk_signature(proxy: Proxy, body: bytes) -> bytes:
    wire = signed_chunks(proxy, "up/bad", body).wire()
    place = wire.rindex(b"chunk-signature=") + len(b"chunk-signature=")
    return wire[:place] + (b"1" if wire[place : place + 1] == b"0" else b"0") + wire[place + 1 :]


def altered_chunk(proxy: Proxy, body: bytes) -> bytes:
    wire = bytearray(signed_chunks(proxy, "up/bad", body).wire())
    wire[-1500] ^= 1
    return bytes(wire)


def wrong_trailer(proxy: Proxy, body: bytes) -> bytes:
    return trailed_chunks(proxy, "up/bad", body, "AAAAAA==").wire()


def missing_trailer(proxy: Proxy, body: bytes) -> bytes:
    upload = trailed_chunks(proxy, "up/bad", body)
    without = upload.body[: upload.body.rindex(b"x-amz-checksum-crc32")] + b"\r\n"
    length = ("Content-Length", str(len(without)))
    return Upload(
        upload.method, upload.target, (*upload.without("content-length").fields, length), without
    ).wire()


def two_lengths(proxy: Proxy, body: bytes) -> bytes:
    return plain(proxy, "up/bad", body).with_fields(("Content-Length", str(len(body)))).wire()


def length_and_chunked(proxy: Proxy, body: bytes) -> bytes:
    return plain(proxy, "up/bad", body).with_fields(("Transfer-Encoding", "chunked")).wire()


def no_length(proxy: Proxy, body: bytes) -> bytes:
    return plain(proxy, "up/bad", body).without("content-length").wire()


def payload_longer_than_decoded_length(proxy: Proxy, body: bytes) -> bytes:
    wire = trailed_chunks(proxy, "up/bad", body).wire()
    first = wire.index(b"\r\n\r\n") + 4
    return wire[:first] + b"5\r\nextra\r\n" + wire[first:]


LIES = [
    wrong_hash,
    wrong_md5,
    wrong_checksum,
    wrong_request_signature,
    wrong_chunk_signature,
    altered_chunk,
    wrong_trailer,
    missing_trailer,
    two_lengths,
    length_and_chunked,
    no_length,
    payload_longer_than_decoded_length,
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("lie", LIES)
def test_a_lying_upload_is_refused_and_leaves_nothing(
    proxy: Proxy, store: Store, lie: Callable[[Proxy, bytes], bytes], size: int
) -> None:
    status = answered(proxy, lie(proxy, os.urandom(size)))
    assert status is None or 400 <= status < 500
    assert stored(store) == []


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", WAYS)
def test_an_upload_that_is_cut_leaves_nothing(
    proxy: Proxy, store: Store, way: Callable[[Proxy, str, bytes], Upload], size: int
) -> None:
    wire = way(proxy, "up/cut", os.urandom(size)).wire()
    for missing in (1, size // 2):
        assert answered(proxy, wire[:-missing], leave=True) is None
    # The proxy goes on serving, and by the time it has answered the others are over.
    assert answered(proxy, plain(proxy, "up/after", b"x").wire()) == 200
    store.boto3().delete_object(Bucket=BUCKET, Key=f"{PREFIX}/after")
    assert stored(store) == []


def test_a_client_that_may_not_write_is_told_so_without_sending_its_body(proxy: Proxy) -> None:
    upload = plain(proxy, "elsewhere/x", os.urandom(5_000_000)).with_fields(("Expect", "100-continue"))
    head = upload.wire().partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    assert answered(proxy, head) == 403


def test_a_part_that_lies_is_no_part_of_its_upload(proxy: Proxy, store: Store) -> None:
    client = store.boto3()
    upload_id = client.create_multipart_upload(Bucket=BUCKET, Key=f"{PREFIX}/parts")["UploadId"]
    query = (("partNumber", "1"), ("uploadId", upload_id))
    for size in SIZES:
        upload = plain(proxy, "up/parts", os.urandom(size), "0" * 64, query=query)
        status = answered(proxy, upload.wire())
        assert status is None or status == 400
    asked = {"Bucket": BUCKET, "Key": f"{PREFIX}/parts", "UploadId": upload_id}
    assert client.list_parts(**asked).get("Parts", []) == []
    client.abort_multipart_upload(**asked)


@pytest.mark.slow
def test_a_gigabyte_in_one_request_passes_in_little_memory(proxy: Proxy, store: Store) -> None:
    if store.kind == "moto":
        pytest.skip("moto holds what it stores in memory")
    head = plain(proxy, "up/large", b"", "UNSIGNED-PAYLOAD").without("content-length")
    head = head.with_fields(("Content-Length", str(1024 * MIB)))
    before, block, most = proxy.resident_bytes(), os.urandom(MIB), 0
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=120) as connection:
        connection.sendall(head.wire())
        for number in range(1024):
            connection.sendall(block)
            if number % 64 == 0:
                most = max(most, proxy.resident_bytes())
        assert connection.recv(12) == b"HTTP/1.1 200"
    client = store.boto3()
    assert client.head_object(Bucket=BUCKET, Key=f"{PREFIX}/large")["ContentLength"] == 1024 * MIB
    client.delete_object(Bucket=BUCKET, Key=f"{PREFIX}/large")
    assert most - before < 32 * MIB
