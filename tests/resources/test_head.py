from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta_proxy.resources.head import (
    HeadLimits,
    RequestHead,
    UriTooLong,
    check_beginning,
    method_of,
    parse_head,
    too_long,
)
from delta_proxy.s3.errors import (
    EntityTooLarge,
    InvalidRequest,
    RequestHeaderSectionTooLarge,
    S3Error,
)

LIMITS = HeadLimits(size=4096, target=1024, fields=20)


def head(
    *fields: bytes, line: bytes = b"GET /datalake/t HTTP/1.1", host: bytes = b"Host: proxy"
) -> RequestHead:
    return parse_head(b"\r\n".join((line, *([host] if host else []), *fields)), LIMITS)


def test_method_target_and_fields_are_those_of_the_wire() -> None:
    parsed = head(
        b"x-amz-Date:  20260101T000000Z \t",
        b"Accept:",
        b"x-amz-date: again",
        line=b"GET /b/a%20b/../c//d?x=1&y HTTP/1.1",
    )
    assert (parsed.method, parsed.target) == (b"GET", b"/b/a%20b/../c//d?x=1&y")
    assert parsed.fields == (
        (b"Host", b"proxy"),
        (b"x-amz-Date", b"20260101T000000Z"),
        (b"Accept", b""),
        (b"x-amz-date", b"again"),
    )
    assert parsed.length == 0


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"GET",
        b"GET /",
        b"GET  / HTTP/1.1",
        b"GET / HTTP/1.1 ",
        b" GET / HTTP/1.1",
        b"GET\t/\tHTTP/1.1",
        b"GET /a b HTTP/1.1",
        b"GET /a\x00b HTTP/1.1",
        b"GET /a\x7fb HTTP/1.1",
        b"GET /a\rb HTTP/1.1",
        b"GET /a\nb HTTP/1.1",
        b"G(T / HTTP/1.1",
        b"GET / HTTP/2.0",
        b"GET / HTTP/1.2",
        b"GET / HTTP/0.9",
        b"GET / http/1.1",
        b"GET / HTTP/1.10",
        b"PRI * HTTP/2.0",
        b"A" * 33 + b" / HTTP/1.1",
    ],
)
def test_a_malformed_request_line_or_version_is_refused(line: bytes) -> None:
    with pytest.raises(InvalidRequest):
        head(line=line)


@pytest.mark.parametrize(
    "field",
    [
        b"no colon",
        b": no name",
        b"name : space before the colon",
        b"na me: x",
        b"na(me: x",
        b" folded: x",
        b"\tfolded",
        b"name: a\x00b",
        b"name: a\rb",
        b"name: a\nb: c",
        b"name: a\x1bb",
        b"n\xc3\xa4me: x",
    ],
)
def test_a_malformed_or_folded_field_is_refused(field: bytes) -> None:
    with pytest.raises(InvalidRequest):
        head(field)


@pytest.mark.parametrize(
    "fields",
    [
        (b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        (b"Content-Length: 5", b"Content-Length: 5"),
        (b"Content-Length: 5", b"content-length: 6"),
        (b"Content-Length: 5, 5",),
        (b"Content-Length: +5",),
        (b"Content-Length: -1",),
        (b"Content-Length: 0x5",),
        (b"Content-Length: 1_0",),
        (b"Content-Length:",),
        (b"Transfer-Encoding: gzip",),
        (b"Transfer-Encoding: gzip, chunked",),
        (b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: chunked, identity",),
        (b"Transfer-Encoding: identity",),
    ],
)
def test_framing_that_two_readers_could_take_differently_is_refused(fields: tuple[bytes, ...]) -> None:
    with pytest.raises(InvalidRequest):
        head(*fields)


def test_chunked_coding_needs_http_1_1() -> None:
    assert head(b"Transfer-Encoding: Chunked").length is None
    with pytest.raises(InvalidRequest):
        head(b"Transfer-Encoding: chunked", line=b"POST / HTTP/1.0")


def test_a_length_beyond_all_sizes_is_too_large() -> None:
    assert head(b"Content-Length: 5000000000000").length == 5_000_000_000_000
    with pytest.raises(EntityTooLarge):
        head(b"Content-Length: " + b"9" * 19)


def test_http_1_1_needs_exactly_one_host_and_http_1_0_at_most_one() -> None:
    assert head(line=b"GET / HTTP/1.0", host=b"").version == b"HTTP/1.0"
    for line, fields in ((b"GET / HTTP/1.1", ()), (b"GET / HTTP/1.0", (b"Host: a", b"Host: b"))):
        with pytest.raises(InvalidRequest):
            head(*fields, line=line, host=b"")


@pytest.mark.parametrize(
    ("line", "fields", "persistent"),
    [
        (b"GET / HTTP/1.1", (), True),
        (b"GET / HTTP/1.1", (b"Connection: keep-alive",), True),
        (b"GET / HTTP/1.1", (b"Connection: Close",), False),
        (b"GET / HTTP/1.1", (b"Connection: te,close",), False),
        (b"GET / HTTP/1.1", (b"Connection: te", b"Connection: close"), False),
        (b"GET / HTTP/1.0", (), False),
    ],
)
def test_a_connection_stays_open_unless_close_is_among_the_tokens_or_it_is_http_1_0(
    line: bytes, fields: tuple[bytes, ...], persistent: bool
) -> None:
    assert head(*fields, line=line).persistent is persistent


def test_a_client_waits_for_continue_only_with_a_body_and_http_1_1() -> None:
    assert head(b"Expect: 100-Continue", b"Content-Length: 3").expects_continue
    assert not head(b"Expect: 100-continue").expects_continue
    assert not head(b"Expect: 100-continue", b"Content-Length: 3", line=b"PUT / HTTP/1.0").expects_continue


def test_one_empty_line_before_the_request_is_skipped() -> None:
    assert parse_head(b"\r\nGET / HTTP/1.1\r\nHost: a", LIMITS).method == b"GET"


def test_a_long_target_and_too_many_fields_are_told_apart() -> None:
    with pytest.raises(UriTooLong) as error:
        head(line=b"GET /" + b"a" * 1024 + b" HTTP/1.1")
    assert (error.value.code, error.value.status) == ("InvalidURI", 414)
    with pytest.raises(RequestHeaderSectionTooLarge):
        head(*(b"a%d: b" % number for number in range(20)))


def test_a_head_without_end_is_blamed_on_its_target_or_on_its_fields() -> None:
    assert isinstance(too_long(b"GET /" + b"a" * 9000, LIMITS), UriTooLong)
    assert isinstance(too_long(b"GET / HTTP/1.1\r\na: " + b"b" * 9000, LIMITS), RequestHeaderSectionTooLarge)


@pytest.mark.parametrize("beginning", [b"\x16\x03\x01", b"\x00", b"GET /\r\n", b"GET / HTTP/1.1\n", b"\xff"])
def test_what_no_request_begins_with_is_refused_before_its_end(beginning: bytes) -> None:
    with pytest.raises(InvalidRequest):
        check_beginning(beginning)


@given(st.integers(min_value=0, max_value=60))
def test_no_beginning_of_a_good_request_is_refused(length: int) -> None:
    check_beginning(b"\r\nGET /b/k?x=%20 HTTP/1.1\r\nHost: proxy:18080\r\nRange: bytes=0-1"[:length])


@given(st.binary(max_size=200))
def test_any_bytes_are_a_head_or_an_s3_error_with_a_4xx(block: bytes) -> None:
    method_of(block)
    status = 200
    try:
        parse_head(block, LIMITS)
    except S3Error as error:
        status = error.status
    assert status == 200 or 400 <= status < 500


@given(
    st.lists(st.sampled_from([b"\r\n", b"\r", b"\n", b":", b" ", b"\x00", b"Host", b"Content-Length", b"5"]))
)
def test_no_mix_of_separators_lets_a_control_character_into_a_value(parts: list[bytes]) -> None:
    try:
        parsed = head(b"".join(parts))
    except S3Error:
        return
    for name, value in parsed.fields:
        assert not set(name + value) & set(b"\r\n\x00")
