"""The documents of S3: what the proxy answers, and what it reads from the store.

XML 1.0 has no way to write most control characters, U+FFFE and U+FFFF, not even as references. A listing
that holds such a key can only be given with `encoding-type=url`; without it the listing is refused with
InvalidArgument saying so, since leaving the key out, or writing another name for it, would be a wrong
answer. In error documents, whose text is for people, such characters are replaced by U+FFFD.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from xml.etree import ElementTree

from attrs import frozen

from delta_proxy.s3.errors import InvalidArgument, S3Error
from delta_proxy.s3.list_rows import FIELDS, decoded_names, quoted_paths, read_rows
from delta_proxy.s3.listing import ListQuery, encode_token
from delta_proxy.s3.sigv4 import quote_path

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
DEFAULT_REGION = "us-east-1"
_STANDARD = "STANDARD"
DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>\n'
"""What every document begins with."""
_OWNER = "<Owner><ID>delta-s3-proxy</ID><DisplayName>delta-s3-proxy</DisplayName></Owner>"

_ESCAPED = re.compile(r"[&<>\"\t\n\r]")
_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "\t": "&#9;", "\n": "&#10;", "\r": "&#13;"}
_ILLEGAL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_HARMLESS = bytes(code for code in range(0x20, 0x80) if chr(code) not in "&<>") + b"\n"
_SPECIAL = re.compile('[\x00-\x1f&<>"\ud800-\udfff\ufffe\uffff]')


class MalformedDocument(ValueError):
    """A document from the store that is not the one expected; the text says what is wrong with it."""


class ListedKey(NamedTuple):
    """A key in a listing: size in bytes, the ETag with its quotes, last_modified as ISO 8601 text.

    A page has a thousand of them, and a tuple is made in a fifth of the time.
    """

    key: str
    size: int
    etag: str
    last_modified: str
    storage_class: str = _STANDARD


@frozen
class ListResult:
    """A page of a listing, sorted. `last` is the key or common prefix to go on after when it is truncated."""

    keys: tuple[ListedKey, ...] = ()
    prefixes: tuple[str, ...] = ()
    truncated: bool = False
    last: str = ""


@frozen
class UpstreamPage:
    """A page of a store's ListObjectsV2, its names decoded where the store had encoded them.

    The objects are in columns, as the fields of ListedKey are.
    """

    columns: tuple[list[str], list[int], list[str], list[str], list[str]]
    prefixes: tuple[str, ...]
    truncated: bool
    next_token: str | None

    @property
    def objects(self) -> tuple[ListedKey, ...]:
        """The objects one by one."""
        return tuple(map(ListedKey, *self.columns))


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
    return f"{DECLARATION}<Error>{body}</Error>".encode()


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
    rows = read_rows(body)
    root = parse_document(body if rows is None else rows.skeleton.encode())
    if local_name(root) != "ListBucketResult":
        raise MalformedDocument(f"a {local_name(root)[:100]} in place of a ListBucketResult")
    encoded = _text(root, "EncodingType") == "url"
    truncated = _text(root, "IsTruncated") == "true"
    token = _text(root, "NextContinuationToken") or None
    if truncated and token is None:
        raise MalformedDocument("a truncated listing without a continuation token")
    # The namespace is that of the root, or none: then the names are compared as they stand.
    space = root.tag[: -len("ListBucketResult")]
    objects = [child for child in root if child.tag == f"{space}Contents"]
    if rows is not None and len(objects) != 1:
        raise MalformedDocument("objects within other elements of the listing")
    prefixes = [_text(child, "Prefix") for child in root if child.tag == f"{space}CommonPrefixes"]
    columns = _columns(objects, space) if rows is None else rows.columns
    try:
        return UpstreamPage(
            _listed(columns, encoded), tuple(_decoded(prefixes, encoded)), truncated, next_token=token
        )
    except ValueError as error:
        raise MalformedDocument(f"a name or a size in the listing: {error!r}") from None


def parse_error(body: bytes) -> UpstreamError:
    """A store's Error document. Raises MalformedDocument for anything else."""
    root = parse_document(body)
    if local_name(root) != "Error":
        raise MalformedDocument(f"a {local_name(root)[:100]} in place of an Error")
    return UpstreamError(_text(root, "Code"), _text(root, "Message"))


def _document(name: str, body: str) -> bytes:
    return f'{DECLARATION}<{name} xmlns="{NAMESPACE}">{body}</{name}>'.encode()


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
    keys = _contents(result.keys, query, _OWNER if owner else "")
    prefixes = (
        f"<CommonPrefixes>{_name(query, 'Prefix', prefix)}</CommonPrefixes>" for prefix in result.prefixes
    )
    return _document("ListBucketResult", "".join((*head, *keys, *prefixes)))


def _contents(keys: Sequence[ListedKey], query: ListQuery, owner: str) -> list[str]:
    if not keys:
        return []
    names, sizes, etags, times, classes = zip(*keys, strict=True)
    columns = (
        _escaped(quoted_paths(names) if query.encoding_url else names),
        _escaped(times),
        _escaped(etags),
        sizes,
        _escaped(classes),
    )
    return [
        f"<Contents><Key>{name}</Key><LastModified>{time}</LastModified><ETag>{etag}</ETag><Size>{size}</Size>"
        f"{owner}<StorageClass>{storage_class}</StorageClass></Contents>"
        for name, time, etag, size, storage_class in zip(*columns, strict=True)
    ]


def _escaped(texts: Sequence[str]) -> Sequence[str]:
    """`escape` of each text; what needs none, as nearly all do, is looked at in one piece."""
    whole = "\n".join(texts)
    if not whole.isascii() or whole.encode().translate(None, _HARMLESS) or whole.count("\n") >= len(texts):
        return [escape(text) for text in texts]
    return whole.replace('"', _ESCAPES['"']).split("\n") if '"' in whole else texts


_Columns = Sequence[list[str] | None]


def _columns(entries: Sequence[ElementTree.Element], space: str) -> _Columns:
    """The texts of the entries' elements, as `read_rows` gives them."""
    found = [{child.tag: child.text or "" for child in entry} for entry in entries]
    try:
        return [
            [fields.get(f"{space}{name}", "") for fields in found]
            if name in {"ETag", "StorageClass"}
            else [fields[f"{space}{name}"] for fields in found]
            for name in FIELDS
        ]
    except KeyError as error:
        raise MalformedDocument(f"an object in the listing without {error}") from None


def _listed(columns: _Columns, encoded: bool) -> tuple[list[str], list[int], list[str], list[str], list[str]]:
    """The columns of a page. Raises ValueError for a name or a size that is none."""
    names, sizes, etags, times, classes = columns
    assert names is not None
    assert sizes is not None
    assert times is not None
    count = len(names)
    return (
        _decoded(names, encoded),
        list(map(int, sizes)),
        [""] * count if etags is None else etags,
        times,
        [each or _STANDARD for each in classes or [""] * count],
    )


def _decoded(names: list[str], encoded: bool) -> list[str]:
    """Names as the store meant them. Raises ValueError."""
    return decoded_names(names) if encoded else names


def _text(parent: ElementTree.Element, name: str) -> str:
    """The text of the first child of this name, "" without one."""
    return next((child.text or "" for child in parent if local_name(child) == name), "")
