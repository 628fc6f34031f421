"""The head of an HTTP/1 request, parsed strictly: request line, header fields and how the body is framed.

RFC 9112, with everything that two readers could understand differently refused: bare CR or LF, folded fields,
space before the colon, repeated or mixed framing fields, another transfer coding than chunked. Pure: bytes
in, a frozen value out.
"""

from __future__ import annotations

import re

from attrs import frozen

from delta_proxy.s3.errors import (
    EntityTooLarge,
    InvalidRequest,
    InvalidURI,
    RequestHeaderSectionTooLarge,
    S3Error,
)

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb"{1,32}) ([!-~\x80-\xff]+) HTTP/(\d\.\d)")
_FIELD = re.compile(rb"(" + _TOKEN + rb"+):[ \t]*([\t -~\x80-\xff]*)")
_BEGINNING = re.compile(_TOKEN + rb"{0,32}(?: [!-~\x80-\xff]*(?: [HTP/0-9.]{0,8}\r?)?)?")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"host", b"connection", b"expect"})


class UriTooLong(InvalidURI):
    """A request target beyond the bound: InvalidURI, with the status of RFC 9110 section 15.5.15."""

    code = "InvalidURI"
    status = 414
    default_message = "The request URI is too long."


@frozen
class HeadLimits:
    """Bounds of a head, in bytes; `fields` is a number of header fields."""

    size: int = 32 * 1024
    target: int = 16 * 1024
    fields: int = 128


@frozen
class RequestHead:
    """A request without its body.

    `target` is the request target as it was sent. `fields` are the header fields in the order and with the
    names of the wire, values without outer spaces. `length` is the body's size in bytes, None for a chunked
    body, 0 for no body.
    """

    method: bytes
    target: bytes
    version: bytes
    fields: tuple[tuple[bytes, bytes], ...]
    length: int | None
    persistent: bool
    expects_continue: bool


def parse_head(block: bytes, limits: HeadLimits) -> RequestHead:
    """The head in a block of lines without the empty line that ends it.

    Raises InvalidRequest for what is not HTTP/1.0 or 1.1, UriTooLong and RequestHeaderSectionTooLarge.
    """
    line, *lines = block.removeprefix(b"\r\n").split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise InvalidRequest("The request line is malformed.")
    method, target, digits = match.groups()
    if digits not in (b"1.1", b"1.0"):
        raise InvalidRequest("The HTTP version is not supported.")
    if len(target) > limits.target:
        raise UriTooLong
    if len(lines) > limits.fields:
        raise RequestHeaderSectionTooLarge
    fields = tuple(_field(text) for text in lines)
    length, persistent, expects = _framing(fields, modern=digits == b"1.1")
    return RequestHead(method, target, b"HTTP/" + digits, fields, length, persistent, expects)


def check_beginning(buffered: bytes) -> None:
    """Refuse early what cannot become a request: raises InvalidRequest if no head begins so."""
    text = buffered.removeprefix(b"\r\n")
    line, newline, _ = text.partition(b"\n")
    if newline and not line.endswith(b"\r"):
        raise InvalidRequest("A line does not end with CR LF.")
    if newline and line != b"\r" and _REQUEST_LINE.fullmatch(line[:-1]) is None:
        raise InvalidRequest("The request line is malformed.")
    if not newline and text != b"\r" and _BEGINNING.fullmatch(text) is None:
        raise InvalidRequest("The request line is malformed.")


def too_long(buffered: bytes, limits: HeadLimits) -> S3Error:
    """The error for a head that does not end within the bound, by what is to blame: target or fields."""
    if b"\r\n" in buffered[: limits.target + 64]:
        return RequestHeaderSectionTooLarge()
    return UriTooLong()


def method_of(buffered: bytes) -> bytes:
    """The method of a head that may be malformed further on, or b"" when there is none."""
    method, space, _ = buffered.removeprefix(b"\r\n")[:33].partition(b" ")
    return method if space and re.fullmatch(_TOKEN + rb"+", method) else b""


def _field(text: bytes) -> tuple[bytes, bytes]:
    match = _FIELD.fullmatch(text)
    if match is None:
        raise InvalidRequest(_complaint(text))
    name, value = match.groups()
    return name, value.rstrip(b" \t")


def _complaint(text: bytes) -> str:
    if text[:1] in (b" ", b"\t"):
        return "A header field is folded over lines."
    return "A header field is malformed."


def _framing(fields: tuple[tuple[bytes, bytes], ...], *, modern: bool) -> tuple[int | None, bool, bool]:
    """Length of the body, whether the connection may stay open, whether 100 Continue is awaited."""
    found: dict[bytes, list[bytes]] = {}
    for name, value in fields:
        lower = name.lower()
        if lower in _FRAMING:
            found.setdefault(lower, []).append(value)
    hosts = found.get(b"host", [])
    if len(hosts) > 1 or (modern and not hosts):
        raise InvalidRequest("Exactly one Host header is required.")
    tokens = {token.strip().lower() for value in found.get(b"connection", []) for token in value.split(b",")}
    expects = modern and any(value.lower() == b"100-continue" for value in found.get(b"expect", []))
    length = _length(found.get(b"content-length", []), found.get(b"transfer-encoding", []), modern=modern)
    return length, modern and b"close" not in tokens, expects and length != 0


def _length(lengths: list[bytes], codings: list[bytes], *, modern: bool) -> int | None:
    if lengths and codings:
        raise InvalidRequest("Content-Length and Transfer-Encoding exclude each other.")
    if codings:
        if not modern or [coding.lower() for coding in codings] != [b"chunked"]:
            raise InvalidRequest("The transfer encoding is not supported.")
        return None
    if not lengths:
        return 0
    if len(lengths) > 1 or not lengths[0].isdigit():
        raise InvalidRequest("The Content-Length header is malformed.")
    if _LENGTH.fullmatch(lengths[0]) is None:
        raise EntityTooLarge
    return int(lengths[0])
