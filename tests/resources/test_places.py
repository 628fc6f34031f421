"""What one principal may have under way, and that it keeps nobody else from their answers."""

# mypy: allow-untyped-calls
from __future__ import annotations

import pathlib
from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.testing import StringTransport
from twisted.web.resource import Resource

from delta_proxy.access.identity import ANONYMOUS, AuthKind, Principal
from delta_proxy.resources.base import Answer, AnyAnswer, S3Resource
from delta_proxy.resources.places import PrincipalPlaces
from delta_proxy.resources.server import EdgeRequest, S3Site
from delta_proxy.resources.services import Services
from delta_proxy.s3.errors import SlowDown
from delta_proxy.s3.request import Addressing, S3Request, parse_request
from tests.helpers import result_of, start
from tests.memory import MemoryProxy


class ByHeader:
    """Believes what a request says of its principal."""

    async def authenticate(self, s3: S3Request, request: EdgeRequest) -> Principal:
        name = s3.headers.get("x-who")
        return ANONYMOUS if name is None else Principal(name, frozenset(), AuthKind.SIGV4)

    def body_signing(self, s3: S3Request) -> None:
        return None


class Held(S3Resource):
    """Answers when the test says so."""

    def __init__(self, services: Services, s3: S3Request, answers: list[Deferred[None]]) -> None:
        super().__init__(services, s3)
        self._answers = answers

    async def answer(self, principal: Principal, request: EdgeRequest) -> AnyAnswer:
        waiting: Deferred[None] = Deferred()
        self._answers.append(waiting)
        await waiting
        return Answer(200)


class Root(Resource):
    def __init__(self, services: Services) -> None:
        super().__init__()
        self.services = services
        self.answers: list[Deferred[None]] = []

    def getChild(self, path: bytes, request: EdgeRequest) -> Resource:  # noqa: N802 - twisted.web's name
        s3 = parse_request(request.method, request.uri, request.headers, Addressing("datalake"))
        return Held(self.services, s3, self.answers)


class Rig:
    """A site where each principal has one place, and one of its requests may wait for ten seconds."""

    def __init__(self, folder: pathlib.Path) -> None:
        made = MemoryProxy(folder, {"t": None})
        self.clock, root = made.clock, made.site.resource
        assert hasattr(root, "services")
        self.places = PrincipalPlaces(self.clock, limit=1, seconds=10)
        self.root = Root(attrs.evolve(root.services, authenticator=ByHeader(), places=self.places))
        self.site = S3Site(self.root, reactor=self.clock)
        self.channels: list[Any] = []

    def ask(self, who: str | None) -> StringTransport:
        """A request on a connection of its own."""
        transport, channel = StringTransport(), self.site.buildProtocol(None)
        channel.makeConnection(transport)
        named = "" if who is None else f"x-who: {who}\r\n"
        channel.dataReceived(f"GET /datalake/t/k HTTP/1.1\r\nHost: h\r\n{named}\r\n".encode())
        self.channels.append(channel)
        return transport

    def answer(self) -> None:
        """Let the oldest that is under way be answered."""
        self.root.answers.pop(0).callback(None)


@pytest.fixture
def rig(tmp_path: pathlib.Path) -> Rig:
    return Rig(tmp_path / "cache")


def status(transport: StringTransport) -> int | None:
    """The status of the answer, None without one."""
    sent = transport.value()
    return int(sent.split()[1]) if sent else None


def test_a_principal_beyond_its_places_waits_and_then_is_told_to_slow_down(rig: Rig) -> None:
    first, second, third = (rig.ask("alice") for _ in range(3))
    assert [status(each) for each in (first, second, third)] == [None, None, 503]
    assert b"SlowDown" in third.value()
    rig.answer()
    assert [status(first), status(second), len(rig.root.answers)] == [200, None, 1]
    rig.answer()
    assert status(second) == 200


def test_who_waits_too_long_for_a_place_is_told_to_slow_down(rig: Rig) -> None:
    rig.ask("alice")
    late = rig.ask("alice")
    rig.clock.advance(10)
    assert status(late) == 503


def test_one_principal_takes_no_place_of_another(rig: Rig) -> None:
    for _ in range(3):
        rig.ask("alice")
    bob = rig.ask("bob")
    rig.root.answers.pop().callback(None)
    assert status(bob) == 200


def test_anonymous_clients_are_not_taken_for_one(rig: Rig) -> None:
    asked = [rig.ask(None) for _ in range(3)]
    while rig.root.answers:
        rig.answer()
    assert [status(each) for each in asked] == [200, 200, 200]


def test_a_client_that_goes_away_gives_its_place_to_the_next(rig: Rig) -> None:
    rig.ask("alice")
    second = rig.ask("alice")
    rig.channels[0].connectionLost()
    rig.root.answers.pop(0)
    rig.answer()
    assert status(second) == 200


def test_only_principals_with_something_under_way_are_remembered_for_long(rig: Rig) -> None:
    kept = result_of(rig.places.acquire("busy"))
    for number in range(3_000):
        result_of(rig.places.acquire(f"p{number}")).release()
    assert len(rig.places) <= 1_024
    waiting = start(rig.places.acquire("busy"))
    with pytest.raises(SlowDown):
        result_of(rig.places.acquire("busy"))
    kept.release()
    result_of(waiting)
