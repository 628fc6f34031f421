"""The entries of a listing in columns: a page has a thousand, and what is done to a column is done in C.

A store's page is read by one pattern. Only what is sure to mean the same to an XML parser is read so: entries
of equal shape one behind the other, whose elements hold text alone. For the rest there is None, and the
caller parses the document.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from functools import lru_cache
from typing import Final
from urllib.parse import unquote_plus

from attrs import frozen

from delta_proxy.s3.sigv4 import quote_path

FIELDS: Final = ("Key", "Size", "ETag", "LastModified", "StorageClass")
"""The elements of an entry that are read; the first, second and fourth must be there."""
_REQUIRED: Final = frozenset({"Key", "Size", "LastModified"})
_OPEN: Final = "<Contents>"
_CLOSE: Final = "</Contents>"
_STAND_IN: Final = "<Contents/>"
_LEAF: Final = re.compile(r"<([A-Za-z]+)>[^<]*</\1>")
# Some objects of a bucket have a checksum, and others have none: they stand behind the ETag in S3.
_SOMETIMES: Final = "(?:<Checksum[A-Za-z]++>[^<]*+</Checksum[A-Za-z]++>)*+"
_CHECKSUM: Final = "Checksum"
# What a parser refuses, or reads as something else, is left to the parser.
_NOT_PLAIN: Final = bytes(number for number in range(0x20) if number not in b"\t\n")
_TELLING: Final = (("!", "<!"), ("]", "]]>"), ("\ufffe", "\ufffe"), ("\uffff", "\uffff"))
_UNQUOTED: Final = f"{string.ascii_letters}{string.digits}-._~/\n".encode()
_QUOTES: Final = ("&#34;", "&quot;")
_AMPERSAND: Final = re.compile(r"&(?:amp|lt|gt|apos|quot|#34|#38|#39|#43);")
_MEANT: Final = {
    "&amp;": "&",
    "&lt;": "<",
    "&gt;": ">",
    "&apos;": "'",
    "&quot;": '"',
    "&#34;": '"',
    "&#38;": "&",
    "&#39;": "'",
    "&#43;": "+",
}


@frozen
class Rows:
    """The columns of the entries, and the document with one empty entry in their place.

    Texts are as a parser gives them; an element that no entry has is None.
    """

    skeleton: str
    columns: tuple[list[str] | None, ...]


def read_rows(body: bytes) -> Rows | None:
    """The entries of a listing; None when the document must be parsed to be sure of them."""
    if len(body.translate(None, _NOT_PLAIN)) != len(body):
        return None
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        return None
    # To look for one character takes no time beside looking for two.
    if any(sign in text and mark in text for sign, mark in _TELLING):
        return None
    begin, end = text.find(_OPEN), text.rfind(_CLOSE) + len(_CLOSE)
    if begin < 0 or end <= begin:
        return None
    tags = tuple(_LEAF.findall(text[begin + len(_OPEN) : text.index(_CLOSE, begin)]))
    if not _REQUIRED.issubset(tags) or len(set(tags)) != len(tags):
        return None
    return _read(text, begin, end, tags)


def _read(text: str, begin: int, end: int, tags: tuple[str, ...]) -> Rows | None:
    pattern, order = _pattern(tags)
    parts = pattern.split(text[begin:end])
    width = len(order) + 1
    # Between the entries may be white space, and nothing else.
    if "".join(parts[::width]).strip():
        return None
    columns: dict[str, list[str]] = {}
    for number, tag in enumerate(order, 1):
        plain = _without_references(parts[number::width])
        if plain is None:
            return None
        columns[tag] = plain
    skeleton = f"{text[:begin]}{_STAND_IN}{text[end:]}"
    return Rows(skeleton, tuple(columns.get(field) for field in FIELDS))


@lru_cache(64)
def _pattern(tags: tuple[str, ...]) -> tuple[re.Pattern[str], tuple[str, ...]]:
    """A pattern of an entry with these elements in this order, and which of them it gives."""
    given = tuple(tag for tag in tags if tag in FIELDS)
    elements = [f"<{tag}>{_text(tag)}</{tag}>" for tag in tags if not tag.startswith(_CHECKSUM)]
    places = [number for number, tag in enumerate(tags) if tag.startswith(_CHECKSUM)]
    behind_etag = tags.index("ETag") + 1 if "ETag" in tags else len(elements)
    elements.insert(places[0] if places else behind_etag, _SOMETIMES)
    return re.compile(_OPEN + "".join(elements) + _CLOSE), given


def _text(tag: str) -> str:
    return "([^<]*+)" if tag in FIELDS else "[^<]*+"


def _without_references(texts: list[str]) -> list[str] | None:
    """Texts with their references resolved; None where there is one that only a parser knows."""
    whole = "<".join(texts)
    if "&" not in whole:
        return texts
    for reference in _QUOTES:
        whole = whole.replace(reference, '"')
    if "&" not in whole:
        return whole.split("<")
    if _AMPERSAND.sub("", whole).count("&"):
        return None
    return [_AMPERSAND.sub(lambda match: _MEANT[match.group()], text) for text in texts]


def decoded_names(names: list[str]) -> list[str]:
    """Names as the store meant them: S3 writes a space as "+" and a plus as "%2B".

    Raises UnicodeDecodeError.
    """
    whole = "\n".join(names)
    if "%" not in whole and "+" not in whole:
        return names
    if "%0a" in whole.lower() or whole.count("\n") != len(names) - 1:
        return [unquote_plus(name, errors="strict") for name in names]
    return unquote_plus(whole, errors="strict").split("\n")


def quoted_paths(names: Sequence[str]) -> Sequence[str]:
    """`quote_path` of each name."""
    whole = "\n".join(names)
    if not whole.isascii() or whole.count("\n") >= len(names):
        return [quote_path(name) for name in names]
    # The sign of the escapes first: it must not meet those of the others.
    for code in sorted(set(whole.encode().translate(None, _UNQUOTED)), key=ord("%").__ne__):
        whole = whole.replace(chr(code), f"%{code:02X}")
    return whole.split("\n")
