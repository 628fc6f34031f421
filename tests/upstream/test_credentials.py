"""botocore's chain, with the real botocore: which thread it runs in, and when it is asked again."""

from __future__ import annotations

import json
import os
import pathlib
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import botocore.session
import pytest
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread

from delta_proxy.s3.errors import ServiceUnavailable
from delta_proxy.s3.sigv4 import Credentials
from delta_proxy.upstream.credentials import BotocoreCredentials, StaticCredentials
from tests.helpers import result_of

from .parts import in_reactor, reactor

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _no_credentials_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


def recording_session(threads: list[threading.Thread]) -> Callable[..., Any]:
    """botocore's Session, made as always, with a note of the thread that made it."""

    def make(**keywords: Any) -> Any:
        threads.append(threading.current_thread())
        return botocore.session.Session(**keywords)

    return make


@in_reactor
async def test_the_environment_is_read_in_the_thread_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "from-env")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    threads: list[threading.Thread] = []
    source = BotocoreCredentials(None, deferToThread, reactor, recording_session(threads))

    assert await source.get() == Credentials("from-env", "secret", "token")
    assert await source.region() == "eu-north-1"
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()


@in_reactor
async def test_a_profile_has_its_own_keys_and_region(tmp_path: pathlib.Path) -> None:
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id=d\naws_secret_access_key=d\n"
        "[lake]\naws_access_key_id=from-profile\naws_secret_access_key=s\n"
    )
    (tmp_path / "config").write_text("[profile lake]\nregion=sa-east-1\n")
    lake = BotocoreCredentials("lake", deferToThread, reactor)
    default = BotocoreCredentials(None, deferToThread, reactor)

    assert (await lake.get()).access_key == "from-profile"
    assert await lake.region() == "sa-east-1"
    assert (await default.get()).access_key == "d"
    assert await default.region() is None


@pytest.mark.parametrize("profile", [None, "nowhere"])
@in_reactor
async def test_a_chain_without_credentials_is_unavailable(profile: str | None) -> None:
    with pytest.raises(ServiceUnavailable):
        await BotocoreCredentials(profile, deferToThread, reactor).get()


@in_reactor
async def test_credentials_that_appear_later_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    source = BotocoreCredentials(None, deferToThread, reactor)
    with pytest.raises(ServiceUnavailable):
        await source.get()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "later")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    assert (await source.get()).access_key == "later"


@in_reactor
async def test_a_credential_process_is_run_again_before_its_credentials_end(tmp_path: pathlib.Path) -> None:
    counter = tmp_path / "runs"
    answer = {"Version": 1, "SecretAccessKey": "s", "SessionToken": "t"}
    expiry = (datetime.now(UTC) + timedelta(seconds=300)).isoformat()
    program = (
        "import json, pathlib\n"
        f"runs = pathlib.Path({str(counter)!r})\n"
        "count = int(runs.read_text()) + 1 if runs.exists() else 1\n"
        "runs.write_text(str(count))\n"
        f"print(json.dumps({{**{answer!r}, 'AccessKeyId': f'run-{{count}}', 'Expiration': {expiry!r}}}))\n"
    )
    (tmp_path / "process.py").write_text(program)
    (tmp_path / "config").write_text(
        f"[profile refreshed]\ncredential_process = {sys.executable} {tmp_path / 'process.py'}\n"
    )
    source = BotocoreCredentials("refreshed", deferToThread, reactor)
    first = int((await source.get()).access_key.removeprefix("run-"))
    while int((await source.get()).access_key.removeprefix("run-")) == first:
        waited: Deferred[None] = Deferred()
        reactor.callLater(0.01, waited.callback, None)
        await waited

    assert json.loads(counter.read_text()) > first


class FakeChain:
    """A session of botocore's shape whose credentials the test sets; `fail` is raised instead of them."""

    def __init__(self) -> None:
        self.number = 0
        self.expires: datetime | None = NOW + timedelta(hours=1)
        self.fail: Exception | None = None

    @property
    def _expiry_time(self) -> datetime | None:
        return self.expires

    def __call__(self, **keywords: Any) -> FakeChain:
        return self

    def get_credentials(self) -> FakeChain:
        """Itself."""
        return self

    def get_config_variable(self, name: str) -> str | None:
        """No region."""
        return None

    def get_frozen_credentials(self) -> Any:
        """The next credentials."""
        if self.fail is not None:
            raise self.fail
        self.number += 1
        return botocore.credentials.ReadOnlyCredentials(f"key-{self.number}", "s", None)


class Held:
    """A thread pool that works when told to."""

    def __init__(self) -> None:
        self.pending: list[tuple[Deferred[Any], Callable[[], Any]]] = []

    def __call__(self, work: Callable[[], Any]) -> Deferred[Any]:
        """Hold it."""
        done: Deferred[Any] = Deferred()
        self.pending.append((done, work))
        return done

    def work(self) -> None:
        """Do what is held."""
        pending, self.pending = self.pending, []
        for done, work in pending:
            maybeDeferred(work).chainDeferred(done)


def at(seconds: float) -> Clock:
    """A clock that shows NOW and some seconds."""
    clock = Clock()
    clock.advance(NOW.timestamp() + seconds)
    return clock


def ready() -> tuple[BotocoreCredentials, FakeChain, Held, Clock]:
    """A source that has its first credentials, good for an hour."""
    chain, pool, clock = FakeChain(), Held(), at(0)
    source = BotocoreCredentials(None, pool, clock, chain)
    first = Deferred.fromCoroutine(source.get())
    pool.work()
    assert result_of(first).access_key == "key-1"
    return source, chain, pool, clock


def test_many_who_wait_share_one_flight() -> None:
    chain, pool = FakeChain(), Held()
    source = BotocoreCredentials(None, pool, at(0), chain)
    waiting = [Deferred.fromCoroutine(source.get()) for _ in range(5)]
    waiting[0].addErrback(lambda _: None)
    waiting[0].cancel()
    assert len(pool.pending) == 1
    pool.work()

    assert {result_of(each).access_key for each in waiting[1:]} == {"key-1"}


def test_credentials_are_refreshed_in_the_background_more_than_five_minutes_before_their_end() -> None:
    source, chain, pool, clock = ready()
    clock.advance(3600 - 600 - 1)
    assert result_of(source.get()).access_key == "key-1"
    assert pool.pending == []
    clock.advance(1)
    assert result_of(source.get()).access_key == "key-1"
    chain.expires = NOW + timedelta(hours=2)
    pool.work()

    assert result_of(source.get()).access_key == "key-2"
    assert pool.pending == []


def test_a_failed_refresh_leaves_the_old_ones_in_force_until_their_end() -> None:
    source, chain, pool, clock = ready()
    chain.fail = RuntimeError("no network")
    clock.advance(3600 - 600)
    result_of(source.get())
    pool.work()
    assert result_of(source.get()).access_key == "key-1"
    assert pool.pending == [], "a failed refresh is not repeated at once"
    clock.advance(600)
    last = Deferred.fromCoroutine(source.get())
    pool.work()

    with pytest.raises(ServiceUnavailable):
        result_of(last)


def test_credentials_without_an_end_are_not_asked_for_again() -> None:
    chain, pool, clock = FakeChain(), Held(), at(0)
    chain.expires = None
    source = BotocoreCredentials(None, pool, clock, chain)
    first = Deferred.fromCoroutine(source.get())
    pool.work()
    result_of(first)
    clock.advance(1e9)

    assert result_of(source.get()).access_key == "key-1"
    assert pool.pending == []


def test_static_credentials_are_what_they_are() -> None:
    source = StaticCredentials(Credentials("a", "b", None), "eu-west-1")

    assert result_of(source.get()).access_key == "a"
    assert result_of(source.region()) == "eu-west-1"
    assert "b'" not in repr(result_of(source.get()))
