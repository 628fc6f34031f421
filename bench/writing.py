"""Uploads beside the same uploads to the store, as a report: the ways are those of `bench.upload`."""

from __future__ import annotations

import statistics

from bench.harness import Bars, Lab, Report, Section, alone, usage
from bench.upload import uploaded
from tests.integration import servers

_ALIAS = "up"
_WAYS = ("hashed", "unsigned", "boto3")


def run(lab: Lab) -> Report:
    """Rates of both, and what the proxy took."""
    mib = 64 if lab.quick else 256
    file = lab.folder / "body"
    file.write_bytes(b"".join(number.to_bytes(8, "big") * (1 << 17) for number in range(mib)))
    rows, ratios = [], dict[str, float]()
    with lab.proxy(grants={_ALIAS: [{}]}, tables={_ALIAS: _ALIAS}, readOnly=False) as proxy:
        pid = proxy.pids["proxy"]
        for way in _WAYS:
            direct, through, cpu = [], [], []
            for _ in range(lab.rounds):
                direct.append(uploaded(lab.store, way, file, servers.BUCKET))
                before = usage(pid)
                through.append(uploaded(proxy.endpoint, way, file, proxy.bucket))
                cpu.append(usage(pid).since(before).cpu * 1e9 / file.stat().st_size)
            rates = statistics.median(direct), statistics.median(through)
            ratios[way] = rates[1] / rates[0]
            cost, peak = statistics.median(cpu), usage(pid).peak / 1e6
            rows.append(
                (
                    way,
                    f"{rates[0]:,.0f}",
                    f"{rates[1]:,.0f}",
                    f"{ratios[way]:.2f}",
                    f"{cost:.2f}",
                    f"{peak:.0f}",
                )
            )
    section = Section(
        "Uploads",
        f"A file of {mib} MiB: one PUT whose hash is signed, one without a hash, boto3's multipart upload.",
        ("way", "MiB/s direct", "MiB/s through the proxy", "of direct", "CPU s/GB", "peak MB"),
        rows,
        [Bars("writing", "Uploads through the proxy", "of the direct rate", ratios)],
    )
    return Report([section])


if __name__ == "__main__":
    alone(run)
