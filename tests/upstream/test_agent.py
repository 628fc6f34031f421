"""TLS to the store: who is trusted, and that a connection on which bytes wait can be ended at once."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from twisted.internet import ssl
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.web.client import BrowserLikePolicyForHTTPS

from delta_proxy.s3.errors import ServiceUnavailable

from .conftest import MakeStore, both_clients
from .parts import Collector, Rig, ScriptedStore, answer, in_reactor, reactor, sends, wait_for

pytest_generate_tests = both_clients

# Twisted hands the server's certificate to pyOpenSSL in the form it was read in.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")
LARGE = 8 * 1024 * 1024


def certificate() -> tuple[bytes, bytes]:
    """A certificate for 127.0.0.1 signed by itself, and its key, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "store")])
    now = datetime.now(UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return built.public_bytes(serialization.Encoding.PEM), private


@pytest.fixture
def secure(make_store: MakeStore, rig: Rig) -> Iterator[ScriptedStore]:
    """A store that is also reached by TLS; the rig trusts its certificate."""
    pem, key = certificate()
    store = make_store(sends(answer(b"x" * LARGE)))
    identity = ssl.PrivateCertificate.loadPEM(pem + key)  # type: ignore[no-untyped-call]
    port = reactor.listenSSL(0, store, identity.options(), interface="127.0.0.1")
    store.endpoint = f"https://127.0.0.1:{port.getHost().port}"
    ours = [ssl.Certificate.loadPEM(pem)]
    trust = ssl.trustRootFromCertificates(ours)  # type: ignore[no-untyped-call]
    policy = BrowserLikePolicyForHTTPS(trustRoot=trust)  # type: ignore[no-untyped-call]
    rig.trust(policy)
    yield store
    wait_for(stopped(port))


async def stopped(port: Any) -> None:
    """The port listens no more."""
    await port.stopListening()


@in_reactor
async def test_a_large_body_comes_whole_over_tls(rig: Rig, secure: ScriptedStore) -> None:
    consumer = Collector()
    response = await rig.table(secure.endpoint).open("GET", "x")

    assert await response.send_body(consumer) == LARGE


@in_reactor
async def test_a_paused_tls_connection_is_bounded_and_ends_when_the_client_goes(
    rig: Rig, secure: ScriptedStore
) -> None:
    consumer = Collector(pause_at=1)
    response = await rig.table(secure.endpoint).open("GET", "x")
    sending = Deferred.fromCoroutine(response.send_body(consumer))
    await consumer.paused
    assert rig.notes.bytes <= 4 * 65536
    sending.addErrback(lambda _: None)
    sending.cancel()

    await secure.lines[0].lost


@in_reactor
async def test_a_discarded_tls_response_ends_its_connection(rig: Rig, secure: ScriptedStore) -> None:
    (await rig.table(secure.endpoint).open("GET", "x")).discard()

    await secure.lines[0].lost


@in_reactor
async def test_a_certificate_nobody_vouches_for_is_not_trusted(rig: Rig, secure: ScriptedStore) -> None:
    rig.trust(None)

    with pytest.raises(ServiceUnavailable):
        await rig.table(secure.endpoint).open("GET", "x")
    assert secure.calls == []


@in_reactor
async def test_a_connection_to_a_store_is_no_line_in_the_log(rig: Rig, make_store: MakeStore) -> None:
    store = make_store(sends(answer(b"x")))
    told: list[LogEvent] = []
    observer = cast(ILogObserver, told.append)
    globalLogPublisher.addObserver(observer)
    (await rig.table(store.endpoint).open("GET", "x")).discard()
    globalLogPublisher.removeObserver(observer)

    assert told == []
