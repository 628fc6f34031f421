"""Spark reads through the proxy what it reads from the store with a filter on the granted partitions.

Two lines of it, with either generation of the AWS SDK below S3A. Each is one process that takes commands
(`spark/program.py`): it writes tables into the store, reads them from there with the filter, then reads them
through one proxy after the other. The credentials are those of a session. pyspark comes from PyPI, the jars
come by Maven (`spark/lines.py`).
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import boto3
import pytest
from deltalake import DeltaTable, QueryBuilder

from delta_proxy import demo
from delta_proxy.access.keys import generate_key
from tests.access.oidc_issuer import AUDIENCE, Issuer, serving

from . import servers
from .conftest import GRANTED, TRADES
from .servers import BUCKET, REGION, Proxy, Store
from .spark import settings
from .spark.lines import LINES, Line
from .test_local_helper import figures, helper
from .tools import Unavailable

SOURCES = pathlib.Path(__file__).with_name("spark")
WHERE = f"MIC IN ({', '.join(repr(mic) for mic in GRANTED)})"
WRITTEN = ("changes", "mapped", "modern")
TABLES = (TRADES, *WRITTEN)
FOR_WRITING = "datalake-writing"
KEY = generate_key()

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@attrs.frozen
class Way:
    """A way to the table: a proxy of its own with a bucket of its own."""

    get_mode: str
    helped: bool
    log_view: str

    @property
    def bucket(self) -> str:
        """The virtual bucket, since Spark knows an endpoint by its bucket."""
        how = "helped" if self.helped else "direct"
        return f"datalake-{self.get_mode.lower()}-{how}-{self.log_view}"


WAYS = [
    Way(get_mode, helped, log_view)
    for log_view in ("filtered", "passthrough")
    for get_mode in ("presignedUrl", "proxy")
    for helped in (False, True)
]


class Spark:
    """A process of Spark that obeys."""

    def __init__(self, process: subprocess.Popen[str], folder: pathlib.Path) -> None:
        self._process, self._folder = process, folder
        self._answer = folder / "answer.json"

    def ask(self, do: str, base: str, **more: Any) -> Any:
        """What the process answers; the test fails when it cannot."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        command = {"do": do, "base": base, "answer": str(self._answer), **more}
        self._answer.unlink(missing_ok=True)
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.rstrip() == "-- done --":
                break
        else:
            pytest.fail(f"Spark ended: {(self._folder / 'spark.log').read_text(errors='replace')[-3000:]}")
        answer = json.loads(self._answer.read_text())
        assert "error" not in answer, answer["error"]
        return answer["value"]


@contextlib.contextmanager
def spark(line: Line, told: Mapping[str, str], folder: pathlib.Path) -> Iterator[Spark]:
    """A process of Spark of that line, with these settings of Hadoop."""
    try:
        home = line.tool.ready()
    except Unavailable as unavailable:
        pytest.skip(f"{line.name}: {unavailable}")
    command = [sys.executable, str(SOURCES / "program.py"), str(home / "jars"), json.dumps(told)]
    env = servers.clean_environment(
        PYTHONPATH=str(home / "python"), PYSPARK_PYTHON=sys.executable, SPARK_LOCAL_IP="127.0.0.1"
    )
    env.pop("SPARK_HOME", None)
    with (folder / "spark.log").open("w") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=env, cwd=folder
        )
        try:
            yield Spark(process, folder)
        finally:
            # The end of its commands is the end of the process, and that of its JVM.
            try:
                process.communicate(timeout=300)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


def store_settings(store: Store) -> dict[str, str]:
    """What Hadoop must know of the store itself."""
    direct = settings.of_bucket(BUCKET, store.url, access_key=store.access_key, secret_key=store.secret_key)
    # versitygw deletes no directory that holds something, and S3A 3.3 goes on asking for it.
    kept = {"fs.s3a.directory.marker.retention": "keep"}
    return settings.common(REGION) | direct | kept


@contextlib.contextmanager
def identifying(
    store: Store, way: Way, places: Mapping[str, str], issuer: Issuer, folder: pathlib.Path
) -> Iterator[Proxy]:
    """The proxy of a way: it asks for a session, and grants two of the MICs of each table."""
    config = servers.configuration(
        store,
        tableMapping=dict(places),
        allowedPartitions={name: [{"MIC": list(GRANTED)}] for name in places},
        bucket=way.bucket,
        getMode=way.get_mode,
        logView=way.log_view,
    )
    with asking(store, config, issuer, folder) as proxy:
        yield proxy


@contextlib.contextmanager
def asking(store: Store, config: Mapping[str, Any], issuer: Issuer, folder: pathlib.Path) -> Iterator[Proxy]:
    """A proxy that asks for a session."""
    folder.mkdir()
    config = {**config, "sts": {"issuer": issuer.url, "audience": AUDIENCE}}
    path, port, metrics_port = servers.write_configuration(config, folder)
    env = {**servers.proxy_environment(store), "PROXY_SECRET_KEYS": KEY}
    with servers.proxy_process(path, metrics_port, folder, env) as child:
        yield Proxy(f"http://localhost:{port}", port=port, metrics_port=metrics_port, pid=child.pid)


def session_of(proxy: Proxy, issuer: Issuer) -> Mapping[str, str]:
    """The credentials of a session, which hold for every proxy with the same key."""
    sts = boto3.session.Session("x", "x", region_name=REGION).client("sts", endpoint_url=proxy.url)
    answer = sts.assume_role_with_web_identity(
        RoleArn="arn:aws:iam::123456789012:role/reader",
        RoleSessionName="spark",
        WebIdentityToken=issuer.token(issuer.claims(time.time())),
    )
    given: Mapping[str, str] = answer["Credentials"]
    return given


@contextlib.contextmanager
def writable(store: Store, root: str, issuer: Issuer, folder: pathlib.Path) -> Iterator[Proxy]:
    """A proxy that takes writes of everybody with a session."""
    places = {name: f"s3://{root}-through/{name}" for name in WRITTEN}
    config = servers.configuration(store, tableMapping=places, bucket=FOR_WRITING, readOnly=False)
    with asking(store, config, issuer, folder / FOR_WRITING) as proxy:
        yield proxy


@attrs.frozen
class Running:
    """Spark, what it reads from the store itself, and the ways to the same tables."""

    line: Line
    spark: Spark
    direct: Mapping[str, Any]
    proxies: Mapping[Way, Proxy]


@pytest.fixture(scope="module", params=LINES, ids=lambda line: line.name)
def reading(
    request: pytest.FixtureRequest, gateway_store: Store, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """Each line of Spark in turn; its tables are written by itself."""
    line: Line = request.param
    folder = tmp_path_factory.mktemp(line.name)
    root = f"{BUCKET}/{line.name}"
    places = {name: f"s3://{root}/{name}" for name in WRITTEN} | {TRADES: f"s3://{BUCKET}/{TRADES}"}
    with contextlib.ExitStack() as stack:
        issuer = stack.enter_context(serving(Issuer()))
        one = stack.enter_context(helper(folder))
        program = stack.enter_context(spark(line, store_settings(gateway_store), folder))
        program.ask("write", f"s3a://{root}", tables=WRITTEN)
        direct = program.ask("look", f"s3a://{root}", tables=WRITTEN, where=WHERE)
        direct |= program.ask("look", f"s3a://{BUCKET}", tables=[TRADES], where=WHERE)
        proxies = {
            way: stack.enter_context(identifying(gateway_store, way, places, issuer, folder / way.bucket))
            for way in WAYS
        }
        writing = stack.enter_context(writable(gateway_store, root, issuer, folder))
        session = session_of(writing, issuer)
        buckets = {way.bucket: (proxy, way.helped) for way, proxy in proxies.items()}
        for bucket, (proxy, helped) in {**buckets, FOR_WRITING: (writing, False)}.items():
            told = settings.of_bucket(
                bucket,
                proxy.url,
                access_key=session["AccessKeyId"],
                secret_key=session["SecretAccessKey"],
                session_token=session["SessionToken"],
                helper_port=one.port if helped else None,
            )
            program.ask("look", f"s3a://{bucket}", tables=[], settings=told)
        yield Running(line, program, direct, proxies)


def each_way(log_view: str) -> pytest.MarkDecorator:
    """Every way with that view of the log."""
    chosen = [way for way in WAYS if way.log_view == log_view]
    return pytest.mark.parametrize("way", chosen, ids=lambda way: way.bucket.removeprefix("datalake-"))


def test_the_store_itself_gives_what_the_tables_hold(reading: Running) -> None:
    trades = reading.direct[TRADES]
    counts = {mic: json.loads(trades[mic][0])["rows"] for mic in demo.LISTINGS}
    assert counts == {mic: demo.expected(mic).rows if mic in GRANTED else 0 for mic in demo.LISTINGS}
    assert trades["count"] == len(trades["stream"]) == sum(counts.values())
    for name in WRITTEN:
        assert {json.loads(row)["MIC"] for row in reading.direct[name]["all"]} == set(GRANTED)
    kinds = {json.loads(row)["_change_type"] for row in reading.direct["changes"]["changes"]}
    assert kinds == {"insert", "update_preimage", "update_postimage", "delete"}


@each_way("filtered")
def test_spark_reads_through_the_proxy_what_it_reads_directly_with_a_filter(
    reading: Running, way: Way
) -> None:
    _, before = figures(reading.proxies[way])
    seen = reading.spark.ask("look", f"s3a://{way.bucket}", tables=TABLES)
    for name in TABLES:
        assert seen[name] == reading.direct[name], name
    _, after = figures(reading.proxies[way])
    assert (after > before) is (way.helped and way.get_mode == "presignedUrl")


@each_way("passthrough")
def test_a_denied_partition_of_a_raw_log_is_access_denied(reading: Running, way: Way) -> None:
    seen = reading.spark.ask("attempt", f"s3a://{way.bucket}", table=TRADES, mics=["XLON", "XETR", "XPAR"])
    assert {mic: seen[mic] for mic in GRANTED} == {mic: {"rows": demo.expected(mic).rows} for mic in GRANTED}
    assert "AccessDenied" in seen["XPAR"]["error"]


def timeless(seen: Mapping[str, Any]) -> dict[str, Any]:
    """What was seen of a table, without the times of its commits."""
    rows = [name for name in seen if name not in {"history", "count"}]
    kept = {name: sorted(json.dumps(without_time(json.loads(row))) for row in seen[name]) for name in rows}
    return {**kept, "count": seen["count"], "history": [(each[0], each[2]) for each in seen["history"]]}


def without_time(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the change data feed without the time of its commit."""
    return {name: value for name, value in row.items() if name != "_commit_timestamp"}


@pytest.fixture(scope="module")
def written(reading: Running) -> Mapping[str, Any]:
    """What Spark reads from the store itself of the tables that it wrote through the proxy."""
    reading.spark.ask("write", f"s3a://{FOR_WRITING}", tables=WRITTEN)
    through = f"s3a://{BUCKET}/{reading.line.name}-through"
    seen: Mapping[str, Any] = reading.spark.ask("look", through, tables=WRITTEN, where=WHERE)
    return seen


def files_of(store: Store, line: Line, table: str) -> set[str]:
    """The paths below a table that was written through the proxy."""
    root = f"{line.name}-through/{table}/"
    pages = store.boto3().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=root)
    return {item["Key"].removeprefix(root) for page in pages for item in page.get("Contents", ())}


def test_spark_writes_through_the_proxy_what_it_writes_directly(
    reading: Running, written: Mapping[str, Any]
) -> None:
    for name in WRITTEN:
        assert timeless(written[name]) == timeless(reading.direct[name]), name
    done = {each[2] for name in WRITTEN for each in written[name]["history"]}
    assert {"CREATE TABLE", "WRITE", "UPDATE", "DELETE", "MERGE", "RENAME COLUMN", "OPTIMIZE"} <= done


def test_spark_writes_checkpoints_through_the_proxy(
    reading: Running, written: Mapping[str, Any], gateway_store: Store
) -> None:
    """One of a single file, one with sidecars; and the file that names the newest."""
    for name, sidecars in (("mapped", False), ("modern", True)):
        log = {
            path.removeprefix("_delta_log/")
            for path in files_of(gateway_store, reading.line, name)
            if path.startswith("_delta_log/")
        }
        assert "_last_checkpoint" in log
        assert any(".checkpoint." in path for path in log), log
        assert any(path.startswith("_sidecars/") for path in log) is sidecars


def test_spark_overwrites_and_vacuums_through_the_proxy(
    reading: Running, written: Mapping[str, Any], gateway_store: Store
) -> None:
    before = len(data_files(files_of(gateway_store, reading.line, "mapped")))
    reading.spark.ask("tidy", f"s3a://{FOR_WRITING}", table="mapped")
    root = f"s3://{BUCKET}/{reading.line.name}-through/mapped"
    table = DeltaTable(root, storage_options=gateway_store.storage_options)
    rows = QueryBuilder().register("t", table).execute("select id from t").read_all()
    assert sorted(rows["id"].to_pylist()) == list(range(50))
    left = data_files(files_of(gateway_store, reading.line, "mapped"))
    assert len(left) == len(table.file_uris()) < before


def data_files(paths: set[str]) -> set[str]:
    """Those of a table's files that hold rows."""
    return {path for path in paths if path.endswith(".parquet") and not path.startswith("_delta_log/")}


def test_the_page_on_spark_shows_the_settings_that_are_run() -> None:
    page = (servers.ROOT / "docs" / "spark.md").read_text()
    shown = {
        line.split()[0].removeprefix("spark.hadoop.") for line in page.splitlines() if "    spark." in line
    }
    told = settings.of_bucket(
        demo.PROXY_BUCKET,
        "endpoint",
        access_key="key",
        secret_key="secret",
        session_token="token",
        helper_port=28080,
    )
    assert shown == settings.common(REGION).keys() | told.keys()
