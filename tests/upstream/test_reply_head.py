"""The head of a store's answer: what is understood, and what is refused because it could be two things."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta_proxy.s3.headers import Headers
from delta_proxy.upstream.reply_head import (
    MOST_HEAD_BYTES,
    BadReply,
    ReplyHead,
    check_incomplete,
    parse_reply_head,
)


def parsed(*rows: str, status: str = "HTTP/1.1 200 OK", bodiless: bool = False) -> ReplyHead:
    """The head of these rows."""
    return parse_reply_head("\r\n".join((status, *rows)).encode("latin-1"), bodiless=bodiless)


def test_a_head_is_its_status_its_fields_and_the_framing() -> None:
    head = parsed('ETag:  "a" ', "X-Amz-Meta-A: é", "Content-Length: 7", "X-Empty:")

    assert head == ReplyHead(
        200,
        Headers((("etag", '"a"'), ("x-amz-meta-a", "é"), ("content-length", "7"), ("x-empty", ""))),
        length=7,
        chunked=False,
        persistent=True,
    )


@pytest.mark.parametrize(
    ("status", "rows", "length", "chunked", "persistent"),
    [
        ("HTTP/1.1 200", (), None, False, True),
        ("HTTP/1.1 200 ", ("Connection: x, CLOSE", "content-length: 0"), 0, False, False),
        ("HTTP/1.0 200 OK", ("Content-Length: 1",), 1, False, False),
        ("HTTP/1.1 200 OK", ("Transfer-Encoding: Chunked",), None, True, True),
        ("HTTP/1.1 200 OK", ("Content-Length: 3", "content-length: 3"), 3, False, True),
        ("HTTP/1.1 204 No Content", ("Content-Length: 3",), 0, False, True),
        ("HTTP/1.1 304 Not Modified", ("Content-Length: 3",), 0, False, True),
        ("HTTP/1.1 100 Continue", (), 0, False, True),
    ],
)
def test_the_framing_of_a_body(
    status: str, rows: tuple[str, ...], length: int | None, chunked: bool, persistent: bool
) -> None:
    head = parsed(*rows, status=status)

    assert (head.length, head.chunked, head.persistent) == (length, chunked, persistent)


def test_the_answer_to_a_head_keeps_its_length_as_a_field_and_has_no_body() -> None:
    head = parsed("Content-Length: 12", bodiless=True)

    assert (head.length, head.headers.get("content-length")) == (0, "12")


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"HTTP/2 200 OK",
        b"HTTP/1.2 200 OK",
        b"HTTP/1.1 600 x",
        b"HTTP/1.1  200 OK",
        b"HTTP/1.1 20 OK",
        b"HTTP/1.1 2000 OK",
        b"ICY 200 OK",
        b"HTTP/1.1 200 OK\nA: b",
        b"HTTP/1.1 200 OK\r\nA: b\nC: d",
        b"HTTP/1.1 200 OK\r\nA: b\rC: d",
        b"HTTP/1.1 200 OK\r\nA: b\r\n folded",
        b"HTTP/1.1 200 OK\r\nA : b",
        b"HTTP/1.1 200 OK\r\n: b",
        b"HTTP/1.1 200 OK\r\nno colon",
        b"HTTP/1.1 200 OK\r\nA: \0",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1",
        b"HTTP/1.1 200 OK\r\nContent-Length: +1",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1_0",
        b"HTTP/1.1 200 OK\r\nContent-Length: \xb2",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0x1",
        b"HTTP/1.1 200 OK\r\nContent-Length:",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1, 1",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000000000",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked",
        b"HTTP/1.1 200 OK" + b"\r\nA: b" * 257,
    ],
)
def test_what_could_be_two_things_is_refused(block: bytes) -> None:
    with pytest.raises(BadReply):
        parse_reply_head(block, bodiless=False)


@pytest.mark.parametrize("begun", [b"", b"H", b"HTTP/1.", b"HTTP/1.1 200 OK\r\nA: b\r\n"])
def test_a_head_that_may_yet_become_one_is_waited_for(begun: bytes) -> None:
    check_incomplete(begun)


@pytest.mark.parametrize("begun", [b"\r\n", b"SSH-2.0", b"HTTP/2", b"HTTP/1." + b"x" * MOST_HEAD_BYTES])
def test_what_will_never_be_a_head_is_not_waited_for(begun: bytes) -> None:
    with pytest.raises(BadReply):
        check_incomplete(begun)


_NAMES = st.sampled_from(
    ["ETag", "x-a", "Content-Length", "Transfer-Encoding", "Connection", "A!", "b c", ""]
)
_VALUES = st.one_of(
    st.sampled_from(["5", "chunked", "close", " 5 ", "5, 5", "\t", "a\rb", "a\nb", "é"]), st.text(max_size=9)
)


@given(st.lists(st.tuples(_NAMES, _VALUES), max_size=6), st.booleans())
def test_whatever_is_understood_is_framed_in_one_way(rows: list[tuple[str, str]], bodiless: bool) -> None:
    text = "".join(f"\r\n{name}: {value}" for name, value in rows)
    try:
        head = parse_reply_head(f"HTTP/1.1 200 OK{text}".encode("latin-1", "replace"), bodiless=bodiless)
    except BadReply:
        return
    given = [(name.lower(), value.strip(" \t")) for name, value in rows]
    lengths = {value for name, value in given if name == "content-length"}
    assert not (lengths and any(name == "transfer-encoding" for name, _ in given))
    assert bodiless or head.length == (int(lengths.pop()) if lengths else None)
    assert all(not set("\r\n\0") & set(name + value) for name, value in head.headers.items)


@given(st.binary(max_size=80))
def test_any_bytes_are_a_head_or_refused(block: bytes) -> None:
    try:
        head = parse_reply_head(b"HTTP/1.1 200 OK\r\n" + block, bodiless=False)
    except BadReply:
        return
    assert head.length is None or head.length >= 0


def test_a_length_that_is_told_twice_is_passed_on_once() -> None:
    assert parsed("Content-Length: 5", "Content-Length: 5").headers.all("content-length") == ("5",)
