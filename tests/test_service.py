"""The small parts of the service that need no service."""

from __future__ import annotations

import socket
from typing import Any, cast

import attrs
import pytest
from twisted.internet.defer import Deferred

from delta_proxy.config import Config, parse
from delta_proxy.ports import UnusablePort, check_ports
from delta_proxy.s3.errors import ServiceUnavailable
from delta_proxy.s3.sigv4 import Credentials
from delta_proxy.service import CredentialCheck, log_maker, reopening
from tests.ports import free_port


class Chain:
    """Credentials that come when told to."""

    def __init__(self) -> None:
        self.waiting: list[Deferred[Credentials]] = []

    async def get(self) -> Credentials:
        self.waiting.append(Deferred())
        return await self.waiting[-1]

    async def region(self) -> str | None:
        return None


def test_credentials_are_ready_when_they_have_come() -> None:
    chain, check = Chain(), CredentialCheck()
    check.watch("p", chain)
    assert check.readiness({"p"}) == "none yet for the profile p"
    assert check.readiness({"p"}) == "none yet for the profile p"
    assert len(chain.waiting) == 1
    chain.waiting[0].callback(Credentials("a", "b"))
    assert check.readiness({"p"}) is True


def test_credentials_that_did_not_come_are_asked_for_again() -> None:
    chain, check = Chain(), CredentialCheck()
    check.watch(None, chain)
    check.readiness({None})
    chain.waiting[0].errback(ServiceUnavailable())
    assert check.readiness({None}) == "none for the profile default: ServiceUnavailable"
    chain.waiting[1].callback(Credentials("a", "b"))
    assert check.readiness({None}) is True


def test_credentials_that_no_table_needs_any_more_do_not_matter() -> None:
    check = CredentialCheck()
    check.watch("gone", Chain())
    assert check.readiness({"p"}) is True


def test_a_rotation_reopens_the_audit_log_and_does_what_it_did_before() -> None:
    calls: list[str] = []

    class Log:
        def reopen(self) -> None:
            calls.append("audit")

    reopening(cast(Any, Log()), lambda *_: calls.append("before"))(10, None)
    reopening(cast(Any, Log()), 0)(10, None)
    assert calls == ["audit", "before", "audit"]


@pytest.mark.parametrize(
    ("options", "ours"),
    [
        ({"nodaemon": True}, True),
        ({"logfile": "proxy.log"}, True),
        ({}, True),
        ({"syslog": True, "prefix": "proxy"}, False),
        ({"logger": reopening}, False),
    ],
)
def test_the_log_is_the_proxys_own_unless_twistd_was_told_another(
    options: dict[str, Any], *, ours: bool
) -> None:
    assert (log_maker(options) is not None) == ours


@pytest.fixture
def config() -> Config:
    return parse(
        '{"tableMapping": {"t": "s3://bucket/t"}, "port": 0, "metricsPort": 0}', "test", {"HOME": "/"}
    )


@pytest.mark.parametrize(("field", "key"), [("port", "port"), ("metrics_port", "metricsPort")])
def test_a_port_that_is_taken_is_told_with_its_key(config: Config, field: str, key: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            UnusablePort, match=f"^{key}: cannot listen on port {port} of 127.0.0.1: .+ in use"
        ):
            check_ports(attrs.evolve(config, **{field: port}))


def test_ports_that_are_free_are_left_free(config: Config) -> None:
    port = free_port()
    check_ports(attrs.evolve(config, port=port))
    check_ports(attrs.evolve(config, port=port))
