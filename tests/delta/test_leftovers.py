"""What a process that was killed leaves in a directory, and when it is removed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import orjson
import pytest
from twisted.internet.defer import maybeDeferred
from twisted.internet.task import Clock

from bench.tables import FolderLog, FolderObject
from delta_proxy.delta.cache import MetadataCache
from delta_proxy.delta.disk_cache import DiskCache
from delta_proxy.delta.leftovers import owner, remove_folders
from delta_proxy.delta.segment import SegmentBuilder
from delta_proxy.delta.source import TableSource
from tests.helpers import result_of

from .tables import PROTOCOL, ROOT, add, metadata

DAY = 86400.0


class Watching(FolderLog):
    """A table in a folder that looks, at each file that is read, which folders the cache directory has."""

    def __init__(self, folder: Path, directory: Path) -> None:
        super().__init__(folder)
        self.seen: set[str] = set()
        self._directory = directory

    async def read(self, path: str, *, limit: int) -> FolderObject:
        self.seen.update(entry.name for entry in self._directory.iterdir() if entry.is_dir())
        return await super().read(path, limit=limit)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A cache directory."""
    made = tmp_path / "cache"
    made.mkdir(mode=0o700)
    return made


def gone_process() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def start_a_proxy(directory: Path) -> None:
    """Look at the cache directory as a proxy does when it starts."""
    clock = Clock()
    clock.advance(DAY)
    cache = DiskCache(directory, limit_bytes=100, defer_to_pool=maybeDeferred, clock=clock)
    result_of(cache.start())
    cache.stop()


def folder(directory: Path, name: str, *, age: float = 0.0, file_age: float = 0.0) -> Path:
    """A folder with a file, written so many seconds before now."""
    made = directory / name
    made.mkdir()
    (made / "0-half.parquet").write_bytes(b"half")
    os.utime(made / "0-half.parquet", (DAY - file_age, DAY - file_age))
    os.utime(made, (DAY - age, DAY - age))
    return made


def fetching(tmp_path: Path, directory: Path) -> str:
    """The name of the folder that a table's log is downloaded into."""
    log = tmp_path / "table" / "_delta_log"
    log.mkdir(parents=True)
    lines = (PROTOCOL, metadata("p"), add("x", p="a"))
    (log / f"{0:020d}.json").write_bytes(b"\n".join(orjson.dumps(line) for line in lines))
    source = Watching(log.parent, directory)
    cache = MetadataCache(
        {"trades": TableSource("here", ROOT, source)},
        clock=Clock(),
        defer_to_pool=maybeDeferred,
        directory=directory,
    )
    result_of(cache.table("trades"))
    (name,) = source.seen
    return name


def building(directory: Path) -> str:
    """The name of the folder that an index is sorted in."""
    with SegmentBuilder(directory):
        (name,) = os.listdir(directory)
    return name


def of_another(name: str, pid: int) -> str:
    """The same name, had a process of this id made it."""
    return name.replace(f"-{os.getpid()}-", f"-{pid}-")


def test_what_a_killed_process_was_downloading_is_removed_at_the_next_start(
    tmp_path: Path, directory: Path
) -> None:
    name = fetching(tmp_path, directory)
    left = folder(directory, of_another(name, gone_process()))
    kept = folder(directory, name)
    start_a_proxy(directory)
    assert (left.exists(), kept.exists()) == (False, True)


def test_what_a_killed_process_was_sorting_is_removed_at_the_next_start(directory: Path) -> None:
    name = building(directory)
    left = folder(directory, of_another(name, gone_process()))
    kept = folder(directory, of_another(name, os.getppid()))
    start_a_proxy(directory)
    assert (left.exists(), kept.exists()) == (False, True)


def test_what_another_host_left_is_removed_when_nothing_was_written_for_an_hour(directory: Path) -> None:
    elsewhere = f"00000000-{gone_process()}-00000000"
    left = folder(directory, f"fetched-{elsewhere}-a", age=3601, file_age=3601)
    fresh = folder(directory, f"fetched-{elsewhere}-b", age=10, file_age=10)
    growing = folder(directory, f"fetched-{elsewhere}-c", age=3601, file_age=10)
    start_a_proxy(directory)
    assert [path.exists() for path in (left, fresh, growing)] == [False, True, True]


def test_what_stands_under_another_name_or_is_no_folder_stays(tmp_path: Path, directory: Path) -> None:
    gone = of_another(owner(), gone_process())
    outside = folder(tmp_path, "outside")
    (directory / f"fetched-{gone}-link").symlink_to(outside)
    (directory / f"fetched-{gone}-file").write_bytes(b"")
    folder(directory, f"other-{gone}-a")
    folder(directory, f"fetched-{gone}")
    before = set(directory.iterdir())
    remove_folders(directory, "fetched", "building")
    assert set(directory.iterdir()) == before
    assert list(outside.iterdir())


def test_without_a_time_an_old_folder_of_another_host_stays(directory: Path) -> None:
    kept = folder(directory, "figures-00000000-1-00000000-a", age=DAY, file_age=DAY)
    remove_folders(directory, "figures")
    assert kept.exists()
