# mypy: allow-untyped-calls
"""Requests of browsers across origins, from their octets to the octets of the answer."""

from __future__ import annotations

from typing import Any, cast

import attrs
import pytest
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from delta_proxy.access.identity import Principal
from delta_proxy.access.policy import Reason
from delta_proxy.config import GetMode
from delta_proxy.delta.gate import GrantedTable, Refused
from delta_proxy.resources.root import RootResource
from delta_proxy.resources.server import EdgeLimits, EdgeRequest, S3Site
from delta_proxy.resources.services import Anonymous, Services, Settings
from delta_proxy.s3.cors import CorsMethod, CorsRule
from delta_proxy.s3.errors import InvalidAccessKeyId
from delta_proxy.s3.request import S3Request
from tests.s3.wire import ADDRESSING, REGION

PAGE = "https://app.example"
RULES = (CorsRule((PAGE,), (CorsMethod.GET,), ("authorization",), ("ETag",), 60),)
ASKING = {"Origin": PAGE, "Access-Control-Request-Method": "GET"}
VARY = "Origin, Access-Control-Request-Headers, Access-Control-Request-Method"


class Closed:
    """A gate that opens nothing."""

    def open(self, principal: Principal, alias: str) -> GrantedTable | Refused:
        return Refused(Reason.NO_GRANT)


class Nobody:
    """Knows nobody."""

    async def authenticate(self, s3: S3Request, request: EdgeRequest) -> Principal:
        raise InvalidAccessKeyId


def services(rules: tuple[CorsRule, ...], authenticator: Any) -> Services:
    settings = Settings(ADDRESSING, REGION, True, GetMode.PROXY, False, 300, (), rules)
    return Services(settings, authenticator, cast(Any, Closed()), {}, cast(Any, None))


@attrs.frozen
class Answer:
    """Status, header fields with lower-case names, body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def told(self) -> dict[str, str]:
        """What is for the browser."""
        return {
            name.removeprefix("access-control-"): value
            for name, value in self.headers.items()
            if name.startswith("access-control-")
        }


def ask(
    method: str,
    target: str,
    headers: dict[str, str],
    rules: tuple[CorsRule, ...] = RULES,
    *,
    authenticator: Any = None,
    limits: EdgeLimits | None = None,
) -> Answer:
    """The answer of a proxy that grants nothing."""
    root = RootResource(services(rules, authenticator or Anonymous()))
    site = S3Site(root, reactor=Clock(), prepare=root.prepare, limits=limits)
    transport = StringTransport()
    channel = site.buildProtocol(None)
    channel.makeConnection(transport)
    lines = [f"{method} {target} HTTP/1.1", "Host: proxy", *(f"{n}: {v}" for n, v in headers.items())]
    channel.dataReceived("\r\n".join([*lines, "", ""]).encode("latin-1"))
    head, _, body = transport.value().partition(b"\r\n\r\n")
    status, *fields = head.decode("latin-1").split("\r\n")
    named = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
    return Answer(int(status.split()[1]), named, body)


def test_a_preflight_is_answered_without_asking_who_it_is() -> None:
    headers = {**ASKING, "Access-Control-Request-Headers": "authorization"}
    answer = ask("OPTIONS", "/datalake/t/file", headers, authenticator=Nobody())
    assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", "0")
    assert answer.headers["vary"] == VARY
    assert answer.told == {
        "allow-origin": PAGE,
        "allow-methods": "GET",
        "allow-headers": "authorization",
        "allow-credentials": "true",
        "expose-headers": "ETag",
        "max-age": "60",
    }


@pytest.mark.parametrize("headers", [{}, ASKING, {**ASKING, "Origin": "https://evil.example"}])
def test_a_preflight_tells_nothing_of_what_exists(headers: dict[str, str]) -> None:
    targets = ["/", "/datalake", "/datalake/t/file", "/elsewhere/t", "/datalake/t?acl"]
    answers = [ask("OPTIONS", target, headers) for target in targets]
    assert len({(each.status, tuple(each.told.items())) for each in answers}) == 1


def test_a_preflight_that_no_rule_allows_is_refused_and_told_nothing() -> None:
    answer = ask("OPTIONS", "/datalake/t/file", {**ASKING, "Access-Control-Request-Method": "PUT"})
    assert (answer.status, answer.told) == (403, {})
    assert b"<Code>AccessForbidden</Code>" in answer.body
    assert b"CORSResponse: This CORS request is not allowed" in answer.body
    assert answer.headers["vary"] == VARY


def test_without_rules_no_answer_speaks_of_origins() -> None:
    assert ask("OPTIONS", "/datalake/t/file", ASKING, ()).status == 403
    answer = ask("GET", "/datalake/t/file", {"Origin": PAGE}, ())
    assert answer.told == {}
    assert "vary" not in answer.headers


@pytest.mark.parametrize(
    ("target", "limits", "status"),
    [
        ("/datalake/t/file", None, 403),
        ("/datalake/t?acl", None, 501),
        ("/nowhere/t", None, 404),
        ("/datalake/%zz", None, 400),
        ("/datalake?location", None, 200),
        ("/datalake/t/file", EdgeLimits(requests=0), 503),
    ],
)
def test_every_answer_is_for_the_page_to_read(target: str, limits: EdgeLimits | None, status: int) -> None:
    answer = ask("GET", target, {"Origin": PAGE}, limits=limits)
    assert answer.status == status
    assert answer.told["allow-origin"] == PAGE
    assert answer.headers["vary"] == VARY


def test_the_refusal_of_a_signature_is_for_the_page_to_read() -> None:
    answer = ask("GET", "/datalake/t/file", {"Origin": PAGE}, authenticator=Nobody())
    assert (answer.status, answer.told["allow-origin"]) == (403, PAGE)


@pytest.mark.parametrize("headers", [{}, {"Origin": "https://evil.example"}])
def test_an_answer_to_nobody_whom_a_rule_names_only_varies(headers: dict[str, str]) -> None:
    answer = ask("GET", "/datalake?location", headers)
    assert (answer.status, answer.told, answer.headers["vary"]) == (200, {}, VARY)


def test_other_rules_hold_from_the_next_request_on() -> None:
    root = RootResource(services((), Anonymous()))
    root.replace(services(RULES, Anonymous()))
    site = S3Site(root, reactor=Clock(), prepare=root.prepare)
    transport = StringTransport()
    channel = site.buildProtocol(None)
    channel.makeConnection(transport)
    channel.dataReceived(f"GET /datalake?location HTTP/1.1\r\nHost: proxy\r\nOrigin: {PAGE}\r\n\r\n".encode())
    assert f"Access-Control-Allow-Origin: {PAGE}".encode() in transport.value()
