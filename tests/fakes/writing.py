"""A FakeStore that can be written to: objects, conditions, copies, multipart uploads, DeleteObjects.

It is held to `tests/upstream/test_writing_contract.py` together with moto and versitygw.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection
from typing import Any

import attrs
from twisted.web.http import Request

from delta_proxy.s3 import write_xml
from delta_proxy.s3.chunked import decoder_for
from delta_proxy.s3.copying import copy_source
from delta_proxy.s3.errors import (
    InvalidPart,
    NoSuchKey,
    NoSuchUpload,
    PreconditionFailed,
    XAmzContentSHA256Mismatch,
)
from delta_proxy.s3.operation import Operation
from delta_proxy.s3.payload import payload_of
from delta_proxy.s3.request import S3Request
from delta_proxy.s3.sigv4 import UNSIGNED_PAYLOAD
from delta_proxy.s3.write_xml import Deleted, OpenUpload

from .store import FakeStore, StoredObject


@attrs.define
class Upload:
    """An open multipart upload: its key and the bodies of its parts by number."""

    key: str
    parts: dict[int, bytes] = attrs.field(factory=dict)


class WritableStore(FakeStore):
    """`uploads` are the open ones by id. Some stores do not honour conditions, or verify no hash."""

    def __init__(
        self,
        bucket: str,
        *,
        honours_conditions: bool = True,
        verifies_hashes: bool = False,
        unconditional: Collection[Operation] = (),
        ends_refused_uploads: bool = False,
    ) -> None:
        super().__init__(bucket)
        self.uploads: dict[str, Upload] = {}
        self.fields: dict[str, tuple[tuple[str, str], ...]] = {}
        self._honours_conditions = honours_conditions
        self._unconditional = frozenset(unconditional)
        self._ends_refused_uploads = ends_refused_uploads
        self.verifies_hashes = verifies_hashes
        self._ids = itertools.count(1)

    def _answer(self, asked: S3Request, request: Request) -> bytes:
        handler = {
            Operation.PUT_OBJECT: self._put,
            Operation.COPY_OBJECT: self._copy,
            Operation.DELETE_OBJECT: self._delete,
            Operation.DELETE_OBJECTS: self._delete_many,
            Operation.CREATE_MULTIPART_UPLOAD: self._create,
            Operation.UPLOAD_PART: self._part,
            Operation.UPLOAD_PART_COPY: self._part_copy,
            Operation.COMPLETE_MULTIPART_UPLOAD: self._complete,
            Operation.ABORT_MULTIPART_UPLOAD: self._abort,
            Operation.LIST_PARTS: self._parts,
            Operation.LIST_MULTIPART_UPLOADS: self._list_uploads,
        }.get(asked.operation)
        if handler is None or asked.bucket != self.bucket:
            return super()._answer(asked, request)
        return handler(asked, request)

    def _body(self, asked: S3Request, request: Request) -> bytes:
        assert request.content is not None
        wire: bytes = request.content.read()
        if decoder_for(asked, None) is None:
            announced = asked.headers.get("x-amz-content-sha256")
            if self.verifies_hashes and announced not in {hashlib.sha256(wire).hexdigest(), UNSIGNED_PAYLOAD}:
                raise XAmzContentSHA256Mismatch
            return wire
        payload = payload_of(asked, len(wire), None)
        body = b"".join(payload.feed(wire))
        payload.finish()
        return body

    def _put(self, asked: S3Request, request: Request) -> bytes:
        body = self._body(asked, request)
        self._check_absent(asked)
        self.put(asked.key, body)
        self.fields[asked.key] = asked.headers.items
        _set_etag(request, body)
        return b""

    def _check_absent(self, asked: S3Request) -> None:
        taken = asked.key in self.objects and "if-none-match" in asked.headers
        if taken and self._honours_conditions and asked.operation not in self._unconditional:
            raise PreconditionFailed

    def _copy(self, asked: S3Request, request: Request) -> bytes:
        self._check_absent(asked)
        self.put(asked.key, self._source(asked))
        return _result("CopyObjectResult", ETag=self.objects[asked.key].etag)

    def _source(self, asked: S3Request) -> bytes:
        source = copy_source(asked.headers)
        if source.bucket != self.bucket or source.key not in self.objects:
            raise NoSuchKey
        return self.objects[source.key].body

    def _delete(self, asked: S3Request, request: Request) -> bytes:
        self.objects.pop(asked.key, None)
        request.setResponseCode(204)
        return b""

    def _delete_many(self, asked: S3Request, request: Request) -> bytes:
        deletion = write_xml.parse_delete(self._body(asked, request))
        for key in deletion.keys:
            self.objects.pop(key, None)
        return write_xml.delete_result((Deleted(key) for key in deletion.keys), quiet=deletion.quiet)

    def _create(self, asked: S3Request, request: Request) -> bytes:
        upload_id = f"upload-{next(self._ids)}"
        self.uploads[upload_id] = Upload(asked.key)
        return _result("InitiateMultipartUploadResult", Bucket=self.bucket, Key=asked.key, UploadId=upload_id)

    def _upload(self, asked: S3Request) -> Upload:
        found = self.uploads.get(asked.param("uploadId") or "")
        if found is None or found.key != asked.key:
            raise NoSuchUpload
        return found

    def _part(self, asked: S3Request, request: Request) -> bytes:
        upload, body = self._upload(asked), self._body(asked, request)
        upload.parts[int(asked.param("partNumber") or 0)] = body
        _set_etag(request, body)
        return b""

    def _part_copy(self, asked: S3Request, request: Request) -> bytes:
        body = self._upload(asked).parts[int(asked.param("partNumber") or 0)] = self._source(asked)
        return _result("CopyPartResult", ETag=StoredObject(body).etag)

    def _complete(self, asked: S3Request, request: Request) -> bytes:
        upload = self._upload(asked)
        parts = write_xml.parse_complete(self._body(asked, request))
        for part in parts:
            if part.number not in upload.parts or StoredObject(upload.parts[part.number]).etag != part.etag:
                raise InvalidPart
        if self._ends_refused_uploads:
            del self.uploads[asked.param("uploadId") or ""]
        self._check_absent(asked)
        self.put(asked.key, b"".join(upload.parts[part.number] for part in parts))
        self.uploads.pop(asked.param("uploadId") or "", None)
        place = f"http://{asked.host}/{self.bucket}/{asked.key}"
        etag = self.objects[asked.key].etag
        return _result(
            "CompleteMultipartUploadResult", Location=place, Bucket=self.bucket, Key=asked.key, ETag=etag
        )

    def _abort(self, asked: S3Request, request: Request) -> bytes:
        self._upload(asked)
        del self.uploads[asked.param("uploadId") or ""]
        request.setResponseCode(204)
        return b""

    def _parts(self, asked: S3Request, request: Request) -> bytes:
        upload = self._upload(asked)
        document = _result(
            "ListPartsResult", Bucket=self.bucket, Key=asked.key, UploadId=asked.param("uploadId")
        )
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><Size>{len(body)}</Size></Part>"
            for number, body in sorted(upload.parts.items())
        )
        return document.replace(b"</ListPartsResult>", f"<Owner/>{parts}</ListPartsResult>".encode())

    def _list_uploads(self, asked: S3Request, request: Request) -> bytes:
        query = write_xml.upload_query(dict(asked.query), int(asked.param("max-uploads") or 1000))
        found = sorted((upload.key, upload_id) for upload_id, upload in self.uploads.items())
        after = (query.key_marker, query.upload_id_marker)
        due = [each for each in found if each[0].startswith(query.prefix) and each > after]
        page = tuple(OpenUpload(*each) for each in due[: query.max_uploads])
        truncated = len(due) > len(page)
        last = page[-1] if page else OpenUpload("", "")
        return write_xml.list_uploads(
            write_xml.UploadPage(page, (), truncated, last.key, last.upload_id), query, bucket=self.bucket
        )


def _set_etag(request: Any, body: bytes) -> None:
    request.responseHeaders.setRawHeaders(b"etag", [f'"{hashlib.md5(body).hexdigest()}"'.encode()])


def _result(name: str, **texts: str | None) -> bytes:
    children = "".join(f"<{key}>{value}</{key}>" for key, value in texts.items())
    return f"<{name}>{children}</{name}>".encode()
