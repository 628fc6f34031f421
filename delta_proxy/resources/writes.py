"""The operations that write objects: PutObject, DeleteObject, CopyObject, the multipart family.

Who may write is decided before the first byte of the body is asked for. Keys, buckets and what stands for
them in documents are the client's on the way back, the store's on the way there.
"""

# mypy: allow-untyped-calls
from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from delta_proxy.access.identity import Principal
from delta_proxy.delta.gate import GrantedTable
from delta_proxy.resources.base import XML, Answer, AnyAnswer, Fields, S3Resource, annotate
from delta_proxy.resources.bodies import for_store, whole
from delta_proxy.resources.customer_keys import check_key_is_safe
from delta_proxy.resources.refusals import OTHER_SOURCE
from delta_proxy.resources.server import EdgeRequest
from delta_proxy.resources.services import Services
from delta_proxy.resources.waiting import kept_waiting
from delta_proxy.resources.write_fields import handed_back, only, refuse, stored_fields
from delta_proxy.resources.writing import admitted
from delta_proxy.s3 import write_xml
from delta_proxy.s3.copying import HEADER as COPY_SOURCE
from delta_proxy.s3.copying import copy_source
from delta_proxy.s3.errors import AccessDenied, NoSuchBucket, NoSuchKey, NotImplementedByProxy
from delta_proxy.s3.operation import Operation
from delta_proxy.s3.payload import Payload, payload_of
from delta_proxy.s3.request import S3Request, split_key
from delta_proxy.s3.sigv4 import object_path, quote_path
from delta_proxy.upstream.documents import parsed
from delta_proxy.upstream.stores import TableLocation
from delta_proxy.upstream.writer import TableWriter, Write, Written

_ASSEMBLY_FIELDS = (
    "if-match",
    "if-none-match",
    "x-amz-checksum-",
    "x-amz-mp-object-size",
    "x-amz-server-side-",
)
_COPY_PART_FIELDS = ("x-amz-copy-source-", "x-amz-server-side-encryption-customer-")
_ENCRYPTION = ("x-amz-server-side-encryption-customer-",)
_WITHOUT_OBJECT = frozenset({Operation.ABORT_MULTIPART_UPLOAD, Operation.LIST_PARTS, Operation.UPLOAD_PART})
_SLOW = frozenset({Operation.COMPLETE_MULTIPART_UPLOAD, Operation.COPY_OBJECT, Operation.UPLOAD_PART_COPY})
_PASSED = frozenset({"uploadId", "partNumber", "max-parts", "part-number-marker"})
_OWNERS = frozenset({"Owner", "Initiator"})


class WriteResource(S3Resource):
    """`/<bucket>/<key>`, written to."""

    async def answer(self, principal: Principal, request: EdgeRequest) -> AnyAnswer:
        """What the store did, for whom the table is open."""
        alias, path = split_key(self.s3.key)
        annotate(request, table=alias)
        check_key_is_safe(self.s3.headers, request)
        writer = await admitted(self.services, principal, alias, request, self.s3)
        if not path and self.s3.operation is Operation.DELETE_OBJECT:
            # S3A deletes the markers of parent directories; the table's own root has none.
            return Answer(204)
        if path is None:
            raise AccessDenied("Objects can be written only below a table.")
        work = self._carried_out(_Write(self, writer, principal, request, path), alias)
        if self.s3.operation in _SLOW:
            return await kept_waiting(request, work, writer.client.upstream.pacing.clock)
        return await work

    async def _carried_out(self, write: _Write, alias: str) -> Answer:
        try:
            return await _HANDLERS[self.s3.operation](write)
        finally:
            if self.s3.operation not in _WITHOUT_OBJECT and self.services.writing is not None:
                await self.services.writing.written(alias, write.path)


class _Write:
    """One write that was let in: to what, by whom, with which request."""

    def __init__(
        self,
        resource: WriteResource,
        writer: TableWriter,
        principal: Principal,
        request: EdgeRequest,
        path: str,
    ) -> None:
        self.services = resource.services
        self.s3 = resource.s3
        self.writer = writer
        self._principal = principal
        self._request = request
        self.path = path

    async def put(self) -> Answer:
        """PutObject and UploadPart."""
        fields = stored_fields(self.s3.headers)
        writing, payload = self.services.writing, body_of(self.services, self.s3, self._request)
        verifies = writing is not None and writing.probes.verifies_hashes(self.writer.location)
        body = await for_store(self._request, payload, fields, store_verifies=verifies)
        written = await self._send("PUT", headers=body.fields, body=body.body)
        return Answer(200, handed_back(written.headers))

    async def delete(self) -> Answer:
        """DeleteObject and AbortMultipartUpload."""
        refuse(self.s3.headers)
        await self._send("DELETE", headers=only(self.s3.headers.items, "if-match"))
        return Answer(204)

    async def create(self) -> Answer:
        """CreateMultipartUpload."""
        written = await self._send(
            "POST", query=(("uploads", ""),), headers=only_of_object(stored_fields(self.s3.headers))
        )
        fields = only(handed_back(written.headers), "x-amz-")
        return await self._document(written, "InitiateMultipartUploadResult", fields)

    async def complete(self) -> Answer:
        """CompleteMultipartUpload, whose checksum is the object's and not the document's."""
        fields = only(stored_fields(self.s3.headers), *_ASSEMBLY_FIELDS)
        limit = self._request.site.limits.body
        payload = body_of(self.services, self.s3, self._request, checksums=False)
        body, _ = await whole(self._request, payload, limit)
        parts = await parsed(write_xml.complete_anew, body, self.services.defer_to_pool)
        written = await self._send("POST", headers=(*fields, *XML), body=parts)
        return await self._document(
            written, "CompleteMultipartUploadResult", only(handed_back(written.headers), "x-")
        )

    async def parts(self) -> Answer:
        """ListParts."""
        written = await self._send("GET", headers=only(stored_fields(self.s3.headers), *_ENCRYPTION))
        return await self._document(written, "ListPartsResult", ())

    async def copy(self) -> Answer:
        """CopyObject and UploadPartCopy; the source must be open to the principal as well."""
        fields = stored_fields(self.s3.headers)
        if self.s3.operation is Operation.UPLOAD_PART_COPY:
            fields = only(fields, *_COPY_PART_FIELDS)
        written = await self._send("PUT", headers=(*fields, (COPY_SOURCE, self._source())))
        fields = only(handed_back(written.headers), "x-")
        return await self._document(written, _COPIES[self.s3.operation], fields)

    async def _send(
        self,
        method: str,
        *,
        query: Fields | None = None,
        headers: Fields = (),
        body: Any = b"",
    ) -> Written:
        passed = tuple(pair for pair in self.s3.query if pair[0] in _PASSED) if query is None else query
        operation = self.s3.operation.value
        return await self.writer.send(Write(operation, method, self.path, passed, headers, body))

    def _source(self) -> str:
        """What is copied, as the store names it. Raises S3Error."""
        source = copy_source(self.s3.headers)
        if source.bucket != self.services.settings.addressing.bucket:
            raise NoSuchBucket(fields={"BucketName": source.bucket})
        annotate(self._request, copied_from=source.key)
        alias, path = split_key(source.key)
        opened = self.services.gate.open(self._principal, alias)
        if not isinstance(opened, GrantedTable) or not opened.grant.is_everything:
            annotate(self._request, decision="restricted_source", reason=f"the source is {source.key}")
            raise AccessDenied(OTHER_SOURCE)
        location = self.services.tables[alias].location
        if not path:
            raise NoSuchKey(fields={"Key": source.key})
        if _store_of(location) != _store_of(self.writer.location):
            raise NotImplementedByProxy("A copy is made within one store; these tables lie in two.")
        return quote_path(f"{location.bucket}/{location.object_key(path)}")

    async def _document(self, written: Written, name: str, fields: Fields) -> Answer:
        """The store's document with the client's names in it."""
        bucket, key = self.services.settings.addressing.bucket, self.s3.key
        scheme = "https" if self._request.isSecure() else "http"
        place = f"{scheme}://{self.s3.host}{object_path(bucket, key)}"
        texts = {"Bucket": bucket, "Key": key, "Location": place}
        anew = partial(write_xml.anew, name=name, texts=texts, left_out=_OWNERS)
        return Answer(200, (*fields, *XML), await self.writer.told(written, anew))


def body_of(services: Services, s3: S3Request, request: EdgeRequest, *, checksums: bool = True) -> Payload:
    """What reads and verifies the body of an authenticated request. Raises S3Error."""
    signing = services.authenticator.body_signing(s3)
    return payload_of(s3, request.body_length, signing, checksums=checksums)


def only_of_object(fields: Fields) -> Fields:
    """Without the fields that are about a body."""
    return tuple(pair for pair in fields if pair[0] != "content-md5")


def _store_of(location: TableLocation) -> tuple[str | None, str | None]:
    return location.store.endpoint, location.store.region


_COPIES = {Operation.COPY_OBJECT: "CopyObjectResult", Operation.UPLOAD_PART_COPY: "CopyPartResult"}
_HANDLERS: dict[Operation, Callable[[_Write], Awaitable[Answer]]] = {
    Operation.PUT_OBJECT: _Write.put,
    Operation.UPLOAD_PART: _Write.put,
    Operation.DELETE_OBJECT: _Write.delete,
    Operation.ABORT_MULTIPART_UPLOAD: _Write.delete,
    Operation.CREATE_MULTIPART_UPLOAD: _Write.create,
    Operation.COMPLETE_MULTIPART_UPLOAD: _Write.complete,
    Operation.LIST_PARTS: _Write.parts,
    Operation.COPY_OBJECT: _Write.copy,
    Operation.UPLOAD_PART_COPY: _Write.copy,
}
