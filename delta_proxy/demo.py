"""The demo: a Delta table in an S3 store of its own, read directly and through the proxy by three clients.

`python -m delta_proxy.demo --config etc/config.json` starts moto as the store, writes the table
`trades_plus`, starts the proxy as `twistd -n delta-s3-proxy`, reads, prints, and keeps serving. With
`--once` it ends after the reads, with status 0 only if every number is right.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, timedelta

import attrs
import boto3
import deltalake
import duckdb
import polars as pl
import pyarrow as pa

ACCESS_KEY = "demo"
SECRET_KEY = "demo-secret"  # noqa: S105 - moto takes any secret
CHECKPOINT_AT = 10
FIRST_DAY = date(2024, 3, 1)
DAYS = 14
PROXY_BUCKET = "datalake"
ALIAS = "trades_plus"

# Rows a day by MIC, and the security traded there.
LISTINGS = {
    "XLON": (60, "GB0005405286"),
    "XETR": (45, "DE0007164600"),
    "XPAR": (30, "FR0000120271"),
    "XMIL": (15, "IT0003128367"),
}


class DemoError(Exception):
    """The demo cannot go on; its text is the one line to print."""


@attrs.frozen
class Reading:
    """What one client saw of one MIC."""

    rows: int
    quantity: int


class Refused:
    """The client was refused: the store's 403."""


REFUSED = Refused()
Seen = Reading | Refused


@attrs.frozen
class Endpoint:
    """An S3 endpoint and the table behind it, as a client is told of them."""

    url: str
    bucket: str
    region: str

    @property
    def uri(self) -> str:
        """The table's URI for this endpoint."""
        return f"s3://{self.bucket}/{ALIAS}"

    @property
    def storage_options(self) -> dict[str, str]:
        """What deltalake and polars take."""
        return {
            "aws_endpoint_url": self.url,
            "aws_access_key_id": ACCESS_KEY,
            "aws_secret_access_key": SECRET_KEY,
            "aws_region": self.region,
            "aws_allow_http": "true",
            "aws_virtual_hosted_style_request": "false",
        }


def day_of_trades(day: int) -> pa.Table:
    """The rows of one day, counted from 0, over all MICs; each MIC trades one row more every day."""
    rows = [
        {
            "ISIN": isin,
            "price": 100.0 + day + number / 100,
            "quantity": 10 * (number + 1),
            "currency": "GBP" if mic == "XLON" else "EUR",
            "MIC": mic,
            "date": FIRST_DAY + timedelta(days=day),
        }
        for mic, (base, isin) in LISTINGS.items()
        for number in range(base + day)
    ]
    return pa.Table.from_pylist(rows)


def expected(mic: str) -> Reading:
    """What a full read of one MIC must give."""
    counts = [LISTINGS[mic][0] + day for day in range(DAYS)]
    return Reading(sum(counts), sum(5 * count * (count + 1) for count in counts))


def write_table(uri: str, storage_options: Mapping[str, str]) -> None:
    """Write the table: one commit a day and a checkpoint with commits after it."""
    options = dict(storage_options)
    for day in range(DAYS):
        deltalake.write_deltalake(
            uri, day_of_trades(day), mode="append", partition_by=["MIC", "date"], storage_options=options
        )
        if day == CHECKPOINT_AT:
            deltalake.DeltaTable(uri, storage_options=options).create_checkpoint()


def read_deltalake(at: Endpoint, mic: str) -> Reading:
    """Read one MIC with deltalake."""
    table = deltalake.DeltaTable(at.uri, storage_options=at.storage_options)
    quantities = table.to_pyarrow_table(filters=[("MIC", "=", mic)], columns=["quantity"])["quantity"]
    return Reading(len(quantities), sum(quantities.to_pylist()))


def read_polars(at: Endpoint, mic: str) -> Reading:
    """Read one MIC with polars."""
    frame = pl.scan_delta(at.uri, storage_options=at.storage_options).filter(pl.col("MIC") == mic)
    rows, quantity = frame.select(pl.len(), pl.col("quantity").sum().alias("quantity")).collect().row(0)
    return Reading(rows, quantity)


def read_duckdb(at: Endpoint, mic: str) -> Reading:
    """Read one MIC with duckdb, its httpfs and its delta extension."""
    with duckdb_connection(at) as connection:
        found = connection.execute(
            "SELECT count(*), coalesce(sum(quantity), 0) FROM delta_scan(?) WHERE MIC = ?", [at.uri, mic]
        ).fetchone()
    assert found is not None
    return Reading(int(found[0]), int(found[1]))


CLIENTS: Mapping[str, Callable[[Endpoint, str], Reading]] = {
    "deltalake": read_deltalake,
    "polars": read_polars,
    "duckdb": read_duckdb,
}


def duckdb_connection(at: Endpoint) -> duckdb.DuckDBPyConnection:
    """A connection that reaches the endpoint; its extensions come from Python packages, not the network."""
    connection = duckdb.connect()
    connection.execute("SET autoinstall_known_extensions = false")
    for name in ("httpfs", "delta"):
        connection.execute(f"LOAD '{extension(name)}'")
    host = urllib.parse.urlsplit(at.url)
    connection.execute(
        f"CREATE SECRET (TYPE s3, KEY_ID '{ACCESS_KEY}', SECRET '{SECRET_KEY}', REGION '{at.region}', "
        f"ENDPOINT '{host.netloc}', URL_STYLE 'path', USE_SSL {str(host.scheme == 'https').lower()})"
    )
    return connection


def extension(name: str) -> pathlib.Path:
    """The file of an extension of duckdb that came as a Python package. Raises DemoError without it."""
    spec = importlib.util.find_spec(f"duckdb_extension_{name}")
    if spec is not None and spec.origin is not None:
        folder = pathlib.Path(spec.origin).parent / "extensions" / f"v{duckdb.__version__}"
        for file in folder.glob("*.duckdb_extension"):
            return file
    raise DemoError(f"duckdb-extension-{name} {duckdb.__version__} is not installed")


def look(read: Callable[[Endpoint, str], Reading], at: Endpoint, mic: str) -> Seen:
    """One client's read of one MIC, a refusal by the store included."""
    try:
        return read(at, mic)
    except Exception as error:
        if is_refusal(str(error)):
            return REFUSED
        raise


def is_refusal(message: str) -> bool:
    """Whether a client's error says that the server answered 403 AccessDenied."""
    return any(sign in message for sign in ("AccessDenied", "ACCESS_DENIED", "403", "Forbidden"))


def problems(granted: frozenset[str], seen: Mapping[tuple[str, str], Seen]) -> list[str]:
    """What is wrong with what was seen, by (column, MIC); the column "direct" is a read without the proxy."""
    found = []
    for (column, mic), what in seen.items():
        if column == "direct" or mic in granted:
            if what != expected(mic):
                found.append(f"{column} read {_cell(what)} rows of {mic}, expected {expected(mic).rows}")
        elif isinstance(what, Reading) and what.rows:
            found.append(f"{column} read {what.rows} rows of {mic}, which is not granted")
    return found


def render(seen: Mapping[tuple[str, str], Seen]) -> str:
    """The rows seen, as a plain text table: a line a MIC, a column a client."""
    columns = list(dict.fromkeys(column for column, _ in seen))
    mics = list(dict.fromkeys(mic for _, mic in seen))
    lines = [["MIC", *columns], *([mic, *(_cell(seen[column, mic]) for column in columns)] for mic in mics)]
    return "\n".join("  ".join(f"{cell:>10}" for cell in line) for line in lines)


def _cell(what: Seen) -> str:
    return str(what.rows) if isinstance(what, Reading) else "denied"


def paste_lines(at: Endpoint) -> str:
    """Lines that read the served table, for each client."""
    host = urllib.parse.urlsplit(at.url).netloc
    options = json.dumps(at.storage_options)
    return f"""polars
    import polars as pl
    options = {options}
    pl.scan_delta("{at.uri}", storage_options=options).filter(pl.col("MIC") == "XLON").collect()

deltalake
    from deltalake import DeltaTable
    table = DeltaTable("{at.uri}", storage_options=options)
    table.to_pyarrow_table(filters=[("MIC", "=", "XETR")])

duckdb (with its extensions httpfs and delta)
    CREATE SECRET (TYPE s3, KEY_ID '{ACCESS_KEY}', SECRET '{SECRET_KEY}', REGION '{at.region}',
                   ENDPOINT '{host}', URL_STYLE 'path', USE_SSL false);
    SELECT MIC, count(*) FROM delta_scan('{at.uri}') WHERE MIC IN ('XLON', 'XETR') GROUP BY MIC;

boto3
    import boto3
    s3 = boto3.client("s3", endpoint_url="{at.url}", region_name="{at.region}",
                      aws_access_key_id="{ACCESS_KEY}", aws_secret_access_key="{SECRET_KEY}")
    [o["Key"] for o in s3.list_objects_v2(Bucket="{at.bucket}", Prefix="{ALIAS}/MIC=")["Contents"]]

Spark (3.5 with delta-spark and hadoop-aws)
    spark-shell --packages io.delta:delta-spark_2.12:3.3.2,org.apache.hadoop:hadoop-aws:3.3.4 \\
      --conf spark.sql.extensions=io.delta.sql.DeltaSparkSessionExtension \\
      --conf spark.sql.catalog.spark_catalog=org.apache.spark.sql.delta.catalog.DeltaCatalog \\
      --conf spark.hadoop.fs.s3a.endpoint={at.url} --conf spark.hadoop.fs.s3a.path.style.access=true \\
      --conf spark.hadoop.fs.s3a.access.key={ACCESS_KEY} --conf spark.hadoop.fs.s3a.secret.key={SECRET_KEY}
    spark.read.format("delta").load("s3a://{at.bucket}/{ALIAS}").where("MIC = 'XLON'").count()
"""  # noqa: S608 - text for a person to paste


def free_port(wanted: int = 0, interface: str = "127.0.0.1") -> int:
    """The wanted TCP port if it is free on the interface, else any free one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((interface, wanted))
        except OSError:
            return free_port(0, interface)
        return int(probe.getsockname()[1])


def answers(url: str, seconds: float = 5.0) -> bool:
    """Whether a GET of the URL is answered with a 2xx, within so many seconds."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=seconds) as response:
            return bool(200 <= response.status < 300)
    except OSError:
        return False


@contextlib.contextmanager
def running(
    command: Sequence[str],
    *,
    log: pathlib.Path,
    env: Mapping[str, str],
    ready: Callable[[], bool],
    seconds: float = 180.0,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program of our own until the block ends, from the moment it is ready.

    Its output goes to `log`. It has a session of its own, so that Ctrl-C reaches this process alone,
    which then ends it by its process id. Raises DemoError, with the end of the log, if it ends or is not
    ready in `seconds`.
    """
    with log.open("wb") as output:
        child = subprocess.Popen(  # noqa: S603 - the command is ours
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(env),
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + seconds
        while not ready():
            if child.poll() is not None or time.monotonic() > deadline:
                state = "did not get ready" if child.poll() is None else f"ended with status {child.poll()}"
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
                raise DemoError(f"{pathlib.Path(command[0]).name} {state}\n{tail}")
            time.sleep(0.05)
        yield child
    finally:
        end(child)


def end(child: subprocess.Popen[bytes], seconds: float = 15.0) -> int:
    """End a child by its process id, politely first; returns its exit status."""
    child.terminate()
    try:
        return child.wait(seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def script(name: str) -> str:
    """The path of a console script of this environment."""
    return str(pathlib.Path(sys.executable).with_name(name))


@attrs.frozen
class Setting:
    """The configuration file with ports that are free here."""

    config: pathlib.Path
    store: Endpoint
    proxy: Endpoint
    metrics_port: int
    granted: frozenset[str]

    @classmethod
    def of(cls, config: pathlib.Path) -> Setting:
        """Read the demo's configuration and move the ports that are taken. Raises DemoError."""
        try:
            values = json.loads(config.read_text())
            storage = values["storage"]
            bucket, _, prefix = values["tableMapping"][ALIAS].removeprefix("s3://").partition("/")
            granted = [mic for grant in values["allowedPartitions"][ALIAS] for mic in grant["MIC"]]
            wanted = urllib.parse.urlsplit(storage["endpoint"])
            ports = (wanted.port or 80, values["port"], values["metricsPort"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise DemoError(f"{config} is not a configuration for the demo: {error!r}") from None
        if prefix != ALIAS:
            raise DemoError(f"{config}: the demo's table is written to the prefix {ALIAS}")
        store_port, port, metrics_port = (free_port(number) for number in ports)
        return cls(
            config,
            Endpoint(f"http://{wanted.hostname}:{store_port}", bucket, storage["region"]),
            Endpoint(f"http://localhost:{port}", PROXY_BUCKET, storage["region"]),
            metrics_port,
            frozenset(granted),
        )

    @property
    def environment(self) -> dict[str, str]:
        """The proxy's environment: the store's credentials and the ports."""
        port = urllib.parse.urlsplit(self.proxy.url).port
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PROXY_"))},
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "PROXY_STORAGE__ENDPOINT": self.store.url,
            "PROXY_PORT": str(port),
            "PROXY_METRICS_PORT": str(self.metrics_port),
        }


@contextlib.contextmanager
def store(setting: Setting, folder: pathlib.Path) -> Iterator[subprocess.Popen[bytes]]:
    """moto with an empty bucket."""
    port = urllib.parse.urlsplit(setting.store.url).port
    command = [script("moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    url = f"{setting.store.url}/moto-api/data.json"
    with running(command, log=folder / "store.log", env=os.environ, ready=lambda: answers(url)) as child:
        client = boto3.client(
            "s3",
            endpoint_url=setting.store.url,
            region_name=setting.store.region,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
        )
        client.create_bucket(
            Bucket=setting.store.bucket,
            CreateBucketConfiguration={"LocationConstraint": setting.store.region},
        )
        yield child


@contextlib.contextmanager
def proxy(setting: Setting, folder: pathlib.Path) -> Iterator[subprocess.Popen[bytes]]:
    """The proxy, as anyone would start it."""
    command = [script("twistd"), "-n", "--pidfile=", "delta-s3-proxy", "--config", str(setting.config)]
    url = f"http://127.0.0.1:{setting.metrics_port}/health/ready"
    # A cache of its own: the next run writes another table to the same place.
    environment = setting.environment | {"PROXY_CACHE__DIRECTORY": str(folder / "cache")}
    log = folder / "proxy.log"
    with running(command, log=log, env=environment, ready=lambda: answers(url)) as child:
        yield child


def see(setting: Setting) -> dict[tuple[str, str], Seen]:
    """Every client's read of every MIC through the proxy, beside deltalake's without it."""
    direct: dict[tuple[str, str], Seen] = {
        ("direct", mic): read_deltalake(setting.store, mic) for mic in LISTINGS
    }
    return direct | {
        (name, mic): look(read, setting.proxy, mic) for name, read in CLIENTS.items() for mic in LISTINGS
    }


def demonstrate(setting: Setting, folder: pathlib.Path, *, once: bool) -> list[str]:
    """Run everything; returns what is wrong with the numbers, after serving until a signal unless `once`."""
    print(f"store  {setting.store.url}  (moto)")
    with store(setting, folder) as store_process:
        write_table(setting.store.uri, setting.store.storage_options)
        print(f"table  {setting.store.uri}  ({DAYS} commits and a checkpoint, by MIC and date)")
        with proxy(setting, folder) as proxy_process:
            print(f"proxy  {setting.proxy.url}  (grants MIC {', '.join(sorted(setting.granted))})")
            seen = see(setting)
            print(f"\nrows read directly, and through the proxy as {setting.proxy.uri}\n\n{render(seen)}\n")
            wrong = problems(setting.granted, seen)
            print("\n".join(f"WRONG: {line}" for line in wrong) or "every number is right")
            if not once:
                serve(setting, (store_process, proxy_process))
            return wrong


def serve(setting: Setting, children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Keep serving until a signal ends it. Raises DemoError when a child ends by itself."""
    print(f"\n{paste_lines(setting.proxy)}\nmetrics: http://127.0.0.1:{setting.metrics_port}/metrics")
    print("serving until Ctrl-C", flush=True)
    while all(child.poll() is None for child in children):
        time.sleep(0.5)
    raise DemoError("the store or the proxy has ended")


def main(arguments: Sequence[str]) -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(prog="bin/demo", description="A Delta table read through the proxy.")
    parser.add_argument("--once", action="store_true", help="end after the reads")
    parser.add_argument("--config", type=pathlib.Path, default=pathlib.Path("etc/config.json"))
    options = parser.parse_args(arguments)
    # SIGTERM unwinds like Ctrl-C, so that the children are ended too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="delta-proxy-demo-") as folder:
        try:
            return (
                1 if demonstrate(Setting.of(options.config), pathlib.Path(folder), once=options.once) else 0
            )
        except DemoError as error:
            print(f"error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print("\nended")
            return 0 if not options.once else 130
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
