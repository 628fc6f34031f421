"""`--mitm`: which connections are read, and what may be asked inside them."""

from __future__ import annotations

import pathlib
import socket
import ssl
from datetime import UTC, datetime

import pytest
from twisted.internet.threads import deferToThread

from delta_proxy.local_helper.authority import certificate_file, open_authority
from delta_proxy.local_helper.site import Interception
from delta_proxy.local_helper.targets import Origin
from tests.ports import free_port
from tests.upstream.parts import in_reactor

from .parts import helper
from .test_tunnel import Echo, connected, with_tunnel


def now() -> datetime:
    """The time of the TLS clients."""
    return datetime.now(UTC)


def interception(directory: pathlib.Path, port: int) -> Interception:
    """Of one endpoint of this machine."""
    authority = open_authority(directory, now())
    return Interception(frozenset({Origin("https", "localhost", port)}), authority.context, now)


def ask_inside(helper_port: int, trusted: pathlib.Path, port: int, *requests: bytes) -> list[bytes]:
    """The answers' heads to requests within TLS, each with its error document."""
    context = ssl.create_default_context(cafile=str(trusted))
    with (
        connected(helper_port, f"localhost:{port}") as plain,
        context.wrap_socket(plain, server_hostname="localhost") as client,
    ):
        found = []
        for request in requests:
            client.sendall(request)
            head = b""
            while not head.endswith(b"</Error>"):
                head += client.recv(1)
            found.append(head)
        return found


@in_reactor
async def test_requests_inside_are_passed_on_over_tls_of_the_helpers_own(tmp_path: pathlib.Path) -> None:
    port = free_port()
    request = f"GET /b/k HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n".encode()
    async with helper(interception=interception(tmp_path, port)) as running:
        trusted = certificate_file(tmp_path)
        answers = await deferToThread(ask_inside, running.port, trusted, port, request, request)
    assert all(f"no answer from https://localhost:{port}".encode() in answer for answer in answers)
    assert running.site.in_flight == 0


@pytest.mark.parametrize(
    "line",
    [
        "GET /b HTTP/1.1\r\nHost: elsewhere.example",
        "GET http://elsewhere.example/b HTTP/1.1\r\nHost: localhost:{port}",
        "CONNECT elsewhere.example:443 HTTP/1.1\r\nHost: localhost:{port}",
    ],
)
@in_reactor
async def test_a_connection_that_was_made_for_one_endpoint_is_for_no_other(
    tmp_path: pathlib.Path, line: str
) -> None:
    port = free_port()
    request = (line.format(port=port) + "\r\n\r\n").encode()
    async with helper(interception=interception(tmp_path, port)) as running:
        trusted = certificate_file(tmp_path)
        answers = await deferToThread(ask_inside, running.port, trusted, port, request)
    assert answers[0].startswith(b"HTTP/1.1 400 ")


@in_reactor
async def test_a_connection_to_any_other_endpoint_is_not_read(tmp_path: pathlib.Path) -> None:
    echo = Echo()

    def talk(client: socket.socket) -> bytes:
        client.sendall(b"not tls")
        return client.recv(7, socket.MSG_WAITALL)

    async with helper(interception=interception(tmp_path, free_port())) as running:
        assert await with_tunnel(running.port, f"localhost:{echo.port}", talk) == b"not tls"
        await echo.close()


@in_reactor
async def test_a_client_that_does_not_trust_the_authority_gets_nowhere(tmp_path: pathlib.Path) -> None:
    port = free_port()
    open_authority(tmp_path / "another", now())

    def try_it(helper_port: int) -> bool:
        with pytest.raises(ssl.SSLCertVerificationError):
            ask_inside(helper_port, certificate_file(tmp_path / "another"), port)
        return True

    async with helper(interception=interception(tmp_path, port)) as running:
        assert await deferToThread(try_it, running.port)
