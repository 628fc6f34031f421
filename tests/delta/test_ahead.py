"""Views of checkpoints made while the index is being built: the same bytes, once, and nothing too much."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any, TypeVar

import orjson
import pytest
from twisted.internet.defer import Deferred

from tests.helpers import result_of, start
from tests.memory import MemoryProxy

from .tables import PROTOCOL, add, grant, metadata, remove
from .view.support import CHECKPOINT_SCHEMA, adds_of, write_checkpoint

T = TypeVar("T")
GREEN = grant({"p": "green"})
CHECKPOINT = f"_delta_log/{2:020d}.checkpoint.parquet"


class Pool:
    """A thread pool whose work is done when the test says so."""

    def __init__(self) -> None:
        self._waiting: list[Callable[[], None]] = []

    def __call__(self, function: Any, *arguments: Any, **keywords: Any) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()

        def work() -> None:
            try:
                result = function(*arguments, **keywords)
            except Exception:  # noqa: BLE001 - handed on, as a thread does
                done.errback()
            else:
                done.callback(result)

        self._waiting.append(work)
        return done

    def work(self) -> bool:
        """Do one thing; whether there was one."""
        if self._waiting:
            self._waiting.pop(0)()
            return True
        return False


def upload(made: MemoryProxy, *adds: dict[str, Any], folder: pathlib.Path) -> None:
    """A table of version 2: a commit of nothing, a checkpoint with these adds, and the hint at it."""
    head = [PROTOCOL, metadata("p")]
    rows = [*head, *adds]
    path = write_checkpoint(folder / "checkpoint.parquet", [_dropped(row) for row in rows], CHECKPOINT_SCHEMA)
    made.store.put("t/" + CHECKPOINT, path.read_bytes())
    made.store.put(f"t/_delta_log/{2:020d}.json", orjson.dumps({"commitInfo": {"timestamp": 1}}))
    made.store.put("t/_delta_log/_last_checkpoint", b'{"version":2,"size":3}')


def _dropped(row: dict[str, Any]) -> dict[str, Any]:
    """An action without the fields that the schema of the checkpoint does not have."""
    return {
        name: {field: value for field, value in body.items() if field in _fields(name)}
        for name, body in row.items()
    }


def _fields(name: str) -> set[str]:
    return {field.name for field in CHECKPOINT_SCHEMA.field(name).type}


def shown(body: object, folder: pathlib.Path) -> set[str]:
    """The paths that a checkpoint of the view adds."""
    assert isinstance(body, bytes)
    target = folder / "shown.parquet"
    target.write_bytes(body)
    return set(adds_of(target))


def finished(made: MemoryProxy, pool: Pool, *reading: Deferred[T]) -> list[T]:
    """The results, when everything has been worked off."""
    for _ in range(2_000):
        if not pool.work():
            made.clock.advance(0.1)
        if all(each.called for each in reading):
            break
    while pool.work():
        pass
    return [result_of(each) for each in reading]


def test_two_clients_that_come_to_an_unknown_table_have_one_view_made(tmp_path: pathlib.Path) -> None:
    pool = Pool()
    made = MemoryProxy(tmp_path / "cache", {"t": GREEN}, pool=pool)
    upload(made, add("a", p="green"), add("b", p="red"), folder=tmp_path)
    reading = [start(made.views.log_file("t", GREEN, CHECKPOINT)) for _ in range(2)]
    first, second = finished(made, pool, *reading)
    assert shown(first.content, tmp_path) == {"a"}
    assert second == first
    assert made.made == {"log": 1, "view": 1}


def test_the_view_is_made_before_the_index_is_there(tmp_path: pathlib.Path) -> None:
    made = MemoryProxy(tmp_path / "cache", {"t": GREEN})
    upload(made, add("a", p="green"), add("b", p="red"), folder=tmp_path)
    states = []
    made.agent.before = lambda _: states.append((made.made["view"], made.cache.at_hand("t")))
    made.get("t/" + CHECKPOINT)
    assert (1, None) in states


def test_what_is_made_ahead_is_what_the_index_would_have_made(tmp_path: pathlib.Path) -> None:
    bodies = []
    for known in (False, True):
        made = MemoryProxy(tmp_path / f"cache-{known}", {"t": GREEN})
        upload(made, add("a", p="green"), add("b", p="red"), folder=tmp_path)
        if known:
            result_of(made.cache.complete("t"))
        bodies.append(made.get("t/" + CHECKPOINT).body)
        assert made.made["view"] == 1
    assert bodies[0] == bodies[1]


def test_a_path_that_is_denied_by_its_history_is_not_shown_by_what_was_made_ahead(
    tmp_path: pathlib.Path,
) -> None:
    made = MemoryProxy(tmp_path / "cache", {"t": GREEN})
    upload(made, add("a", p="green"), add("b", p="green"), folder=tmp_path)
    made.store.put(f"t/_delta_log/{3:020d}.json", orjson.dumps(add("b", p="red")))
    assert shown(made.get("t/" + CHECKPOINT).body, tmp_path) == {"a"}


def test_a_checkpoint_that_came_after_the_index_is_judged_with_what_came_before_it(
    tmp_path: pathlib.Path,
) -> None:
    pool = Pool()
    made = MemoryProxy(tmp_path / "cache", {"t": GREEN}, pool=pool)
    made.store.put(
        f"t/_delta_log/{0:020d}.json",
        b"\n".join(map(orjson.dumps, (PROTOCOL, metadata("p"), add("a", p="green")))),
    )
    building = start(made.cache.complete("t"))
    while made.cache.at_hand("t") is None and not _commits_read(made):
        pool.work()
    upload(made, add("a", p="green"), add("b", p="green"), folder=tmp_path)
    made.store.put(f"t/_delta_log/{1:020d}.json", orjson.dumps(add("b", p="red")))
    made.store.put(f"t/_delta_log/{2:020d}.json", orjson.dumps(add("b", p="green")))
    finished(made, pool, building, start(made.views.key("t", GREEN)))
    assert made.made["view"] == 1
    (file,) = finished(made, pool, start(made.views.log_file("t", GREEN, CHECKPOINT)))
    assert shown(file.content, tmp_path) == {"a"}


def _commits_read(made: MemoryProxy) -> bool:
    return any(asked.key.endswith(".json") for asked in made.store.requests)


def relabelled(folder: pathlib.Path, *, filtered: bool) -> MemoryProxy:
    """A table seen for the first time, whose checkpoint says of `b` only what it was labelled last."""
    made = MemoryProxy(folder / "cache", {"t": GREEN}, filtered=filtered)
    upload(made, add("a", p="green"), add("b", p="green"), folder=folder)
    made.store.put(
        f"t/_delta_log/{0:020d}.json",
        b"\n".join(map(orjson.dumps, (PROTOCOL, metadata("p"), add("b", p="red")))),
    )
    made.store.put(f"t/_delta_log/{1:020d}.json", orjson.dumps(remove("b", p="red")))
    for path in ("a", "b"):
        made.store.put(f"t/{path}", path.encode())
    return made


@pytest.mark.parametrize("filtered", [True, False])
def test_the_very_first_read_is_judged_with_the_history_of_the_path(
    tmp_path: pathlib.Path, filtered: bool
) -> None:
    made = relabelled(tmp_path, filtered=filtered)
    assert [made.get(f"t/{path}").status for path in ("b", "a")] == [403, 200]


@pytest.mark.parametrize("filtered", [True, False])
def test_the_very_first_listing_is_judged_with_the_history_of_the_paths(
    tmp_path: pathlib.Path, filtered: bool
) -> None:
    made = relabelled(tmp_path, filtered=filtered)
    assert {key for key in made.list("t/") if "_delta_log" not in key} == {"t/a"}


@pytest.mark.parametrize("path", ["a/../../other/c", "s3://elsewhere/c", "%2e%2e/c"])
def test_where_a_path_may_lead_out_of_the_table_the_index_is_asked(tmp_path: pathlib.Path, path: str) -> None:
    made = MemoryProxy(tmp_path / "cache", {"t": GREEN})
    upload(made, add("a", p="green"), add(path, p="green"), folder=tmp_path)
    assert shown(made.get("t/" + CHECKPOINT).body, tmp_path) == {"a"}
