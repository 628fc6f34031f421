"""The link between parent and worker, the shared log file, and what a worker takes over from its parent."""

# mypy: allow-untyped-calls

from __future__ import annotations

import json
import os
import pathlib
import socket
from collections.abc import Collection
from typing import Any

import pytest
from twisted.internet.error import CannotListenError
from twisted.internet.testing import StringTransport

from delta_proxy.access.policy import PolicyError
from delta_proxy.config import Config, ConfigError, parse
from delta_proxy.metrics import Moment
from delta_proxy.resources.health import Checks
from delta_proxy.resources.status import Status
from delta_proxy.workers.child import Given, WorkerEnd
from delta_proxy.workers.link import Link, Message, read_now, send_now
from delta_proxy.workers.logfile import SharedLogFile
from delta_proxy.workers.parent import how_it_ended, listening, log_arguments

FIRST = {"tableMapping": {"t": "s3://lake/t"}, "audit": "/var/log/first", "workers": 2}
ENVIRON = {"HOME": "/home/ada"}


def text(**more: Any) -> str:
    return json.dumps({**FIRST, **more})


def test_messages_pass_in_order_however_they_are_cut() -> None:
    sent = StringTransport()
    sender = Link(lambda _: None)
    sender.makeConnection(sent)
    for number in range(3):
        sender.send({"number": number})
    got: list[Message] = []
    receiver = Link(got.append)
    receiver.makeConnection(StringTransport())
    for octet in sent.value():
        receiver.dataReceived(bytes([octet]))
    assert got == [{"number": 0}, {"number": 1}, {"number": 2}]


def test_a_peer_that_does_not_speak_json_is_cut_off() -> None:
    transport, got = StringTransport(), list[Message]()
    link = Link(got.append)
    link.makeConnection(transport)
    link.dataReceived(b"\0\0\0\1{")
    assert transport.disconnecting
    assert got == []


def test_the_first_message_is_read_without_a_byte_of_the_second() -> None:
    one, other = socket.socketpair()
    with one, other:
        send_now(one, {"first": 1})
        send_now(one, {"second": 2})
        assert read_now(other) == {"first": 1}
        assert read_now(other) == {"second": 2}
        one.close()
        with pytest.raises(EOFError):
            read_now(other)


def test_lines_of_several_processes_are_whole_and_follow_a_rotation(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "log"
    one, two = SharedLogFile(str(path)), SharedLogFile(str(path))
    one.write("one\n")
    two.write("two\n")
    one.write("one again\n")
    path.rename(tmp_path / "old")
    one.reopen()
    one.write("new\n")
    two.write("still old\n")
    two.reopen()
    two.write("new too\n")
    assert (tmp_path / "old").read_text() == "one\ntwo\none again\nstill old\n"
    assert path.read_text() == "new\nnew too\n"
    for log in (one, two):
        os.close(log.descriptor)


def test_a_log_that_cannot_be_reopened_goes_on_where_it_was(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    log = SharedLogFile(str(folder / "log"))
    folder.rename(tmp_path / "moved")
    log.reopen()
    log.write("still there\n")
    os.close(log.descriptor)
    assert (tmp_path / "moved" / "log").read_text() == "still there\n"


@pytest.mark.parametrize(
    ("options", "arguments", "log"),
    [
        ({"nodaemon": True}, (), None),
        ({"nodaemon": True, "logfile": "-"}, (), None),
        ({"syslog": True, "prefix": "proxy"}, ("--syslog", "--prefix", "proxy"), None),
        ({"logger": how_it_ended}, ("--logger", "delta_proxy.workers.parent.how_it_ended"), None),
        (
            {"nodaemon": True, "logfile": "/l"},
            ("--logger", "delta_proxy.workers.logfile.observer"),
            "/l",
        ),
    ],
)
def test_a_worker_logs_as_its_parent_does(
    options: dict[str, Any], arguments: tuple[str, ...], log: str | None
) -> None:
    assert log_arguments(options) == (arguments, log)


def test_a_daemon_without_a_log_file_logs_where_twistd_would() -> None:
    _, log = log_arguments({})
    assert log is not None
    assert log.endswith("/twistd.log")


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(CannotListenError) as caught:
        listening("127.0.0.1", taken.getsockname()[1])
    assert "in use" in str(caught.value)


def has_ipv6() -> bool:
    """Whether this machine has an IPv6 loopback."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="there is no ::1 here")
def test_the_socket_listens_before_any_worker_runs() -> None:
    with listening("::1", 0) as listener, socket.create_connection(listener.getsockname()[:2], 10):
        assert listener.family is socket.AF_INET6


def test_a_replacement_answers_by_the_configuration_in_force_and_keeps_what_needs_a_restart() -> None:
    fresh = text(audit="/var/log/second", denyByDefault=True)
    config = Given(1, text(), fresh, 4, None, "00").config(ENVIRON)
    assert config.deny_by_default
    assert config.audit == "/var/log/first"


def test_a_replacement_takes_what_was_put_in_force_step_by_step() -> None:
    # A table that was opened by name by one reload may be left open by the next.
    restricted = text(allowedPartitions={"t": [{"MIC": "XLON"}]})
    config = Given(1, restricted, text(), 4, None, "00").config(ENVIRON)
    assert config.policy.unnamed == ("t",)


class Proxy:
    """A proxy without its parts."""

    def __init__(self) -> None:
        self.config = parse(text(), "test", ENVIRON)
        self.did: list[str] = []

    def apply(self, config: Config) -> None:
        self.did.append("apply")
        self.config = config

    async def check_grants(self, config: Config, aliases: Collection[str]) -> None:
        self.did.append(f"check {sorted(aliases)}")
        if config.deny_by_default:
            raise PolicyError("allowedPartitions.t", "no partition column")

    def readiness(self) -> Checks:
        return {"accepting": True}

    def status(self) -> Status:
        return Status("1", 2.0)

    def moment(self) -> Moment:
        return Moment(("alice",))

    def reopen(self) -> None:
        self.did.append("reopen")

    def stop(self) -> None:
        self.did.append("stop")


class Connected:
    """A reactor that knows one connection, which is in memory."""

    def __init__(self) -> None:
        self.transport = StringTransport()
        self.link: Any = None

    def adoptStreamConnection(self, descriptor: int, family: int, factory: Any) -> None:  # noqa: N802
        self.link = factory.buildProtocol(None)
        self.link.makeConnection(self.transport)

    def told(self, message: Message) -> list[Message]:
        """What the worker says to a message."""
        self.transport.clear()
        self.link.stringReceived(json.dumps(message).encode())
        data, got = self.transport.value(), list[Message]()
        while data:
            size = int.from_bytes(data[:4], "big")
            got.append(json.loads(data[4 : 4 + size]))
            data = data[4 + size :]
        return got


def attached(*, replaces: bool = False) -> tuple[WorkerEnd, Proxy, Connected]:
    ours, theirs = socket.socketpair()
    with ours:
        given = {"number": 1, "start": text(), "current": text(), "listener": 4, "log": None}
        send_now(ours, {**given, "list_key": "00", "replaces": replaces})
        end = WorkerEnd(theirs.detach(), ENVIRON)
    proxy, parent = Proxy(), Connected()
    end.attach(proxy, parent)
    return end, proxy, parent


@pytest.fixture
def worker() -> tuple[Proxy, Connected]:
    _, proxy, parent = attached()
    return proxy, parent


@pytest.mark.parametrize("replaces", [False, True])
def test_a_grant_that_cannot_be_meant_keeps_only_the_first_workers_from_starting(replaces: bool) -> None:
    end, _, parent = attached(replaces=replaces)
    assert end.refuse("no partition column") is not replaces
    assert (b"refused" in parent.transport.value()) is not replaces


def test_a_worker_answers_what_it_is_asked(worker: tuple[Proxy, Connected]) -> None:
    _, parent = worker
    assert parent.told({"ask": "health", "id": 7}) == [{"id": 7, "answer": {"accepting": True}}]
    assert parent.told({"ask": "figures", "id": 8})[0]["answer"]["users"] == ["alice"]
    assert parent.told({"ask": "status", "id": 9})[0]["answer"]["version"] == "1"
    assert parent.told({"ask": "beat", "id": 0}) == [{"id": 0, "answer": None}]


def test_a_worker_takes_over_a_configuration_and_reopens_its_logs(worker: tuple[Proxy, Connected]) -> None:
    proxy, parent = worker
    parent.told({"do": "apply", "config": text(denyByDefault=True)})
    assert proxy.config.deny_by_default
    parent.told({"do": "reopen"})
    assert proxy.did == ["apply", "reopen"]


def test_a_worker_tells_whether_the_grants_of_a_configuration_can_be_meant(
    worker: tuple[Proxy, Connected],
) -> None:
    proxy, parent = worker
    question = {"ask": "check", "id": 1, "aliases": ["t"]}
    assert parent.told({**question, "config": text()}) == [{"id": 1, "answer": []}]
    refused = parent.told({**question, "config": text(denyByDefault=True)})
    assert refused == [{"id": 1, "answer": ["allowedPartitions.t", "no partition column"]}]
    assert proxy.did == ["check ['t']", "check ['t']"]


def test_a_worker_that_cannot_take_over_a_configuration_ends(worker: tuple[Proxy, Connected]) -> None:
    proxy, parent = worker
    parent.told({"do": "apply", "config": '{"tableMapping": {}}'})
    assert proxy.did == ["stop"]


def test_a_worker_whose_parent_is_gone_ends(worker: tuple[Proxy, Connected]) -> None:
    proxy, parent = worker
    parent.link.connectionLost(None)
    assert proxy.did == ["stop"]


def test_a_configuration_that_became_wrong_is_an_error_of_the_start() -> None:
    with pytest.raises(ConfigError):
        Given(1, text(), "{", 4, None, "00").config(ENVIRON)


def test_the_end_of_a_process_is_told_in_words() -> None:
    class Ended:
        exitCode: int | None = 3  # noqa: N815
        signal: int | None = None

    ended = Ended()
    assert how_it_ended(ended) == "ended with status 3"
    ended.signal = 9
    assert how_it_ended(ended) == "ended by SIGKILL"
