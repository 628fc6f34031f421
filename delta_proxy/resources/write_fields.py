"""Which header fields of a write the store gets, and which of its answer the client."""

from __future__ import annotations

from typing import Final

from delta_proxy.s3.chunked import plain_encoding
from delta_proxy.s3.errors import NotImplementedByProxy
from delta_proxy.s3.headers import Headers

Fields = tuple[tuple[str, str], ...]

CONDITIONS: Final = frozenset({"if-match", "if-none-match"})
_SENT_ON: Final = frozenset(
    {
        *("cache-control", "content-disposition", "content-language", "content-md5", "content-type"),
        "expires",
        *("x-amz-tagging", "x-amz-storage-class", "x-amz-sdk-checksum-algorithm", "x-amz-mp-object-size"),
        *("x-amz-metadata-directive", "x-amz-tagging-directive", "x-amz-copy-source-range"),
    }
)
_SENT_ON_PREFIXES: Final = (
    "x-amz-meta-",
    "x-amz-checksum-",
    "x-amz-server-side-encryption",
    "x-amz-copy-source-if-",
    "x-amz-copy-source-server-side-encryption",
)
# They would do more than store bytes: open an object to others, lock it, append to it. Left out, the client
# would take them for done.
_REFUSED: Final = frozenset(
    {
        *("x-amz-expected-bucket-owner", "x-amz-source-expected-bucket-owner"),
        *("x-amz-website-redirect-location", "x-amz-write-offset-bytes"),
        *("x-amz-if-match-last-modified-time", "x-amz-if-match-size", "x-amz-bypass-governance-retention"),
    }
)
_REFUSED_PREFIXES: Final = ("x-amz-grant-", "x-amz-object-lock-")
_HARMLESS_ACLS: Final = frozenset({"private", "bucket-owner-read", "bucket-owner-full-control"})
_HANDED_BACK: Final = frozenset({"etag", "x-amz-object-size", "x-amz-storage-class"})
_HANDED_BACK_PREFIXES: Final = ("x-amz-checksum-", "x-amz-server-side-encryption")


def stored_fields(headers: Headers) -> Fields:
    """The fields that the store gets with an object: metadata, conditions, checksums, encryption.

    Raises NotImplementedByProxy for those that do more than store bytes.
    """
    refuse(headers)
    kept = [(name, value) for name, value in headers.items if _is_sent_on(name)]
    encoding = plain_encoding(",".join(headers.all("content-encoding")))
    if encoding is not None:
        kept.append(("content-encoding", encoding))
    return tuple(kept)


def refuse(headers: Headers) -> None:
    """Raises NotImplementedByProxy for fields that do more than store bytes."""
    for name, value in headers.items:
        opens = name == "x-amz-acl" and value not in _HARMLESS_ACLS
        # A store's own, cf-copy-destination-if-none-match say: left out, one commit would overwrite another.
        conditional = name.endswith("-match") and "if-" in name and not _is_sent_on(name)
        if opens or conditional or name in _REFUSED or name.startswith(_REFUSED_PREFIXES):
            raise NotImplementedByProxy(fields={"Header": name})


def only(fields: Fields, *names: str) -> Fields:
    """Those fields whose names begin so."""
    return tuple(pair for pair in fields if pair[0].startswith(names))


def handed_back(headers: Headers) -> Fields:
    """The fields of the store's answer that the client gets."""
    return tuple(
        (name, value)
        for name, value in headers.items
        if name in _HANDED_BACK or name.startswith(_HANDED_BACK_PREFIXES)
    )


def _is_sent_on(name: str) -> bool:
    return name in _SENT_ON or name in CONDITIONS or name.startswith(_SENT_ON_PREFIXES)
