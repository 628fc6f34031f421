"""The writes of the bucket: DeleteObjects, and ListMultipartUploads, which belongs to the writing side."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping

import attrs

from delta_proxy.access.identity import Principal
from delta_proxy.access.writing import Bar, writing_barred
from delta_proxy.resources.base import XML, Answer, AnyAnswer, S3Resource
from delta_proxy.resources.bodies import whole
from delta_proxy.resources.refusals import barred
from delta_proxy.resources.server import EdgeRequest
from delta_proxy.resources.writes import body_of
from delta_proxy.resources.writing import Writing, admitted, line_for_each
from delta_proxy.s3 import errors, write_xml
from delta_proxy.s3.checksums import encoded
from delta_proxy.s3.errors import (
    AccessDenied,
    InternalError,
    InvalidArgument,
    InvalidRequest,
    MethodNotAllowed,
    NoSuchKey,
    S3Error,
)
from delta_proxy.s3.listing import delimited
from delta_proxy.s3.operation import Operation
from delta_proxy.s3.payload import announces_checksum
from delta_proxy.s3.request import split_key
from delta_proxy.s3.write_xml import Deleted, OpenUpload, UploadPage, UploadQuery
from delta_proxy.upstream.documents import parsed
from delta_proxy.upstream.stores import leaves_root
from delta_proxy.upstream.writer import TableWriter, Write

_LAST_CODE_POINT = "\U0010ffff"
_MAX_UPLOADS = 1000
_NUMBER = re.compile(r"[0-9]{1,10}", re.ASCII)


class BulkResource(S3Resource):
    """`/<bucket>`, written to."""

    async def answer(self, principal: Principal, request: EdgeRequest) -> AnyAnswer:
        """DeleteObjects or ListMultipartUploads."""
        if self.services.writing is None:
            raise MethodNotAllowed("The proxy is read-only.")
        if self.s3.operation is Operation.DELETE_OBJECTS:
            return await self._delete(principal, request)
        return await self._uploads(self.services.writing, principal)

    async def _delete(self, principal: Principal, request: EdgeRequest) -> Answer:
        if not any(self._writable(principal)):
            raise barred(Bar.RESTRICTED)
        payload = body_of(self.services, self.s3, request)
        if not announces_checksum(self.s3) and payload.sha256 is None:
            raise InvalidRequest("Missing required header for this request: Content-MD5 OR x-amz-checksum-*")
        body, _ = await whole(request, payload, request.site.limits.body)
        asked = await parsed(write_xml.parse_delete, body, self.services.defer_to_pool)
        tables, outcomes = self._by_table(asked.keys), dict[str, Deleted]()
        paths = {alias: keys.values() for alias, keys in tables.items()}
        for alias in line_for_each(self, principal, paths, request):
            outcomes.update(await self._delete_of(principal, alias, tables[alias], request))
        told = [outcomes[key] for key in dict.fromkeys(asked.keys)]
        return Answer(200, XML, write_xml.delete_result(told, quiet=asked.quiet))

    def _by_table(self, keys: Iterable[str]) -> dict[str, dict[str, str]]:
        """The keys by alias, each with its path; those beside all tables stand together under ""."""
        found: dict[str, dict[str, str]] = {}
        for key in dict.fromkeys(keys):
            alias, path = split_key(key)
            table, within = (alias, path or "") if alias in self.services.tables else ("", key)
            found.setdefault(table, {})[key] = within
        return found

    async def _delete_of(
        self, principal: Principal, alias: str, keys: Mapping[str, str], request: EdgeRequest
    ) -> dict[str, Deleted]:
        """What became of the keys of one table; one that is closed refuses each of its own."""
        try:
            writer = await admitted(self.services, principal, alias, request, self.s3)
            return await self._deleted(writer, alias, keys)
        except AccessDenied as error:
            return {key: Deleted(key, error.code, error.message) for key in keys}

    async def _deleted(self, writer: TableWriter, alias: str, keys: Mapping[str, str]) -> dict[str, Deleted]:
        outcomes = {key: Deleted(key) for key in keys}
        paths = {key: path for key, path in keys.items() if path}
        stored: dict[str, str] = {}
        for key, path in paths.items():
            try:
                stored[writer.location.object_key(path)] = key
            except NoSuchKey as error:
                outcomes[key] = Deleted(key, AccessDenied.code, error.default_message)
        if stored:
            try:
                told = await _delete_in_store(writer, stored)
                for name, key in stored.items():
                    outcomes[key] = _outcome(key, told.get(name, InternalError.code))
            finally:
                if self.services.writing is not None:
                    await self.services.writing.written(alias, *paths.values())
        return outcomes

    async def _uploads(self, writing: Writing, principal: Principal) -> Answer:
        params = dict(self.s3.query)
        query = write_xml.upload_query(params, _max_uploads(params.get("max-uploads")))
        page = await self._page(writing, principal, query)
        bucket = self.services.settings.addressing.bucket
        return Answer(200, XML, write_xml.list_uploads(page, query, bucket=bucket))

    async def _page(self, writing: Writing, principal: Principal, query: UploadQuery) -> UploadPage:
        """The open uploads of the tables that the principal may write to, one table after another."""
        if query.max_uploads == 0:
            return UploadPage()
        found = UploadPage()
        for alias in self._listed(principal, query):
            group = delimited(alias + "/", query.prefix, query.delimiter)
            if group is not None and group in {query.key_marker, *found.prefixes}:
                continue
            left = query.max_uploads - len(found.uploads) - len(found.prefixes)
            if not left:
                return _cut(found)
            asked = attrs.evolve(
                query, max_uploads=1 if group else left, delimiter="" if group else query.delimiter
            )
            page = await _uploads_of(writing.writers[alias], alias, asked)
            if group is not None:
                page = UploadPage(prefixes=(group,)) if page.uploads else UploadPage()
            found = attrs.evolve(
                page, uploads=found.uploads + page.uploads, prefixes=found.prefixes + page.prefixes
            )
            if page.truncated:
                return found
        return found

    def _listed(self, principal: Principal, query: UploadQuery) -> Iterable[str]:
        """The aliases below which there may be something, in the order of their keys."""
        for alias in sorted(self._writable(principal), key=lambda alias: alias + "/"):
            root = alias + "/"
            within = root.startswith(query.prefix) or query.prefix.startswith(root)
            if within and query.key_marker < root + _LAST_CODE_POINT:
                yield alias

    def _writable(self, principal: Principal) -> Iterable[str]:
        read_only = self.services.settings.read_only
        for table in self.services.gate.tables(principal):
            if writing_barred(principal, table.grant, read_only=read_only) is None:
                yield table.alias


def _cut(page: UploadPage) -> UploadPage:
    """The page as one that more may follow; the next begins behind its last upload or group."""
    last = page.uploads[-1] if page.uploads else OpenUpload("", "")
    if page.prefixes and page.prefixes[-1] > last.key:
        last = OpenUpload(page.prefixes[-1], "")
    return attrs.evolve(page, truncated=True, next_key=last.key, next_upload_id=last.upload_id)


async def _delete_in_store(writer: TableWriter, keys: Mapping[str, str]) -> dict[str, str]:
    body = write_xml.delete_document(keys)
    query, headers = (("delete", ""),), (*XML, ("content-md5", _md5(body)))
    written = await writer.send(Write("DeleteObjects", "POST", None, query, headers, body))
    return await writer.told(written, write_xml.parse_delete_result)


async def _uploads_of(writer: TableWriter, alias: str, query: UploadQuery) -> UploadPage:
    """The open uploads of one table that the query asks for, by the client's keys."""
    root, location = alias + "/", writer.location
    prefix = query.prefix.removeprefix(root) if query.prefix.startswith(root) else ""
    if leaves_root(prefix.rpartition("/")[0] + "/-"):
        return UploadPage()
    marker = query.key_marker.removeprefix(root) if query.key_marker.startswith(root) else ""
    given = {
        "prefix": location.key(prefix),
        "delimiter": query.delimiter,
        "key-marker": location.key(marker) if marker else "",
        "upload-id-marker": query.upload_id_marker if marker else "",
    }
    asked = [("uploads", ""), ("encoding-type", "url"), ("max-uploads", str(query.max_uploads))]
    asked += [(name, value) for name, value in given.items() if value]
    written = await writer.send(Write("ListMultipartUploads", "GET", None, tuple(asked)))
    page = await writer.told(written, write_xml.parse_uploads)
    return _as_asked(page, location.key(""), root)


def _as_asked(page: UploadPage, stored_root: str, root: str) -> UploadPage:
    """The page with the client's keys; what lies beside the table is left out."""

    def own(key: str) -> str:
        return root + key[len(stored_root) :]

    return UploadPage(
        tuple(
            attrs.evolve(each, key=own(each.key)) for each in page.uploads if each.key.startswith(stored_root)
        ),
        tuple(own(prefix) for prefix in page.prefixes if prefix.startswith(stored_root)),
        page.truncated,
        own(page.next_key) if page.next_key else "",
        page.next_upload_id,
    )


def _outcome(key: str, code: str) -> Deleted:
    """What the client is told of a key: the store's code where it is one of S3's, the proxy's words."""
    known = getattr(errors, code, None) if code else None
    if not code or known is NoSuchKey:
        return Deleted(key)
    told = known if isinstance(known, type) and issubclass(known, S3Error) else InternalError
    return Deleted(key, told.code, told.default_message)


def _max_uploads(text: str | None) -> int:
    if text in {None, ""}:
        return _MAX_UPLOADS
    if not _NUMBER.fullmatch(text or ""):
        raise InvalidArgument(
            "Provided max-uploads not an integer or within integer range",
            fields={"ArgumentName": "max-uploads", "ArgumentValue": (text or "")[:100]},
        )
    return min(int(text or ""), _MAX_UPLOADS)


def _md5(body: bytes) -> str:
    return encoded(hashlib.md5(body, usedforsecurity=False).digest())
