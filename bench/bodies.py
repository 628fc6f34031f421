"""Large objects streamed: processor time for each GB, and the rate beside that of the store itself.

One connection reads an object of 256 MiB again and again through each peer; once more with TLS towards the
client, and once with TLS to the store, where nginx stands before it. The proxy decides by a policy and
verifies each request; nginx asks nobody.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import ipaddress
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bench.harness import (
    GRANTED,
    Bars,
    Claim,
    Lab,
    Load,
    Peer,
    Report,
    Sample,
    Section,
    alone,
    ask,
    cpu_per_gb,
    granted_paths,
    interleaved,
    median,
    sample,
    wrk,
)
from tests.integration import servers

_TABLE = "large"
_PATH = granted_paths(1)[0]


def run(lab: Lab) -> Report:
    """The table of the peers, and their targets."""
    size = (64 if lab.quick else 256) << 20
    lab.table(_TABLE, 1_000)
    lab.store.boto3().put_object(Bucket=servers.BUCKET, Key=f"{_TABLE}/{_PATH}", Body=os.urandom(size))
    with contextlib.ExitStack() as stack:
        peers = [lab.direct, *(stack.enter_context(peer) for peer in _peers(lab))]
        for peer in peers:
            _check(peer, size)
        taken = interleaved(peers, lab.rounds, lambda peer: sample(peer, functools.partial(_load, lab, peer)))
    speed = {name: median(samples, _megabytes) for name, samples in taken.items()}
    cost = {peer.name: median(taken[peer.name], cpu_per_gb(next(iter(peer.pids)))) for peer in peers}
    rows = [
        (
            peer.name,
            f"{cost[peer.name]:.2f}",
            f"{speed[peer.name]:,.0f}",
            f"{speed[peer.name] / speed['direct']:.2f}",
            f"{median(taken[peer.name], _client):.2f}",
            f"{median(taken[peer.name], cpu_per_gb('store')) if 'store' in peer.pids else 0:.2f}",
            f"{taken[peer.name][-1].used[next(iter(peer.pids))].peak / 1e6:.0f}",
        )
        for peer in peers
    ]
    wall = speed["proxy"] / speed["direct"]
    claims = [
        Claim("256 MB objects, plain: CPU", "≤ 0.6 s/GB", f"{cost['proxy']:.2f} s", cost["proxy"] <= 0.6),
        Claim("256 MB objects, plain: wall", "≥ 0.8 of direct", f"{wall:.2f}", wall >= 0.8),
        Claim(
            "256 MB objects, TLS to the client: CPU",
            "≤ 1.4 s/GB",
            f"{cost['proxy, TLS']:.2f} s",
            cost["proxy, TLS"] <= 1.4,
        ),
        Claim(
            "256 MB objects, TLS to the store: CPU",
            "≤ 1.4 s/GB",
            f"{cost['proxy, TLS store']:.2f} s",
            cost["proxy, TLS store"] <= 1.4,
        ),
    ]
    section = Section(
        "Large objects",
        f"An object of {size >> 20} MiB, one connection.",
        ("peer", "CPU s/GB", "MB/s", "of direct", "CPU s/GB of wrk", "of the store", "peak MB"),
        rows,
        [Bars("bodies", "Large objects", "CPU s/GB", cost)],
    )
    return Report([section], claims)


def _peers(lab: Lab) -> Iterator[contextlib.AbstractContextManager[Peer]]:
    settings: dict[str, Any] = {
        "grants": {_TABLE: [{"MIC": list(GRANTED)}]},
        "tables": {_TABLE: _TABLE},
        "getMode": "proxy",
    }
    certificate = _certificate(lab.folder)
    yield lab.static()
    yield lab.reverse_proxy()
    yield lab.reverse_proxy("nginx, TLS", certificate)
    yield lab.proxy(**settings)
    yield _with_tls(lab.proxy("proxy, TLS", tls=certificate, **settings))
    yield _behind_tls(lab, certificate, settings)


@contextlib.contextmanager
def _with_tls(started: contextlib.AbstractContextManager[Peer]) -> Iterator[Peer]:
    with started as peer:
        yield attrs.evolve(peer, url=peer.url.replace("http://", "https://"))


@contextlib.contextmanager
def _behind_tls(lab: Lab, certificate: dict[str, str], settings: dict[str, Any]) -> Iterator[Peer]:
    """The proxy before a store that is reached by TLS: nginx before the same one."""
    with lab.reverse_proxy("nginx before the store", certificate) as nginx:
        store = attrs.evolve(lab.store, url=nginx.url)
        with (
            _trusting(certificate["certificate"]),
            lab.proxy("proxy, TLS store", store=store, **settings) as peer,
        ):
            yield peer


@contextlib.contextmanager
def _trusting(file: str) -> Iterator[None]:
    """What is started meanwhile trusts this certificate."""
    os.environ["SSL_CERT_FILE"] = file
    try:
        yield
    finally:
        del os.environ["SSL_CERT_FILE"]


def _certificate(folder: pathlib.Path) -> dict[str, str]:
    """A certificate of its own for localhost, as the configuration names it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "certificate.pem").write_bytes(made.public_bytes(pem))
    (folder / "key.pem").write_bytes(private)
    return {"certificate": str(folder / "certificate.pem"), "privateKey": str(folder / "key.pem")}


def _key(peer: Peer) -> str:
    return f"{_TABLE}/{_PATH}"


def _check(peer: Peer, size: int) -> None:
    if peer.url.startswith("https"):
        return
    status, body = ask(peer, peer.get(_key(peer)))
    if (status, len(body)) != (200, size):
        raise RuntimeError(f"{peer.name}: {status}, {len(body)} bytes")


def _load(lab: Lab, peer: Peer) -> Load:
    return wrk(peer, [peer.get(_key(peer))], connections=1, seconds=lab.seconds)


def _megabytes(taken: Sample) -> float:
    return float(taken.load.received / taken.load.seconds / 1e6)


def _client(taken: Sample) -> float:
    return float(taken.load.cpu * 1e9 / taken.load.received)


if __name__ == "__main__":
    alone(run)
