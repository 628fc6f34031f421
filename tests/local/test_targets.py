"""Targets, hosts and fields, as values."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta_proxy.local_helper.targets import (
    Origin,
    first,
    host_field,
    parse_absolute,
    parse_authority,
    presigned,
    to_the_client,
    to_the_proxy,
)
from delta_proxy.s3.errors import InvalidURI, S3Error

from .parts import PRESIGNED


@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda tail: b"http://h" + tail))
def test_a_target_is_taken_as_it_is_or_refused(target: bytes) -> None:
    with contextlib.suppress(S3Error):
        parsed = parse_absolute(target)
        assert target.endswith(parsed.raw) or parsed.raw == b"/" + target[len(target) - len(parsed.raw) + 1 :]
        assert parsed.raw.startswith(b"/")
    presigned(target)


@given(st.text(alphabet="!\"$%&'()*+,-./:;<=>?@[]^_`{|}~azAZ09", max_size=50))
def test_every_visible_character_of_path_and_query_stays(rest: str) -> None:
    assert parse_absolute(f"http://Host:8080/{rest}".encode()).raw == f"/{rest}".encode()


def test_an_origin_is_compared_by_scheme_host_and_port() -> None:
    assert parse_absolute(b"HTTP://LocalHost:80").origin == Origin("http", "localhost", 80)
    assert parse_absolute(b"http://localhost?a").raw == b"/?a"
    assert parse_absolute(b"https://[::1]/").origin == Origin("https", "::1", 443)
    assert Origin("https", "::1", 8443).authority == "[::1]:8443"
    assert Origin("http", "h", 80).authority == "h"


@pytest.mark.parametrize(
    "authority", [b"", b":80", b"h:", b"h:0", b"h:65536", b"h:1:2", b"u@h", b"h/", b"h h", b"\xff"]
)
def test_what_is_no_host_and_port_is_refused(authority: bytes) -> None:
    with pytest.raises(InvalidURI):
        parse_authority(authority, "https")


@pytest.mark.parametrize("sent", [b"localhost:18080", b"LOCALHOST:18080"])
def test_the_host_field_that_the_client_signed_is_sent_as_it_is(sent: bytes) -> None:
    target = parse_absolute(b"http://localhost:18080/b")
    assert host_field(target, ((b"Host", sent),)) == sent


def test_a_port_that_is_the_schemes_own_may_be_left_out_or_not() -> None:
    target = parse_absolute(b"http://lake.example/b")
    assert host_field(target, ((b"host", b"lake.example:80"),)) == b"lake.example:80"
    assert host_field(target, ()) == b"lake.example"


def test_fields_that_the_connection_field_names_end_at_each_hop() -> None:
    target = parse_absolute(b"http://h/b")
    sent = ((b"Connection", b"close, X-Mine"), (b"x-mine", b"1"), (b"X-Yours", b"2"))
    assert {name for name, _ in to_the_proxy(target, sent)} == {b"host", b"X-Yours", b"x-delta-proxy-helper"}
    answered = to_the_client((("connection", "x-mine"), ("x-mine", "1"), ("etag", "2")))
    assert answered == ((b"etag", b"2"),)


def test_no_connection_field_takes_the_host_or_the_signature_away() -> None:
    target = parse_absolute(b"http://h/b")
    sent = ((b"Host", b"h"), (b"Authorization", b"x"), (b"Connection", b"host, authorization"))
    assert first(to_the_proxy(target, sent), b"host") == b"h"
    assert first(to_the_proxy(target, sent), b"authorization") == b"x"


@pytest.mark.parametrize(
    ("location", "followed"),
    [
        (f"https://store.example/b/k?{PRESIGNED}", True),
        (f"https://store.example/b/k?{PRESIGNED.replace('=host', '=host%3Brange')}", False),
        ("https://store.example/b/k?X-Amz-SignedHeaders=host", False),
        ("https://store.example/b/k?X-Amz-Signature=abc", False),
        ("https://store.example/b/k", False),
        (f"/b/k?{PRESIGNED}", False),
        (f"file:///b/k?{PRESIGNED}", False),
    ],
)
def test_only_a_url_presigned_for_the_host_alone_is_followed(location: str, *, followed: bool) -> None:
    assert (presigned(location.encode()) is not None) is followed
