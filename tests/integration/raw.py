"""HTTP as it is on the wire: requests that no S3 client would send, and answers read to the last byte."""

from __future__ import annotations

import http.client
import socket
import urllib.parse
from collections.abc import Mapping

import attrs

from delta_proxy.demo import PROXY_BUCKET
from tests.waiting import PATIENCE

from .servers import Proxy


@attrs.frozen
class Answer:
    """Status, header fields with lower-case names, body."""

    status: int
    headers: Mapping[str, str]
    body: bytes = attrs.field(repr=lambda body: repr(body[:300]))


def quoted(key: str) -> str:
    """The path of a key in the virtual bucket, every octet but unreserved ones and the slash escaped."""
    return f"/{PROXY_BUCKET}/{urllib.parse.quote(key, safe='/-._~')}"


def request(proxy: Proxy, method: str, target: str, headers: Mapping[str, str] | None = None) -> Answer:
    """Send one request with the target exactly as given."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=PATIENCE)
    try:
        return request_on(connection, method, target, headers)
    finally:
        connection.close()


def request_on(
    connection: http.client.HTTPConnection, method: str, target: str, headers: Mapping[str, str] | None = None
) -> Answer:
    """The same on a connection that is there."""
    connection.putrequest(method, target, skip_host="Host" in (headers or {}), skip_accept_encoding=True)
    for name, value in (headers or {}).items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    fields = {name.lower(): value for name, value in answer.getheaders()}
    return Answer(answer.status, fields, answer.read())


def get(proxy: Proxy, key: str, headers: Mapping[str, str] | None = None, *, query: str = "") -> Answer:
    """GET a key of the virtual bucket."""
    return request(proxy, "GET", quoted(key) + query, headers)


def head(proxy: Proxy, key: str, headers: Mapping[str, str] | None = None) -> Answer:
    """HEAD a key of the virtual bucket."""
    return request(proxy, "HEAD", quoted(key), headers)


def exchange(proxy: Proxy, data: bytes) -> bytes:
    """Send octets, say that no more follow, and return all that comes back; a reset ends the answer."""
    received = b""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                received += part
        except OSError:
            pass
    return received
