"""How fast, and in how much memory, 1 GiB is uploaded through the proxy, beside the same upload to the store.

Each way of uploading is run directly and through the proxy in turn, in a process of its own: one PUT whose
hash is signed, one without a hash, one in signed chunks, and boto3's multipart upload. Run it as
`python -m bench.upload [--mib N] [--times N]`; the store is versitygw, which verifies what it gets.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import attrs

from tests.integration import servers

_MIB = 1024 * 1024
_WAYS = ("hashed", "unsigned", "chunked", "boto3")
_GOAL = 0.7
_UPLOAD = """
import json, sys, time
from bench.uploads import upload

print(json.dumps(upload(**json.loads(sys.argv[1]))))
"""


@attrs.frozen
class Measured:
    """One way: MiB/s to the store and through the proxy, by how many MiB the proxy grew at most, and what
    one GiB costs it in seconds of processor time.
    """

    direct: float
    proxied: float
    grown: float
    seconds: float

    def __str__(self) -> str:
        ratio = self.proxied / self.direct
        return (
            f"{self.direct:7.0f} MiB/s direct {self.proxied:7.0f} MiB/s proxied "
            f"{ratio:5.2f} {'ok' if ratio >= _GOAL else 'SLOW'} grown {self.grown:5.1f} MiB "
            f"cpu {self.seconds:5.2f} s/GiB"
        )


def uploaded(at: servers.Endpoint, way: str, file: pathlib.Path, bucket: str) -> float:
    """MiB/s of one upload by a new process."""
    asked = {
        "way": way,
        "url": at.url,
        "access_key": at.access_key,
        "secret_key": at.secret_key,
        "bucket": bucket,
        "key": "up/load",
        "file": str(file),
    }
    command = [sys.executable, "-c", _UPLOAD, json.dumps(asked)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = float(json.loads(answer.stdout))
    return file.stat().st_size / _MIB / seconds


def measured(
    store: servers.Store, proxy: servers.Proxy, way: str, file: pathlib.Path, times: int
) -> Measured:
    """The best of some, in turn."""
    direct, proxied, grown, busy = 0.0, 0.0, 0.0, float("inf")
    for _ in range(times):
        direct = max(direct, uploaded(store, way, file, servers.BUCKET))
        before, started = proxy.resident_bytes(), _busy(proxy)
        proxied = max(proxied, uploaded(proxy, way, file, "datalake"))
        grown = max(grown, (_peak(proxy) - before) / _MIB)
        busy = min(busy, (_busy(proxy) - started) * 1024 * _MIB / file.stat().st_size)
    return Measured(direct, proxied, grown, busy)


def _peak(proxy: servers.Proxy) -> int:
    """The most that the process has held in memory so far (proc(5), VmHWM)."""
    lines = pathlib.Path(f"/proc/{proxy.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _busy(proxy: servers.Proxy) -> float:
    """Seconds of processor time of the process so far (proc(5), utime and stime)."""
    fields = pathlib.Path(f"/proc/{proxy.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--ways", nargs="*", default=list(_WAYS))
    asked = parser.parse_args()
    binary = servers.versitygw_path()
    if binary is None:
        raise SystemExit("bench.upload needs versitygw: moto verifies nothing")
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        file = folder / "body"
        with file.open("wb") as out:
            for number in range(asked.mib):
                out.write(number.to_bytes(8, "big") * (_MIB // 8))
        for name in ("store", "proxy"):
            (folder / name).mkdir()
        store = stack.enter_context(servers.versitygw(folder / "store", binary))
        user = {"accessKey": servers.ACCESS_KEY, "secretKey": servers.SECRET_KEY}
        config = servers.configuration(
            store,
            tableMapping={"up": f"s3://{servers.BUCKET}/up"},
            readOnly=False,
            users={"bench": {**user, "allowedPartitions": {"up": [{}]}}},
        )
        proxy = stack.enter_context(servers.proxy(store, config, folder / "proxy"))
        uploaded(proxy, "unsigned", pathlib.Path(__file__), "datalake")
        for way in asked.ways:
            print(f"{way:10}", measured(store, proxy, way, file, asked.times), flush=True)


if __name__ == "__main__":
    main()
