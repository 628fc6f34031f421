"""An S3 store in memory, as a twisted.web resource: LIST v2, GET and HEAD with ranges and conditions.

It is held to `tests/upstream/test_contract.py` together with moto and versitygw. It checks no signatures.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import ClassVar

import attrs
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import Site

from delta_proxy.s3 import conditions, ranges, xml
from delta_proxy.s3.errors import NoSuchBucket, NoSuchKey, S3Error
from delta_proxy.s3.listing import ListQuery, delimited
from delta_proxy.s3.operation import Operation
from delta_proxy.s3.request import Addressing, S3Request, parse_request

MODIFIED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@attrs.frozen
class StoredObject:
    """An object: its bytes and when it was put."""

    body: bytes
    modified: datetime = MODIFIED

    @property
    def etag(self) -> str:
        """The quoted MD5, as S3 has it for a plain PUT."""
        return f'"{hashlib.md5(self.body).hexdigest()}"'


class FakeStore(Resource):
    """A store with one bucket. `objects` maps keys to objects; `requests` are the ones seen, parsed."""

    isLeaf: ClassVar[bool] = True  # type: ignore[misc]  # noqa: N815

    def __init__(self, bucket: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bucket = bucket
        self.objects: dict[str, StoredObject] = {}
        self.requests: list[S3Request] = []

    def put(self, key: str, body: bytes) -> None:
        """Store an object."""
        self.objects[key] = StoredObject(body)

    def site(self) -> Site:
        """The store as a factory to listen with."""
        return Site(self, timeout=None)  # type: ignore[no-untyped-call]

    def render(self, request: Request) -> bytes:
        """The answer of S3."""
        try:
            pairs = [(name, v) for name, values in request.requestHeaders.getAllRawHeaders() for v in values]
            asked = parse_request(request.method, request.uri, pairs, Addressing(self.bucket))
            self.requests.append(asked)
            return self._answer(asked, request)
        except S3Error as error:
            return self._error(error, request)

    def _answer(self, asked: S3Request, request: Request) -> bytes:
        if asked.bucket != self.bucket:
            raise NoSuchBucket()
        if asked.operation is Operation.LIST_OBJECTS_V2:
            return self._list(asked, request)
        return self._object(asked, request)

    def _object(self, asked: S3Request, request: Request) -> bytes:
        found = self.objects.get(asked.key)
        if found is None:
            raise NoSuchKey()
        conditions.check(asked.headers, found.etag, found.modified)
        same = asked.headers.get("if-range") in {None, found.etag}
        span = ranges.parse_range(asked.headers.get("range") if same else None, len(found.body))
        body = found.body
        if span is not None:
            request.setResponseCode(206)
            body = body[span.first : span.last + 1]
            _set(request, "content-range", f"bytes {span.first}-{span.last}/{len(found.body)}")
        _set(request, "content-length", str(len(body)))
        _set(request, "etag", found.etag)
        _set(request, "last-modified", format_datetime(found.modified, usegmt=True))
        _set(request, "content-type", asked.param("response-content-type") or "binary/octet-stream")
        return b"" if asked.method == "HEAD" else body

    def _list(self, asked: S3Request, request: Request) -> bytes:
        query = ListQuery.parse(asked)
        keys: list[xml.ListedKey] = []
        prefixes: list[str] = []
        last, truncated = "", False
        for key in sorted(self.objects, key=str.encode):
            group = delimited(key, query.prefix, query.delimiter)
            # The start cuts off keys, not groups, unless it is a group. versitygw and moto skip the group
            # that it lies in; this tells a client more.
            behind = key.encode() > query.after.encode() and group != query.after
            if not key.startswith(query.prefix) or not behind:
                continue
            if group is not None and group in prefixes:
                continue
            if len(keys) + len(prefixes) == query.max_keys:
                truncated = True
                break
            last = group or key
            if group is None:
                keys.append(self._listed(key))
            else:
                prefixes.append(group)
        page = xml.ListResult(tuple(keys), tuple(prefixes), truncated, last)
        _set(request, "content-type", "application/xml")
        return xml.list_objects_v2(page, query, bucket=self.bucket)

    def _listed(self, key: str) -> xml.ListedKey:
        found = self.objects[key]
        return xml.ListedKey(
            key, len(found.body), found.etag, found.modified.strftime("%Y-%m-%dT%H:%M:%S.000Z")
        )

    def _error(self, error: S3Error, request: Request) -> bytes:
        request.setResponseCode(error.status)
        for name, value in error.headers:
            _set(request, name, value)
        if request.method == b"HEAD" or error.status == 304:
            return b""
        return xml.error_document(error, resource="", request_id="0")


def _set(request: Request, name: str, value: str) -> None:
    request.responseHeaders.setRawHeaders(name.encode(), [value.encode()])
