"""What a LIST of a thousand keys costs: the store's own, through nginx, and filtered for a restricted user.

The table has 1,000 files, nine in ten of them granted; each page is asked for on one connection.
"""

from __future__ import annotations

import functools
import pathlib

from bench.harness import (
    Bars,
    Claim,
    Lab,
    Load,
    Peer,
    Report,
    Request,
    Section,
    alone,
    ask,
    cpu_ms,
    interleaved,
    median,
    sample,
    wrk,
)
from bench.tables import VENUES, partition, path

_TABLE = "listed"
_FILES = 1_000
_GRANTED = VENUES[: len(VENUES) * 9 // 10]


def run(lab: Lab) -> Report:
    """The table of the peers, and the ratio the issue asks for."""
    lab.table(_TABLE, _FILES)
    _write_files(lab)
    grants = {_TABLE: [{"MIC": list(_GRANTED)}]}
    with lab.proxy(grants=grants, tables={_TABLE: _TABLE}) as proxy, lab.reverse_proxy() as nginx:
        peers = (lab.direct, nginx, proxy)
        visible = sum(partition(number)[0] in _GRANTED for number in range(_FILES))
        for peer in peers:
            status, body = ask(peer, _request(peer))
            expected = visible if peer is proxy else _FILES
            if status != 200 or body.count(b"<Key>") != expected:
                raise RuntimeError(f"{peer.name}: {status} with {body.count(b'<Key>')} keys")
        taken = interleaved(peers, lab.rounds, lambda peer: sample(peer, functools.partial(_load, lab, peer)))
    p50 = {peer.name: median(taken[peer.name], lambda each: each.load.p50) for peer in peers}
    rows = [
        (
            peer.name,
            f"{p50[peer.name]:.1f}",
            f"{p50[peer.name] / p50['direct']:.2f}",
            f"{median(taken[peer.name], cpu_ms(next(iter(peer.pids)))):.2f}",
            f"{median(taken[peer.name], cpu_ms('store')):.2f}",
            f"{taken[peer.name][-1].used[next(iter(peer.pids))].peak / 1e6:.0f}",
        )
        for peer in peers
    ]
    ratio = p50["proxy"] / p50["direct"]
    section = Section(
        "Listings",
        f"One page of {_FILES:,} keys of which {visible} are granted, one connection.",
        ("peer", "p50 ms", "of direct", "own CPU ms/request", "CPU ms of the store", "peak MB"),
        rows,
        [Bars("listing", "LIST of 1,000 keys", "ms", p50)],
    )
    claim = Claim("LIST of 1,000 keys filtered", "≤ 1.3 × direct", f"{ratio:.2f} ×", ratio <= 1.3)
    return Report([section], [claim])


def _write_files(lab: Lab) -> None:
    folder = lab.folder / "listed-files"
    for number in range(_FILES):
        file: pathlib.Path = folder / path(number)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * 100)
    lab.store.upload(folder, _TABLE)


def _request(peer: Peer) -> Request:
    query = (("list-type", "2"), ("max-keys", "1000"), ("prefix", f"{_TABLE}/MIC="))
    return peer.signed("GET", f"/{peer.bucket}", query)


def _load(lab: Lab, peer: Peer) -> Load:
    return wrk(peer, [_request(peer)], connections=1, seconds=lab.seconds)


if __name__ == "__main__":
    alone(run)
