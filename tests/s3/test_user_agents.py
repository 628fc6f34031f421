"""Which clients are sent a 307, by the User-Agents that were recorded."""

from __future__ import annotations

import pytest

from delta_proxy.s3.user_agents import redirect_rule

FOLLOW = [
    "polars/0.55.1",
    "duckdb/v1.5.5(linux_amd64) cpp",
    "aws-sdk-cpp/1.11.800 ua/2.1 md/aws-crt#0.36.0 os/Linux lib of pyarrow",
    "aiobotocore/3.10.0 md/Botocore#1.43.0 ua/2.1 os/linux",
    "aws-sdk-go/1.44.298 (go1.22; linux; amd64)",
    "curl/8.5.0",
    "Wget/1.21",
    "python-requests/2.32",
    "Python-urllib/3.11",
    "Mozilla/5.0",
    "",
]
STREAM = [
    "object_store/0.13.2",
    "Boto3/1.44.5 md/Botocore#1.44.5 ua/2.1",
    "Botocore/1.44.5 ua/2.1",
    "aws-cli/1.46.3 md/Botocore#1.44.5",
    "aws-cli/2.17.0 md/awscrt#0.20",
    "MinIO (linux; amd64) minio-go/v7.0.97 mc",
    "aws-sdk-js/3.900.0 ua/2.1",
    "aws-sdk-java/1.12.797 Linux/6.1",
    "aws-sdk-java/2.57.8 md/io#sync md/http#Apache5 ua/2.1",
    "aws-sdk-java/2.57.8 md/http#Apache5 md/io#sync ua/2.1",
    "aws-sdk-rust/1.3.13 os/linux lang/rust/1.90",
    "aws-sdk-php/3.300 ua/2.1",
    "aws-sdk-dotnet-coreclr/3.7",
    "Hadoop 3.3.4, aws-sdk-java/1.12.262 Linux",
    "Hadoop 3.4.1, aws-sdk-java/2.24.6 md/io#async",
    "Hadoop_3.5.0 s3analyticsaccelerator/1.3.1",
    "MyJob, Hadoop 3.4.1, aws-sdk-java/2.24.6",
]
FOLLOW_WITHOUT_TOKEN = ["aws-sdk-go-v2/1.47.7 ua/2.1 os/linux", "rclone/v1.76.0"]


@pytest.mark.parametrize("user_agent", FOLLOW)
def test_clients_that_follow_and_repeat_their_headers_are_redirected(user_agent: str) -> None:
    rule = redirect_rule(user_agent)
    assert rule.follows
    assert rule.resends_token


@pytest.mark.parametrize("user_agent", FOLLOW_WITHOUT_TOKEN)
def test_clients_that_drop_their_token_are_redirected_without_it(user_agent: str) -> None:
    rule = redirect_rule(user_agent)
    assert rule.follows
    assert not rule.resends_token


@pytest.mark.parametrize("user_agent", STREAM)
def test_clients_that_cannot_follow_are_streamed(user_agent: str) -> None:
    assert not redirect_rule(user_agent).follows


def test_a_configured_list_takes_the_place_of_the_default_one() -> None:
    assert redirect_rule("Boto3/1.44.5", ()).follows
    assert not redirect_rule("polars/0.55.1", ("polars/*",)).follows
    assert redirect_rule("Boto3/1.44.5", ("polars/*",)).follows


def test_a_pattern_matches_the_whole_string_with_case() -> None:
    assert redirect_rule("curl/8.5.0", ("curl",)).follows
    assert redirect_rule("curl/8.5.0", ("CURL/*",)).follows
    assert not redirect_rule("curl/8.5.0", ("curl/[78]*",)).follows
    assert not redirect_rule("", ("",)).follows
