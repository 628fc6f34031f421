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
_CONNECTION = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
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
    fields = tuple(
        (name.lower(), value.strip(" \t"))
        for name, _, value in (row.partition(":") for row in rows.decode("latin-1").split("\r\n")[1:])
    )
    if len(fields) > _MOST_FIELDS:
        raise BadReply("the head has too many fields")
    return _framed(int(digits), fields, modern=minor == b"1", bodiless=bodiless)


def check_incomplete(buffered: bytes) -> None:
    """Refuse early what cannot become a head: raises BadReply."""
    if len(buffered) > MOST_HEAD_BYTES:
        raise BadReply("the head does not end")
    if not buffered.startswith(_BEGINNING[: len(buffered)]):
        raise BadReply("this is not HTTP/1")


def _framed(status: int, fields: tuple[tuple[str, str], ...], *, modern: bool, bodiless: bool) -> ReplyHead:
    lengths = {value for name, value in fields if name == "content-length"}
    codings = [value.lower() for name, value in fields if name == "transfer-encoding"]
    tokens = {
        token.strip().lower() for name, value in fields if name == "connection" for token in value.split(",")
    }
    without_body = status in _NO_BODY or status < 200
    kept = Headers(
        tuple(
            field
            for field in fields
            if field[0] not in _CONNECTION and not (without_body and field[0] == "content-length")
        )
    )
    length, chunked = _length(lengths, codings, modern=modern)
    if without_body or bodiless:
        length, chunked = 0, False
    return ReplyHead(status, kept, length, chunked, modern and "close" not in tokens)


def _length(lengths: set[str], codings: list[str], *, modern: bool) -> tuple[int | None, bool]:
    if codings and (lengths or not modern or codings != ["chunked"]):
        raise BadReply("the framing of the body is ambiguous or unknown")
    if len(lengths) > 1 or any(_LENGTH.fullmatch(value) is None for value in lengths):
        raise BadReply("the Content-Length is malformed")
    return (int(lengths.pop()) if lengths else None), bool(codings)
