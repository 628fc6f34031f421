"""Spark reads through the proxy what it reads from the store with a filter on the granted partitions.

Two lines of it, with either generation of the AWS SDK below S3A. Each is one process that takes commands
(`spark/program.py`): it writes tables into the store, reads them from there with the filter, then reads them
through one proxy after the other. The credentials are those of a session. pyspark comes from PyPI, the jars
come by Maven; both are kept in `.cache/spark/`.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil
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
from delta_proxy.demo import running
from tests.access.oidc_issuer import AUDIENCE, Issuer, serving

from . import servers
from .conftest import GRANTED, TRADES
from .servers import BUCKET, REGION, Proxy, Store
from .spark import settings
from .test_local_helper import figures, helper

SOURCES = pathlib.Path(__file__).with_name("spark")
BUILT = servers.ROOT / ".cache" / "spark"
WHERE = f"MIC IN ({', '.join(repr(mic) for mic in GRANTED)})"
WRITTEN = ("changes", "mapped", "modern")
TABLES = (TRADES, *WRITTEN)
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
FOR_WRITING = "datalake-writing"
KEY = generate_key()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    *(
        pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not on the PATH")
        for name in ("java", "mvn")
    ),
]


@attrs.frozen
class Line:
    """A line of Spark: its pom, and the pyspark that belongs to it."""

    name: str
    pyspark: str
    sdk: str


LINES = (
    Line("spark-3.5", "3.5.9", "aws-java-sdk/1."),
    Line("spark-4.0", "4.0.5", "aws-java-sdk/2."),
)


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


def installed(line: Line) -> pathlib.Path:
    """The folder with pyspark and the jars of a line, made when it is not there; skips when it cannot be."""
    pom, folder = SOURCES / f"{line.name}.pom.xml", BUILT / line.name
    wanted, stamp = f"{line.pyspark}\n{pom.read_text()}", folder / "installed"
    if stamp.exists() and stamp.read_text() == wanted:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    python, jars = folder / "python", folder / "jars"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-compile", "--target", str(python)]
    maven = ["mvn", "-B", "-q", "-f", str(pom), COPY, f"-DoutputDirectory={jars}", "-DincludeScope=runtime"]
    for command in ([*pip, f"pyspark=={line.pyspark}"], maven):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{command[0]} could not install: {(done.stdout + done.stderr)[-500:]}")
    stamp.write_text(wanted)
    return folder


@contextlib.contextmanager
def spark(line: Line, told: Mapping[str, str], folder: pathlib.Path) -> Iterator[Spark]:
    """A process of Spark of that line, with these settings of Hadoop."""
    home = installed(line)
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
    ready = f"http://127.0.0.1:{metrics_port}/health/ready"
    command = servers.proxy_command(path)
    with running(command, log=folder / "proxy.log", env=env, ready=lambda: demo.answers(ready)) as child:
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


def test_spark_writes_through_the_proxy_what_it_writes_directly(
    reading: Running, gateway_store: Store
) -> None:
    through = f"{BUCKET}/{reading.line.name}-through"
    reading.spark.ask("write", f"s3a://{FOR_WRITING}", tables=WRITTEN)
    seen = reading.spark.ask("look", f"s3a://{through}", tables=WRITTEN, where=WHERE)
    for name in WRITTEN:
        assert timeless(seen[name]) == timeless(reading.direct[name]), name
    reading.spark.ask("tidy", f"s3a://{FOR_WRITING}", table="mapped")
    table = DeltaTable(f"s3://{through}/mapped", storage_options=gateway_store.storage_options)
    assert sorted(
        QueryBuilder().register("t", table).execute("select id from t").read_all()["id"].to_pylist()
    ) == list(range(50))
    listed = gateway_store.boto3().list_objects_v2(
        Bucket=BUCKET, Prefix=f"{through.partition('/')[2]}/mapped/"
    )
    data = {
        each["Key"]
        for each in listed["Contents"]
        if each["Key"].endswith(".parquet") and "_delta_log" not in each["Key"]
    }
    assert len(data) == len(table.file_uris())


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
