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
from delta_proxy.s3.headers import Headers

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb"{1,32}) ([!-~\x80-\xff]+) HTTP/(\d\.\d)")
_FIELD = re.compile(_TOKEN + rb"+:[\t -~\x80-\xff]*")
_FIELDS = re.compile(rb"(?:" + _TOKEN + rb"++:[\t -~\x80-\xff]*+\r\n)*+")
_BEGINNING = re.compile(_TOKEN + rb"{0,32}(?: [!-~\x80-\xff]*(?: [HTP/0-9.]{0,8}\r?)?)?")
_MOST_DIGITS = 18
# Without any of these a request has no body, waits for nothing, and leaves the connection open.
_FRAMING = frozenset({"content-length", "transfer-encoding", "expect", "connection"})


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

    `target` is the request target as it was sent, `lines` are the header fields as they were. `length` is the
    body's size in bytes, None for a chunked body, 0 for no body.
    """

    method: bytes
    target: bytes
    version: bytes
    headers: Headers
    lines: tuple[bytes, ...]
    length: int | None
    persistent: bool
    expects_continue: bool

    @property
    def fields(self) -> tuple[tuple[bytes, bytes], ...]:
        """The header fields in the order and with the names of the wire, values without outer spaces."""
        pairs = (line.partition(b":") for line in self.lines)
        return tuple((name, value.strip(b" \t")) for name, _, value in pairs)


def parse_head(block: bytes, limits: HeadLimits) -> RequestHead:
    """The head in a block of lines without the empty line that ends it.

    Raises InvalidRequest for what is not HTTP/1.0 or 1.1, UriTooLong and RequestHeaderSectionTooLarge.
    """
    line, _, rest = block.removeprefix(b"\r\n").partition(b"\r\n")
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise InvalidRequest("The request line is malformed.")
    method, target, digits = match.groups()
    if digits not in (b"1.1", b"1.0"):
        raise InvalidRequest("The HTTP version is not supported.")
    if len(target) > limits.target:
        raise UriTooLong
    lines = tuple(rest.split(b"\r\n")) if rest else ()
    if len(lines) > limits.fields:
        raise RequestHeaderSectionTooLarge
    headers = _headers(rest, lines)
    length, persistent, expects = _framing(headers, modern=digits == b"1.1")
    return RequestHead(method, target, b"HTTP/" + digits, headers, lines, length, persistent, expects)


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


def _headers(block: bytes, lines: tuple[bytes, ...]) -> Headers:
    """The fields of a block, checked in one go. Raises InvalidRequest."""
    if lines and _FIELDS.fullmatch(block + b"\r\n") is None:
        raise InvalidRequest(_complaint(next(line for line in lines if not _FIELD.fullmatch(line))))
    pairs = [line.partition(":") for line in block.decode("latin-1").split("\r\n")] if lines else []
    return Headers(tuple([(name.lower(), value.strip(" \t")) for name, _, value in pairs]))


def _complaint(text: bytes) -> str:
    if text[:1] in (b" ", b"\t"):
        return "A header field is folded over lines."
    return "A header field is malformed."


def _framing(headers: Headers, *, modern: bool) -> tuple[int | None, bool, bool]:
    """Length of the body, whether the connection may stay open, whether 100 Continue is awaited."""
    hosts = headers.all("host")
    if len(hosts) > 1 or (modern and not hosts):
        raise InvalidRequest("Exactly one Host header is required.")
    if headers.lacks(_FRAMING):
        return 0, modern, False
    length = _length(headers.all("content-length"), headers.all("transfer-encoding"), modern=modern)
    expects = modern and any(value.lower() == "100-continue" for value in headers.all("expect"))
    return length, modern and not _closes(headers.all("connection")), expects and length != 0


def _closes(connection: tuple[str, ...]) -> bool:
    return any(token.strip(" \t").lower() == "close" for value in connection for token in value.split(","))


def _length(lengths: tuple[str, ...], codings: tuple[str, ...], *, modern: bool) -> int | None:
    if lengths and codings:
        raise InvalidRequest("Content-Length and Transfer-Encoding exclude each other.")
    if codings:
        if not modern or [coding.lower() for coding in codings] != ["chunked"]:
            raise InvalidRequest("The transfer encoding is not supported.")
        return None
    if not lengths:
        return 0
    if len(lengths) > 1 or not (lengths[0].isascii() and lengths[0].isdigit()):
        raise InvalidRequest("The Content-Length header is malformed.")
    if len(lengths[0]) > _MOST_DIGITS:
        raise EntityTooLarge
    return int(lengths[0])
