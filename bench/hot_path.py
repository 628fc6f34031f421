"""What a request costs the proxy where no body comes from far: processor time of its process by request.

    python -m bench.hot_path [--files 1000000] [--seconds 5] [--only NAME] [--profile FILE]

A restricted user's redirects on a large table, its view of a commit, another user's commit, and a small
ranged GET that is streamed; every request is signed and verified. The load is wrk's, which repeats requests
signed beforehand. With --profile the proxy runs under cProfile and leaves its statistics in FILE.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

import attrs

from bench.tables import VENUES, partition, path, write_checkpoint, write_commit
from delta_proxy import demo
from delta_proxy.s3.sigv4 import UNSIGNED_PAYLOAD, Credentials, SigningKeys, sign
from tests.integration import servers

RESTRICTED: Final = Credentials("AKIDRESTRICTED", "a-secret-of-the-restricted-user")
UNRESTRICTED: Final = Credentials("AKIDUNRESTRICTED", "a-secret-of-the-unrestricted-user")
POLARS: Final = "polars/0.55.1"
OBJECT_STORE: Final = "object_store/0.13.2"
TABLE: Final = "big"
CHECKPOINT_VERSION: Final = 10
_GRANTED: Final = VENUES[: len(VENUES) // 20]
_KEYS: Final = 2_000
_SMALL_OBJECTS: Final = 64
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_LATENCY: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
_WRK_SCRIPT: Final = """
local requests = {{}}
for line in io.lines({path!r}) do
  requests[#requests + 1] = (line:gsub("\\\\r\\\\n", "\\r\\n"))
end
local number = 0
request = function()
  number = number % #requests + 1
  return requests[number]
end
"""


@attrs.frozen
class Asked:
    """A request before it is signed: whose it is, the key in the virtual bucket, and its header fields."""

    who: Credentials
    key: str
    headers: tuple[tuple[str, str], ...]

    def wire(self, host: str, now: datetime) -> bytes:
        """The head as it goes to the proxy, signed as the Rust clients do."""
        target = f"/{demo.PROXY_BUCKET}/{quote(self.key, safe='/-._~')}"
        signed = sign(
            "GET", host, target, (), (), UNSIGNED_PAYLOAD, self.who, "us-east-1", now, SigningKeys()
        )
        fields = (("host", host), ("accept", "*/*"), *self.headers, *signed)
        return "\r\n".join(
            [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields), "", ""]
        ).encode()


@attrs.frozen
class Figures:
    """One run: requests a second, milliseconds of the process a request, latencies in milliseconds."""

    rate: float
    cpu: float
    median: float
    p99: float
    failed: int

    def __str__(self) -> str:
        failures = f"  {self.failed} FAILED" if self.failed else ""
        return (
            f"{self.cpu:7.4f} ms CPU/request {self.rate:8,.0f} requests/s"
            f"   p50 {self.median:6.2f} ms  p99 {self.p99:6.2f} ms{failures}"
        )


def cases() -> dict[str, list[Asked]]:
    """The requests of every measurement, by its name."""
    mine = [number for number in range(_KEYS * len(VENUES)) if partition(number)[0] in _GRANTED][:_KEYS]
    ranged = (("user-agent", POLARS), ("range", "bytes=0-1023"))
    commit = f"{TABLE}/_delta_log/{CHECKPOINT_VERSION + 1:020d}.json"
    log = (("user-agent", OBJECT_STORE),)
    streamed = (("user-agent", OBJECT_STORE), ("range", "bytes=0-1023"))
    return {
        "307": [Asked(RESTRICTED, f"{TABLE}/{path(number)}", ranged) for number in mine],
        "view": [Asked(RESTRICTED, commit, log)],
        "log file": [Asked(UNRESTRICTED, commit, log)],
        "small GET": [Asked(RESTRICTED, f"{TABLE}/{path(n)}", streamed) for n in mine[:_SMALL_OBJECTS]],
    }


def write_table(folder: pathlib.Path, files: int) -> None:
    """A table of `files` files in a checkpoint and a commit after it; a few of the files are there."""
    log = folder / "_delta_log"
    write_checkpoint(log, CHECKPOINT_VERSION, files)
    write_commit(log, CHECKPOINT_VERSION + 1, range(files, files + 20))
    for asked in cases()["small GET"]:
        target = folder / asked.key.removeprefix(f"{TABLE}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"x" * 4096)


def configuration(store: servers.Endpoint) -> dict[str, Any]:
    """A user who may read one venue in twenty, and one who may read everything."""
    return servers.configuration(
        store,
        tableMapping={TABLE: f"s3://{servers.BUCKET}/{TABLE}"},
        users={
            "restricted": {
                "accessKey": RESTRICTED.access_key,
                "secretKey": RESTRICTED.secret_key,
                "allowedPartitions": {TABLE: [{"MIC": list(_GRANTED)}]},
            },
            "unrestricted": {
                "accessKey": UNRESTRICTED.access_key,
                "secretKey": UNRESTRICTED.secret_key,
                "allowedPartitions": {TABLE: [{}]},
            },
        },
        interface="127.0.0.1",
        logView="filtered",
    )


def processor_seconds(pid: int) -> float:
    """What a process used of the processors so far (proc(5), utime and stime)."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def load(  # noqa: PLR0917 - what wrk is told
    asked: Sequence[Asked], host: str, pid: int, folder: pathlib.Path, seconds: int, connections: int = 32
) -> Figures:
    """Replay the requests for some seconds and tell what they took of the process `pid`."""
    now = datetime.now(UTC)
    lines = [each.wire(host, now).replace(b"\r\n", b"\\r\\n") for each in asked]
    requests, script = folder / "requests", folder / "replay.lua"
    requests.write_bytes(b"\n".join(lines) + b"\n")
    script.write_text(_WRK_SCRIPT.format(path=str(requests)))
    wrk = shutil.which("wrk") or "wrk"
    command = [
        wrk,
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "--latency",
        "-s",
        str(script),
        f"http://{host}",
    ]
    before = processor_seconds(pid)
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return figures(out, processor_seconds(pid) - before)


def figures(out: str, cpu_seconds: float) -> Figures:
    """What wrk printed, as figures."""
    done = re.search(r"(\d+) requests in", out)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", out)
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
    assert done is not None
    assert rate is not None
    return Figures(
        float(rate[1]),
        cpu_seconds * 1000 / max(1, int(done[1])),
        _latency(out, "50%"),
        _latency(out, "99%"),
        int(bad[1]) if bad else 0,
    )


def _latency(out: str, percent: str) -> float:
    found = re.search(rf"^\s+{percent}\s+([\d.]+)(us|ms|s|m)$", out, re.MULTILINE)
    return 0.0 if found is None else float(found[1]) * _LATENCY[found[2]] * 1000


@contextlib.contextmanager
def stored(folder: pathlib.Path, files: int) -> Iterator[servers.Store]:
    """A store that holds the table."""
    binary = servers.versitygw_path()
    with servers.versitygw(folder, binary) if binary else servers.moto(folder) as store:
        table = folder / TABLE
        write_table(table, files)
        store.upload(table, TABLE)
        yield store


@contextlib.contextmanager
def profiled(
    store: servers.Store, config: dict[str, Any], folder: pathlib.Path, statistics_file: pathlib.Path
) -> Iterator[servers.Proxy]:
    """The proxy under cProfile, which writes its statistics when it ends."""
    file, port, metrics_port = servers.write_configuration(config, folder)
    options = ("-n", "--pidfile=", f"--profile={statistics_file}", "--profiler=cprofile", "--savestats")
    with demo.running(
        servers.proxy_command(file, *options),
        log=folder / "proxy.log",
        env=servers.proxy_environment(store),
        ready=lambda: demo.answers(f"http://127.0.0.1:{metrics_port}/health/ready"),
    ) as process:
        yield servers.Proxy(
            f"http://localhost:{port}",
            port=port,
            metrics_port=metrics_port,
            pid=process.pid,
            log=folder / "proxy.log",
        )


def measure(
    proxy: servers.Proxy, folder: pathlib.Path, *, seconds: int, rounds: int, only: str | None = None
) -> dict[str, Figures]:
    """The median round of every measurement (of one, with `only`), the rounds interleaved."""
    chosen = {name: asked for name, asked in cases().items() if only in {None, name}}
    found: dict[str, list[Figures]] = {name: [] for name in chosen}
    for asked in chosen.values():
        load(asked, proxy.netloc, proxy.pid, folder, 2)
    for _ in range(rounds):
        for name, asked in chosen.items():
            found[name].append(load(asked, proxy.netloc, proxy.pid, folder, seconds))
    return {name: _middle(runs, lambda run: run.cpu) for name, runs in found.items()}


def _middle(runs: Sequence[Figures], by: Callable[[Figures], float]) -> Figures:
    middle = statistics.median_low([by(run) for run in runs])
    return next(run for run in runs if by(run) == middle)


def main() -> None:
    """Make the table, start the proxy, print the figures."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--files", type=int, default=1_000_000)
    options.add_argument("--seconds", type=int, default=5)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--only", choices=list(cases()))
    options.add_argument("--profile", type=pathlib.Path)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        with stored(folder, chosen.files) as store:
            config = configuration(store)
            running = (
                profiled(store, config, folder, chosen.profile.absolute())
                if chosen.profile
                else servers.proxy(store, config, folder)
            )
            with running as proxy:
                found = measure(proxy, folder, seconds=chosen.seconds, rounds=chosen.rounds, only=chosen.only)
    for name, each in found.items():
        print(f"{name:<10}{each}")


if __name__ == "__main__":
    main()
