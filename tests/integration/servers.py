"""The real parts of the integration tests: two S3 servers, the proxy, and a link to a store that can be cut.

Each is started on a free port of the loopback interface, waited for, and ended by its process id.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import boto3
import botocore.config

from delta_proxy.demo import answers, running, script
from tests.ports import free_port
from tests.waiting import PATIENCE

ACCESS_KEY = "test-access-key"
SECRET_KEY = "test-secret-key"
REGION = "us-east-1"
BUCKET = "warehouse"
ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED_TABLES = (ROOT.parent / "shared" / "tables").resolve()


@attrs.frozen
class Endpoint:
    """An S3 endpoint with credentials, in the forms that the clients take."""

    url: str
    access_key: str = ACCESS_KEY
    secret_key: str = attrs.field(default=SECRET_KEY, repr=False)

    @property
    def netloc(self) -> str:
        """Host and port."""
        return self.url.partition("://")[2]

    @property
    def storage_options(self) -> dict[str, str]:
        """What deltalake and polars take."""
        return {
            "aws_endpoint_url": self.url,
            "aws_access_key_id": self.access_key,
            "aws_secret_access_key": self.secret_key,
            "aws_region": REGION,
            "aws_allow_http": "true",
            "aws_virtual_hosted_style_request": "false",
        }

    def boto3(self) -> Any:
        """A boto3 client, path-style, that tries once."""
        return _boto3_client(self.url, self.access_key, self.secret_key)


@functools.cache
def session() -> Any:
    """A session of boto3 for clients with explicit credentials: it reads AWS's long descriptions once."""
    return boto3.session.Session()


@functools.cache
def _boto3_client(url: str, access_key: str, secret_key: str) -> Any:
    return session().client(
        "s3",
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=botocore.config.Config(
            s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, max_pool_connections=16
        ),
    )


@attrs.frozen
class Store(Endpoint):
    """An S3 server with one bucket."""

    kind: str = ""
    folder: pathlib.Path | None = None
    access_log: pathlib.Path | None = None

    def upload(self, folder: pathlib.Path, prefix: str) -> None:
        """Put every file below the folder under the prefix, by its relative path."""
        client = self.boto3()

        def put(file: pathlib.Path) -> None:
            key = f"{prefix}/{file.relative_to(folder).as_posix()}"
            client.put_object(Bucket=BUCKET, Key=key, Body=file.read_bytes())

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(put, (file for file in sorted(folder.rglob("*")) if file.is_file())))

    def requests(self) -> list[str]:
        """The lines of the store's access log, where it has one."""
        assert self.access_log is not None
        return self.access_log.read_text().splitlines() if self.access_log.exists() else []


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without any AWS or proxy setting, and with what is given."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PROXY_"))}
    return {**kept, "AWS_EC2_METADATA_DISABLED": "true", **more}


@contextlib.contextmanager
def moto(folder: pathlib.Path) -> Iterator[Store]:
    """moto in a process of its own. It checks no signature and closes each connection.

    It carries out one request after another: by itself two writers may both win a race for a name.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, str(pathlib.Path(__file__).with_name("one_by_one_moto.py")), str(port)]
    with running(
        command,
        log=folder / "moto.log",
        env=clean_environment(),
        ready=lambda: answers(f"{url}/moto-api/data.json"),
        seconds=PATIENCE,
    ):
        store = Store(url, kind="moto")
        store.boto3().create_bucket(Bucket=BUCKET)
        yield store


def versitygw_path() -> str | None:
    """The versitygw binary: $VERSITYGW, the one bin/test built, or one on the PATH."""
    built = ROOT / ".cache" / "bin" / "versitygw"
    return os.environ.get("VERSITYGW") or (str(built) if built.exists() else shutil.which("versitygw"))


@contextlib.contextmanager
def versitygw(folder: pathlib.Path, binary: str) -> Iterator[Store]:
    """versitygw over a directory: a real S3 server that verifies signatures and presigned URLs."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    data, accounts, log = folder / "data", folder / "accounts", folder / "access.log"
    data.mkdir()
    accounts.mkdir()
    command = [binary, "--port", f"127.0.0.1:{port}", "--access", ACCESS_KEY, "--secret", SECRET_KEY]
    command += ["--region", REGION, "--keep-alive", "--quiet", "--health", "/health"]
    command += ["--iam-dir", str(accounts), "--access-log", str(log)]
    command += ["--virtual-domain", f"s3.localhost:{port}", "posix", str(data)]
    with running(
        command,
        log=folder / "versitygw.log",
        env=clean_environment(),
        ready=lambda: answers(f"{url}/health"),
        seconds=PATIENCE,
    ):
        store = Store(url, kind="versitygw", folder=data, access_log=log)
        store.boto3().create_bucket(Bucket=BUCKET)
        yield store


@attrs.frozen
class Proxy(Endpoint):
    """The proxy, as its clients see it, and as its operator does."""

    port: int = 0
    metrics_port: int = 0
    pid: int = 0
    log: pathlib.Path = pathlib.Path()

    def resident_bytes(self) -> int:
        """What the process holds in memory now (proc(5), VmRSS)."""
        lines = pathlib.Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))

    def is_alive(self) -> bool:
        """Whether it still answers."""
        return answers(f"http://127.0.0.1:{self.metrics_port}/health/live", PATIENCE)


def configuration(store: Endpoint | None, **settings: Any) -> dict[str, Any]:
    """A configuration for a proxy before the store, with the settings given."""
    storage = {"endpoint": store.url, "region": REGION, "addressingStyle": "path"} if store else {}
    return {"storage": storage, "logView": "passthrough", **settings}


def write_configuration(config: Mapping[str, Any], folder: pathlib.Path) -> tuple[pathlib.Path, int, int]:
    """Write the configuration with free ports; returns its path, the port and the metrics port."""
    port, metrics_port = free_port(), free_port()
    path = folder / "config.json"
    cache = {"directory": str(folder / "cache"), **config.get("cache", {})}
    path.write_text(json.dumps({**config, "port": port, "metricsPort": metrics_port, "cache": cache}))
    return path, port, metrics_port


def proxy_command(config: pathlib.Path, *options: str) -> list[str]:
    """The command that starts the proxy."""
    return [script("twistd"), *(options or ("-n", "--pidfile=")), "delta-s3-proxy", "--config", str(config)]


def proxy_environment(store: Endpoint | None) -> dict[str, str]:
    """The proxy's environment: the store's credentials."""
    if store is None:
        return clean_environment()
    return clean_environment(AWS_ACCESS_KEY_ID=store.access_key, AWS_SECRET_ACCESS_KEY=store.secret_key)


@contextlib.contextmanager
def proxy(store: Endpoint | None, config: Mapping[str, Any], folder: pathlib.Path) -> Iterator[Proxy]:
    """The proxy as `twistd -n delta-s3-proxy --config …`, ready to serve.

    Its clients reach it as `localhost`, not 127.0.0.1, because a store must not share the proxy's host name.
    """
    path, port, metrics_port = write_configuration(config, folder)
    with proxy_process(path, metrics_port, folder, proxy_environment(store)) as child:
        log = folder / "proxy.log"
        yield Proxy(f"http://localhost:{port}", port=port, metrics_port=metrics_port, pid=child.pid, log=log)


@contextlib.contextmanager
def proxy_process(
    config: pathlib.Path,
    metrics_port: int,
    folder: pathlib.Path,
    env: Mapping[str, str],
    check: str = "ready",
) -> Iterator[subprocess.Popen[bytes]]:
    """The process of a proxy, from the moment that this health check is good; its log is `proxy.log`."""
    health = f"http://127.0.0.1:{metrics_port}/health/{check}"
    log = folder / "proxy.log"
    with running(
        proxy_command(config), log=log, env=env, ready=lambda: answers(health), seconds=PATIENCE
    ) as child:
        yield child


def ended(pid: int) -> bool:
    """Whether the process of this id has ended, also where nobody has asked how (proc(5), the state)."""
    try:
        told = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return told.rpartition(")")[2].split()[0] in {"Z", "X"}


def stop(pid: int) -> None:
    """Ask a process that the test started to end."""
    os.kill(pid, signal.SIGTERM)


class Link:
    """A TCP link to a store that counts what passes, and that cuts connections after a number of bytes.

    `cut_after` holds, for each connection in turn, how many bytes of answers may pass before it is cut; a
    connection beyond the list passes everything. When one side goes, the other is closed too.
    """

    def __init__(self, store: Store) -> None:
        host, _, port = store.netloc.partition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self.cut_after: list[int] = []
        self.passed = 0
        self.endpoint = attrs.evolve(store, url=f"http://127.0.0.1:{self._listener.getsockname()[1]}")
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def connections(self) -> int:
        """How many connections to the store are open now."""
        with self._lock:
            return len(self._open)

    def close(self) -> None:
        """Accept no more, and cut what is open."""
        self._listener.close()
        with self._lock:
            for each in self._open:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with self._lock:
            allowed = self.cut_after.pop(0) if self.cut_after else None
            self._open.add(client)
        try:
            with client, socket.create_connection(self._target) as upstream:
                threading.Thread(target=self._forward, args=(client, upstream), daemon=True).start()
                self._answer(upstream, client, allowed)
        except OSError:
            pass
        finally:
            with self._lock:
                self._open.discard(client)

    def _answer(self, upstream: socket.socket, client: socket.socket, allowed: int | None) -> None:
        while data := upstream.recv(65536 if allowed is None else max(1, min(65536, allowed))):
            client.sendall(data)
            with self._lock:
                self.passed += len(data)
            if allowed is not None:
                allowed -= len(data)
                if allowed <= 0:
                    break
        for each in (client, upstream):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _forward(self, client: socket.socket, upstream: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                upstream.sendall(data)
        for each in (client, upstream):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def link(store: Store) -> Iterator[Link]:
    """A link to the store for the length of the block."""
    made = Link(store)
    try:
        yield made
    finally:
        made.close()


def run(command: list[str], *, env: Mapping[str, str], cwd: pathlib.Path) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; its status and its output are the caller's to judge."""
    return subprocess.run(
        command, env=dict(env), cwd=cwd, capture_output=True, text=True, timeout=2 * PATIENCE, check=False
    )
