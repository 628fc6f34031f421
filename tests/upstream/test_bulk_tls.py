"""TLS for bodies: what is written comes out, in order, whatever the sizes; the end is told once."""

# mypy: allow-untyped-calls
# ruff: noqa: N802
from __future__ import annotations

import contextlib
import pathlib
import random
from typing import Any

import pytest
from OpenSSL import SSL
from twisted.internet import ssl
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from delta_proxy.tls import server_context
from delta_proxy.upstream.bulk_tls import BulkTLS, BulkTLSFactory

from .test_agent import certificate
from .test_sockets import READ, Line

pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")


class End(Protocol):
    """One end: what came, in how many pieces, and how it ended."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.ended: list[Failure] = []
        self.stops_at_first = False
        self.pauses_at_first = False

    def dataReceived(self, data: bytes) -> None:
        self.pieces.append(data)
        if self.stops_at_first:
            assert self.transport is not None
            self.transport.abortConnection()  # type: ignore[attr-defined]
        if self.pauses_at_first:
            assert self.transport is not None
            self.transport.pauseProducing()  # type: ignore[attr-defined]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended.append(reason)


class Pair:
    """A client and a server in memory."""

    def __init__(self) -> None:
        pem, key = certificate()
        identity = ssl.PrivateCertificate.loadPEM(pem + key)
        trust = ssl.trustRootFromCertificates([ssl.Certificate.loadPEM(pem)])
        options = ssl.optionsForClientTLS("127.0.0.1", trustRoot=trust)
        self.client, self.server = End(), End()
        self.wires = [StringTransport(), StringTransport()]
        self.tls = [
            self._end(options, True, self.client),
            self._end(identity.options(), False, self.server),
        ]
        for tls, wire in zip(self.tls, self.wires, strict=True):
            tls.makeConnection(wire)

    def _end(self, context: Any, is_client: bool, end: End) -> BulkTLS:
        tls = BulkTLSFactory(context, is_client, Factory.forProtocol(lambda: end), Clock()).buildProtocol(
            None
        )
        assert isinstance(tls, BulkTLS)
        return tls

    def move(self, size: int = 1 << 16) -> None:
        """Carry the bytes from end to end, at most so many at a time, until none are left."""
        while any(wire.value() for wire in self.wires):
            for wire, other in ((self.wires[0], self.tls[1]), (self.wires[1], self.tls[0])):
                data = wire.value()
                wire.clear()
                for at in range(0, len(data), size):
                    if other.connected:
                        other.dataReceived(data[at : at + size])


@pytest.mark.parametrize("size", [1, 16 * 1024, 64 * 1024, 64 * 1024 + 1, 1_000_003])
@pytest.mark.parametrize("cut", [1 << 16, 1001])
def test_what_is_written_comes_out_whole_however_the_wire_cuts_it(size: int, cut: int) -> None:
    pair = Pair()
    pair.move()
    sent = random.Random(size).randbytes(size)
    pair.tls[1].write(sent)
    pair.tls[1].write(b"the end")
    pair.move(cut)
    assert b"".join(pair.client.pieces) == sent + b"the end"


def test_what_is_written_before_the_handshake_is_sent_after_it() -> None:
    pair = Pair()
    sent = random.Random(1).randbytes(200_000)
    pair.tls[0].write(sent[:1])
    pair.tls[0].write(sent[1:])
    assert pair.server.pieces == []
    pair.move()
    assert b"".join(pair.server.pieces) == sent


def test_the_records_of_one_read_are_handed_on_together() -> None:
    pair = Pair()
    pair.move()
    pair.tls[1].write(bytes(48 * 1024))
    pair.move(1 << 20)
    assert [len(piece) for piece in pair.client.pieces] == [48 * 1024]


def test_the_last_bytes_come_before_the_end_is_told() -> None:
    pair = Pair()
    pair.move()
    pair.tls[1].write(b"the last bytes")
    pair.tls[1].loseConnection()
    pair.move()
    assert pair.client.pieces == [b"the last bytes"]
    assert pair.wires[0].disconnecting
    pair.tls[0].connectionLost(Failure(connectionDone.value))
    assert len(pair.client.ended) == 1


def test_who_aborts_at_the_first_bytes_gets_no_more() -> None:
    pair = Pair()
    pair.client.stops_at_first = True
    pair.move()
    pair.tls[1].write(bytes(300_000))
    pair.move(1 << 20)
    assert len(pair.client.pieces) == 1
    assert pair.wires[0].disconnected


def test_a_record_that_was_altered_ends_the_connection_and_is_not_handed_on() -> None:
    pair = Pair()
    pair.move()
    pair.tls[1].write(b"genuine")
    altered = bytearray(pair.wires[1].value())
    pair.wires[1].clear()
    altered[-1] ^= 1
    pair.tls[0].dataReceived(bytes(altered))
    assert pair.client.pieces == []
    assert pair.wires[0].disconnecting
    pair.tls[0].connectionLost(Failure(connectionDone.value))
    assert pair.client.ended[0].check(SSL.Error)


@pytest.mark.parametrize("until", ["the end", "pause", "abort"])
def test_what_the_socket_has_is_read_within_the_turn_until_the_reading_ends(until: str) -> None:
    pair = Pair()
    pair.move()
    pair.client.pauses_at_first, pair.client.stops_at_first = until == "pause", until == "abort"
    pair.tls[1].write(bytes(2 * READ))
    encrypted = pair.wires[1].value()
    line = Line()
    try:
        pair.tls[0].transport = line.transport
        sent = line.send(encrypted[READ:])
        assert sent == len(encrypted) - READ
        pair.tls[0].dataReceived(encrypted[:READ])
        received = sum(map(len, pair.client.pieces))
        assert line.waiting() == (0 if until == "the end" else sent)
        assert received == 2 * READ if until == "the end" else received < READ
    finally:
        line.close()


@pytest.mark.parametrize(
    ("offered", "taken"),
    [
        ("TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256", "TLS_AES_128_GCM_SHA256"),
        ("TLS_AES_256_GCM_SHA384", "TLS_AES_256_GCM_SHA384"),
    ],
)
def test_the_cheapest_of_the_ciphers_that_a_client_offers_is_taken(
    offered: str, taken: str, tmp_path: pathlib.Path
) -> None:
    pem, key = certificate()
    (tmp_path / "certificate").write_bytes(pem)
    (tmp_path / "key").write_bytes(key)
    ours = server_context(tmp_path / "certificate", tmp_path / "key")
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_tls13_ciphersuites(offered.encode())
    client, server = SSL.Connection(context, None), SSL.Connection(ours.getContext(), None)
    client.set_connect_state()
    server.set_accept_state()
    for _ in range(3):
        for end, other in ((client, server), (server, client)):
            with contextlib.suppress(SSL.WantReadError):
                end.do_handshake()
            with contextlib.suppress(SSL.WantReadError):
                other.bio_write(end.bio_read(1 << 16))
    assert client.get_cipher_name() == taken
