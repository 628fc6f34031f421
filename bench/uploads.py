"""The uploads that `bench.upload` measures: a client that costs next to nothing, and boto3."""

from __future__ import annotations

import hashlib
import http.client
import pathlib
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from delta_proxy.s3.chunk_writing import SignedChunks, signed_length
from delta_proxy.s3.chunked import ChunkSigning
from delta_proxy.s3.sigv4 import UNSIGNED_PAYLOAD, Credentials, SigningKeys, object_path, sign
from delta_proxy.s3.verify import STREAMING_SIGNED
from tests.integration import servers

_BLOCK = 1024 * 1024
_REGION = servers.REGION


def upload(way: str, url: str, access_key: str, secret_key: str, bucket: str, key: str, file: str) -> float:  # noqa: PLR0917 - a request and its way
    """Upload a file and return the seconds that took; what a client computes before counts too."""
    path = pathlib.Path(file)
    started = time.perf_counter()
    if way == "boto3":
        servers.Endpoint(url, access_key, secret_key).boto3().upload_file(file, bucket, key)
    else:
        _put(
            way, url.partition("://")[2], Credentials(access_key, secret_key), object_path(bucket, key), path
        )
    return time.perf_counter() - started


def _put(way: str, host: str, credentials: Credentials, path: str, file: pathlib.Path) -> None:
    size, now, keys = file.stat().st_size, datetime.now(UTC), SigningKeys()
    extra: tuple[tuple[str, str], ...] = ()
    payload = {"unsigned": UNSIGNED_PAYLOAD, "chunked": STREAMING_SIGNED}.get(way) or _sha256(file)
    if way == "chunked":
        extra = (("x-amz-decoded-content-length", str(size)), ("content-encoding", "aws-chunked"))
    added = dict(sign("PUT", host, path, (), extra, payload, credentials, _REGION, now, keys))
    connection = http.client.HTTPConnection(host)
    connection.putrequest("PUT", path)
    length = signed_length(size) if way == "chunked" else size
    for name, value in {**dict(extra), **added, "Content-Length": str(length)}.items():
        connection.putheader(name, value)
    connection.endheaders()
    for piece in _pieces(way, file, credentials, added, keys):
        connection.send(piece)
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()


def _pieces(
    way: str, file: pathlib.Path, credentials: Credentials, added: dict[str, str], keys: SigningKeys
) -> Iterator[bytes]:
    if way != "chunked":
        yield from _blocks(file)
        return
    timestamp = added["x-amz-date"]
    key = keys.get(credentials.secret_key, timestamp[:8], _REGION, "s3")
    scope = f"{timestamp[:8]}/{_REGION}/s3/aws4_request"
    chunks = SignedChunks(ChunkSigning(key, timestamp, scope, added["authorization"].rpartition("=")[2]))
    for block in _blocks(file):
        yield from chunks.feed(block)
    yield from chunks.finish(())


def _blocks(file: pathlib.Path) -> Iterator[bytes]:
    with file.open("rb") as source:
        while block := source.read(_BLOCK):
            yield block


def _sha256(file: pathlib.Path) -> str:
    with file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
