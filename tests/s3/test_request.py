"""What a request means, from its bytes on the wire."""

from __future__ import annotations

import contextlib
import re
import unicodedata
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from delta_proxy.s3.errors import (
    InvalidArgument,
    InvalidRequest,
    InvalidURI,
    KeyTooLongError,
    MethodNotAllowed,
    RequestHeaderSectionTooLarge,
    S3Error,
)
from delta_proxy.s3.operation import Operation
from delta_proxy.s3.request import Addressing, Headers, S3Request, decode, parse_request, split_key
from delta_proxy.s3.sigv4 import canonical_query, object_path

ADDRESSING = Addressing("datalake", ("s3.example.com", "example.com"))
HOST = (b"Host", b"proxy:18080")


def get(target: bytes, *headers: tuple[bytes, bytes], method: bytes = b"GET") -> S3Request:
    return parse_request(method, target, headers or (HOST,), ADDRESSING)


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        (b"a%20b", "a b"),
        (b"a+b", "a+b"),
        (b"100%25", "100%"),
        (b"c%2520d", "c%20d"),
        (b"MIC=XLON", "MIC=XLON"),
        (b"MIC%3DXLON", "MIC=XLON"),
        (b"%23%3F", "#?"),
        (b"%22'", "\"'"),
        (b"a//b/", "a//b/"),
        (b"/a", "/a"),
        (b"./../a", "./../a"),
        (b"a%2Fb", "a/b"),
        (b"%C3%BC", "\u00fc"),
        (b"u%CC%88", "u\u0308"),
        ("ü".encode(), "ü"),
        (b"%01", "\x01"),
    ],
)
def test_a_key_is_decoded_once_and_never_normalised(raw: bytes, key: str) -> None:
    request = get(b"/datalake/" + raw)
    assert (request.bucket, request.key) == ("datalake", key)
    assert request.raw_path == b"/datalake/" + raw


@given(
    st.lists(st.sampled_from([b"%", b"3", b"D", b"d", b"2", b"5", b"=", b"%3D", b"%3d", b"%25"])).map(
        b"".join
    )
)
@example(b"%253D")
@example(b"%%3D3D")
@example(b"%2%3D")
def test_an_escape_is_decoded_once_or_refused_whatever_stands_beside_it(raw: bytes) -> None:
    octets = unquote_to_bytes(raw)
    sound = not re.search(rb"%(?![0-9A-Fa-f]{2})", raw) and octets.isascii()
    with contextlib.nullcontext() if sound else pytest.raises(InvalidURI):
        assert decode(raw).encode() == octets


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=80))
@example(unicodedata.normalize("NFD", "é"))
@example("..//./+%=#?\"'")
def test_parsing_undoes_encoding_for_every_key(key: str) -> None:
    assert get(object_path("datalake", key).encode()).key == key
    virtual = get(object_path(None, key).encode(), (b"host", b"datalake.s3.example.com"))
    assert (virtual.bucket, virtual.key) == ("datalake", key)


@given(
    st.dictionaries(
        st.sampled_from(["prefix", "delimiter", "marker"]),
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=30),
    )
)
def test_parsing_undoes_encoding_for_every_query(query: dict[str, str]) -> None:
    request = get(b"/datalake?" + canonical_query(query.items()).encode())
    assert dict(request.query) == query


@given(st.binary(max_size=60))
def test_any_target_parses_or_is_an_error_of_s3(target: bytes) -> None:
    for candidate in (target, b"/" + target):
        with contextlib.suppress(S3Error):
            assert get(candidate).raw_path.startswith(b"/")


@pytest.mark.parametrize(
    "target",
    [
        b"",
        b"*",
        b"datalake/k",
        b"/datalake/%",
        b"/datalake/%4",
        b"/datalake/%zz",
        b"/datalake/a%00b",
        b"/datalake/%ff",
        b"/datalake/\xff",
        b"/datalake/%C0%AF",
        b"/datalake/%ED%A0%80",
        b"/datalake/a b",
        b"/datalake/a#b",
        b"/datalake/a\x00",
        b"//datalake/k",
        b"/data%2Flake",
        b"/datalake?prefix=%",
        b"/datalake?prefix=%00",
        b"/datalake?prefix=%ff",
        b"/datalake?prefix=" + b"a" * 70000,
        b"ftp://proxy/datalake",
        b"http://user@proxy/datalake",
        b"http:///datalake",
    ],
)
def test_a_target_that_is_no_uri_of_s3_is_refused(target: bytes) -> None:
    with pytest.raises(InvalidURI):
        get(target)


def test_a_key_has_at_most_1024_bytes() -> None:
    assert get(b"/datalake/" + b"%C3%BC" * 512).key == "ü" * 512
    for raw in (b"a" * 1025, b"%C3%BC" * 513, b"a" * 100_000):
        with pytest.raises(KeyTooLongError):
            get(b"/datalake/" + raw)


@pytest.mark.parametrize("target", [b"/datalake", b"/datalake/", b"/datalake?", b"/datalake/?prefix=a"])
def test_a_bucket_may_have_a_slash_and_a_query(target: bytes) -> None:
    request = get(target)
    assert (request.bucket, request.key, request.operation) == ("datalake", "", Operation.LIST_OBJECTS)


def test_the_root_is_the_service() -> None:
    assert (get(b"/").bucket, get(b"/").operation) == ("", Operation.LIST_BUCKETS)


@pytest.mark.parametrize(
    ("host", "bucket", "key", "virtual"),
    [
        (b"datalake.s3.example.com", "datalake", "a/b", True),
        (b"DataLake.S3.Example.COM:8080", "datalake", "a/b", True),
        (b"x.y.s3.example.com", "x.y", "a/b", True),
        (b"s3.example.com", "a", "b", False),
        (b"example.com:80", "a", "b", False),
        (b"notexample.com", "a", "b", False),
        (b"[::1]:18080", "a", "b", False),
    ],
)
def test_a_host_below_a_domain_names_the_bucket(host: bytes, bucket: str, key: str, virtual: bool) -> None:
    request = get(b"/a/b", (b"Host", host))
    assert (request.bucket, request.key, request.virtual_host) == (bucket, key, virtual)
    assert request.host == host.decode()


def test_an_absolute_target_names_its_own_host() -> None:
    request = get(b"HTTP://real.store:9000/bucket/k?x-id=GetObject", (b"Host", b"other"))
    assert request.absolute
    assert (request.host, request.bucket, request.key) == ("real.store:9000", "bucket", "k")
    assert (request.raw_path, request.raw_query) == (b"/bucket/k", b"x-id=GetObject")


def test_an_absolute_target_without_a_path_is_the_root() -> None:
    request = get(b"http://datalake.example.com?list-type=2", HOST)
    assert (request.raw_path, request.bucket, request.operation) == (
        b"/",
        "datalake",
        Operation.LIST_OBJECTS_V2,
    )


def test_a_plus_is_a_space_in_a_query_and_a_plus_in_a_path() -> None:
    request = get(b"/datalake?prefix=a+b%2Bc&delimiter")
    assert request.query == (("prefix", "a b+c"), ("delimiter", ""))
    assert (request.param("prefix"), request.param("delimiter"), request.param("marker")) == (
        "a b+c",
        "",
        None,
    )


@pytest.mark.parametrize("query", [b"prefix=a&prefix=b", b"prefix=a&prefix=a", b"prefix=a&%70refix=b"])
def test_a_parameter_given_twice_is_refused(query: bytes) -> None:
    with pytest.raises(InvalidArgument):
        get(b"/datalake?" + query)


@pytest.mark.parametrize(
    "header",
    [
        (b"Range", b"bytes=0-1\r\n more"),
        (b"Range", b"a\x00b"),
        (b"Range", b"a\nb"),
        (b"Ra nge", b"a"),
        (b"Range ", b"a"),
        (b"", b"a"),
        (b"Host", b"a b"),
        (b"Host", b"a/b"),
    ],
)
def test_a_malformed_header_is_refused(header: tuple[bytes, bytes]) -> None:
    with pytest.raises(InvalidRequest):
        get(b"/datalake/k", header)


def test_two_hosts_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="Host"):
        get(b"/datalake/k", HOST, HOST)


def test_headers_have_a_bound() -> None:
    with pytest.raises(RequestHeaderSectionTooLarge):
        get(b"/datalake/k", *[(b"x-a", b"a" * 1000)] * 70)


@pytest.mark.parametrize("method", [b"PATCH", b"TRACE", b"get", b"", b"G\x00T", b"A" * 100])
def test_a_method_that_s3_does_not_have_is_not_allowed(method: bytes) -> None:
    with pytest.raises(MethodNotAllowed):
        get(b"/datalake/k", method=method)


def test_headers_are_found_in_any_case_and_all_of_them() -> None:
    headers = Headers.of([("X-A", " 1\t"), ("x-b", "2"), ("x-a", "3")])
    assert (headers.get("X-a"), headers.all("x-A"), headers.get("x-c")) == ("1", ("1", "3"), None)
    assert "X-B" in headers
    assert "x-c" not in headers


def test_a_key_splits_into_alias_and_path() -> None:
    assert split_key("trades") == ("trades", None)
    assert split_key("trades/") == ("trades", "")
    assert split_key("trades//a/b") == ("trades", "/a/b")
