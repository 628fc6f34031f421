"""The documents of S3: what the proxy answers, and what it reads from the store.

XML 1.0 has no way to write most control characters, U+FFFE and U+FFFF, not even as references. A listing
that holds such a key can only be given with `encoding-type=url`; without it the listing is refused with
InvalidArgument saying so, since leaving the key out, or writing another name for it, would be a wrong
answer. In error documents, whose text is for people, such characters are replaced by U+FFFD.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote_plus
from xml.etree import ElementTree

from attrs import frozen

from delta_proxy.s3.errors import InvalidArgument, S3Error
from delta_proxy.s3.listing import ListQuery, encode_token
from delta_proxy.s3.sigv4 import quote_path

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
DEFAULT_REGION = "us-east-1"
_DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>\n'
_OWNER = "<Owner><ID>delta-s3-proxy</ID><DisplayName>delta-s3-proxy</DisplayName></Owner>"

_ESCAPED = re.compile(r"[&<>\"\t\n\r]")
_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "\t": "&#9;", "\n": "&#10;", "\r": "&#13;"}
_ILLEGAL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_SPECIAL = re.compile('[\x00-\x1f&<>"\ud800-\udfff\ufffe\uffff]')


class MalformedDocument(ValueError):
    """A document from the store that is not the one expected; the text says what is wrong with it."""


@frozen
class ListedKey:
    """A key in a listing: size in bytes, the ETag with its quotes, last_modified as ISO 8601 text."""

    key: str
    size: int
    etag: str
    last_modified: str
    storage_class: str = "STANDARD"


@frozen
class ListResult:
    """A page of a listing, sorted. `last` is the key or common prefix to go on after when it is truncated."""

    keys: tuple[ListedKey, ...] = ()
    prefixes: tuple[str, ...] = ()
    truncated: bool = False
    last: str = ""


@frozen
class UpstreamPage:
    """A page of a store's ListObjectsV2, its names decoded where the store had encoded them."""

    objects: tuple[ListedKey, ...]
    prefixes: tuple[str, ...]
    truncated: bool
    next_token: str | None


@frozen
class UpstreamError:
    """A store's error document. It is for the log: the client must not see its message."""

    code: str
    message: str


def error_document(error: S3Error, *, resource: str, request_id: str) -> bytes:
    """The Error document: code, message, the error's own fields, resource and request id."""
    children = {
        "Code": error.code,
        "Message": error.message,
        **error.fields,
        "Resource": resource,
        "RequestId": request_id,
    }
    body = "".join(_element(name, _ILLEGAL.sub("\ufffd", text)) for name, text in children.items())
    return f"{_DECLARATION}<Error>{body}</Error>".encode()


def list_buckets(names: Iterable[str], *, created: str) -> bytes:
    """The ListAllMyBucketsResult; `created` is ISO 8601 text."""
    buckets = "".join(
        f"<Bucket>{_element('Name', name)}{_element('CreationDate', created)}</Bucket>" for name in names
    )
    return _document("ListAllMyBucketsResult", f"{_OWNER}<Buckets>{buckets}</Buckets>")


def bucket_location(region: str) -> bytes:
    """The LocationConstraint; empty for us-east-1, as S3 has it."""
    return _document("LocationConstraint", "" if region == DEFAULT_REGION else escape(region))


def list_objects_v1(result: ListResult, query: ListQuery, *, bucket: str) -> bytes:
    """The ListBucketResult of ListObjects.

    NextMarker stands only with a delimiter, as S3 has it; without one the client goes on after the last key.
    Raises InvalidArgument for a name that XML cannot carry.
    """
    parts = [_name(query, "Marker", query.marker or "")]
    if result.truncated and query.delimiter:
        parts.append(_name(query, "NextMarker", result.last))
    return _listing(result, query, bucket, "".join(parts), owner=True)


def list_objects_v2(result: ListResult, query: ListQuery, *, bucket: str) -> bytes:
    """The ListBucketResult of ListObjectsV2. Raises InvalidArgument for a name that XML cannot carry."""
    parts = [_element("KeyCount", str(len(result.keys) + len(result.prefixes)))]
    if query.continuation_token is not None:
        parts.append(_element("ContinuationToken", query.continuation_token))
    if result.truncated:
        parts.append(_element("NextContinuationToken", encode_token(result.last)))
    if query.start_after is not None:
        parts.append(_name(query, "StartAfter", query.start_after))
    return _listing(result, query, bucket, "".join(parts), owner=query.fetch_owner)


def escape(text: str) -> str:
    """Character data of XML 1.0. Raises InvalidArgument for characters it cannot carry."""
    if not _SPECIAL.search(text):
        return text
    if _ILLEGAL.search(text):
        raise InvalidArgument(
            "The answer holds a name that XML 1.0 cannot carry: ask with encoding-type=url.",
            fields={"ArgumentName": "encoding-type"},
        )
    return _ESCAPED.sub(lambda match: _ESCAPES[match.group()], text)


def parse_document(body: bytes) -> ElementTree.Element:
    """The root of a UTF-8 document that has no DTD, hence no entities. Raises MalformedDocument."""
    # A NUL betrays UTF-16, which expat detects by itself: the search must see the text that the parser sees.
    if b"<!DOCTYPE" in body or b"<!ENTITY" in body or b"\x00" in body:
        raise MalformedDocument("a document type declaration, or no UTF-8")
    try:
        return ElementTree.fromstring(body.decode("utf-8"))  # noqa: S314 - a DTD has been refused
    except (ElementTree.ParseError, ValueError) as error:
        raise MalformedDocument(str(error)) from None


def local_name(element: ElementTree.Element) -> str:
    """The name of an element without its namespace: stores differ in whether they give one."""
    return element.tag.rpartition("}")[2]


def parse_list_result(body: bytes) -> UpstreamPage:
    """A store's ListBucketResult (version 2). Names are URL-decoded when the store says that it encoded them.

    Raises MalformedDocument for anything that is no such document, or that claims to go on without saying
    where.
    """
    root = parse_document(body)
    if local_name(root) != "ListBucketResult":
        raise MalformedDocument(f"a {local_name(root)[:100]} in place of a ListBucketResult")
    encoded = _text(root, "EncodingType") == "url"
    truncated = _text(root, "IsTruncated") == "true"
    token = _text(root, "NextContinuationToken") or None
    if truncated and token is None:
        raise MalformedDocument("a truncated listing without a continuation token")
    # The namespace is that of the root, or none: then the names are compared as they stand.
    space = root.tag[: -len("ListBucketResult")]
    contents, prefixes = f"{space}Contents", f"{space}CommonPrefixes"
    names = tuple(f"{space}{name}" for name in _FIELDS)
    return UpstreamPage(
        objects=tuple(_listed(child, names, encoded) for child in root if child.tag == contents),
        prefixes=tuple(_decoded(_text(child, "Prefix"), encoded) for child in root if child.tag == prefixes),
        truncated=truncated,
        next_token=token,
    )


def parse_error(body: bytes) -> UpstreamError:
    """A store's Error document. Raises MalformedDocument for anything else."""
    root = parse_document(body)
    if local_name(root) != "Error":
        raise MalformedDocument(f"a {local_name(root)[:100]} in place of an Error")
    return UpstreamError(_text(root, "Code"), _text(root, "Message"))


def _document(name: str, body: str) -> bytes:
    return f'{_DECLARATION}<{name} xmlns="{NAMESPACE}">{body}</{name}>'.encode()


def _element(name: str, text: str) -> str:
    return f"<{name}>{escape(text)}</{name}>"


def _name(query: ListQuery, element: str, text: str) -> str:
    """An element that holds a key or a part of one, URL-encoded when the client asked for that."""
    return _element(element, quote_path(text) if query.encoding_url else text)


def _listing(result: ListResult, query: ListQuery, bucket: str, paging: str, *, owner: bool) -> bytes:
    head = [
        _element("Name", bucket),
        _name(query, "Prefix", query.prefix),
        paging,
        _element("MaxKeys", str(query.max_keys)),
        _name(query, "Delimiter", query.delimiter) if query.delimiter else "",
        "<EncodingType>url</EncodingType>" if query.encoding_url else "",
        f"<IsTruncated>{'true' if result.truncated else 'false'}</IsTruncated>",
    ]
    keys = (_contents(key, query, _OWNER if owner else "") for key in result.keys)
    prefixes = (
        f"<CommonPrefixes>{_name(query, 'Prefix', prefix)}</CommonPrefixes>" for prefix in result.prefixes
    )
    return _document("ListBucketResult", "".join((*head, *keys, *prefixes)))


def _contents(key: ListedKey, query: ListQuery, owner: str) -> str:
    name = quote_path(key.key) if query.encoding_url else key.key
    tag = key.etag[1:-1]
    # A thousand keys a page: what needs no escapes, as nearly all do, is looked at once.
    if key.etag == f'"{tag}"' and not _SPECIAL.search(f"{name}{key.last_modified}{tag}{key.storage_class}"):
        return (
            f"<Contents><Key>{name}</Key><LastModified>{key.last_modified}</LastModified>"
            f"<ETag>&quot;{tag}&quot;</ETag><Size>{key.size}</Size>{owner}"
            f"<StorageClass>{key.storage_class}</StorageClass></Contents>"
        )
    return (
        f"<Contents>{_name(query, 'Key', key.key)}{_element('LastModified', key.last_modified)}"
        f"{_element('ETag', key.etag)}<Size>{key.size}</Size>{owner}"
        f"{_element('StorageClass', key.storage_class)}</Contents>"
    )


_FIELDS = ("Key", "Size", "ETag", "LastModified", "StorageClass")


def _listed(contents: ElementTree.Element, names: tuple[str, ...], encoded: bool) -> ListedKey:
    fields = {child.tag: child.text or "" for child in contents}
    key, size, etag, last_modified, storage_class = names
    try:
        return ListedKey(
            _decoded(fields[key], encoded),
            int(fields[size]),
            fields.get(etag, ""),
            fields[last_modified],
            fields.get(storage_class) or "STANDARD",
        )
    except (KeyError, ValueError) as error:
        raise MalformedDocument(f"an object in the listing: {error!r}") from None


def _decoded(text: str, encoded: bool) -> str:
    """A name as the store meant it: S3 writes a space as "+" and a plus as "%2B"."""
    try:
        return unquote_plus(text, errors="strict") if encoded and ("%" in text or "+" in text) else text
    except UnicodeDecodeError as error:
        raise MalformedDocument(str(error)) from None


def _text(parent: ElementTree.Element, name: str) -> str:
    """The text of the first child of this name, "" without one."""
    return next((child.text or "" for child in parent if local_name(child) == name), "")
