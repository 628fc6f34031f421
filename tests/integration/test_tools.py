"""Tools of tests are built once, whoever asks, and what cannot be built is said once."""

from __future__ import annotations

import os
import pathlib
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.waiting import wait_until

from .servers import ended
from .tools import RUN, UNTIL, Step, Tool, Unavailable


@pytest.fixture(autouse=True)
def _not_the_run_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time that this very run has for its tools may be over."""
    for name in (RUN, UNTIL):
        monkeypatch.delenv(name, raising=False)


def note(folder: pathlib.Path, run: Step) -> None:
    """A build that takes a while, and leaves a line beside its folder."""
    with (folder.parent / "builds").open("a") as log:
        log.write("built\n")
    run(["touch", "here"], folder)


def refuse(folder: pathlib.Path, run: Step) -> None:
    """A build that a registry does not answer."""
    with (folder.parent / "builds").open("a") as log:
        log.write("tried\n")
    run(["sh", "-c", "echo no such host; exit 1"], folder)


def hang(folder: pathlib.Path, run: Step) -> None:
    """A build whose child waits for ever."""
    run(["sh", "-c", "sleep 3600 & echo $! >child; wait"], folder)


def tool(build: object, cache: pathlib.Path, wanted: str = "") -> Tool:
    """A tool that needs nothing."""
    return Tool("tool", ["sh"], build, wanted=wanted, cache=cache)  # type: ignore[arg-type]


def builds(cache: pathlib.Path) -> int:
    """How many builds were begun."""
    return len((cache / "builds").read_text().splitlines())


def test_a_tool_is_built_once_however_many_ask(tmp_path: pathlib.Path) -> None:
    """The lock is on a file, which holds between processes as it does between threads."""
    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(lambda _: tool(note, tmp_path).ready(), range(3)))
    assert all((folder / "here").exists() for folder in folders)
    assert builds(tmp_path) == 1


def test_a_tool_is_built_anew_when_what_is_wanted_changes(tmp_path: pathlib.Path) -> None:
    folder = tool(note, tmp_path).ready()
    (folder / "of the old one").touch()
    tool(note, tmp_path, "another version").ready()
    assert builds(tmp_path) == 2
    assert [each.name for each in folder.iterdir()] == ["here"]


def test_what_could_not_be_built_is_not_tried_again_in_the_same_run(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for run, tried in (("one", 1), ("one", 1), ("another", 2)):
        monkeypatch.setenv(RUN, run)
        with pytest.raises(Unavailable, match="no such host"):
            tool(refuse, tmp_path).ready()
        assert builds(tmp_path) == tried


def test_a_build_ends_with_its_children_when_the_time_of_the_run_is_over(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted, seconds = "", 1
    while not noted:
        # So long that the build has begun: a machine takes its time to start a shell.
        seconds *= 2
        monkeypatch.setenv(UNTIL, str(time.time() + seconds))
        with pytest.raises(Unavailable, match=r"did not end in time|no time is left"):
            tool(hang, tmp_path, str(seconds)).ready()
        child = tmp_path / "tool" / "child"
        noted = child.read_text() if child.exists() else ""
    wait_until(lambda: ended(int(noted)))


def test_nothing_is_begun_when_no_time_is_left(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(UNTIL, str(time.time() - 1))
    with pytest.raises(Unavailable, match="no time is left"):
        tool(note, tmp_path).ready()
    assert not (tmp_path / "builds").exists()


def test_a_tool_whose_toolchain_is_missing_is_unavailable(tmp_path: pathlib.Path) -> None:
    wanted = Tool("tool", ["a-program-that-nobody-has"], note, cache=tmp_path)
    with pytest.raises(Unavailable, match="a-program-that-nobody-has is not installed"):
        wanted.ready()
    assert os.listdir(tmp_path) == []
