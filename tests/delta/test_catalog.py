"""What listings told of log files is believed for a while, of files that never change."""

from __future__ import annotations

from typing import Any, cast

import attrs
import pytest
from twisted.internet.task import Clock

from delta_proxy.delta.catalog import CatalogedStore, LogCatalog, is_immutable
from delta_proxy.upstream.client import ListedObject, ListPage, ObjectStat
from tests.helpers import result_of

COMMIT = f"_delta_log/{0:020d}.json"
STAT = ObjectStat(3, '"a"', "Sun, 22 Nov 2026 10:00:00 GMT")
TTL = 120.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def catalog(clock: Clock) -> LogCatalog:
    return LogCatalog(clock, TTL)


@pytest.mark.parametrize(
    "name",
    [
        f"{7:020d}.json",
        f"{7:020d}.checkpoint.parquet",
        f"{7:020d}.checkpoint.0000000001.0000000002.parquet",
        f"{7:020d}.checkpoint.2a15d0c6-8b11-4a98-bab4-957905d62f7f.json",
        "_sidecars/part.parquet",
    ],
)
def test_commits_checkpoints_and_sidecars_are_remembered(catalog: LogCatalog, name: str) -> None:
    catalog.learn(f"_delta_log/{name}", STAT)
    assert catalog.find(f"_delta_log/{name}") == STAT


@pytest.mark.parametrize(
    "path", ["_delta_log/_last_checkpoint", "part.parquet", f"{0:020d}.json", "_delta_log/x"]
)
def test_what_may_change_is_asked_of_the_store_each_time(catalog: LogCatalog, path: str) -> None:
    catalog.learn(path, STAT)
    assert not is_immutable(path)
    assert catalog.find(path) is None


def test_what_is_old_is_asked_anew(catalog: LogCatalog, clock: Clock) -> None:
    catalog.learn(COMMIT, STAT)
    clock.advance(TTL)
    assert catalog.find(COMMIT) == STAT
    clock.advance(1)
    assert catalog.find(COMMIT) is None


def test_what_turned_out_wrong_is_forgotten(catalog: LogCatalog) -> None:
    catalog.learn(COMMIT, STAT)
    catalog.forget(COMMIT)
    catalog.forget(COMMIT)
    assert catalog.find(COMMIT) is None


def test_the_latest_word_counts_and_its_time_is_known(catalog: LogCatalog, clock: Clock) -> None:
    catalog.learn(COMMIT, STAT)
    clock.advance(5)
    catalog.learn(COMMIT, attrs.evolve(STAT, etag='"b"'))
    clock.advance(5)
    found = catalog.find(COMMIT)
    assert found is not None
    assert (found.etag, catalog.since(COMMIT)) == ('"b"', 5.0)
    assert catalog.since("_delta_log/never-heard-of") == 10.0


def test_what_is_said_again_is_known_since_it_was_first_said(catalog: LogCatalog, clock: Clock) -> None:
    catalog.learn(COMMIT, STAT)
    clock.advance(TTL)
    catalog.learn(COMMIT, STAT)
    clock.advance(TTL)
    assert (catalog.find(COMMIT), catalog.since(COMMIT)) == (STAT, 0.0)


def test_of_another_table_nothing_is_known(catalog: LogCatalog, clock: Clock) -> None:
    catalog.learn(COMMIT, STAT)
    catalog.forget_all()
    clock.advance(5)
    catalog.learn(COMMIT, STAT)
    assert catalog.since(COMMIT) == 5.0


@attrs.frozen
class OnePage:
    """A store whose listing has one page."""

    objects: tuple[ListedObject, ...]

    async def list(self, prefix: str = "", **_: Any) -> ListPage:
        return ListPage(self.objects, (), False)


def test_a_listing_teaches_its_log_files_in_the_terms_of_a_head(catalog: LogCatalog) -> None:
    objects = tuple(
        ListedObject(path, 3, '"a"', "2026-11-22T10:00:00.000Z", "STANDARD")
        for path in (COMMIT, "data.parquet")
    )
    page = result_of(CatalogedStore(cast(Any, OnePage(objects)), catalog).list())
    assert page.objects == objects
    assert catalog.find(COMMIT) == STAT
    assert catalog.find("data.parquet") is None
