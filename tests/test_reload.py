"""SIGHUP: what is put in force, what stays, and what is refused."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Collection
from typing import Any, cast

import attrs
import pytest
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher

from delta_proxy.access.policy import PolicyError
from delta_proxy.config import Config, ConfigError, Limits, load
from delta_proxy.reload import Refused, Reload, merged

USERS = {"alice": {"accessKey": "AKALICE", "secretKey": "secret-of-alice"}}


def config(folder: pathlib.Path, **keys: Any) -> Config:
    path = folder / "config.json"
    path.write_text(json.dumps({"tableMapping": {"t": "s3://lake/t"}, "users": USERS, **keys}))
    return load(path, {"HOME": "/home/ada"})


class Running:
    """A service without its parts; `bad` are the aliases whose grants cannot be used."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.bad: set[str] = set()
        self.checked: list[frozenset[str]] = []

    def apply(self, config: Config) -> None:
        self.config = config

    async def check_grants(self, config: Config, aliases: Collection[str]) -> None:
        self.checked.append(frozenset(aliases))
        if self.bad & set(aliases):
            raise PolicyError("allowedPartitions.t", "no partition column")


def reload(running: Running, load: Callable[[], Config]) -> None:
    def at_once(function: Callable[..., Any]) -> Deferred[Any]:
        return maybeDeferred(function)

    Reload(load, at_once, running).ask()


def test_what_may_change_is_put_in_force(tmp_path: pathlib.Path) -> None:
    running = Running(config(tmp_path))
    fresh = config(tmp_path, tableMapping={"t": "s3://lake/t", "u": "s3://lake/u"}, denyByDefault=True)
    reload(running, lambda: fresh)
    assert running.config == fresh
    # First the grants of tables that were there, then those of the new ones.
    assert running.checked == [frozenset({"t"}), frozenset({"u"})]


def test_rules_for_browsers_may_change(tmp_path: pathlib.Path) -> None:
    running = Running(config(tmp_path))
    rule = {"allowedOrigins": ["*"], "allowedMethods": ["GET"]}
    reload(running, lambda: config(tmp_path, cors=[rule]))
    assert len(running.config.cors) == 1


def test_a_file_with_a_mistake_changes_nothing(tmp_path: pathlib.Path) -> None:
    running = Running(config(tmp_path))
    before = running.config

    def mistaken() -> Config:
        raise ConfigError("config.json", "not JSON")

    reload(running, mistaken)
    assert running.config is before


def test_a_grant_that_cannot_be_meant_for_its_table_changes_nothing(tmp_path: pathlib.Path) -> None:
    running = Running(config(tmp_path))
    before, running.bad = running.config, {"t"}
    reload(running, lambda: config(tmp_path, denyByDefault=True))
    assert running.config is before


def test_a_table_that_moved_is_a_new_one(tmp_path: pathlib.Path) -> None:
    running = Running(config(tmp_path))
    running.bad = {"t"}
    reload(running, lambda: config(tmp_path, tableMapping={"t": "s3://lake/elsewhere"}))
    assert running.config.table_mapping["t"].prefix == "elsewhere"


def test_a_wish_is_granted_although_nobody_could_check_the_new_tables_of_the_one_before(
    tmp_path: pathlib.Path,
) -> None:
    both = {"t": "s3://lake/t", "u": "s3://lake/u"}
    configs = [config(tmp_path, tableMapping=tables) for tables in (both, {"t": "s3://lake/t"})]
    checking: Deferred[None] = Deferred()

    class Unchecked(Running):
        async def check_grants(self, config: Config, aliases: Collection[str]) -> None:
            if "u" in aliases:
                await checking
                raise Refused("no worker could check the grants")

    running = Unchecked(config(tmp_path))
    reloading = Reload(lambda: configs.pop(0), maybeDeferred, running)
    reloading.ask()
    assert running.config.table_mapping.keys() == {"t", "u"}
    reloading.ask()
    checking.callback(None)
    assert running.config.table_mapping.keys() == {"t"}


def test_ports_and_limits_stay_as_they_are_until_a_restart(tmp_path: pathlib.Path) -> None:
    old = config(tmp_path)
    fresh = config(tmp_path, port=1, limits={"threads": 1}, getMode="proxy")
    kept = merged(old, fresh)
    assert kept == attrs.evolve(fresh, port=18080, limits=Limits())


def test_a_reload_never_lets_everybody_in(tmp_path: pathlib.Path) -> None:
    with pytest.raises(Refused):
        merged(config(tmp_path), config(tmp_path, users={}))
    opened = config(tmp_path, users={})
    assert merged(opened, config(tmp_path)).verifies


OF_ALICE = {"alice": {**USERS["alice"], "allowedPartitions": {"t": [{"MIC": "XLON"}]}}}


@pytest.mark.parametrize(
    "restricted",
    [{"users": OF_ALICE}, {"allowedPartitions": {"t": [{"MIC": "XLON"}]}}, {"denyByDefault": True}],
)
def test_a_reload_never_opens_a_table_by_taking_its_last_grant_away(
    tmp_path: pathlib.Path, restricted: dict[str, Any]
) -> None:
    old = config(tmp_path, **restricted)
    with pytest.raises(Refused, match="t would be open to everybody"):
        merged(old, config(tmp_path))
    named: list[dict[str, Any]] = [{"allowedPartitions": {"t": []}}, {"allowedPartitions": {"t": [{}]}}]
    for kept in (*named, {"denyByDefault": True}):
        fresh = config(tmp_path, **kept)
        assert merged(old, fresh) == fresh


def test_a_table_that_was_open_may_stay_open(tmp_path: pathlib.Path) -> None:
    plain = config(tmp_path)
    for old in (plain, config(tmp_path, allowedPartitions={"t": [{}]})):
        assert merged(old, plain) == plain


def test_the_operator_is_told_which_tables_are_open_at_each_reload(tmp_path: pathlib.Path) -> None:
    told: list[LogEvent] = []
    observer = cast(ILogObserver, told.append)
    running = Running(config(tmp_path))
    globalLogPublisher.addObserver(observer)
    reload(running, lambda: config(tmp_path, tableMapping={"t": "s3://lake/t", "u": "s3://lake/u"}))
    globalLogPublisher.removeObserver(observer)
    assert [event["tables"] for event in told if "tables" in event] == ["t, u"]


def test_a_wish_during_a_reload_is_granted_after_it(tmp_path: pathlib.Path) -> None:
    running = Running(config(tmp_path))
    waiting: list[Deferred[Config]] = []

    def later(_: Callable[..., Any]) -> Deferred[Any]:
        waiting.append(Deferred())
        return waiting[-1]

    reloading = Reload(lambda: running.config, later, running)
    reloading.ask()
    reloading.ask()
    reloading.ask()
    assert len(waiting) == 1
    waiting[0].callback(config(tmp_path, getMode="proxy"))
    assert len(waiting) == 2
    last = config(tmp_path, denyByDefault=True)
    waiting[1].callback(last)
    assert len(waiting) == 2
    assert running.config == last
