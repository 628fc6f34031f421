"""What the store is asked while tables are opened; nothing known of one table is used for another."""

from __future__ import annotations

import pathlib
from typing import Any

import orjson
import pytest

from tests.helpers import result_of
from tests.memory import MemoryProxy

from .tables import PROTOCOL, add, grant, metadata
from .test_ahead import CHECKPOINT, upload

COMMITS = [f"t/_delta_log/{version:020d}.json" for version in range(3)]


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def proxy(tmp_path: pathlib.Path, asked: list[str]) -> MemoryProxy:
    """A proxy that grants one partition of a table with three commits; what the store is asked is noted."""
    made = MemoryProxy(tmp_path / "cache", {"t": grant({"p": "green"})})
    commit(made, 0, PROTOCOL, metadata("p"), add("a", p="green"))
    commit(made, 1, add("b", p="red"))
    commit(made, 2, add("c", p="green"))
    made.agent.before = asked.append
    return made


def commit(proxy: MemoryProxy, version: int, *lines: dict[str, Any]) -> str:
    """The key of a commit of these actions, which is in the store now."""
    key = f"t/_delta_log/{version:020d}.json"
    proxy.store.put(key, b"\n".join(map(orjson.dumps, lines)))
    return key


def opened(proxy: MemoryProxy) -> list[int]:
    """A table is listed and its commits are read, as a client does that opens it."""
    proxy.list("t/_delta_log/")
    return [proxy.get(commit).status for commit in COMMITS]


def test_a_table_that_is_opened_again_is_listed_once_and_nothing_else(
    proxy: MemoryProxy, asked: list[str]
) -> None:
    for _ in range(2):
        opened(proxy)
        proxy.clock.advance(10)
    for _ in range(3):
        asked.clear()
        assert opened(proxy) == [200, 200, 200]
        assert ["list-type" in one for one in asked] == [True]
        proxy.clock.advance(10)


def test_a_checkpoint_that_was_read_before_needs_no_listing(
    proxy: MemoryProxy, asked: list[str], tmp_path: pathlib.Path
) -> None:
    upload(proxy, add("a", p="green"), add("b", p="red"), folder=tmp_path)
    for _ in range(2):
        assert proxy.get(f"t/{CHECKPOINT}").status == 200
        proxy.clock.advance(10)
    proxy.list("t/_delta_log/")
    asked.clear()
    proxy.clock.advance(10)
    assert [proxy.get(f"t/{CHECKPOINT}").status for _ in range(5)] == [200] * 5
    assert asked == []


def test_a_new_commit_is_looked_up_once_for_everybody_who_reads_it(
    proxy: MemoryProxy, asked: list[str]
) -> None:
    opened(proxy)
    added = commit(proxy, 3, add("d", p="green"))
    proxy.clock.advance(10)
    opened(proxy)
    proxy.clock.advance(10)
    assert proxy.get(added).status == 200
    asked.clear()
    assert [proxy.get(added).status for _ in range(5)] == [200] * 5
    assert asked == []


def test_what_was_known_of_a_table_is_asked_anew_when_another_took_its_place(proxy: MemoryProxy) -> None:
    assert opened(proxy) == [200, 200, 200]
    for key in COMMITS:
        del proxy.store.objects[key]
    commit(proxy, 0, PROTOCOL, metadata("p"), add("another", p="green"))
    assert opened(proxy) == [200, 404, 404]


def test_a_file_of_a_table_that_was_replaced_meanwhile_is_not_judged_by_the_other(proxy: MemoryProxy) -> None:
    opened(proxy)
    proxy.clock.advance(10)
    added = commit(proxy, 3, add("d", p="green"))
    proxy.list("t/_delta_log/")
    result_of(proxy.views.original("t", added.removeprefix("t/")))

    def replace(request: str) -> None:
        if "list-type" in request:
            commit(proxy, 0, PROTOCOL, metadata("p"), add("another", p="green"))
            commit(proxy, 3, add("e", p="green"))

    proxy.agent.before = replace
    assert proxy.get(added).status == 503
    assert b'"e"' in proxy.get(added).body
