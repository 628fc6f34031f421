"""The documents of writing: what clients send, what the store is sent, and what comes back.

Clients' documents are read by the same parser as the store's (no DTD, no entities) and written anew, so that
nothing that was not understood reaches the store. Sources: "DeleteObjects", "CompleteMultipartUpload",
"ListMultipartUploads", "ListParts" and "CopyObject" in the Amazon S3 API reference.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from itertools import pairwise
from urllib.parse import unquote_plus
from xml.etree import ElementTree

from attrs import field, frozen

from delta_proxy.s3.errors import InvalidPartOrder, MalformedXML, NotImplementedByProxy
from delta_proxy.s3.sigv4 import quote_path
from delta_proxy.s3.xml import (
    DECLARATION,
    NAMESPACE,
    MalformedDocument,
    escape,
    local_name,
    parse_document,
)

MAX_DELETED = 1000
MAX_PARTS = 10_000
_NUMBER = re.compile(r"[0-9]{1,5}", re.ASCII)
_CHECKSUM = re.compile(r"Checksum[A-Z0-9]{3,12}")
_DECLARED = re.compile(rb"\s*<\?xml version=[\"']1\.0[\"'](?: encoding=[\"'][Uu][Tt][Ff]-8[\"'])? ?\?>")
_DEPTH = 8


@frozen
class Deletion:
    """What DeleteObjects asks for; `quiet` leaves out of the answer what was deleted."""

    keys: tuple[str, ...]
    quiet: bool


@frozen
class Deleted:
    """What became of one key: deleted, or the code and message of an error."""

    key: str
    code: str = ""
    message: str = ""


@frozen
class Part:
    """A part of an upload, by number and quoted ETag, with its checksums by element name."""

    number: int
    etag: str
    checksums: tuple[tuple[str, str], ...] = ()


@frozen
class OpenUpload:
    """A multipart upload under way; `fields` are its other elements by name."""

    key: str
    upload_id: str
    fields: tuple[tuple[str, str], ...] = ()


@frozen
class UploadPage:
    """A page of open uploads; the markers say where the next one begins."""

    uploads: tuple[OpenUpload, ...] = ()
    prefixes: tuple[str, ...] = ()
    truncated: bool = False
    next_key: str = ""
    next_upload_id: str = ""


@frozen
class UploadQuery:
    """What ListMultipartUploads asks for."""

    prefix: str = ""
    delimiter: str = ""
    key_marker: str = ""
    upload_id_marker: str = ""
    max_uploads: int = 1000
    encoding_url: bool = False


@frozen
class ElementOf:
    """A document of the store, by the names of its elements without namespaces."""

    root: ElementTree.Element = field(repr=False)

    @property
    def name(self) -> str:
        """The name of the document's element."""
        return local_name(self.root)

    def text(self, name: str) -> str:
        """The text of the first child of this name, "" without one."""
        return next((child.text or "" for child in self.root if local_name(child) == name), "")


def parse_delete(body: bytes) -> Deletion:
    """The Delete document of a client. Raises MalformedXML, NotImplementedByProxy for versions."""
    root = _clients(body, "Delete")
    keys, quiet = [], False
    for child in root:
        match local_name(child):
            case "Object":
                keys.append(_deleted_key(child))
            case "Quiet":
                quiet = (child.text or "").strip() == "true"
            case _:
                raise MalformedXML
    if not 0 < len(keys) <= MAX_DELETED:
        raise MalformedXML
    return Deletion(tuple(keys), quiet)


def delete_document(keys: Iterable[str]) -> bytes:
    """The Delete document for the store, which is to tell of each key."""
    objects = "".join(f"<Object>{_element('Key', key)}</Object>" for key in keys)
    return _document("Delete", f"{objects}<Quiet>false</Quiet>")


def parse_delete_result(body: bytes) -> dict[str, str]:
    """What a store did: key → the code of its error, "" where it deleted. Raises MalformedDocument."""
    root = parse_document(body)
    if local_name(root) != "DeleteResult":
        raise MalformedDocument(f"a {local_name(root)[:100]} in place of a DeleteResult")
    outcome = {}
    for child in root:
        found = ElementOf(child)
        if found.name == "Deleted":
            outcome[found.text("Key")] = ""
        elif found.name == "Error":
            outcome[found.text("Key")] = found.text("Code") or "InternalError"
    return outcome


def delete_result(outcomes: Iterable[Deleted], *, quiet: bool) -> bytes:
    """The DeleteResult."""
    told = [
        f"<Error>{_element('Key', each.key)}{_element('Code', each.code)}"
        f"{_element('Message', each.message)}</Error>"
        if each.code
        else f"<Deleted>{_element('Key', each.key)}</Deleted>"
        for each in outcomes
        if each.code or not quiet
    ]
    return _document("DeleteResult", "".join(told))


def parse_complete(body: bytes) -> tuple[Part, ...]:
    """The parts of a CompleteMultipartUpload, whose ETags may be unquoted.

    Raises MalformedXML, InvalidPartOrder.
    """
    root = _clients(body, "CompleteMultipartUpload")
    if not all(local_name(child) == "Part" for child in root):
        raise MalformedXML
    parts = tuple(_part(child) for child in root)
    if not 0 < len(parts) <= MAX_PARTS:
        raise MalformedXML
    if any(after.number <= before.number for before, after in pairwise(parts)):
        raise InvalidPartOrder
    return parts


def complete_anew(body: bytes) -> bytes:
    """A client's CompleteMultipartUpload, for the store. Raises MalformedXML, InvalidPartOrder."""
    return complete_document(parse_complete(body))


def complete_document(parts: Iterable[Part]) -> bytes:
    """The CompleteMultipartUpload for the store."""
    listed = (
        f"<Part>{_element('PartNumber', str(part.number))}{_element('ETag', part.etag)}"
        f"{''.join(_element(name, value) for name, value in part.checksums)}</Part>"
        for part in parts
    )
    return _document("CompleteMultipartUpload", "".join(listed))


def document_of(body: bytes) -> ElementOf:
    """A store's document; stores differ in what they call it. Raises MalformedDocument for an Error."""
    document = ElementOf(parse_document(body))
    if document.name == "Error":
        raise MalformedDocument("an Error in place of a result")
    return document


def anew(body: bytes, name: str, texts: Mapping[str, str], left_out: Collection[str] = ()) -> bytes:
    """A store's document under this name, with other texts in the elements named, and without some.

    Raises MalformedDocument.
    """
    return _document(name, _children(document_of(body).root, texts, frozenset(left_out), _DEPTH))


def upload_query(params: Mapping[str, str], max_uploads: int) -> UploadQuery:
    """What the parameters of ListMultipartUploads ask for."""
    return UploadQuery(
        prefix=params.get("prefix", ""),
        delimiter=params.get("delimiter", ""),
        key_marker=params.get("key-marker", ""),
        upload_id_marker=params.get("upload-id-marker", ""),
        max_uploads=max_uploads,
        encoding_url=params.get("encoding-type") == "url",
    )


def parse_uploads(body: bytes) -> UploadPage:
    """A store's ListMultipartUploadsResult. Raises MalformedDocument."""
    document = document_of(body)
    encoded = document.text("EncodingType") == "url"
    uploads, prefixes = [], []
    for child in document.root:
        found = ElementOf(child)
        if found.name == "Upload":
            uploads.append(_open_upload(found, encoded))
        elif found.name == "CommonPrefixes":
            prefixes.append(_decoded(found.text("Prefix"), encoded))
    return UploadPage(
        tuple(uploads),
        tuple(prefixes),
        document.text("IsTruncated") == "true",
        _decoded(document.text("NextKeyMarker"), encoded),
        document.text("NextUploadIdMarker"),
    )


def list_uploads(page: UploadPage, query: UploadQuery, *, bucket: str) -> bytes:
    """The ListMultipartUploadsResult."""

    def name(element: str, text: str) -> str:
        return _element(element, quote_path(text) if query.encoding_url else text)

    head = (
        _element("Bucket", bucket),
        name("Prefix", query.prefix),
        name("KeyMarker", query.key_marker),
        _element("UploadIdMarker", query.upload_id_marker),
        name("Delimiter", query.delimiter) if query.delimiter else "",
        name("NextKeyMarker", page.next_key) if page.truncated else "",
        _element("NextUploadIdMarker", page.next_upload_id) if page.truncated else "",
        _element("MaxUploads", str(query.max_uploads)),
        "<EncodingType>url</EncodingType>" if query.encoding_url else "",
        f"<IsTruncated>{'true' if page.truncated else 'false'}</IsTruncated>",
    )
    uploads = (
        f"<Upload>{name('Key', each.key)}{_element('UploadId', each.upload_id)}"
        f"{''.join(_element(key, value) for key, value in each.fields)}</Upload>"
        for each in page.uploads
    )
    prefixes = (f"<CommonPrefixes>{name('Prefix', each)}</CommonPrefixes>" for each in page.prefixes)
    return _document("ListMultipartUploadsResult", "".join((*head, *uploads, *prefixes)))


def _clients(body: bytes, name: str) -> ElementTree.Element:
    try:
        root = parse_document(body)
    except MalformedDocument:
        raise MalformedXML from None
    if local_name(root) != name:
        raise MalformedXML
    return root


def _deleted_key(element: ElementTree.Element) -> str:
    found = ElementOf(element)
    names = {local_name(child) for child in element}
    if names - {"Key"}:
        # A version, or a condition: left out, more would be deleted than was asked for.
        raise NotImplementedByProxy(fields={"Element": sorted(names - {"Key"})[0][:100]})
    # Parsers differ in which of two they take, and in what they make of elements within a text.
    if len(element) != 1 or len(element[0]) or not found.text("Key"):
        raise MalformedXML
    return found.text("Key")


def check_plain(body: bytes) -> None:
    """Raises MalformedXML for a document that another parser could read as another one: with comments,
    CDATA, instructions or in another encoding than UTF-8.
    """
    beginning = _DECLARED.match(body)
    rest = body[beginning.end() :] if beginning is not None else body
    if b"<!" in rest or b"<?" in rest:
        raise MalformedXML


def _part(element: ElementTree.Element) -> Part:
    found = ElementOf(element)
    number, etag = found.text("PartNumber").strip(), found.text("ETag").strip()
    if not _NUMBER.fullmatch(number) or not 1 <= int(number) <= MAX_PARTS or not etag:
        raise MalformedXML
    checksums = tuple(
        (local_name(child), child.text or "") for child in element if _CHECKSUM.fullmatch(local_name(child))
    )
    return Part(int(number), etag if etag.startswith('"') else f'"{etag}"', checksums)


def _open_upload(found: ElementOf, encoded: bool) -> OpenUpload:
    kept = ("Initiated", "StorageClass", "ChecksumAlgorithm", "ChecksumType")
    fields = tuple((name, found.text(name)) for name in kept if found.text(name))
    return OpenUpload(_decoded(found.text("Key"), encoded), found.text("UploadId"), fields)


def _children(
    parent: ElementTree.Element, texts: Mapping[str, str], left_out: frozenset[str], depth: int
) -> str:
    if depth == 0:
        raise MalformedDocument("elements nested too deeply")
    return "".join(
        f"<{name}>{_content(child, name, texts, left_out, depth)}</{name}>"
        for child in parent
        if (name := local_name(child)) not in left_out
    )


def _content(
    element: ElementTree.Element,
    name: str,
    texts: Mapping[str, str],
    left_out: frozenset[str],
    depth: int,
) -> str:
    if name in texts:
        return escape(texts[name])
    if len(element):
        return _children(element, texts, left_out, depth - 1)
    return escape(element.text or "")


def _document(name: str, body: str) -> bytes:
    return f'{DECLARATION}<{name} xmlns="{NAMESPACE}">{body}</{name}>'.encode()


def _element(name: str, text: str) -> str:
    return f"<{name}>{escape(text)}</{name}>"


def _decoded(text: str, encoded: bool) -> str:
    try:
        return unquote_plus(text, errors="strict") if encoded else text
    except UnicodeDecodeError as error:
        raise MalformedDocument(str(error)) from None
