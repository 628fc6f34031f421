"""Ordinary clients read what was granted, as they read it from the store, and are refused the rest."""

from __future__ import annotations

import pathlib
import subprocess
from typing import Any

import botocore.exceptions
import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs
import pytest
from deltalake import DeltaTable, write_deltalake

from delta_proxy import demo

from .conftest import ALL_MICS, GRANTED, TRADES, ProxyFor, trades_settings
from .servers import ACCESS_KEY, BUCKET, REGION, SECRET_KEY, Endpoint, Proxy, Store

DENIED = tuple(mic for mic in ALL_MICS if mic not in GRANTED)
URI = f"s3://{demo.PROXY_BUCKET}/{TRADES}"


def keys_of(store: Store, mic: str) -> list[str]:
    """The keys of one MIC's data files, relative to the table, as the store lists them."""
    pages = (
        store.boto3().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{TRADES}/MIC={mic}/")
    )
    return [item["Key"].removeprefix(f"{TRADES}/") for page in pages for item in page["Contents"]]


def body_of(store: Store, path: str) -> bytes:
    """An object's bytes, read from the store."""
    body: bytes = store.boto3().get_object(Bucket=BUCKET, Key=f"{TRADES}/{path}")["Body"].read()
    return body


def duckdb_connection(at: Endpoint) -> duckdb.DuckDBPyConnection:
    """A duckdb connection that reaches the endpoint."""
    connection = demo.duckdb_connection(demo.Endpoint(at.url, demo.PROXY_BUCKET, REGION))
    connection.execute(
        f"CREATE OR REPLACE SECRET (TYPE s3, KEY_ID '{at.access_key}', SECRET '{at.secret_key}', "
        f"REGION '{REGION}', ENDPOINT '{at.netloc}', URL_STYLE 'path', USE_SSL false)"
    )
    return connection


def arrow_filesystem(at: Endpoint) -> pyarrow.fs.S3FileSystem:
    """pyarrow's own S3 client."""
    return pyarrow.fs.S3FileSystem(
        access_key=at.access_key,
        secret_key=at.secret_key,
        region=REGION,
        scheme="http",
        endpoint_override=at.netloc,
    )


def s3fs_options(at: Endpoint) -> dict[str, Any]:
    """What pandas hands to s3fs."""
    return {
        "key": at.access_key,
        "secret": at.secret_key,
        "client_kwargs": {"endpoint_url": at.url, "region_name": REGION},
        "skip_instance_cache": True,
    }


def as_reading(table: pa.Table) -> demo.Reading:
    return demo.Reading(table.num_rows, pc.sum(table["quantity"]).as_py() or 0)


@pytest.mark.parametrize("mic", GRANTED)
def test_deltalake_reads_a_granted_partition(trades: Proxy, mic: str) -> None:
    table = DeltaTable(URI, storage_options=trades.storage_options)
    assert as_reading(table.to_pyarrow_table(filters=[("MIC", "=", mic)])) == demo.expected(mic)


@pytest.mark.parametrize("mic", DENIED)
def test_deltalake_is_refused_a_partition_outside_the_grant(trades: Proxy, mic: str) -> None:
    table = DeltaTable(URI, storage_options=trades.storage_options)
    with pytest.raises(Exception, match=r"403|AccessDenied|Forbidden"):
        table.to_pyarrow_table(filters=[("MIC", "=", mic)])


def test_deltalake_reads_an_earlier_version(trades: Proxy, store: Store) -> None:
    def rows(options: dict[str, str], uri: str) -> int:
        table = DeltaTable(uri, version=3, storage_options=options)
        return int(table.to_pyarrow_table(filters=[("MIC", "=", "XLON")]).num_rows)

    direct = rows(store.storage_options, f"s3://{BUCKET}/{TRADES}")
    assert rows(trades.storage_options, URI) == direct == sum(60 + day for day in range(4))


@pytest.mark.parametrize("mic", GRANTED)
def test_pyarrow_reads_a_granted_partition_of_a_dataset_of_deltalake(trades: Proxy, mic: str) -> None:
    dataset = DeltaTable(URI, storage_options=trades.storage_options).to_pyarrow_dataset(
        filesystem=pyarrow.fs.SubTreeFileSystem(f"{demo.PROXY_BUCKET}/{TRADES}", arrow_filesystem(trades))
    )
    assert as_reading(dataset.to_table(filter=ds.field("MIC") == mic)) == demo.expected(mic)


def test_pyarrow_lists_and_reads_only_what_is_granted(trades: Proxy, store: Store) -> None:
    files = arrow_filesystem(trades)
    selector = pyarrow.fs.FileSelector(f"{demo.PROXY_BUCKET}/{TRADES}", recursive=True)
    listed = {info.path for info in files.get_file_info(selector) if "/MIC=" in info.path and info.is_file}
    wanted = {path for mic in GRANTED for path in keys_of(store, mic)}
    assert listed == {f"{demo.PROXY_BUCKET}/{TRADES}/{path}" for path in wanted}
    path = min(wanted)
    with files.open_input_file(f"{demo.PROXY_BUCKET}/{TRADES}/{path}") as file:
        assert file.read() == body_of(store, path)


def test_pyarrow_is_refused_a_file_outside_the_grant(listing: Proxy, store: Store) -> None:
    path = keys_of(store, "XPAR")[0]
    with pytest.raises(OSError, match=r"ACCESS_DENIED|403|AccessDenied"):
        arrow_filesystem(listing).open_input_file(f"{demo.PROXY_BUCKET}/{TRADES}/{path}")


@pytest.mark.parametrize("mic", GRANTED)
def test_polars_scan_delta_reads_a_granted_partition(trades: Proxy, mic: str) -> None:
    frame = pl.scan_delta(URI, storage_options=trades.storage_options).filter(pl.col("MIC") == mic)
    assert as_reading(frame.collect().to_arrow()) == demo.expected(mic)


def test_polars_scan_delta_is_refused_a_partition_outside_the_grant(listing: Proxy) -> None:
    frame = pl.scan_delta(URI, storage_options=listing.storage_options).filter(pl.col("MIC") == "XPAR")
    with pytest.raises(Exception, match=r"403|AccessDenied|Forbidden"):
        frame.collect()


def test_polars_scan_parquet_over_every_partition_finds_the_granted_ones(trades: Proxy) -> None:
    pattern = f"{URI}/MIC=*/**/*.parquet"
    frame = pl.scan_parquet(pattern, storage_options=trades.storage_options, hive_partitioning=True)
    rows = dict(frame.group_by("MIC").agg(pl.len()).collect().iter_rows())
    assert rows == {mic: demo.expected(mic).rows for mic in GRANTED}


@pytest.mark.parametrize("mic", GRANTED)
def test_duckdb_reads_a_granted_partition(trades: Proxy, mic: str) -> None:
    with duckdb_connection(trades) as connection:
        sql = "SELECT count(*), sum(quantity) FROM delta_scan(?) WHERE MIC = ?"
        assert connection.execute(sql, [URI, mic]).fetchone() == (
            demo.expected(mic).rows,
            demo.expected(mic).quantity,
        )


def test_duckdb_read_parquet_over_every_partition_finds_the_granted_ones(trades: Proxy) -> None:
    with duckdb_connection(trades) as connection:
        sql = "SELECT MIC, count(*) FROM read_parquet(?, hive_partitioning = true) GROUP BY MIC"
        rows = dict(connection.execute(sql, [f"{URI}/MIC=*/**/*.parquet"]).fetchall())
    assert rows == {mic: demo.expected(mic).rows for mic in GRANTED}


def test_duckdb_is_refused_a_partition_outside_the_grant(listing: Proxy) -> None:
    with (
        duckdb_connection(listing) as connection,
        pytest.raises(duckdb.Error, match=r"403|AccessDenied|Forbidden"),
    ):
        connection.execute("SELECT sum(quantity) FROM delta_scan(?) WHERE MIC = 'XMIL'", [URI]).fetchall()


def test_pandas_with_s3fs_reads_a_granted_file(trades: Proxy, store: Store) -> None:
    path = keys_of(store, "XETR")[0]
    through = pd.read_parquet(f"{URI}/{path}", storage_options=s3fs_options(trades))
    direct = pd.read_parquet(f"s3://{BUCKET}/{TRADES}/{path}", storage_options=s3fs_options(store))
    pd.testing.assert_frame_equal(through, direct)
    assert len(through) > 0


def test_pandas_with_s3fs_is_refused_a_file_outside_the_grant(listing: Proxy, store: Store) -> None:
    with pytest.raises(PermissionError):
        pd.read_parquet(f"{URI}/{keys_of(store, 'XMIL')[0]}", storage_options=s3fs_options(listing))


def test_boto3_gets_the_bytes_of_a_granted_file(trades: Proxy, store: Store) -> None:
    for path in keys_of(store, "XLON")[:3]:
        answer = trades.boto3().get_object(Bucket=demo.PROXY_BUCKET, Key=f"{TRADES}/{path}")
        assert answer["Body"].read() == body_of(store, path)


def test_boto3_downloads_a_granted_file(trades: Proxy, store: Store, tmp_path: pathlib.Path) -> None:
    path = keys_of(store, "XLON")[0]
    target = tmp_path / "file.parquet"
    trades.boto3().download_file(demo.PROXY_BUCKET, f"{TRADES}/{path}", str(target))
    assert target.read_bytes() == body_of(store, path)


@pytest.mark.parametrize("mic", DENIED)
def test_boto3_is_refused_every_file_outside_the_grant(listing: Proxy, store: Store, mic: str) -> None:
    client = listing.boto3()
    for path in keys_of(store, mic):
        for call in (client.get_object, client.head_object):
            with pytest.raises(botocore.exceptions.ClientError) as refusal:
                call(Bucket=demo.PROXY_BUCKET, Key=f"{TRADES}/{path}")
            assert refusal.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


@pytest.mark.parametrize("page_size", [pytest.param(1, marks=pytest.mark.slow), 2, 7, 1000])
@pytest.mark.parametrize("operation", ["list_objects_v2", "list_objects"])
def test_boto3_pages_through_the_granted_keys_in_order(
    listing: Proxy, store: Store, operation: str, page_size: int
) -> None:
    pages = list(
        listing.boto3()
        .get_paginator(operation)
        .paginate(Bucket=demo.PROXY_BUCKET, Prefix=f"{TRADES}/MIC=", PaginationConfig={"PageSize": page_size})
    )
    listed = [item["Key"] for page in pages for item in page.get("Contents", ())]
    assert listed == sorted(f"{TRADES}/{path}" for mic in GRANTED for path in keys_of(store, mic))
    assert all(0 < len(page.get("Contents", ())) <= page_size for page in pages)


@pytest.mark.parametrize("page_size", [1, 2, 7])
def test_boto3_sees_common_prefixes_only_where_something_is_granted(listing: Proxy, page_size: int) -> None:
    pages = (
        listing.boto3()
        .get_paginator("list_objects_v2")
        .paginate(
            Bucket=demo.PROXY_BUCKET,
            Prefix=f"{TRADES}/",
            Delimiter="/",
            PaginationConfig={"PageSize": page_size},
        )
    )
    prefixes = [item["Prefix"] for page in pages for item in page.get("CommonPrefixes", ())]
    assert prefixes == [f"{TRADES}/MIC={mic}/" for mic in sorted(GRANTED)] + [f"{TRADES}/_delta_log/"]


def test_a_listed_object_has_the_size_and_the_etag_that_head_and_get_have(trades: Proxy) -> None:
    client = trades.boto3()
    listed = client.list_objects_v2(Bucket=demo.PROXY_BUCKET, Prefix=f"{TRADES}/", MaxKeys=200)["Contents"]
    for item in listed[:: len(listed) // 8]:
        head = client.head_object(Bucket=demo.PROXY_BUCKET, Key=item["Key"])
        got = client.get_object(Bucket=demo.PROXY_BUCKET, Key=item["Key"])
        assert item["Size"] == head["ContentLength"] == len(got["Body"].read())
        assert item["ETag"] == head["ETag"] == got["ETag"]


def test_curl_reads_a_granted_file_and_follows_the_redirect(
    trades: Proxy, store: Store, tmp_path: pathlib.Path
) -> None:
    path = keys_of(store, "XLON")[0]
    target = tmp_path / "file"
    url = f"{trades.url}/{demo.PROXY_BUCKET}/{TRADES}/{path}"
    done = subprocess.run(
        ["curl", "-sSfL", "--noproxy", "*", "-o", str(target), url], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert target.read_bytes() == body_of(store, path)


def test_without_a_grant_on_the_table_everyone_reads_everything(store: Store, proxy_for: ProxyFor) -> None:
    settings = {**trades_settings("presignedUrl"), "allowedPartitions": {}}
    proxy = proxy_for(store, **settings)
    for mic in ALL_MICS:
        frame = pl.scan_delta(URI, storage_options=proxy.storage_options).filter(pl.col("MIC") == mic)
        assert as_reading(frame.collect().to_arrow()) == demo.expected(mic)


@pytest.mark.parametrize(
    "closing",
    [
        {"allowedPartitions": {}, "denyByDefault": True},
        pytest.param({"allowedPartitions": {TRADES: []}}, marks=pytest.mark.slow),
    ],
)
def test_a_table_of_which_nothing_is_granted_is_closed(
    moto_store: Store, proxy_for: ProxyFor, closing: dict[str, Any]
) -> None:
    proxy = proxy_for(moto_store, **{**trades_settings("presignedUrl"), **closing})
    client = proxy.boto3()
    for mic in ALL_MICS:
        with pytest.raises(botocore.exceptions.ClientError) as refusal:
            client.get_object(Bucket=demo.PROXY_BUCKET, Key=f"{TRADES}/{keys_of(moto_store, mic)[0]}")
        assert refusal.value.response["Error"]["Code"] == "AccessDenied"
    assert "Contents" not in client.list_objects_v2(Bucket=demo.PROXY_BUCKET, Prefix=f"{TRADES}/MIC=")


def test_a_file_that_was_committed_a_moment_ago_is_served(store: Store, proxy_for: ProxyFor) -> None:
    prefix = "grows"
    write_deltalake(
        f"s3://{BUCKET}/{prefix}",
        demo.day_of_trades(0),
        mode="overwrite",
        partition_by=["MIC"],
        storage_options=store.storage_options,
    )
    proxy = proxy_for(
        store,
        tableMapping={prefix: f"s3://{BUCKET}/{prefix}"},
        allowedPartitions={prefix: [{"MIC": "XLON"}]},
    )

    def rows() -> int:
        table = DeltaTable(f"s3://{demo.PROXY_BUCKET}/{prefix}", storage_options=proxy.storage_options)
        return int(table.to_pyarrow_table(filters=[("MIC", "=", "XLON")]).num_rows)

    assert rows() == 60
    write_deltalake(
        f"s3://{BUCKET}/{prefix}",
        demo.day_of_trades(1),
        mode="append",
        partition_by=["MIC"],
        storage_options=store.storage_options,
    )
    assert rows() == 60 + 61


def test_the_clients_credentials_are_not_the_stores(listing: Proxy, store: Store) -> None:
    stranger = Endpoint(listing.url, access_key="someone", secret_key="else")
    answer = stranger.boto3().get_object(
        Bucket=demo.PROXY_BUCKET, Key=f"{TRADES}/{keys_of(store, 'XLON')[0]}"
    )
    assert answer["ContentLength"] > 0
    assert (stranger.access_key, stranger.secret_key) != (ACCESS_KEY, SECRET_KEY)
