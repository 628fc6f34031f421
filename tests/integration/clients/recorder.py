"""An S3 server that sends every GET of a Parquet file to another host by a 307, and keeps what came.

It shows what a client does with a redirect: whether it follows, with which Host, and which of its fields it
sends again. It checks nothing: the proxy's and the store's parts in this are tested elsewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import re
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from xml.sax.saxutils import escape

import attrs

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@attrs.frozen
class Head:
    """The head of a request as it came: the target raw, the fields in their order."""

    method: str
    target: str
    fields: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str | None:
        """The value of a field, None if it did not come."""
        return next((value for field, value in self.fields if field.lower() == name), None)

    @property
    def amazon(self) -> set[str]:
        """The names of the x-amz-* fields."""
        return {name.lower() for name, _ in self.fields if name.lower().startswith("x-amz-")}


@attrs.frozen
class Recorder:
    """The two hosts: `url` redirects, `target` is the host and port that redirects lead to."""

    url: str
    target: str
    asked: list[Head] = attrs.field(factory=list)
    followed: list[Head] = attrs.field(factory=list)

    def clear(self) -> None:
        """Forget what came."""
        self.asked.clear()
        self.followed.clear()


@contextlib.contextmanager
def recorder(bucket: str, bodies: Mapping[str, bytes]) -> Iterator[Recorder]:
    """Both hosts on free ports, with these objects: localhost for the first, 127.0.0.1 for the other."""
    asked: list[Head] = []
    followed: list[Head] = []
    target = _server(_handler(bucket, bodies, followed, None))
    to = f"127.0.0.1:{target.server_port}"
    first = _server(_handler(bucket, bodies, asked, to))
    try:
        yield Recorder(f"http://localhost:{first.server_port}", to, asked, followed)
    finally:
        for server in (first, target):
            server.shutdown()
            server.server_close()


def _server(handler: type[http.server.BaseHTTPRequestHandler]) -> http.server.ThreadingHTTPServer:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def _handler(
    bucket: str, bodies: Mapping[str, bytes], heads: list[Head], redirect: str | None
) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: what came is in the list."""

        def _answer(self) -> None:
            heads.append(Head(self.command, self.path, tuple(self.headers.items())))
            parts = urllib.parse.urlsplit(self.path)
            key = urllib.parse.unquote(parts.path).removeprefix(f"/{bucket}").removeprefix("/")
            if not key:
                query = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
                self._send(200, _listing(bucket, bodies, query), {"Content-Type": "application/xml"})
            elif key not in bodies:
                text = b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>"
                self._send(404, text, {"Content-Type": "application/xml"})
            elif self.command == "GET" and redirect and key.endswith(".parquet"):
                self._send(307, b"", {"Location": f"http://{redirect}{self.path}"})
            else:
                self._object(bodies[key])

        def _object(self, body: bytes) -> None:
            fields = {"ETag": _etag(body), "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
            fields |= {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
            found = _RANGE.fullmatch(self.headers.get("Range", ""))
            if found is None:
                return self._send(200, body, fields)
            first, last = found.groups()
            start = int(first) if first else max(0, len(body) - int(last))
            end = min(len(body) - 1, int(last)) if first and last else len(body) - 1
            fields["Content-Range"] = f"bytes {start}-{end}/{len(body)}"
            return self._send(206, body[start : end + 1], fields)

        def _send(self, status: int, body: bytes, fields: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in {**fields, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    return Handler


def _etag(body: bytes) -> str:
    return f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'


def _listing(bucket: str, bodies: Mapping[str, bytes], query: Mapping[str, str]) -> bytes:
    prefix, after = query.get("prefix", ""), query.get("start-after", "")
    found = sorted(key for key in bodies if key.startswith(prefix) and key > after)
    contents = "".join(
        f"<Contents><Key>{escape(key)}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified>"
        f"<ETag>{_etag(bodies[key])}</ETag><Size>{len(bodies[key])}</Size>"
        f"<StorageClass>STANDARD</StorageClass></Contents>"
        for key in found
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(found)}</KeyCount>"
        f"<MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
    ).encode()
