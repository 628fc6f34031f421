"""What a signature costs: the median time to sign, to presign and to verify one request, in microseconds.

Run as `python bench/sigv4.py`. Verifying is what every request of a client pays: parsing what it presents,
the canonical request, the cached signing key, the comparison. Expected: at most 60 µs.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

from delta_proxy.s3.request import Addressing, S3Request, parse_request
from delta_proxy.s3.sigv4 import UNSIGNED_PAYLOAD, Credentials, SigningKeys, presign, sign
from delta_proxy.s3.verify import presented, verify

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOST = "proxy.example.com:18080"
PATH = "/datalake/trades/MIC%3DXLON/date%3D2024-01-01/part-00000-c000.snappy.parquet"
CREDENTIALS = Credentials("AKIDALICE", "alice-secret", "t" * 300)
HEADERS = (("range", "bytes=0-1048575"),)
KEYS = SigningKeys()
CALLS = 1000
ROUNDS = 10
BOUND = 60.0


def request(target: str, headers: tuple[tuple[str, str], ...]) -> S3Request:
    """A request with the headers that SDKs send beside the signed ones."""
    sent = (("host", HOST), ("user-agent", "bench"), ("accept", "*/*"), *headers)
    pairs = [(name.encode(), value.encode()) for name, value in sent]
    return parse_request(b"GET", target.encode(), pairs, Addressing("datalake"))


def signing() -> tuple[tuple[str, str], ...]:
    """Sign one GET."""
    return sign("GET", HOST, PATH, (), HEADERS, UNSIGNED_PAYLOAD, CREDENTIALS, "us-east-1", NOW, KEYS)


def presigning() -> str:
    """Presign one GET."""
    return presign("GET", HOST, PATH, (), HEADERS, CREDENTIALS, "us-east-1", NOW, 300, KEYS)


def verifying(parsed: S3Request) -> Callable[[], None]:
    """Verify one request that has been parsed."""

    def run() -> None:
        found = presented(parsed)
        assert found is not None
        verify(parsed, found, CREDENTIALS.secret_key, now=NOW, keys=KEYS)

    return run


def median(work: Callable[[], object]) -> float:
    """The median time of a call in the quietest of several rounds, in microseconds."""
    return min(statistics.median(timed(work) for _ in range(CALLS)) for _ in range(ROUNDS)) / 1000


def timed(work: Callable[[], object]) -> int:
    """The time of one call in nanoseconds."""
    start = time.perf_counter_ns()
    work()
    return time.perf_counter_ns() - start


def main() -> int:
    """Print the medians; the exit code says whether verifying stays within its bound."""
    in_header = request(PATH, (*HEADERS, *signing()))
    in_query = request(f"{PATH}?{presigning()}", HEADERS)
    measured = {
        "sign": median(signing),
        "presign": median(presigning),
        "parse": median(lambda: request(PATH, (*HEADERS, ("x-amz-date", "20260301T120000Z")))),
        "verify (header)": median(verifying(in_header)),
        "verify (presigned)": median(verifying(in_query)),
    }
    for name, microseconds in measured.items():
        print(f"{name:20} {microseconds:7.1f} µs")
    return 0 if max(measured["verify (header)"], measured["verify (presigned)"]) <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
