# mypy: allow-untyped-calls
"""Who a request is from, and that nothing is looked up for one that proves nobody."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, cast

import pytest
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from delta_proxy.access.audit import AuditLog
from delta_proxy.access.identity import AuthKind, Principal
from delta_proxy.access.keys import Secret, SecretKeys, generate_key
from delta_proxy.access.permission_feed import Unavailable
from delta_proxy.access.policy import NOTHING
from delta_proxy.access.principals import ConfiguredUser, Principals
from delta_proxy.access.snapshot import Snapshot
from delta_proxy.access.sts import SessionCredentials, SessionTokens
from delta_proxy.config import GetMode
from delta_proxy.delta.gate import Absent, GrantedTable
from delta_proxy.resources.auditing import record_decision
from delta_proxy.resources.authentication import SigV4Authenticator
from delta_proxy.resources.root import RootResource
from delta_proxy.resources.server import EdgeRequest, RequestNote, S3Site
from delta_proxy.resources.services import Services, Settings
from delta_proxy.resources.sts import SessionService
from delta_proxy.s3.errors import (
    AccessDenied,
    AuthorizationHeaderMalformed,
    ExpiredToken,
    InvalidAccessKeyId,
    InvalidToken,
    MissingSecurityHeader,
    S3Error,
    ServiceUnavailable,
    SignatureDoesNotMatch,
    XAmzContentSHA256Mismatch,
)
from delta_proxy.s3.sigv4 import UNSIGNED_PAYLOAD, Credentials
from tests.helpers import result_of
from tests.s3.wire import ADDRESSING, CREDENTIALS, HOST, NOW, REGION, Wire, encoded, presigned, signed

ALICE = ConfiguredUser("alice", CREDENTIALS.access_key, Secret(CREDENTIALS.secret_key))
TOKENS = SessionTokens(SecretKeys.parse(generate_key()))


class Noted:
    """As much of a request as an authenticator touches."""

    def __init__(self) -> None:
        self.note = RequestNote()


def authenticator(
    now: datetime = NOW,
    snapshot: Callable[[], Snapshot] | None = None,
    sessions: SessionTokens | None = TOKENS,
) -> SigV4Authenticator:
    return SigV4Authenticator(Principals.of([ALICE], {}, snapshot), (REGION,), lambda: now, sessions)


def who(wire: Wire, **options: Any) -> Principal:
    request = cast(EdgeRequest, Noted())
    return result_of(authenticator(**options).authenticate(wire.parse(), request))


def session(seconds: int = 3600, at: datetime = NOW) -> SessionCredentials:
    return TOKENS.issue("oidc:7", ["desk"], seconds, at)


def as_credentials(made: SessionCredentials, token: str | None) -> Credentials:
    return Credentials(made.access_key, made.secret_key.value, token)


def test_a_signed_request_is_its_users() -> None:
    principal = who(signed())
    assert (principal.id, principal.auth) == ("alice", AuthKind.SIGV4)
    assert who(presigned()).auth is AuthKind.PRESIGNED


def test_a_session_is_whom_its_token_names() -> None:
    made = session()
    principal = who(signed(credentials=as_credentials(made, made.session_token.value)))
    assert (principal.id, principal.auth, principal.groups) == (
        "oidc:7",
        AuthKind.SESSION,
        frozenset({"desk"}),
    )
    url = presigned(credentials=as_credentials(made, made.session_token.value))
    assert who(url).auth is AuthKind.SESSION


MADE = session()
OTHER = session()


@pytest.mark.parametrize(
    ("wire", "error"),
    [
        (signed().without("authorization"), AccessDenied),
        (signed(credentials=Credentials("AKIDBOB", "x")), InvalidAccessKeyId),
        (signed(credentials=Credentials("AKIDALICE", "x")), SignatureDoesNotMatch),
        (signed(region="eu-west-1"), AuthorizationHeaderMalformed),
        (signed(service="sts"), AuthorizationHeaderMalformed),
        (signed().without("x-amz-content-sha256"), MissingSecurityHeader),
        (signed(payload_hash="0" * 64), XAmzContentSHA256Mismatch),
        (signed(credentials=Credentials("AKIDALICE", "alice-secret", "token")), InvalidToken),
        (signed(credentials=as_credentials(MADE, None)), InvalidAccessKeyId),
        (signed(credentials=as_credentials(MADE, OTHER.session_token.value)), InvalidToken),
        (
            signed(credentials=Credentials(MADE.access_key, "x", MADE.session_token.value)),
            SignatureDoesNotMatch,
        ),
    ],
)
def test_a_request_that_proves_nobody_gets_s3s_own_error(wire: Wire, error: type[S3Error]) -> None:
    with pytest.raises(error):
        who(wire)


def test_a_read_may_leave_its_payload_unsigned() -> None:
    assert who(signed(payload_hash=UNSIGNED_PAYLOAD)).id == "alice"


def test_a_session_ends_at_its_end() -> None:
    made, end = session(900), NOW + timedelta(seconds=900)
    wire = signed(credentials=as_credentials(made, made.session_token.value), at=end)
    with pytest.raises(ExpiredToken):
        who(wire, now=end)


def test_without_sts_no_session_is_known() -> None:
    with pytest.raises(InvalidAccessKeyId):
        who(signed(credentials=as_credentials(MADE, MADE.session_token.value)), sessions=None)


def test_while_the_database_is_closed_nobody_is_answered() -> None:
    def closed() -> Snapshot:
        raise Unavailable

    with pytest.raises(ServiceUnavailable):
        who(signed(), snapshot=closed)
    with pytest.raises(ServiceUnavailable):
        who(signed(credentials=as_credentials(MADE, MADE.session_token.value)), snapshot=closed)


class Untouchable:
    """A gate that nobody may ask."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked for")


class Empty:
    """A gate without tables."""

    def open(self, principal: Principal, alias: str) -> Absent | GrantedTable:
        return GrantedTable(alias, NOTHING) if alias == "open" else Absent()

    def tables(self, principal: Principal) -> tuple[GrantedTable, ...]:
        return ()


def answer(wire: Wire, gate: object, audit: AuditLog | None = None, body: bytes = b"") -> bytes:
    """What the whole tree answers to a request."""
    lines = [b"%b %b HTTP/1.1" % (wire.method, wire.target)]
    lines += [b"%b: %b" % pair for pair in wire.headers]
    return reply(b"\r\n".join([*lines, b"content-length: %d" % len(body), b"", body]), gate, audit)


def reply(sent: bytes, gate: object, audit: AuditLog | None = None) -> bytes:
    """What the edge and the whole tree behind it answer to octets."""
    settings = Settings(ADDRESSING, REGION, True, GetMode.PROXY, False, 300, ())
    verifier = authenticator()
    services = Services(
        settings,
        verifier,
        cast(Any, gate),
        {},
        cast(Any, None),
        sts=SessionService(verifier, lambda: NOW),
        audit=audit,
    )
    site = S3Site(
        RootResource(services),
        reactor=Clock(),
        on_finished=lambda record: record_decision(record, NOW, audit),
    )
    transport = StringTransport()
    channel = site.buildProtocol(None)
    channel.makeConnection(transport)
    channel.dataReceived(sent)
    said: bytes = transport.value()
    return said


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
@pytest.mark.parametrize("target", ["/datalake/t/_delta_log/0.json", "/datalake/t", "/nosuch/t/x"])
def test_nothing_is_looked_up_for_a_request_that_proves_nobody(method: str, target: str) -> None:
    for wire in (
        Wire(method.encode(), target.encode(), encoded((("host", HOST),))),
        signed(method, target, credentials=Credentials("AKIDALICE", "guessed")),
    ):
        assert answer(wire, Untouchable()).startswith(b"HTTP/1.1 403 ")


def test_what_post_answers_to_nobody_is_that_the_action_is_not_valid() -> None:
    wire = Wire(b"POST", b"/", encoded((("host", HOST),)))
    said = answer(wire, Untouchable(), body=b"Action=ListUsers&Version=2010-05-08")
    assert said.startswith(b"HTTP/1.1 400 ")
    assert b"<Code>InvalidAction</Code>" in said
    unsigned = answer(wire, Untouchable(), body=b"Action=GetCallerIdentity&Version=2011-06-15")
    assert unsigned.startswith(b"HTTP/1.1 403 ")
    assert b"<Code>MissingAuthenticationToken</Code>" in unsigned


def test_every_decision_is_recorded(tmp_path: pathlib.Path) -> None:
    log = AuditLog(str(tmp_path / "audit"), report=print)
    log.start()
    answer(signed("GET", "/datalake", (("prefix", "open/x="),), headers=()), Empty(), log)
    answer(signed("GET", "/datalake/gone/f"), Empty(), log)
    answer(signed("GET", "/datalake/t/f", credentials=Credentials("AKIDALICE", "x")), Untouchable(), log)
    answer(Wire(b"GET", b"/datalake/t/f", encoded((("host", HOST),))), Untouchable(), log)
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "audit").read_text().splitlines()]
    said = [(line["principal"], line["decision"], line["reason"], line["status"]) for line in lines]
    assert said == [
        ("alice", "allowed", None, 200),
        ("alice", "denied", "absent", 404),
        ("-", "denied", "SignatureDoesNotMatch", 403),
        ("-", "denied", "AccessDenied", 403),
    ]
    assert [line["operation"] for line in lines] == ["ListObjects", "GetObject", "GetObject", "GetObject"]
    assert (lines[0]["table"], lines[0]["path"], lines[0]["grant"]) == ("open", "x=", NOTHING.fingerprint)
    assert [line["access_key"] for line in lines] == ["AKIDALICE", "AKIDALICE", "AKIDALICE", None]
    assert log.waiting == 0


@pytest.mark.parametrize(
    ("sent", "reason", "status"),
    [
        (b"GET /datalake/%zz HTTP/1.1\r\nHost: h\r\n\r\n", "InvalidURI", 400),
        (b"GET /datalake/t/f?versions HTTP/1.1\r\nHost: h\r\n\r\n", "NotImplemented", 501),
        (b"GET /datalake/t/f HTTP/1.1\r\nHost h\r\n\r\n", "InvalidRequest", 400),
        (b"\x16\x03\x01\x00\x05 HTTP\r\n\r\n", "InvalidRequest", 400),
        (
            b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nno-size\r\n",
            "InvalidRequest",
            400,
        ),
    ],
)
def test_a_request_that_cannot_be_understood_is_recorded_as_refused(
    tmp_path: pathlib.Path, sent: bytes, reason: str, status: int
) -> None:
    log = AuditLog(str(tmp_path / "audit"), report=print)
    log.start()
    said = reply(sent, Untouchable(), log)
    log.close(timeout=30)
    (line,) = [json.loads(line) for line in (tmp_path / "audit").read_text().splitlines()]
    assert (line["principal"], line["decision"], line["reason"]) == ("-", "denied", reason)
    assert line["status"] == status == int(said.split()[1])
    assert line["source"] == "192.168.1.1"
    assert log.waiting == 0


def test_a_refusal_that_cannot_be_recorded_is_a_refusal_all_the_same(tmp_path: pathlib.Path) -> None:
    log = AuditLog(str(tmp_path / "audit"), report=print, capacity=0)
    assert reply(b"nonsense\r\n\r\n", Untouchable(), log).startswith(b"HTTP/1.1 400 ")


def test_what_cannot_be_recorded_is_refused(tmp_path: pathlib.Path) -> None:
    log = AuditLog(str(tmp_path / "audit"), report=print, capacity=0)
    assert answer(signed(), Untouchable(), log).startswith(b"HTTP/1.1 503 ")


@pytest.mark.parametrize(("target", "query"), [("/nosuch/open/f", ()), ("/nosuch", (("prefix", "open/"),))])
def test_what_is_asked_of_another_bucket_is_not_recorded_as_asked_of_a_table(
    tmp_path: pathlib.Path, target: str, query: tuple[tuple[str, str], ...]
) -> None:
    log = AuditLog(str(tmp_path / "audit"), report=print)
    log.start()
    answer(signed("GET", target, query, headers=()), Empty(), log)
    log.close(timeout=30)
    (line,) = [json.loads(line) for line in (tmp_path / "audit").read_text().splitlines()]
    assert (line["principal"], line["reason"], line["table"], line["path"]) == (
        "alice",
        "NoSuchBucket",
        None,
        None,
    )
