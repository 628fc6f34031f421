# mypy: allow-untyped-calls
from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import orjson
from prometheus_client import CollectorRegistry
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from delta_proxy.metrics import CONTENT_TYPE, Metrics
from delta_proxy.resources.health import Degraded, Readiness, metrics_site
from delta_proxy.resources.status import Status, TableStatus, page


def ready() -> Mapping[str, bool | str]:
    return {"credentials": True, "index": True}


def status() -> Status:
    return Status(
        "1.2.3", 90_061.0, (TableStatus("trades", 12, 3400, 65.0), TableStatus("new")), {"served": 7}
    )


def get(path: str, readiness: Readiness = ready, method: str = "GET") -> tuple[str, bytes]:
    figures = Metrics(CollectorRegistry(), Clock(), tables=["trades"])
    site = metrics_site(
        reactor=Clock(), readiness=readiness, render=figures.render, content_type=CONTENT_TYPE, status=status
    )
    transport = StringTransport()
    channel = site.buildProtocol(None)
    channel.makeConnection(transport)
    channel.dataReceived(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    head, _, body = transport.value().partition(b"\r\n\r\n")
    return head.decode(), body


def test_a_live_process_says_ok() -> None:
    head, body = get("/health/live")
    assert head.startswith("HTTP/1.1 200")
    assert body == b"ok"


def test_a_proxy_whose_every_check_holds_is_ready() -> None:
    head, body = get("/health/ready")
    assert head.startswith("HTTP/1.1 200")
    assert "application/json" in head
    assert orjson.loads(body) == {"ready": True, "checks": {"credentials": True, "index": True}}


def test_a_check_that_fails_or_says_why_makes_the_proxy_not_ready() -> None:
    failing: tuple[Mapping[str, bool | str], ...] = (
        {"index": True, "credentials": False},
        {"index": True, "credentials": "not found yet"},
    )
    for checks in failing:
        head, body = get("/health/ready", partial(dict, checks))
        assert head.startswith("HTTP/1.1 503")
        assert orjson.loads(body) == {"ready": False, "checks": checks}


def test_metrics_are_served_in_the_exposition_format() -> None:
    head, body = get("/metrics")
    assert f"Content-Type: {CONTENT_TYPE}" in head
    assert b"queries_served_total 0.0" in body


def test_the_status_page_shows_version_uptime_tables_and_figures() -> None:
    head, body = get("/")
    assert "text/html" in head
    for shown in (
        "1.2.3",
        "1 d 1 h 1 min 1 s",
        "trades",
        "12",
        "3,400",
        "1 min 5 s",
        "not read",
        "served",
        "7",
    ):
        assert shown in body.decode()


def test_the_status_page_escapes_what_it_shows_and_loads_nothing() -> None:
    text = page(Status("<v>", 0, (TableStatus("<script>alert(1)</script>"),), {"<b>": 1}))
    assert "<script" not in text
    assert "<b>" not in text
    assert "src=" not in text
    assert "http:" not in text


def test_a_head_request_is_answered_without_a_body_and_a_post_is_refused() -> None:
    head, body = get("/health/live", method="HEAD")
    assert "Content-Length: 2" in head
    assert body == b""
    head, body = get("/metrics", method="POST")
    assert head.startswith("HTTP/1.1 405")
    assert b"<Code>MethodNotAllowed</Code>" in body


def test_an_unknown_path_does_not_exist() -> None:
    for path in ("/nothing", "/health", "/health/nothing", "/metrics2"):
        assert get(path)[0].startswith("HTTP/1.1 404")


def test_a_check_that_is_degraded_says_so_and_holds() -> None:
    head, body = get("/health/ready", lambda: {"database": Degraded("stale: no answer")})
    assert head.startswith("HTTP/1.1 200")
    assert orjson.loads(body) == {"ready": True, "checks": {"database": "stale: no answer"}}
