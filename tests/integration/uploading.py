"""Uploads as they are on the wire, signed as a client signs them, and as no client would send them."""

from __future__ import annotations

import base64
import hashlib
import socket
from datetime import UTC, datetime

import attrs
from awscrt.checksums import crc32

from delta_proxy.s3.chunk_writing import SignedChunks, TrailedChunks
from delta_proxy.s3.chunked import ChunkSigning
from delta_proxy.s3.sigv4 import Credentials, SigningKeys, canonical_query, object_path, sign
from delta_proxy.s3.verify import STREAMING_SIGNED, STREAMING_UNSIGNED_TRAILER
from tests.waiting import PATIENCE

from .servers import REGION, Proxy

Pairs = tuple[tuple[str, str], ...]
TRAILER = "x-amz-checksum-crc32"


@attrs.frozen
class Upload:
    """A request: its header fields in order, and its body."""

    method: str
    target: str
    fields: Pairs
    body: bytes = attrs.field(repr=False)

    def with_fields(self, *more: tuple[str, str]) -> Upload:
        """With these fields behind the others."""
        return attrs.evolve(self, fields=(*self.fields, *more))

    def without(self, name: str) -> Upload:
        """Without the fields of this name."""
        return attrs.evolve(self, fields=tuple(pair for pair in self.fields if pair[0].lower() != name))

    def wire(self) -> bytes:
        """The request as it is sent."""
        lines = [
            f"{self.method} {self.target} HTTP/1.1",
            *(f"{name}: {value}" for name, value in self.fields),
        ]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + self.body


def plain(
    proxy: Proxy,
    key: str,
    body: bytes,
    payload_hash: str | None = None,
    *,
    extra: Pairs = (),
    query: Pairs = (),
) -> Upload:
    """A PUT under the hash of its body, or under another one."""
    sha256 = payload_hash or hashlib.sha256(body).hexdigest()
    fields, _ = _signed(proxy, key, sha256, extra, query)
    return _upload(key, query, (*fields, ("Content-Length", str(len(body)))), body)


def signed_chunks(proxy: Proxy, key: str, body: bytes) -> Upload:
    """A PUT in signed chunks, as S3A sends it."""
    extra = (("x-amz-decoded-content-length", str(len(body))), ("content-encoding", "aws-chunked"))
    fields, signing = _signed(proxy, key, STREAMING_SIGNED, extra)
    chunks = SignedChunks(signing)
    framed = b"".join((*chunks.feed(body), *chunks.finish(())))
    return _upload(key, (), (*fields, ("Content-Length", str(len(framed)))), framed)


def trailed_chunks(proxy: Proxy, key: str, body: bytes, checksum: str | None = None) -> Upload:
    """A PUT in unsigned chunks with a CRC32 behind them, its own or another one."""
    extra = (
        ("x-amz-decoded-content-length", str(len(body))),
        ("content-encoding", "aws-chunked"),
        ("x-amz-trailer", TRAILER),
    )
    fields, _ = _signed(proxy, key, STREAMING_UNSIGNED_TRAILER, extra)
    own = base64.b64encode(crc32(body).to_bytes(4, "big")).decode()
    chunks = TrailedChunks(len(body))
    framed = b"".join((*chunks.feed(body), *chunks.finish(((TRAILER, checksum or own),))))
    return _upload(key, (), (*fields, ("Content-Length", str(len(framed)))), framed)


def answered(proxy: Proxy, data: bytes, *, leave: bool = False) -> int | None:
    """The status that the proxy answers with, None when the connection ends without; `leave` closes first."""
    received = b""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE) as connection:
        try:
            connection.sendall(data)
            if leave:
                return None
            while b"\r\n\r\n" not in received.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b""):
                part = connection.recv(65536)
                if not part:
                    return None
                received += part
        except OSError:
            pass
    received = received.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
    return int(received.split()[1]) if received else None


def _signed(
    proxy: Proxy, key: str, payload_hash: str, extra: Pairs = (), query: Pairs = ()
) -> tuple[Pairs, ChunkSigning]:
    credentials = Credentials(proxy.access_key, proxy.secret_key)
    path, keys, host = object_path("datalake", key), SigningKeys(), proxy.netloc
    now = datetime.now(UTC)
    added = sign("PUT", host, path, query, extra, payload_hash, credentials, REGION, now, keys)
    told = dict(added)
    timestamp = told["x-amz-date"]
    scope = f"{timestamp[:8]}/{REGION}/s3/aws4_request"
    signing = ChunkSigning(
        keys.get(credentials.secret_key, timestamp[:8], REGION, "s3"),
        timestamp,
        scope,
        told["authorization"].rpartition("=")[2],
    )
    return (("Host", host), *extra, *added), signing


def _upload(key: str, query: Pairs, fields: Pairs, body: bytes) -> Upload:
    target = object_path("datalake", key) + (f"?{canonical_query(query)}" if query else "")
    return Upload("PUT", target, fields, body)
