"""Who is sent to the store by a 307, who is streamed to, and that a redirected client really gets there."""

from __future__ import annotations

import http.client
import pathlib
import re
import subprocess
import urllib.parse

import polars as pl
import pytest
from deltalake import DeltaTable

from delta_proxy import demo
from tests.waiting import PATIENCE, wait_until

from .conftest import TRADES, ProxyFor, trades_settings
from .raw import get, head
from .servers import Proxy, Store
from .test_clients import URI, arrow_filesystem, body_of, duckdb_connection, keys_of

FOLLOWS = [
    "polars/0.55.1",
    "duckdb/v1.5.5(linux_amd64) cpp",
    "curl/8.5.0",
    "aws-sdk-go-v2/1.47.7 os/linux",
    "rclone/v1.76",
    "aws-sdk-cpp/1.11.800 ua/2.1 lib of pyarrow",
    "aiobotocore/3.10.0 md/Botocore#1.43.115 ua/2.1",
]
STREAMED = [
    "object_store/0.13.2",
    "Boto3/1.44.5 md/Botocore#1.44.5",
    "aws-cli/1.46.3 md/Botocore#1.44",
    "aws-sdk-js/3.1",
    "MinIO (linux; amd64) minio-go/v7.0.1",
    "aws-sdk-java/1.12.797 Linux",
    "aws-sdk-java/2.57.8 md/io#sync",
    "aws-sdk-rust/1.3.13 os/linux",
    "Hadoop 3.3.4, aws-sdk-java/1.12.262 Linux",
    "Hadoop_3.5.0 s3analyticsaccelerator/1.3.1",
]


@pytest.fixture
def redirecting(gateway_store: Store, proxy_for: ProxyFor) -> Proxy:
    """presignedUrl mode before a store that verifies presigned URLs."""
    return proxy_for(gateway_store, **trades_settings("presignedUrl"))


def store_reads(store: Store, path: str, client: str, since: int) -> list[str]:
    """The store's log lines of GETs of a file by a client with a presigned URL, from the given line on."""
    return [
        line
        for line in store.requests()[since:]
        if path in line
        and client in line
        and re.search(r" 20[06] - ", line)
        and "s3_GetObject" in line
        and "X-Amz-Signature=" in line
    ]


@pytest.mark.parametrize("agent", FOLLOWS)
def test_a_client_that_follows_is_sent_to_a_url_for_exactly_that_object(
    redirecting: Proxy, gateway_store: Store, agent: str
) -> None:
    path = keys_of(gateway_store, "XLON")[0]
    answer = get(redirecting, f"{TRADES}/{path}", {"User-Agent": agent})
    assert answer.status == 307
    assert answer.headers["cache-control"] == "no-store"
    location = urllib.parse.urlsplit(answer.headers["location"])
    assert location.netloc == gateway_store.netloc
    assert urllib.parse.unquote(location.path).endswith(f"/{TRADES}/{path}")
    assert "X-Amz-Expires=300" in location.query
    assert fetched(answer.headers["location"]) == (200, body_of(gateway_store, path))


@pytest.mark.parametrize("agent", STREAMED)
def test_a_client_that_cannot_follow_is_streamed_to(
    redirecting: Proxy, gateway_store: Store, agent: str
) -> None:
    path = keys_of(gateway_store, "XLON")[0]
    answer = get(redirecting, f"{TRADES}/{path}", {"User-Agent": agent})
    assert (answer.status, answer.body) == (200, body_of(gateway_store, path))


def test_the_clients_own_fields_are_signed_into_the_url(redirecting: Proxy, gateway_store: Store) -> None:
    path = keys_of(gateway_store, "XLON")[0]
    fields = {"x-amz-checksum-mode": "ENABLED", "x-amz-date": "20260101T000000Z"}
    answer = get(redirecting, f"{TRADES}/{path}", {"User-Agent": "polars/0.55.1", **fields})
    query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(answer.headers["location"]).query))
    assert {"host", *fields} <= set(query["X-Amz-SignedHeaders"].split(";"))
    assert fetched(answer.headers["location"], fields)[0] == 200


@pytest.mark.parametrize("agent", STREAMED)
def test_the_local_helper_is_sent_to_a_url_that_needs_no_field_whatever_client_it_speaks_for(
    redirecting: Proxy, gateway_store: Store, agent: str
) -> None:
    path = keys_of(gateway_store, "XLON")[0]
    announced = {"User-Agent": agent, "x-delta-proxy-helper": "1"}
    signed = {
        "x-amz-date": "20260101T000000Z",
        "x-amz-security-token": "token",
        "x-amz-checksum-mode": "ENABLED",
    }
    answer = get(redirecting, f"{TRADES}/{path}", announced | signed)
    assert answer.status == 307
    query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(answer.headers["location"]).query))
    assert query["X-Amz-SignedHeaders"] == "host"
    assert fetched(answer.headers["location"]) == (200, body_of(gateway_store, path))


def test_the_local_helper_gets_no_other_answer_where_nobody_is_redirected(
    redirecting: Proxy, gateway_store: Store, proxy_for: ProxyFor
) -> None:
    announced = {"x-delta-proxy-helper": "1"}
    path = keys_of(gateway_store, "XLON")[0]
    assert head(redirecting, f"{TRADES}/{path}", announced).status == 200
    assert get(redirecting, f"{TRADES}/_delta_log/_last_checkpoint", announced).status == 200
    assert get(redirecting, f"{TRADES}/{keys_of(gateway_store, 'XPAR')[0]}", announced).status == 403
    streaming = proxy_for(gateway_store, **trades_settings("proxy"))
    assert get(streaming, f"{TRADES}/{path}", announced).status == 200


def test_head_and_log_files_are_never_redirected(redirecting: Proxy, gateway_store: Store) -> None:
    agent = {"User-Agent": "polars/0.55.1"}
    assert head(redirecting, f"{TRADES}/{keys_of(gateway_store, 'XLON')[0]}", agent).status == 200
    for name in ("00000000000000000000.json", "00000000000000000010.checkpoint.parquet", "_last_checkpoint"):
        assert get(redirecting, f"{TRADES}/_delta_log/{name}", agent).status == 200


def test_a_denied_file_is_never_redirected_to(redirecting: Proxy, gateway_store: Store) -> None:
    for path in keys_of(gateway_store, "XPAR"):
        answer = get(redirecting, f"{TRADES}/{path}", {"User-Agent": "polars/0.55.1"})
        assert answer.status == 403
        assert "location" not in answer.headers


def test_ranges_are_redirected_unless_proxy_partial_says_not(
    redirecting: Proxy, gateway_store: Store, proxy_for: ProxyFor
) -> None:
    path = keys_of(gateway_store, "XLON")[0]
    asked = {"User-Agent": "polars/0.55.1", "Range": "bytes=0-3"}
    assert get(redirecting, f"{TRADES}/{path}", asked).status == 307
    partial = proxy_for(gateway_store, **trades_settings("presignedUrl"), proxyPartial=True)
    answer = get(partial, f"{TRADES}/{path}", asked)
    assert (answer.status, answer.body) == (206, b"PAR1")
    assert get(partial, f"{TRADES}/{path}", {"User-Agent": "polars/0.55.1"}).status == 307


def test_the_list_of_clients_that_are_never_redirected_can_be_set(
    gateway_store: Store, proxy_for: ProxyFor
) -> None:
    proxy = proxy_for(gateway_store, **trades_settings("presignedUrl"), neverRedirect=["polars/*"])
    path = keys_of(gateway_store, "XLON")[0]
    assert get(proxy, f"{TRADES}/{path}", {"User-Agent": "polars/0.55.1"}).status == 200


def test_a_presigned_url_expires_when_the_configuration_says(
    gateway_store: Store, proxy_for: ProxyFor
) -> None:
    proxy = proxy_for(gateway_store, **trades_settings("presignedUrl"), presignExpirySeconds=17)
    path = keys_of(gateway_store, "XLON")[0]
    location = get(proxy, f"{TRADES}/{path}", {"User-Agent": "curl/8"}).headers["location"]
    assert "X-Amz-Expires=17" in location


def test_polars_fetches_from_the_store_itself(redirecting: Proxy, gateway_store: Store) -> None:
    path, since = keys_of(gateway_store, "XLON")[0], len(gateway_store.requests())
    frame = pl.scan_parquet(f"{URI}/{path}", storage_options=redirecting.storage_options).collect()
    assert frame.height > 0
    wait_until(lambda: bool(store_reads(gateway_store, path, "polars/", since)))


def test_duckdb_fetches_from_the_store_itself(redirecting: Proxy, gateway_store: Store) -> None:
    path, since = keys_of(gateway_store, "XLON")[1], len(gateway_store.requests())
    with duckdb_connection(redirecting) as connection:
        found = connection.execute("SELECT sum(quantity) FROM read_parquet(?)", [f"{URI}/{path}"]).fetchone()
    assert found is not None
    wait_until(lambda: bool(store_reads(gateway_store, path, "duckdb/", since)))


def test_pyarrow_fetches_from_the_store_itself(redirecting: Proxy, gateway_store: Store) -> None:
    path, since = keys_of(gateway_store, "XLON")[2], len(gateway_store.requests())
    name = f"{demo.PROXY_BUCKET}/{TRADES}/{path}"
    with arrow_filesystem(redirecting).open_input_file(name) as file:
        assert file.read() == body_of(gateway_store, path)
    wait_until(lambda: bool(store_reads(gateway_store, path, "aws-sdk-cpp/", since)))


def test_curl_fetches_from_the_store_itself(
    redirecting: Proxy, gateway_store: Store, tmp_path: pathlib.Path
) -> None:
    path, since = keys_of(gateway_store, "XLON")[3], len(gateway_store.requests())
    url = f"{redirecting.url}/{demo.PROXY_BUCKET}/{TRADES}/{urllib.parse.quote(path)}"
    subprocess.run(["curl", "-sSfL", "--noproxy", "*", "-o", str(tmp_path / "file"), url], check=True)
    assert (tmp_path / "file").read_bytes() == body_of(gateway_store, path)
    wait_until(lambda: bool(store_reads(gateway_store, path, "curl/", since)))


def test_boto3_and_deltalake_are_streamed_to(redirecting: Proxy, gateway_store: Store) -> None:
    path, since = keys_of(gateway_store, "XETR")[0], len(gateway_store.requests())
    got = redirecting.boto3().get_object(Bucket=demo.PROXY_BUCKET, Key=f"{TRADES}/{path}")
    assert got["Body"].read() == body_of(gateway_store, path)
    table = DeltaTable(URI, storage_options=redirecting.storage_options)
    assert table.to_pyarrow_table(filters=[("MIC", "=", "XETR")]).num_rows == demo.expected("XETR").rows
    assert not store_reads(gateway_store, path, "", since)


def fetched(url: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """Status and body of a GET of a URL, whatever the status."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=PATIENCE)
    try:
        connection.request("GET", f"{parts.path}?{parts.query}", headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
