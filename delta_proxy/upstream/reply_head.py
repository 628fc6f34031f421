"""The head of an HTTP/1 response, parsed strictly: status, header fields and how the body is framed.

RFC 9112 sections 4 to 6. What two readers could understand differently is refused, because the proxy would
take the end of one answer for the beginning of the next: bare CR or LF, folded fields, repeated or mixed
framing fields, another transfer coding than chunked. Pure: bytes in, a frozen value out.
"""

from __future__ import annotations

import re

from attrs import frozen

from delta_proxy.s3.headers import Headers

MOST_HEAD_BYTES = 64 * 1024
END = b"\r\n\r\n"

_TEXT = rb"[\t -~\x80-\xff]*"
_HEAD = re.compile(
    rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: " + _TEXT + rb")?"
    rb"((?:\r\n[!#$%&'*+\-.^_`|~0-9A-Za-z]+:" + _TEXT + rb")*)"
)
_BEGINNING = b"HTTP/1."
_LENGTH = re.compile(r"[0-9]{1,18}")
_MOST_FIELDS = 256
_NO_BODY = frozenset({204, 304})
# Content-Length, and the fields of the connection (RFC 9110 section 7.6.1), which end here.
_FRAMING = frozenset(
    {
        *("connection", "content-length", "keep-alive", "proxy-connection", "te", "trailer"),
        *("transfer-encoding", "upgrade"),
    }
)


class BadReply(Exception):
    """What came is no answer of HTTP/1, or one that could be understood in two ways."""


@frozen
class ReplyHead:
    """A response without its body.

    `headers` are without the fields of the connection. `length` is the body's size in bytes; None is a body
    that ends with its last chunk, when `chunked`, else with the connection. `persistent` says that the
    connection may serve another request.
    """

    status: int
    headers: Headers
    length: int | None
    chunked: bool
    persistent: bool


def parse_reply_head(block: bytes, *, bodiless: bool) -> ReplyHead:
    """The head in a block without the empty line that ends it; `bodiless` for the answer to a HEAD.

    Raises BadReply.
    """
    match = _HEAD.fullmatch(block)
    if match is None:
        raise BadReply("the head is malformed")
    minor, digits, rows = match.groups()
    status, modern = int(digits), minor == b"1"
    without_body = status in _NO_BODY or status < 200
    kept: list[tuple[str, str]] = []
    lengths: set[str] = set()
    codings: list[str] = []
    persistent = modern
    for row in rows.decode("latin-1").split("\r\n")[1:]:
        name, _, value = row.partition(":")
        name, value = name.lower(), value.strip(" \t")
        if name not in _FRAMING:
            kept.append((name, value))
        elif name == "content-length":
            if not without_body and value not in lengths:
                kept.append((name, value))
            lengths.add(value)
        elif name == "transfer-encoding":
            codings.append(value.lower())
        elif name == "connection" and "close" in {token.strip() for token in value.lower().split(",")}:
            persistent = False
    if len(kept) > _MOST_FIELDS:
        raise BadReply("the head has too many fields")
    length, chunked = _length(lengths, codings, modern=modern)
    if without_body or bodiless:
        length, chunked = 0, False
    return ReplyHead(status, Headers(tuple(kept)), length, chunked, persistent)


def check_incomplete(buffered: bytes) -> None:
    """Refuse early what cannot become a head: raises BadReply."""
    if len(buffered) > MOST_HEAD_BYTES:
        raise BadReply("the head does not end")
    if not buffered.startswith(_BEGINNING[: len(buffered)]):
        raise BadReply("this is not HTTP/1")


def _length(lengths: set[str], codings: list[str], *, modern: bool) -> tuple[int | None, bool]:
    if codings and (lengths or not modern or codings != ["chunked"]):
        raise BadReply("the framing of the body is ambiguous or unknown")
    if len(lengths) > 1 or any(_LENGTH.fullmatch(value) is None for value in lengths):
        raise BadReply("the Content-Length is malformed")
    return (int(lengths.pop()) if lengths else None), bool(codings)
