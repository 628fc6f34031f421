"""Ordinary clients write through the proxy, and what is stored is what they would have stored themselves."""

from __future__ import annotations

import io
import os
import pathlib
import shutil
import subprocess
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import botocore.config
import botocore.exceptions
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
import s3fs
from deltalake import CommitProperties, DeltaTable, write_deltalake

from delta_proxy import demo

from . import servers
from .conftest import ProxyFor
from .servers import (
    ACCESS_KEY,
    BUCKET,
    REGION,
    SECRET_KEY,
    Endpoint,
    Proxy,
    Store,
    clean_environment,
)

ALIAS = "written"
ROOT = "lake/written"
THROUGH = f"s3://{demo.PROXY_BUCKET}/{ALIAS}"
DIRECT = f"s3://{BUCKET}/lake/direct"
STORED = f"s3://{BUCKET}/{ROOT}"
MIB = 1 << 20


@pytest.fixture
def proxy(store: Store, proxy_for: ProxyFor) -> Proxy:
    """A proxy that verifies, with a user who may write to the table."""
    user = {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY, "allowedPartitions": {ALIAS: [{}]}}
    return proxy_for(
        store,
        tableMapping={ALIAS: STORED},
        readOnly=False,
        logView="filtered",
        users={"writer": user},
        denyByDefault=True,
    )


@pytest.fixture(autouse=True)
def _emptied(store: Store) -> None:
    """Nothing of an earlier test is there."""
    client = store.boto3()
    for prefix in (ROOT, "lake/direct"):
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
        for found in [each for page in pages for each in page.get("Contents", [])]:
            client.delete_object(Bucket=BUCKET, Key=found["Key"])


def rows(count: int, part: str, first: int = 0) -> pa.Table:
    """Rows of one partition, numbered."""
    return pa.table({"part": [part] * count, "n": range(first, first + count)})


def numbers(uri: str, at: Endpoint) -> list[tuple[str, int]]:
    """Every row of a table, sorted."""
    table = DeltaTable(uri, storage_options=at.storage_options).to_pyarrow_table()
    return sorted(zip(table["part"].to_pylist(), table["n"].to_pylist(), strict=True))


def script(uri: str, at: Endpoint) -> None:
    """What an engine does to a table in its life."""
    options = at.storage_options
    write_deltalake(uri, rows(100, "a"), partition_by=["part"], storage_options=options)
    for first in range(0, 500, 50):
        write_deltalake(uri, rows(50, "b", first), mode="append", storage_options=options)
    write_deltalake(
        uri, rows(30, "a", 1000), mode="overwrite", predicate="part = 'a'", storage_options=options
    )
    table = DeltaTable(uri, storage_options=options)
    source = pa.table({"part": ["b", "c"], "n": [3, 7]})
    merge = table.merge(source, "t.n = s.n and t.part = s.part", source_alias="s", target_alias="t")
    merge.when_matched_update({"n": "t.n + 10000"}).when_not_matched_insert_all().execute()
    table.delete("part = 'b' and n < 40")
    table.optimize.compact()
    table.create_checkpoint()
    table.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
    write_deltalake(uri, rows(5, "d"), mode="append", storage_options=options)


def files(store: Store, prefix: str) -> tuple[int, list[str]]:
    """How many data files lie below a prefix, and the names of the log files."""
    pages = store.boto3().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
    keys = [found["Key"].removeprefix(f"{prefix}/") for page in pages for found in page.get("Contents", [])]
    log = sorted(key for key in keys if key.startswith("_delta_log/") and not key.endswith("/"))
    return len([key for key in keys if key.endswith(".parquet")]) - len(
        [k for k in log if ".parquet" in k]
    ), log


def test_the_life_of_a_table_is_the_same_through_the_proxy(proxy: Proxy, store: Store) -> None:
    script(THROUGH, proxy)
    script(DIRECT, store)
    assert numbers(THROUGH, proxy) == numbers(STORED, store) == numbers(DIRECT, store)
    assert files(store, ROOT) == files(store, "lake/direct")


def test_writers_at_the_same_time_lose_nothing(proxy: Proxy, store: Store) -> None:
    write_deltalake(THROUGH, rows(1, "a"), storage_options=proxy.storage_options)

    def append(writer: int) -> None:
        for turn in range(3):
            batch = rows(10, f"w{writer}", turn * 10)
            write_deltalake(
                THROUGH,
                batch,
                mode="append",
                storage_options=proxy.storage_options,
                # Of eight that race one wins: each may lose as often as the others commit.
                commit_properties=CommitProperties(max_commit_retries=100),
            )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(append, range(8)))
    table = DeltaTable(STORED, storage_options=store.storage_options)
    assert table.version() == 24
    assert {entry["version"] for entry in table.history()} == set(range(25))
    wanted = [("a", 0), *((f"w{writer}", n) for writer in range(8) for n in range(30))]
    assert numbers(STORED, store) == sorted(wanted)


def test_polars_writes_a_table(proxy: Proxy, store: Store) -> None:
    frame = pl.DataFrame({"part": ["a", "b"] * 500, "n": range(1000)})
    frame.write_delta(THROUGH, storage_options=proxy.storage_options)
    frame.write_delta(THROUGH, mode="append", storage_options=proxy.storage_options)
    assert len(numbers(STORED, store)) == 2000
    assert pl.read_delta(THROUGH, storage_options=proxy.storage_options)["n"].sum() == 2 * sum(range(1000))


def test_duckdb_copies_to_a_file(proxy: Proxy, store: Store) -> None:
    connection = demo.duckdb_connection(demo.Endpoint(proxy.url, demo.PROXY_BUCKET, REGION))
    connection.execute(
        f"CREATE OR REPLACE SECRET (TYPE s3, KEY_ID '{proxy.access_key}', SECRET '{proxy.secret_key}', "
        f"REGION '{REGION}', ENDPOINT '{proxy.netloc}', URL_STYLE 'path', USE_SSL false)"
    )
    query = "SELECT i AS n, md5(i::VARCHAR) AS text FROM range(300000) t(i)"
    connection.execute(f"COPY ({query}) TO '{THROUGH}/copied.parquet' (FORMAT parquet)")
    body = store.boto3().get_object(Bucket=BUCKET, Key=f"{ROOT}/copied.parquet")["Body"].read()
    assert pc.sum(pq.read_table(io.BytesIO(body))["n"]).as_py() == sum(range(300_000))


def test_pyarrow_uploads_in_parts_with_trailers(proxy: Proxy, store: Store) -> None:
    filesystem = pyarrow.fs.S3FileSystem(
        access_key=proxy.access_key,
        secret_key=proxy.secret_key,
        region=REGION,
        scheme="http",
        endpoint_override=proxy.netloc,
    )
    body = os.urandom(25 * MIB)
    place = f"{demo.PROXY_BUCKET}/{ALIAS}/arrow"
    with filesystem.open_output_stream(place) as out:
        out.write(body)
    assert store.boto3().get_object(Bucket=BUCKET, Key=f"{ROOT}/arrow")["Body"].read() == body
    filesystem.copy_file(place, f"{place}2")
    filesystem.move(f"{place}2", f"{place}3")
    filesystem.delete_file(place)
    assert store.boto3().get_object(Bucket=BUCKET, Key=f"{ROOT}/arrow3")["Body"].read() == body


def test_s3fs_puts_copies_and_removes(proxy: Proxy, store: Store, tmp_path: pathlib.Path) -> None:
    filesystem = s3fs.S3FileSystem(
        key=proxy.access_key,
        secret=proxy.secret_key,
        client_kwargs={"endpoint_url": proxy.url, "region_name": REGION},
        skip_instance_cache=True,
    )
    body = os.urandom(12 * MIB)
    (tmp_path / "file").write_bytes(body)
    place = f"{demo.PROXY_BUCKET}/{ALIAS}/put"
    filesystem.put(str(tmp_path / "file"), place)
    filesystem.pipe(f"{place}-small", b"small")
    filesystem.cp(place, f"{place}-copy")
    assert store.boto3().get_object(Bucket=BUCKET, Key=f"{ROOT}/put-copy")["Body"].read() == body
    filesystem.rm([place, f"{place}-copy", f"{place}-small"])
    assert store.boto3().list_objects_v2(Bucket=BUCKET, Prefix=f"{ROOT}/put").get("KeyCount") == 0


def boto3_client(proxy: Proxy, **config: Any) -> Any:
    """A boto3 client of the proxy that tries once."""
    return servers.session().client(
        "s3",
        endpoint_url=proxy.url,
        region_name=REGION,
        aws_access_key_id=proxy.access_key,
        aws_secret_access_key=proxy.secret_key,
        config=botocore.config.Config(
            s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, **config
        ),
    )


def test_boto3_manages_an_upload_by_hand(proxy: Proxy) -> None:
    client, at = boto3_client(proxy), {"Bucket": demo.PROXY_BUCKET, "Key": f"{ALIAS}/parts"}
    upload = client.create_multipart_upload(**at)
    assert (upload["Bucket"], upload["Key"]) == (at["Bucket"], at["Key"])
    at_upload = {**at, "UploadId": upload["UploadId"]}
    open_uploads = client.list_multipart_uploads(Bucket=demo.PROXY_BUCKET, Prefix=f"{ALIAS}/")["Uploads"]
    assert [each["Key"] for each in open_uploads] == [at["Key"]]
    body = os.urandom(6 * MIB)
    first = client.upload_part(**at_upload, PartNumber=1, Body=body)
    client.put_object(Bucket=at["Bucket"], Key=f"{ALIAS}/source", Body=b"the rest")
    second = client.upload_part_copy(
        **at_upload, PartNumber=2, CopySource=f"{demo.PROXY_BUCKET}/{ALIAS}/source"
    )
    parts = [
        {"PartNumber": 1, "ETag": first["ETag"].strip('"')},
        {"PartNumber": 2, "ETag": second["CopyPartResult"]["ETag"]},
    ]
    listed = client.list_parts(**at_upload)
    assert [part["Size"] for part in listed["Parts"]] == [6 * MIB, 8]
    done = client.complete_multipart_upload(**at_upload, MultipartUpload={"Parts": parts})
    assert (done["Bucket"], done["Key"]) == (at["Bucket"], at["Key"])
    assert client.get_object(**at)["Body"].read() == body + b"the rest"


def test_an_url_that_was_presigned_for_a_put_takes_one(proxy: Proxy, store: Store) -> None:
    at = {"Bucket": demo.PROXY_BUCKET, "Key": f"{ALIAS}/presigned"}
    client = boto3_client(proxy, signature_version="s3v4")
    for size in (10, 700_000):
        body, url = os.urandom(size), client.generate_presigned_url("put_object", Params=at)
        # Without a type urllib says that it sends a form, and moto reads it as one.
        fields = {"Content-Type": "application/octet-stream"}
        request = urllib.request.Request(url, data=body, headers=fields, method="PUT")
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.status == 200
        assert store.boto3().get_object(Bucket=BUCKET, Key=f"{ROOT}/presigned")["Body"].read() == body


def test_a_lost_race_is_told_as_the_store_tells_it(proxy: Proxy) -> None:
    client = boto3_client(proxy)
    at = {"Bucket": demo.PROXY_BUCKET, "Key": f"{ALIAS}/_delta_log/00000000000000000000.json"}
    client.put_object(**at, Body=b"{}", IfNoneMatch="*")
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        client.put_object(**at, Body=b"{ }", IfNoneMatch="*")
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 412
    assert client.get_object(**at)["Body"].read() == b"{}"


@pytest.mark.slow
@pytest.mark.parametrize("store", ["versitygw"], indirect=True)
def test_every_worker_shows_at_once_what_was_written(store: Store, tmp_path: pathlib.Path) -> None:
    restricted = {
        "accessKey": "AKREADER",
        "secretKey": "secret-of-reader",
        "allowedPartitions": {ALIAS: [{"part": ["a", "b"]}]},
    }
    writer = {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY, "allowedPartitions": {ALIAS: [{}]}}
    config = servers.configuration(
        store,
        workers=2,
        tableMapping={ALIAS: STORED},
        readOnly=False,
        logView="filtered",
        users={"writer": writer, "reader": restricted},
    )
    with servers.proxy(store, config, tmp_path) as proxy:
        reader = attrs.evolve(proxy, access_key="AKREADER", secret_key="secret-of-reader")
        for turn in range(6):
            part = "abc"[turn % 3]
            write_deltalake(
                THROUGH,
                rows(10, part, turn * 10),
                mode="append",
                partition_by=["part"],
                storage_options=proxy.storage_options,
            )
            wanted = [
                ("abc"[each % 3], n) for each in range(turn + 1) for n in range(each * 10, each * 10 + 10)
            ]
            for _ in range(3):
                assert numbers(THROUGH, proxy) == sorted(wanted)
                assert numbers(THROUGH, reader) == sorted(row for row in wanted if row[0] != "c")
        for turn in range(10):
            at = {"Bucket": demo.PROXY_BUCKET, "Key": f"{ALIAS}/_delta_log/00000000000000000009.json"}
            body = b'{"commitInfo":{"turn":%d}}' % turn
            boto3_client(proxy).put_object(**at, Body=body)
            assert {boto3_client(proxy).get_object(**at)["Body"].read() for _ in range(4)} == {body}


@pytest.mark.slow
def test_boto3_uploads_a_gigabyte(proxy: Proxy, store: Store, tmp_path: pathlib.Path) -> None:
    if store.kind == "moto":
        pytest.skip("moto holds what it stores in memory")
    file = tmp_path / "large"
    with file.open("wb") as out:
        for _ in range(64):
            out.write(os.urandom(16 * MIB))
    before = proxy.resident_bytes()
    boto3_client(proxy).upload_file(str(file), demo.PROXY_BUCKET, f"{ALIAS}/large")
    assert store.boto3().head_object(Bucket=BUCKET, Key=f"{ROOT}/large")["ContentLength"] == 1024 * MIB
    assert proxy.resident_bytes() - before < 32 * MIB


@pytest.mark.slow
def test_aws_cli_copies_and_syncs(proxy: Proxy, store: Store, tmp_path: pathlib.Path) -> None:
    aws = shutil.which("aws")
    if aws is None:
        pytest.skip("aws-cli is not installed")
    environment = clean_environment(
        AWS_ACCESS_KEY_ID=proxy.access_key,
        AWS_SECRET_ACCESS_KEY=proxy.secret_key,
        AWS_DEFAULT_REGION=REGION,
        AWS_CONFIG_FILE=str(tmp_path / "none"),
    )

    def run(*arguments: str) -> None:
        command = [aws, "--endpoint-url", proxy.url, "s3", *arguments]
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=250)

    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "small").write_bytes(b"small")
    (folder / "sub" / "large").write_bytes(os.urandom(20 * MIB))
    run("cp", str(folder / "small"), f"{THROUGH}/small")
    run("sync", str(folder), f"{THROUGH}/synced")
    run("cp", f"{THROUGH}/synced/sub/large", f"{THROUGH}/copied")
    run("rm", f"{THROUGH}/small")
    (folder / "small").unlink()
    run("sync", "--delete", str(folder), f"{THROUGH}/synced")
    listed = store.boto3().list_objects_v2(Bucket=BUCKET, Prefix=f"{ROOT}/")["Contents"]
    keys = sorted(each["Key"].removeprefix(f"{ROOT}/") for each in listed if each["Size"])
    assert keys == ["copied", "synced/sub/large"]
