"""The feed: changes are in force within seconds, and an unreachable database closes it in the end."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import pytest
import sqlalchemy as sa
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock, deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs

from delta_proxy.access.keys import SecretKeys
from delta_proxy.access.migrations import upgrade
from delta_proxy.access.permission_feed import FeedState, PermissionFeed, Unavailable
from delta_proxy.access.permissions import PermissionStore, database_engine
from delta_proxy.access.snapshot import Listening, PrincipalKind, Problem, Snapshot, Version
from tests.helpers import result_of, start
from tests.integration.postgres import Postgres

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
LONDON = [{"MIC": "XLON"}]


def snapshot(number: int, problems: tuple[Problem, ...] = ()) -> Snapshot:
    """An empty state with a version."""
    empty: Any = MappingProxyType({})
    return Snapshot(Version(number), empty, frozenset(), empty, frozenset(), frozenset(), problems)


class Source:
    """A database whose answers the test decides."""

    def __init__(self) -> None:
        self.number = 1
        self.down = False
        self.asked: list[str] = []

    def current_version(self) -> Version:
        self._ask("version")
        return Version(self.number)

    def load_snapshot(self) -> Snapshot:
        self._ask("snapshot")
        return snapshot(self.number)

    def listen(self) -> Listening | None:
        raise AssertionError("nothing is listened for without a reactor")

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if self.down:
            raise OSError("no route\nsecond line")


def at_once(work: Callable[[], Any]) -> Deferred[Any]:
    """A thread pool that is done at once."""
    return maybeDeferred(work)


def feed_of(source: Source, clock: Clock, **settings: Any) -> PermissionFeed:
    """A feed that polls every two seconds and keeps stale grants for ten."""
    settings = {"defer_to_pool": at_once, "poll_seconds": 2, "stale_seconds": 10, **settings}
    return PermissionFeed(source, clock=clock, **settings)


def test_the_first_snapshot_is_there_after_the_start() -> None:
    feed = feed_of(Source(), Clock())
    with pytest.raises(Unavailable):
        feed.snapshot()
    result_of(feed.start())
    assert feed.snapshot().version == Version(1)
    assert feed.status.state is FeedState.CURRENT
    assert feed.status.ready


def test_a_change_is_in_force_after_one_poll() -> None:
    source, clock = Source(), Clock()
    feed = feed_of(source, clock)
    result_of(feed.start())
    source.number = 2
    clock.advance(2)
    assert feed.snapshot().version == Version(2)


def test_a_version_that_goes_back_is_a_change_too() -> None:
    source, clock = Source(), Clock()
    source.number = 9
    feed = feed_of(source, clock)
    result_of(feed.start())
    source.number = 8
    clock.advance(2)
    assert feed.snapshot().version == Version(8)


def test_without_a_change_only_the_version_is_asked_for() -> None:
    source, clock = Source(), Clock()
    result_of(feed_of(source, clock).start())
    clock.pump([2] * 5)
    assert source.asked == ["snapshot", *["version"] * 5]


def test_the_last_grants_stay_for_the_stale_seconds_and_no_longer() -> None:
    source, clock = Source(), Clock()
    feed = feed_of(source, clock)
    result_of(feed.start())
    source.down = True
    clock.pump([1] * 10)
    assert feed.snapshot().version == Version(1)
    assert (feed.status.state, feed.status.ready) == (FeedState.STALE, True)
    clock.advance(0.5)
    with pytest.raises(Unavailable):
        feed.snapshot()
    assert (feed.status.state, feed.status.ready) == (FeedState.CLOSED, False)
    assert feed.status.error == "no route"


def test_a_clock_that_is_set_back_neither_keeps_grants_in_force_nor_a_question_waiting() -> None:
    source, clock = Source(), Clock()
    clock.advance(10_000)
    feed = feed_of(source, clock)
    result_of(feed.start())
    source.number = 2
    clock.rightNow -= 3_600
    feed.snapshot()
    assert feed.snapshot().version == Version(2)
    clock.rightNow -= 3_600
    source.down = True
    feed.snapshot()
    clock.pump([1] * 11)
    with pytest.raises(Unavailable):
        feed.snapshot()


def test_a_database_that_answers_again_opens_the_feed_with_what_it_says_now() -> None:
    source, clock = Source(), Clock()
    feed = feed_of(source, clock)
    result_of(feed.start())
    source.down, source.number = True, 2
    clock.pump([2] * 20)
    source.down = False
    clock.advance(2)
    assert feed.snapshot().version == Version(2)
    assert feed.status.state is FeedState.CURRENT


def test_a_database_that_is_down_at_the_start_opens_the_feed_when_it_comes() -> None:
    source, clock = Source(), Clock()
    source.down = True
    feed = feed_of(source, clock)
    result_of(feed.start())
    with pytest.raises(Unavailable):
        feed.snapshot()
    source.down = False
    clock.advance(2)
    assert feed.snapshot().version == Version(1)


def test_a_database_that_hangs_closes_the_feed_although_no_query_has_failed() -> None:
    source, clock, hanging = Source(), Clock(), [False]

    def pool(work: Callable[[], Any]) -> Deferred[Any]:
        return Deferred() if hanging[0] else maybeDeferred(work)

    feed = feed_of(source, clock, defer_to_pool=pool)
    result_of(feed.start())
    hanging[0] = True
    clock.pump([1] * 10)
    assert feed.status.state is FeedState.STALE
    clock.advance(0.5)
    with pytest.raises(Unavailable):
        feed.snapshot()


def test_what_a_slow_answer_confirms_is_as_old_as_the_question() -> None:
    clock, answers = Clock(), []

    def pool(_: Callable[[], Any]) -> Deferred[Any]:
        answers.append(Deferred[Any]())
        return answers[-1]

    feed = feed_of(Source(), clock, defer_to_pool=pool)
    starting = start(feed.start())
    clock.advance(8)
    answers.pop().callback(snapshot(1))
    result_of(starting)
    assert feed.status.age_seconds == 8
    clock.advance(2.5)
    with pytest.raises(Unavailable):
        feed.snapshot()


def test_a_poke_asks_at_once_and_pokes_during_a_query_ask_once_more() -> None:
    source, clock, held = Source(), Clock(), list[tuple[Deferred[Any], Callable[[], Any]]]()

    def pool(work: Callable[[], Any]) -> Deferred[Any]:
        held.append((Deferred(), work))
        return held[-1][0]

    def answer() -> None:
        waiting, work = held.pop(0)
        waiting.callback(work())

    feed = feed_of(source, clock, defer_to_pool=pool)
    start(feed.start())
    answer()
    feed.poke()
    for _ in range(5):
        feed.poke()
    answer()
    clock.advance(0)
    answer()
    clock.advance(0)
    assert held == []
    assert source.asked == ["snapshot", "version", "version"]


def test_after_the_stop_nothing_is_asked() -> None:
    source, clock = Source(), Clock()
    feed = feed_of(source, clock)
    result_of(feed.start())
    result_of(feed.stop())
    feed.poke()
    clock.advance(60)
    assert source.asked == ["snapshot"]
    assert clock.getDelayedCalls() == []


def test_bad_rows_are_said_in_the_log_and_in_the_status() -> None:
    class Bad(Source):
        def load_snapshot(self) -> Snapshot:
            return snapshot(1, (Problem("grant 7", "the partition filters are not JSON"),))

    feed = feed_of(Bad(), Clock())
    with capturedLogs() as said:
        result_of(feed.start())
    assert [problem.where for problem in feed.status.problems] == ["grant 7"]
    assert any("grant 7" in str(event.get("problem")) for event in said)


@pytest.mark.parametrize("settings", [{"poll_seconds": 5.1}, {"poll_seconds": 0}, {"stale_seconds": 3.9}])
def test_intervals_that_break_the_promise_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"seconds|staleSeconds"):
        feed_of(Source(), Clock(), **settings)


def pause(seconds: float) -> Deferred[None]:
    """Let the real reactor run."""
    clock: Any = reactor
    return deferLater(clock, seconds, lambda: None)


async def until(condition: Callable[[], bool], clock: Clock | None = None) -> None:
    """Wait for a condition, for as long as a slow machine may take. The feed's own clock goes on only if
    it is given.
    """
    for _ in range(12_000):
        if condition():
            return
        if clock is not None:
            clock.advance(0.1)
        await pause(0.02)
    raise AssertionError("the condition did not come about")


def listeners(engine: sa.Engine) -> int:
    """How many connections wait for announcements, as the server sees it."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN %%' AND datname = current_database()"
    )
    with engine.begin() as connection:
        return int(connection.exec_driver_sql(query).scalar_one())


def real_feed(engine: sa.Engine, keys: SecretKeys, clock: Any, listening: bool) -> PermissionFeed:
    """A feed on a real database and the real reactor's threads."""
    descriptors: Any = reactor if listening else None
    return PermissionFeed(
        PermissionStore(engine, keys.fernet()),
        clock=clock,
        defer_to_pool=deferToThread,
        descriptors=descriptors,
        poll_seconds=2,
        stale_seconds=10_000,
    )


def trades_of(feed: PermissionFeed, user: str) -> bool:
    """Whether the user has a grant on the table now."""
    return "trades" in feed.snapshot().grants_of(user, frozenset(), NOW)


@ensureDeferred
async def test_a_grant_and_its_revocation_arrive_by_polling(
    engine: sa.Engine, store: PermissionStore, keys: SecretKeys
) -> None:
    clock = Clock()
    feed = real_feed(engine, keys, clock, listening=False)
    await feed.start()
    store.add_user("alice")
    number = store.grant(PrincipalKind.USER, "alice", "trades", LONDON, granted_by="root")
    await until(lambda: trades_of(feed, "alice"), clock)
    store.revoke(number)
    await until(lambda: not trades_of(feed, "alice"), clock)
    await feed.stop()


@ensureDeferred
async def test_postgresql_announces_a_change_without_a_poll(postgres: Postgres, keys: SecretKeys) -> None:
    engine = database_engine(postgres.new_database())
    upgrade(engine)
    store = PermissionStore(engine, keys.fernet())
    store.add_user("alice")
    clock = Clock()
    feed = real_feed(engine, keys, clock, listening=True)
    await feed.start()
    clock.advance(0)
    await until(lambda: bool(clock.getDelayedCalls()))
    # The clock stands still: only an announcement can make the feed ask.
    store.grant(PrincipalKind.USER, "alice", "trades", LONDON, granted_by="root")
    await until(lambda: trades_of(feed, "alice"))
    await feed.stop()
    engine.dispose()


@ensureDeferred
async def test_a_restarted_postgresql_is_polled_and_listened_to_again(
    postgres: Postgres, keys: SecretKeys
) -> None:
    engine = database_engine(postgres.new_database())
    upgrade(engine)
    store = PermissionStore(engine, keys.fernet())
    store.add_user("alice")
    clock = Clock()
    feed = real_feed(engine, keys, clock, listening=True)
    await feed.start()
    clock.advance(0)
    await until(lambda: bool(clock.getDelayedCalls()))
    await deferToThread(postgres.stop)
    await until(lambda: feed.status.error is not None, clock)
    assert feed.status.ready
    await deferToThread(postgres.start)
    await until(lambda: feed.status.error is None, clock)
    await until(lambda: listeners(engine) == 1 and bool(clock.getDelayedCalls()), clock)
    store.grant(PrincipalKind.USER, "alice", "trades", LONDON, granted_by="root")
    await until(lambda: trades_of(feed, "alice"))
    await feed.stop()
    engine.dispose()
