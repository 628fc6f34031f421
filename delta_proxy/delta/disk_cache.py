"""Files worth keeping: raw log files and rewritten views, on disk within a bound, the small ones in memory.

A file appears under its name only when it is whole and on the disk: it is written under a temporary name,
synced and renamed, so that neither a crash of the process nor of the machine leaves half a file. Several
processes may share a directory; each keeps its own table of what is there and looks again now and then, so
that the bound holds approximately between two looks. File names are hashes: they tell nothing of the keys.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, Protocol

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from delta_proxy.delta.build_locks import BuildLocks
from delta_proxy.delta.directory import private_directory
from delta_proxy.delta.flight import Flight
from delta_proxy.delta.leftovers import OWNER, is_stale, owner, remove_folders
from delta_proxy.upstream.spool import DeferToPool

Make = Callable[[Path], Awaitable[object]]

_NAME = re.compile(r"[0-9a-f]{64}")
_SHARD = re.compile(r"[0-9a-f]{2}")
# Where whoever builds an index in the same directory puts downloads and sorted runs.
_SCRATCH: Final = ("fetched", "building")
# A writer that has temporaries of its own beside the one it was given puts a dot before and words behind.
_TEMPORARY = re.compile(rf"\.?{OWNER}-[0-9a-f]{{16}}\.tmp.*")
_TOUCH_SECONDS: Final = 60.0
_RESCAN_SECONDS: Final = 300.0
# Looking again after this share of the bound keeps several writers from overrunning it by much.
_RESCAN_SHARE: Final = 8
_OPEN_TRIES: Final = 3
_LARGEST_IN_MEMORY: Final = 1024 * 1024
# What an entry of the memory cache takes besides its bytes, roughly.
_OVERHEAD: Final = 256

_log = Logger()


class CacheObserver(Protocol):
    """What the metrics want to know of a cache."""

    def cache_hit(self, kind: str) -> None:
        """A question was answered without work."""

    def cache_miss(self, kind: str) -> None:
        """A question led to work."""


class _Unobserved:
    def cache_hit(self, kind: str) -> None:
        """Nobody is told."""

    def cache_miss(self, kind: str) -> None:
        """Nobody is told."""


@attrs.frozen
class CachedFile:
    """A file of the cache as of a moment ago: another process may have evicted it since. `size` in bytes."""

    path: Path
    size: int


class OpenFile:
    """A file open for reading, which stays readable when it is evicted. `size` in bytes.

    `read_at` and `close` block: they belong into the thread pool, and `close` after every `read_at` has
    returned.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = os.fstat(file.fileno()).st_size

    @property
    def path(self) -> Path:
        """A path of the open file that holds until it is closed, evicted or not (Linux, proc(5))."""
        return Path(f"/proc/self/fd/{self._file.fileno()}")

    def read_at(self, first: int, length: int) -> bytes:
        """At most `length` bytes from offset `first` on; fewer, or none, at the end. Raises OSError."""
        return os.pread(self._file.fileno(), length, first)

    def close(self) -> None:
        """Give it back; a second time is harmless."""
        self._file.close()


@attrs.define
class _Entry:
    """A file: its size, when it was last used and when that was last written to its mtime."""

    size: int
    used: float
    touched: float


class DiskCache:
    """Files by key in a directory, at most about `limit_bytes` of them; the least recently used go first.

    `defer_to_pool(function, *arguments)` runs blocking work in threads. The time of the last use is a file's
    mtime (written once a minute at most), so that it survives a restart and other processes see it; `clock`
    must therefore tell the time of day, as the reactor does. A file larger than the bound is kept until the
    next one comes.
    """

    def __init__(
        self,
        directory: Path,
        *,
        limit_bytes: int,
        defer_to_pool: DeferToPool,
        clock: IReactorTime,
        observer: CacheObserver | None = None,
        rescan_seconds: float = _RESCAN_SECONDS,
    ) -> None:
        self._directory = directory
        self._limit = limit_bytes
        self._defer_to_pool = defer_to_pool
        self._clock = clock
        self._observer = observer or _Unobserved()
        self._locks = BuildLocks(directory, defer_to_pool, clock)
        self._rescan_seconds = rescan_seconds
        self._table = _Table()
        self._pins: Counter[str] = Counter()
        self._flights: dict[str, Flight[CachedFile]] = {}
        self._evicting: Flight[None] | None = None
        self._leaving: frozenset[str] = frozenset()
        self._scanning: Flight[None] | None = None
        self._written_since_scan = 0
        self._timer: IDelayedCall | None = None

    @property
    def total_bytes(self) -> int:
        """The size of all files this process knows of."""
        return self._table.total

    @property
    def files(self) -> int:
        """The number of files this process knows of."""
        return len(self._table)

    async def start(self) -> None:
        """Find what is there, remove what dead processes left half written, and look again from time to time.

        Raises UnusableDirectory when the directory is not ours alone, OSError when it cannot be read.
        """
        await self._defer_to_pool(private_directory, self._directory)
        await self._scan_flight().wait()
        self._timer = self._clock.callLater(self._rescan_seconds, self._rescan)

    def stop(self) -> None:
        """Look no more. What is in flight goes on."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    async def get(self, key: str, make: Make, *, kind: str) -> CachedFile:
        """The file of a key, made by `make(path)` if there is none, by one run however many wait.

        `make` writes the file to the path it is given, which exists and is empty; it may replace it. Raises
        what `make` raises, for all who wait, and OSError when the disk fails; then nothing is kept. `kind` is
        for the metrics: a miss is one run of `make`, those who join it and those served from disk are hits.
        """
        name = file_name(key)
        entry = self._table.get(name)
        if entry is not None:
            self._observer.cache_hit(kind)
            self._use(name, entry)
            return CachedFile(self._path(name), entry.size)
        flight = self._flights.get(name)
        if flight is not None:
            self._observer.cache_hit(kind)
            return await flight.wait()
        flight = Flight(self._find_or_make(name, make, kind))
        if not flight.landed:
            self._flights[name] = flight
        return await flight.wait()

    async def open(self, key: str, make: Make, *, kind: str) -> OpenFile:
        """The file of a key as `get` has it, opened in the pool; the caller closes it there.

        This process does not evict it in between, however little fits; one that another process evicted is
        made again. Raises what `get` raises.
        """
        with self._pinned(file_name(key)):
            for _ in range(_OPEN_TRIES):
                cached = await self.get(key, make, kind=kind)
                try:
                    return await open_file(cached.path, self._defer_to_pool)
                except FileNotFoundError:
                    self._table.drop(cached.path.name)
        raise FileNotFoundError(errno.ENOENT, "evicted again and again", str(cached.path))

    @contextmanager
    def _pinned(self, name: str) -> Iterator[None]:
        """A file is not evicted before whoever asked for it has it open."""
        self._pins[name] += 1
        try:
            yield
        finally:
            self._pins[name] -= 1
            if not self._pins[name]:
                del self._pins[name]
                self._keep_the_bound()

    def _path(self, name: str) -> Path:
        return self._directory / name[:2] / name

    def _use(self, name: str, entry: _Entry) -> None:
        now = self._clock.seconds()
        self._table.use(name, now)
        if now - entry.touched >= _TOUCH_SECONDS:
            entry.touched = now
            self._defer_to_pool(_touch, self._path(name), now).addErrback(self._untouched, name)

    def _untouched(self, failure: Failure, name: str) -> None:
        """It is gone, or not ours any more: the next who asks finds out."""
        self._table.drop(name)
        if not isinstance(failure.value, FileNotFoundError):
            _unexpected(failure)

    async def _find_or_make(self, name: str, make: Make, kind: str) -> CachedFile:
        try:
            while self._evicting is not None and name in self._leaving:
                await self._evicting.wait()
            path = self._path(name)
            temporary = path.with_name(_temporary_name())
            size: int | None = await self._defer_to_pool(_size_of, path)
            if size is None:
                size = await self._make_unless_found(name, make, temporary, path, kind)
            else:
                self._observer.cache_hit(kind)
            self._table.add(name, size, self._clock.seconds())
            self._keep_the_bound()
            return CachedFile(path, size)
        finally:
            self._flights.pop(name, None)

    async def _make_unless_found(self, name: str, make: Make, temporary: Path, path: Path, kind: str) -> int:
        """The size of the file once this process made it, or another that was quicker."""
        async with self._locks.held(name):
            size: int | None = await self._defer_to_pool(_find_or_prepare, path, temporary)
            if size is not None:
                self._observer.cache_hit(kind)
                return size
            self._observer.cache_miss(kind)
            made = await self._make(make, temporary, path)
            self._written_since_scan += made
            return made

    async def _make(self, make: Make, temporary: Path, path: Path) -> int:
        try:
            await make(temporary)
            size: int = await self._defer_to_pool(_publish, temporary, path, self._clock.seconds())
        except Exception:
            await self._defer_to_pool(_remove, (temporary,))
            raise
        return size

    def _keep_the_bound(self) -> None:
        if self._written_since_scan > self._limit // _RESCAN_SHARE:
            self._scan_flight().wait().addErrback(_unexpected)
        if self._evicting is None and self._table.exceeds(self._limit, self._pins):
            flight = Flight(self._evict())
            self._evicting = None if flight.landed else flight
            flight.wait().addErrback(_unexpected)

    async def _evict(self) -> None:
        try:
            while victims := self._table.take_oldest(self._limit, self._pins):
                self._leaving = frozenset(victims)
                await self._defer_to_pool(_remove, tuple(self._path(name) for name in victims))
        finally:
            self._leaving = frozenset()
            self._evicting = None

    def _rescan(self) -> None:
        self._timer = self._clock.callLater(self._rescan_seconds, self._rescan)
        self._scan_flight().wait().addErrback(_unexpected)

    def _scan_flight(self) -> Flight[None]:
        """The look at the directory that is under way, or a new one."""
        if self._scanning is not None:
            return self._scanning
        flight = Flight(self._scan())
        self._scanning = None if flight.landed else flight
        return flight

    async def _scan(self) -> None:
        self._table.begin_scan(self._leaving)
        self._written_since_scan = 0
        try:
            found = await self._defer_to_pool(_scan, self._directory, self._clock.seconds())
            self._table.take_scan(found)
        finally:
            self._scanning = None
        self._keep_the_bound()


class _Table:
    """What is on disk, least recently used first, as far as this process knows."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        # What changed since a scan began: there the scan may have seen the state before.
        self._changed: set[str] = set()
        self.total = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, name: str) -> _Entry | None:
        """What is known of a file."""
        return self._entries.get(name)

    def use(self, name: str, now: float) -> None:
        """It was used."""
        self._entries[name].used = now
        self._entries.move_to_end(name)

    def add(self, name: str, size: int, now: float) -> None:
        """It is there, just used."""
        self.drop(name)
        self._entries[name] = _Entry(size, now, now)
        self.total += size

    def drop(self, name: str) -> None:
        """It is gone."""
        self._changed.add(name)
        entry = self._entries.pop(name, None)
        if entry is not None:
            self.total -= entry.size

    def exceeds(self, limit: int, pinned: Container[str]) -> bool:
        """Whether there is anything that `take_oldest` would drop."""
        return self.total > limit and next(self._evictable(pinned), None) is not None

    def take_oldest(self, limit: int, pinned: Container[str]) -> list[str]:
        """Drop the least recently used that are not pinned until the rest, or the last, is within the
        limit.
        """
        victims: list[str] = []
        left = self.total
        for name in self._evictable(pinned):
            if left <= limit:
                break
            victims.append(name)
            left -= self._entries[name].size
        for name in victims:
            self.drop(name)
        return victims

    def _evictable(self, pinned: Container[str]) -> Iterator[str]:
        last = next(reversed(self._entries), None)
        return (name for name in self._entries if name != last and name not in pinned)

    def begin_scan(self, leaving: frozenset[str]) -> None:
        """A scan begins, while the files of these names are being removed."""
        self._changed = set(leaving)

    def take_scan(self, found: Mapping[str, tuple[int, float]]) -> None:
        """Take over (size, mtime) by name, save for what changed since the scan began."""
        kept = {name: entry for name, entry in self._entries.items() if name in self._changed}
        for name, (size, modified) in found.items():
            if name not in self._changed:
                known = self._entries.get(name)
                used = modified if known is None else max(modified, known.used)
                kept[name] = _Entry(size, used, modified)
        self._entries = OrderedDict(sorted(kept.items(), key=lambda item: item[1].used))
        self.total = sum(entry.size for entry in kept.values())


class MemoryCache:
    """Small bytes by key, at most `memory_bytes` of them with what they take besides; the least recently used
    go first. Larger ones than `largest` are not kept.
    """

    def __init__(self, memory_bytes: int, *, largest: int = _LARGEST_IN_MEMORY) -> None:
        self._limit = memory_bytes
        self._largest = largest
        self._entries: OrderedDict[str, bytes] = OrderedDict()
        self.total_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> bytes | None:
        """The bytes of a key, which count as just used, or None."""
        data = self._entries.get(key)
        if data is not None:
            self._entries.move_to_end(key)
        return data

    def put(self, key: str, data: bytes) -> None:
        """Keep the bytes, in place of those the key had; too many are not kept."""
        self.discard(key)
        if len(data) > self._largest or _cost(key, data) > self._limit:
            return
        self._entries[key] = data
        self.total_bytes += _cost(key, data)
        while self.total_bytes > self._limit:
            self.discard(next(iter(self._entries)))

    def discard(self, key: str) -> None:
        """Forget a key, if it is there."""
        data = self._entries.pop(key, None)
        if data is not None:
            self.total_bytes -= _cost(key, data)


def file_name(key: str) -> str:
    """The name of a key's file: the SHA-256 of its UTF-8 text, 64 hexadecimal digits."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def open_file(path: Path, defer_to_pool: DeferToPool) -> Deferred[OpenFile]:
    """A file opened in the pool; cancelling it does not leak the file. Fails with OSError."""
    opened: Deferred[OpenFile] = Deferred()

    def keep(file: OpenFile) -> None:
        if opened.called:
            # Cancelled meanwhile, which does not stop a thread.
            defer_to_pool(file.close)
        else:
            opened.callback(file)

    def fail(failure: Failure) -> None:
        if not opened.called:
            opened.errback(failure)

    defer_to_pool(_open, path).addCallbacks(keep, fail)
    return opened


def _unexpected(failure: Failure) -> None:
    """What nobody waits for went wrong; the cache goes on with what it knows."""
    _log.failure("work on the cache directory failed", failure)


def _cost(key: str, data: bytes) -> int:
    return len(key) + len(data) + _OVERHEAD


def _open(path: Path) -> OpenFile:
    file = path.open("rb", buffering=0)
    try:
        return OpenFile(file)
    except OSError:
        file.close()
        raise


def _temporary_name() -> str:
    return f"{owner()}-{secrets.token_hex(8)}.tmp"


def _size_of(path: Path) -> int | None:
    """The size of the file, if another process or an earlier one made it."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        private_directory(private_directory(path.parent.parent) / path.parent.name)
        return None


def _find_or_prepare(path: Path, temporary: Path) -> int | None:
    """The size of the file, if it is there; else None, and an empty temporary one."""
    size = _size_of(path)
    if size is not None:
        return size
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    return None


def _publish(temporary: Path, path: Path, now: float) -> int:
    with temporary.open("rb+") as file:
        os.fchmod(file.fileno(), 0o600)
        os.utime(file.fileno(), (now, now))
        # Before the rename: a file system may write the name before the bytes.
        os.fsync(file.fileno())
        size = os.fstat(file.fileno()).st_size
    os.replace(temporary, path)
    return size


def _touch(path: Path, now: float) -> None:
    os.utime(path, (now, now))


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            _log.warn("cannot remove {path}: {error}", path=str(path), error=error)


def _scan(directory: Path, now: float) -> dict[str, tuple[int, float]]:
    """Size and mtime of every file by name. Temporaries that nobody is writing any more are removed."""
    remove_folders(directory, *_SCRATCH, now=now)
    found: dict[str, tuple[int, float]] = {}
    with os.scandir(directory) as shards:
        places = [
            shard.path
            for shard in shards
            if _SHARD.fullmatch(shard.name) and shard.is_dir(follow_symlinks=False)
        ]
    for place in places:
        with os.scandir(place) as entries:
            for entry in entries:
                _scan_entry(entry, found, now)
    return found


def _scan_entry(entry: os.DirEntry[str], found: dict[str, tuple[int, float]], now: float) -> None:
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return
    made_by = _TEMPORARY.fullmatch(entry.name)
    if _NAME.fullmatch(entry.name):
        found[entry.name] = (status.st_size, status.st_mtime)
    elif made_by is not None and is_stale(made_by, now - status.st_mtime):
        _remove((Path(entry.path),))
