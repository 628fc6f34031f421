"""What the parent leaves to its workers."""

# mypy: allow-untyped-calls

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport

from delta_proxy.config import parse
from delta_proxy.resources.root import RootResource
from delta_proxy.resources.services import Services
from delta_proxy.service import ProxyService
from delta_proxy.workers.child import WorkerEnd
from delta_proxy.workers.link import Message, send_now
from delta_proxy.workers.parent import ParentService, Setting
from delta_proxy.workers.supervisor import Worker


class Spawning(Clock):
    """A reactor that starts no process; it keeps how each was to be started and what it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[str] = []
        self.sent: list[StringTransport] = []
        self.when_running: list[Callable[..., Any]] = []

    def callWhenRunning(self, function: Callable[..., Any]) -> None:  # noqa: N802
        self.when_running.append(function)

    def spawnProcess(self, process: Any, *arguments: Any, **more: Any) -> None:  # noqa: N802
        self.started.append(repr((arguments, more)))

    def adoptStreamConnection(self, descriptor: int, family: int, factory: Any) -> None:  # noqa: N802
        self.sent.append(StringTransport())
        factory.buildProtocol(None).makeConnection(self.sent[-1])


def text(directory: pathlib.Path) -> str:
    """A configuration with forward mode, two workers and no secret keys."""
    return json.dumps(
        {
            "tableMapping": {"t": "s3://lake/t"},
            "storage": {"endpoint": "http://store.test"},
            "defaultAuthMode": "forward",
            "cache": {"directory": str(directory / "cache")},
            "interface": "127.0.0.1",
            "port": 0,
            "workers": 2,
        }
    )


@contextmanager
def parent_of_two(directory: pathlib.Path) -> Iterator[tuple[ParentService, Spawning]]:
    """A parent whose port is open and that has no worker yet."""
    reactor = Spawning()
    written = text(directory)
    setting = Setting(directory / "config.json", written, str(directory))
    parent = ParentService(parse(written, "test", {}), reactor, setting, name="proxy", give_up=lambda _: None)
    parent.privilegedStartService()
    try:
        yield parent, reactor
    finally:
        parent.stopService()


def test_the_figures_of_a_parent_that_was_killed_are_removed_by_the_next(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with parent_of_two(tmp_path) as (parent, _):
        parent.startService()
        (own,) = tmp_path.glob("proxy-figures-*")
        gone = subprocess.Popen(["true"])
        gone.wait()
        left = tmp_path / own.name.replace(f"-{os.getpid()}-", f"-{gone.pid}-")
        left.mkdir()
        others = tmp_path / own.name.replace(f"-{os.getpid()}-", f"-{os.getppid()}-")
        others.mkdir()
    with parent_of_two(tmp_path) as (parent, _):
        parent.startService()
        assert not left.exists()
        assert others.exists()
    assert list(tmp_path.glob("proxy-figures-*")) == [others]


def given_to_workers(directory: pathlib.Path) -> tuple[list[Message], list[str]]:
    """What each of two workers is sent first, and how their processes were to be started."""
    with parent_of_two(directory) as (parent, reactor):
        for number in (1, 2):
            parent.spawn(Worker(number, cast(Any, None)))
    return [json.loads(sent.value()[4:]) for sent in reactor.sent], reactor.started


def key_of_tokens(given: Message, directory: pathlib.Path) -> bytes:
    """What vouches for the list tokens of a worker that was given this."""
    ours, theirs = socket.socketpair()
    with ours:
        send_now(ours, given)
        end = WorkerEnd(theirs.detach(), {})
    service = ProxyService(end.given.config({}), MemoryReactorClock(), end=end)
    services = cast(RootResource, service.site.resource).services
    assert isinstance(services, Services)
    assert services.forward is not None
    return services.forward.key


def test_a_list_token_of_one_worker_holds_for_every_other(tmp_path: pathlib.Path) -> None:
    given, _ = given_to_workers(tmp_path)
    one, other = (key_of_tokens(each, tmp_path) for each in given)
    assert one == other
    assert len(one) == 32


def test_a_worker_is_told_whether_others_were_up_before(tmp_path: pathlib.Path) -> None:
    with parent_of_two(tmp_path) as (parent, reactor):
        (worker, _) = parent.workers
        parent.spawn(worker)
        worker.received({"up": True})
        parent.spawn(worker)
    told = [json.loads(sent.value()[4:])["replaces"] for sent in reactor.sent]
    assert told == [False, True]


def test_the_key_of_list_tokens_is_told_on_the_link_alone(tmp_path: pathlib.Path) -> None:
    given, started = given_to_workers(tmp_path)
    ours, theirs = socket.socketpair()
    with ours:
        send_now(ours, given[0])
        end = WorkerEnd(theirs.detach(), {})
    key = given[0]["list_key"]
    for shown in (*started, repr(end.given)):
        assert key not in shown
        assert repr(bytes.fromhex(key))[2:-1] not in shown
