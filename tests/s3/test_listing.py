"""The parameters of listings, their tokens and their common prefixes."""

from __future__ import annotations

import base64
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta_proxy.s3.errors import InvalidArgument
from delta_proxy.s3.listing import ListQuery, decode_token, delimited, encode_token
from delta_proxy.s3.request import Addressing, parse_request

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def query(text: str) -> ListQuery:
    request = parse_request(b"GET", b"/b?" + text.encode(), [(b"host", b"h")], Addressing("b"))
    return ListQuery.parse(request)


def test_a_listing_without_parameters_is_the_first_thousand_keys() -> None:
    assert query("") == ListQuery(version=1)
    assert query("list-type=2") == ListQuery(version=2)


def test_the_parameters_of_both_versions() -> None:
    assert query("prefix=a&delimiter=/&max-keys=7&encoding-type=url&marker=m") == ListQuery(
        version=1, prefix="a", delimiter="/", max_keys=7, encoding_url=True, marker="m"
    )
    token = encode_token("x")
    assert query(f"list-type=2&start-after=s&continuation-token={token}&fetch-owner=true") == ListQuery(
        version=2, start_after="s", continuation_token=token, fetch_owner=True
    )
    assert not query("list-type=2&fetch-owner=false").fetch_owner


@pytest.mark.parametrize(
    ("text", "expected"), [("0", 0), ("1", 1), ("1000", 1000), ("1001", 1000), ("2147483647", 1000)]
)
def test_max_keys_is_cut_to_a_thousand(text: str, expected: int) -> None:
    assert query(f"max-keys={text}").max_keys == expected


@pytest.mark.parametrize("text", ["-1", "a", "1.0", "2147483648", "9" * 5000, "%D9%A1"])
def test_a_max_keys_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        query(f"max-keys={text}")


def test_the_only_encoding_is_url() -> None:
    with pytest.raises(InvalidArgument):
        query("encoding-type=base64")


def test_a_page_starts_after_the_token_before_all_else() -> None:
    assert query("").after == ""
    assert query("marker=m").after == "m"
    assert query("list-type=2&start-after=s").after == "s"
    assert query(f"list-type=2&start-after=s&continuation-token={encode_token('t')}").after == "t"


@given(texts)
def test_a_token_stands_for_its_key(key: str) -> None:
    assert decode_token(encode_token(key)) == key


@given(st.text(max_size=30))
def test_a_token_is_one_that_was_given_or_refused(token: str) -> None:
    with contextlib.suppress(InvalidArgument):
        assert encode_token(decode_token(token)) == token


@pytest.mark.parametrize(
    "token", ["", "a", "====", "ü", base64.urlsafe_b64encode(b"2key").decode(), "MWE", "MWE=\n", "Mf8="]
)
def test_a_token_that_was_never_given_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgument):
        decode_token(token)


def test_an_empty_token_in_a_request_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        query("list-type=2&continuation-token=")


@pytest.mark.parametrize(
    ("key", "prefix", "delimiter", "expected"),
    [
        ("a/b/c", "", "/", "a/"),
        ("a/b/c", "a/", "/", "a/b/"),
        ("a/b/c", "a/b/", "/", None),
        ("a/b/c", "a", "/", "a/"),
        ("a//c", "a/", "/", "a//"),
        ("a--b", "", "--", "a--"),
        ("a/b", "", "", None),
        ("ab", "ab", "/", None),
    ],
)
def test_a_key_rolls_up_to_the_first_delimiter_after_the_prefix(
    key: str, prefix: str, delimiter: str, expected: str | None
) -> None:
    assert delimited(key, prefix, delimiter) == expected
