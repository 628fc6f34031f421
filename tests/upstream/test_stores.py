"""Where a table lies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta_proxy.upstream.stores import (
    AddressingStyle,
    StoreConfig,
    TableLocation,
    check_bucket_name,
    parse_s3_uri,
)


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("s3://lake/trades", ("lake", "trades")),
        ("s3://lake/a/b/", ("lake", "a/b")),
        ("s3://lake", ("lake", "")),
        ("s3://lake/", ("lake", "")),
        ("s3://my.lake-1/t=c%20d/ü +", ("my.lake-1", "t=c%20d/ü +")),
    ],
)
def test_a_uri_is_a_bucket_and_a_prefix(uri: str, place: tuple[str, str]) -> None:
    assert parse_s3_uri(uri) == place


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("lake/trades", "not an S3 URI"),
        ("https://lake/trades", "not an S3 URI"),
        ("S3://lake/trades", "not an S3 URI"),
        ("s3a://lake/trades", "not an S3 URI"),
        ("s3://", "not a bucket name"),
        ("s3:///trades", "not a bucket name"),
        ("s3://user@lake/trades", "not a bucket name"),
        ("s3://lake:9000/trades", "not a bucket name"),
        ("s3://lake/trades?versionId=1", "query"),
        ("s3://lake/trades#x", "fragment"),
        ("s3://lake//trades", "path segment"),
        ("s3://lake/a//b", "path segment"),
        ("s3://lake/trades//", "path segment"),
        ("s3://lake/a/../b", "path segment"),
        ("s3://lake/./b", "path segment"),
        ("s3://lake/a\nb", "control character"),
        ("s3://lake/a\x7f", "control character"),
        ("s3://lake/" + "é" * 513, "longer than 1024 bytes"),
    ],
)
def test_a_uri_that_is_no_place_is_refused(uri: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_s3_uri(uri)


@pytest.mark.parametrize("name", ["abc", "a.b", "my-lake.2024", "0ab", "a" * 63])
def test_names_of_buckets(name: str) -> None:
    check_bucket_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "ab", "a" * 64, "Lake", "my_lake", "-ab", "ab-", ".ab", "ab.", "a..b", "10.0.0.1", "läke", "abc\n"],
)
def test_names_that_no_bucket_has(name: str) -> None:
    with pytest.raises(ValueError, match="not a bucket name"):
        check_bucket_name(name)


@given(st.text("ab/.%?# ", max_size=12))
def test_a_location_that_is_accepted_names_its_own_uri(prefix: str) -> None:
    try:
        location = TableLocation(*parse_s3_uri(f"s3://lake/{prefix}"))
    except ValueError:
        return
    assert parse_s3_uri(location.uri) == (location.bucket, location.prefix)
    assert not location.prefix.startswith("/")
    assert not location.prefix.endswith("/")


def test_a_key_is_below_the_prefix_of_its_table() -> None:
    assert TableLocation("lake", "a/b").key("_delta_log/0.json") == "a/b/_delta_log/0.json"
    assert TableLocation("lake", "").key("_delta_log/0.json") == "_delta_log/0.json"


def test_a_store_is_aws_unless_told_otherwise() -> None:
    assert StoreConfig() == StoreConfig(None, None, None, AddressingStyle.AUTO)
    assert TableLocation("lake", "t").store == StoreConfig()
