"""What the benchmarks share: servers side by side, load from wrk, what each process cost, medians.

A benchmark is a module with a function `run(lab) -> Report`; bin/bench runs those it lists in one go and
writes docs/benchmarks.md. Within a benchmark `interleaved` takes the peers in turn, round by round, so that
what else the machine does falls on all of them alike. The processor time of a process comes from proc(5), in
ticks of 10 ms: measure for some seconds.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import pathlib
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import attrs

from bench.tables import VENUES, partition, path, write_checkpoint
from delta_proxy import demo
from delta_proxy.demo import answers, free_port, running
from delta_proxy.s3.sigv4 import UNSIGNED_PAYLOAD, Credentials, SigningKeys, quote, quote_path, sign
from tests.integration import servers

ACCESS_KEY: Final = "AKIDBENCH"
SECRET_KEY: Final = "bench-secret-key-of-one-user"
GRANTED: Final = VENUES[:20]
"""The half of the venues of the generated tables that the benchmarks grant."""
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_KEYS: Final = SigningKeys()
_TWICE: Final = "-3"
"""A niceness of about twice the weight of the usual one."""


@attrs.frozen
class Usage:
    """Processor seconds so far, and the largest resident size ever, in bytes, of some processes together."""

    cpu: float
    peak: int

    def since(self, before: Usage) -> Usage:
        """The seconds between two readings, and the later peak."""
        return Usage(self.cpu - before.cpu, self.peak)


def tree(pid: int) -> list[int]:
    """A process and its descendants, as far as they live (proc(5), task/*/children)."""
    found = [pid]
    for each in found:
        for children in pathlib.Path(f"/proc/{each}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += [int(child) for child in children.read_text().split()]
    return found


def usage(pid: int) -> Usage:
    """What a process and its descendants cost so far; of those that ended, what their parent waited for."""
    cpu, peak = 0.0, 0
    for each in tree(pid):
        with contextlib.suppress(OSError):
            fields = pathlib.Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            cpu += sum(int(ticks) for ticks in fields[11:15]) / _TICKS
            peak += memory(each, "VmHWM")
    return Usage(cpu, peak)


def weigh_as_two(pid: int) -> None:
    """Give the session of a process the weight of two (sched(7), autogroup): Linux shares processors among
    sessions first, so that two workers of one proxy would have as much as one worker of another. Where this
    may not be done, nothing is.
    """
    with contextlib.suppress(OSError):
        pathlib.Path(f"/proc/{pid}/autogroup").write_text(_TWICE)


def memory(pid: int, kind: str) -> int:
    """A figure of /proc/PID/status in bytes: VmRSS, VmHWM, RssAnon, …; 0 when it is not there."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) * 1024
    return 0


@attrs.frozen
class Peer:
    """What is measured: where clients reach it, the bucket there, and the processes that make it up by name.

    `pids` holds the process that serves (with its children) under the peer's own name, and what stands behind
    it under theirs.
    """

    name: str
    url: str
    bucket: str
    access_key: str
    secret_key: str = attrs.field(repr=False)
    pids: Mapping[str, int] = attrs.field(factory=dict)

    @property
    def netloc(self) -> str:
        """Host and port."""
        return self.url.partition("://")[2]

    @property
    def endpoint(self) -> servers.Endpoint:
        """As the clients of the tests take it."""
        return servers.Endpoint(self.url, self.access_key, self.secret_key)

    def path(self, key: str) -> str:
        """The raw path of a key."""
        return quote_path(f"/{self.bucket}/{key}")

    def get(self, key: str, **headers: str) -> Request:
        """A signed GET; header names with underscores for hyphens."""
        return self.signed(
            "GET", self.path(key), headers={k.replace("_", "-"): v for k, v in headers.items()}
        )

    def signed(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> Request:
        """A request with SigV4 in its header, good for 15 minutes; `path` is raw."""
        sent = tuple((headers or {}).items())
        credentials = Credentials(self.access_key, self.secret_key, None)
        now = datetime.now(UTC)
        more = sign(
            method,
            self.netloc,
            path,
            tuple(query),
            sent,
            UNSIGNED_PAYLOAD,
            credentials,
            servers.REGION,
            now,
            _KEYS,
        )
        text = "&".join(f"{quote(name)}={quote(value)}" for name, value in query)
        return Request(method, f"{path}?{text}" if text else path, (*sent, *more))


@attrs.frozen
class Request:
    """A request as it goes over the wire, without Host."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]


@attrs.frozen
class Load:
    """What wrk saw: answers, seconds, bytes of answers, latencies in milliseconds, failures of any kind.

    `cpu` are the processor seconds that wrk itself took.
    """

    requests: int
    seconds: float
    received: int
    p50: float
    p99: float
    errors: int
    cpu: float = 0.0

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.requests / self.seconds


def granted_paths(count: int) -> list[str]:
    """The first paths of the generated tables that a grant of `GRANTED` opens."""
    numbers = (number for number in itertools.count() if partition(number)[0] in GRANTED)
    return [path(number) for number in itertools.islice(numbers, count)]


def ask(peer: Peer, request: Request) -> tuple[int, bytes]:
    """Status and body of one request: to be sure, before the load, that it is answered as it should be."""
    host, _, port = peer.netloc.partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    try:
        connection.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=True)
        for name, value in (("Host", peer.netloc), *request.headers):
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


_LUA: Final = """
local requests = {%s}
local next = math.random(#requests)
function init(args) math.randomseed(os.time()); next = math.random(#requests) end
function request()
  next = next %% #requests + 1
  return requests[next]
end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\\n{"requests":%%d,"us":%%d,"bytes":%%d,"p50":%%.1f,"p99":%%.1f,"errors":%%d}\\n',
    summary.requests, summary.duration, summary.bytes, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


def wrk(
    peer: Peer,
    requests: Sequence[Request],
    *,
    connections: int = 32,
    seconds: float = 5.0,
    cpu: int | None = None,
) -> Load:
    """Load of one wrk thread that sends the requests in turn, on one processor if `cpu` is given.

    `errors` counts answers of 400 and above as well; an answer that redirects is no error. Raises
    RuntimeError when wrk fails.
    """
    lines = (_on_the_wire(request, peer.netloc) for request in requests)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    script = pathlib.Path(f"/proc/self/fd/{_memory_file(_LUA % ','.join(lines))}")
    try:
        pinned = ["taskset", "-c", str(cpu)] if cpu is not None else []
        command = [
            *pinned,
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{max(1, round(seconds))}s",
            "--timeout",
            "30s",
        ]
        done = subprocess.run(
            [*command, "-s", str(script), f"{peer.url}/"],
            capture_output=True,
            text=True,
            check=False,
            pass_fds=[int(script.name)],
        )
        if done.returncode:
            raise RuntimeError(f"wrk: {done.stderr or done.stdout}")
    finally:
        os.close(int(script.name))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    told = json.loads(done.stdout.strip().rpartition("\n")[2])
    return Load(
        told["requests"],
        told["us"] / 1e6,
        told["bytes"],
        told["p50"] / 1e3,
        told["p99"] / 1e3,
        told["errors"],
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    )


def _memory_file(text: str) -> int:
    file = os.memfd_create("requests.lua", 0)
    os.write(file, text.encode())
    return file


def _on_the_wire(request: Request, host: str) -> str:
    fields = "".join(f"{name}: {value}\r\n" for name, value in (("Host", host), *request.headers))
    raw = f"{request.method} {request.target} HTTP/1.1\r\n{fields}\r\n"
    # JSON's escapes are Lua's, for what stands in a request.
    return json.dumps(raw)


@attrs.frozen
class Sample:
    """One run against one peer: what the load saw, and what each process of the peer used meanwhile."""

    load: Load
    used: Mapping[str, Usage]


def sample(peer: Peer, load: Callable[[], Load]) -> Sample:
    """Run the load and read before and after it what the peer's processes used.

    Raises RuntimeError when an answer failed: a rate of errors is no rate.
    """
    before = {name: usage(pid) for name, pid in peer.pids.items()}
    seen = load()
    used = {name: usage(pid).since(before[name]) for name, pid in peer.pids.items()}
    if seen.errors or not (seen.requests or seen.received):
        raise RuntimeError(f"{peer.name}: {seen.errors} failures among {seen.requests} answers")
    return Sample(seen, used)


def interleaved(peers: Sequence[Peer], rounds: int, one: Callable[[Peer], Sample]) -> dict[str, list[Sample]]:
    """`rounds` samples of each peer by name, taken in turn, after one of each that warms up."""
    found: dict[str, list[Sample]] = {peer.name: [] for peer in peers}
    for number in range(rounds + 1):
        for peer in peers:
            taken = one(peer)
            if number:
                found[peer.name].append(taken)
    return found


def median(samples: Iterable[Sample], figure: Callable[[Sample], float]) -> float:
    """The median of a figure."""
    return statistics.median(map(figure, samples))


def cpu_ms(name: str) -> Callable[[Sample], float]:
    """Processor milliseconds of a process for each request, as a figure of a sample."""
    return lambda taken: taken.used[name].cpu * 1000 / taken.load.requests


def cpu_per_gb(name: str) -> Callable[[Sample], float]:
    """Processor seconds of a process for each GB (1e9 bytes) received, as a figure of a sample."""
    return lambda taken: taken.used[name].cpu * 1e9 / taken.load.received


@attrs.frozen
class Claim:
    """A line of the table of targets: what, the target and the measured value as text, whether it is met."""

    what: str
    target: str
    measured: str
    met: bool


@attrs.frozen
class Bars:
    """A plot: one bar for each name, in one unit; `file` is its name under docs/ without suffix."""

    file: str
    title: str
    unit: str
    values: Mapping[str, float]


@attrs.frozen
class Section:
    """A table of the report. Cells are text as it is to be printed; `text` stands before the table."""

    title: str
    text: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    bars: Sequence[Bars] = ()


@attrs.frozen
class Report:
    """What one benchmark found."""

    sections: Sequence[Section]
    claims: Sequence[Claim] = ()


@attrs.frozen
class Lab:
    """Where benchmarks run: a store with its processes, a folder, and how long to measure.

    `quick` asks for small tables, `seconds` is the length of one run under load, `rounds` how many runs the
    median is of.
    """

    folder: pathlib.Path
    store: servers.Store
    store_pid: int
    quick: bool = False
    seconds: float = 3.0
    rounds: int = 5

    @property
    def direct(self) -> Peer:
        """The store itself."""
        pids = {"store": self.store_pid}
        return Peer(
            "direct", self.store.url, servers.BUCKET, self.store.access_key, self.store.secret_key, pids
        )

    def table(self, name: str, files: int) -> None:
        """Put the log of a table of that many files into the store; the files themselves are not there."""
        folder = _new_folder(self.folder, f"table-{name}")
        write_checkpoint(folder / "_delta_log", 10, files)
        hint = {"version": 10, "size": files + 2, "sizeInBytes": files, "numOfAddFiles": files}
        (folder / "_delta_log" / "_last_checkpoint").write_text(json.dumps(hint))
        self.store.upload(folder, name)
        shutil.rmtree(folder)

    @contextlib.contextmanager
    def proxy(
        self,
        name: str = "proxy",
        *,
        grants: Mapping[str, Any],
        tables: Mapping[str, str],
        store: servers.Endpoint | None = None,
        cpus: str | None = None,
        **settings: Any,
    ) -> Iterator[Peer]:
        """The proxy with one user, who signs. `grants` and `tables` are by alias; a table is a prefix.

        `cpus` is taskset's list of processors. The processes are "proxy" (with its workers) and "store".
        """
        store = store or self.store
        user = {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY, "allowedPartitions": dict(grants)}
        config = servers.configuration(
            store,
            tableMapping={alias: f"s3://{servers.BUCKET}/{prefix}" for alias, prefix in tables.items()},
            users={"bench": user},
            **{"logView": "filtered", **settings},
        )
        with servers.proxy(store, config, _new_folder(self.folder, name)) as started:
            if cpus is not None:
                for pid in tree(started.pid):
                    subprocess.run(["taskset", "-apc", cpus, str(pid)], check=True, capture_output=True)
            pids = {"proxy": started.pid, "store": self.store_pid}
            url = f"http://localhost:{started.port}"
            yield Peer(name, url, demo.PROXY_BUCKET, ACCESS_KEY, SECRET_KEY, pids)

    @contextlib.contextmanager
    def reverse_proxy(
        self, name: str = "nginx", certificate: Mapping[str, str] | None = None
    ) -> Iterator[Peer]:
        """nginx as a plain reverse proxy before the store, one worker process: "nginx", and "store".

        With a certificate it is reached by TLS. It answers `/_fixed` with a redirect of fixed text.
        """
        host, port = self.store.netloc, free_port()
        server = f"location / {{ proxy_pass http://store; {_NGINX_PROXY} }}"
        server += f" location = /_fixed {{ return 307 http://{host}/{'x' * 400}; }}"
        if certificate:
            server += f" listen 127.0.0.1:{port} ssl; ssl_certificate {certificate['certificate']};"
            server += f" ssl_certificate_key {certificate['privateKey']};"
        with self._nginx(name, server, f"upstream store {{ server {host}; keepalive 64; }}") as (url, pid):
            pids = {"nginx": pid, "store": self.store_pid}
            reached = f"https://127.0.0.1:{port}" if certificate else url
            yield attrs.evolve(self.direct, name=name, url=reached, pids=pids)

    @contextlib.contextmanager
    def static(self, name: str = "static") -> Iterator[Peer]:
        """nginx that serves the store's own files and asks nobody: the limit of this machine ("nginx")."""
        assert self.store.folder is not None
        with self._nginx(name, f"location / {{ root {self.store.folder}; }}") as (url, pid):
            yield attrs.evolve(self.direct, name=name, url=url, pids={"nginx": pid})

    @contextlib.contextmanager
    def _nginx(self, name: str, server: str, top: str = "") -> Iterator[tuple[str, int]]:
        folder, port = _new_folder(self.folder, name), free_port()
        text = _NGINX.format(folder=folder, port=port, server=server, top=top)
        (folder / "nginx.conf").write_text(text)
        found = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
        if found is None:
            raise RuntimeError("nginx is not installed")
        command = [found, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "errors")]
        url = f"http://127.0.0.1:{port}"
        with running(
            command, log=folder / "log", env=dict(os.environ), ready=lambda: answers(f"{url}/_nginx_is_up")
        ) as child:
            yield url, child.pid


_NGINX_PROXY: Final = (
    "proxy_http_version 1.1; proxy_set_header Connection ''; proxy_set_header Host $http_host; "
    "proxy_request_buffering off; proxy_max_temp_file_size 0; client_max_body_size 0;"
)
_NGINX: Final = """
daemon off; worker_processes 1; pid {folder}/pid; user root;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; sendfile on;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  {top}
  server {{ listen 127.0.0.1:{port} backlog=1024; location = /_nginx_is_up {{ return 200; }} {server} }}
}}
"""


def _new_folder(parent: pathlib.Path, name: str) -> pathlib.Path:
    name = re.sub(r"[^a-z0-9-]+", "-", name)
    for number in range(10_000):
        folder = parent / (f"{name}-{number}" if number else name)
        if not folder.exists():
            folder.mkdir()
            return folder
    raise FileExistsError(parent / name)


@contextlib.contextmanager
def laboratory(
    folder: pathlib.Path, *, quick: bool = False, seconds: float | None = None, rounds: int | None = None
) -> Iterator[Lab]:
    """A store for the benchmarks. Raises RuntimeError when versitygw or wrk is not there."""
    binary = servers.versitygw_path()
    if binary is None or shutil.which("wrk") is None:
        raise RuntimeError("the benchmarks need versitygw (bin/test builds it) and wrk (a package of Debian)")
    with servers.versitygw(_new_folder(folder, "store"), binary) as store:
        yield Lab(
            folder,
            store,
            _listener(store.netloc),
            quick,
            seconds or (2.0 if quick else 3.0),
            rounds or (3 if quick else 5),
        )


def _listener(netloc: str) -> int:
    """The child of this process that listens on a local port."""
    port = netloc.rpartition(":")[2]
    for pid in tree(os.getpid())[1:]:
        command = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode()
        if f"127.0.0.1:{port}\0" in command:
            return pid
    raise LookupError(netloc)


def show(report: Report) -> str:
    """A report as Markdown."""
    parts = []
    for section in report.sections:
        parts += [f"## {section.title}", section.text, markdown(section.columns, section.rows)]
        parts += [f"![{bars.title}]({bars.file}.svg)" for bars in section.bars]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def alone(run: Callable[[Lab], Report]) -> None:
    """Run one benchmark by itself and print what it found: what `python -m bench.NAME [--quick]` does."""
    with (
        tempfile.TemporaryDirectory() as name,
        laboratory(pathlib.Path(name), quick="--quick" in sys.argv) as lab,
    ):
        report = run(lab)
    print(show(report))
    print(markdown(("what", "target", "measured", "met"), _claims(report.claims)))


def _claims(claims: Iterable[Claim]) -> Iterator[tuple[str, str, str, str]]:
    for claim in claims:
        yield claim.what, claim.target, claim.measured, "yes" if claim.met else "no"


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Return when the condition holds. Raises TimeoutError when it does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.02)
