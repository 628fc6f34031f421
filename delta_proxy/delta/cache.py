"""The index of every table, kept right.

Network calls are coroutines on the reactor; parsing and files are the thread pool's. An index is built once
however many wait, advanced with new commits, and built again when the table behind the alias is another.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Coroutine, Iterable, Mapping
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import attrs
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from delta_proxy.s3.errors import NoSuchKey, ServiceUnavailable

from . import build
from .build import CheckpointContent, Place
from .build_locks import BuildLocks
from .flight import Flight, both, in_parallel
from .index import Anchor, Entry, TableIndex
from .leftovers import owner
from .log import Checkpoint, LogSegment, NotATable, require_dense, select_history, select_segment
from .paths import LOG_DIRECTORY, LogFile, LogKind, classify_log_name, commit_name
from .scan import LogContent
from .source import ListedFile, LogSource, TableSource
from .write_marks import Mark, unmarked

T = TypeVar("T")

_FETCHES: Final = 16
_SMALL: Final = 1 << 20
_IN_MEMORY: Final = 64 << 20
_RETRY_SECONDS: Final = 1.0
_TRIES: Final = 3
_REFRESH_SECONDS: Final = 0.2

_log = Logger()


class IndexObserver(Protocol):
    """Is told what becomes of the indexes."""

    def index_built(self, table: str, files: int, seconds: float) -> None:
        """The index of a table holds `files` statements after a build of `seconds`."""
        ...

    def index_advanced(self, table: str, files: int) -> None:
        """The index of a table was found or made right."""
        ...


class _Unobserved:
    def index_built(self, table: str, files: int, seconds: float) -> None:
        """Nobody is told."""

    def index_advanced(self, table: str, files: int) -> None:
        """Nobody is told."""


@attrs.frozen
class IndexState:
    """How an index stands: `files` statements as of `version`, last found right at `at` by the reactor's
    clock.
    """

    version: int
    files: int
    at: float
    complete: bool
    build_seconds: float


class UnknownTable(KeyError):
    """No table has this alias."""


DeferToPool = Callable[..., Deferred[Any]]


class MetadataCache:
    """The indexes of the configured tables.

    `defer_to_pool(function, *arguments)` runs blocking work in threads. `directory` must exist; it may be
    shared by several processes. An index that was not looked after for `ttl_seconds` is advanced in the
    background when used; one whose table has another `mark` since is advanced first.
    """

    def __init__(
        self,
        sources: Mapping[str, TableSource],
        *,
        clock: IReactorTime,
        defer_to_pool: DeferToPool,
        directory: Path,
        ttl_seconds: float = 120,
        observer: IndexObserver | None = None,
        mark: Mark = unmarked,
    ) -> None:
        # One for all tables: each keeps a descriptor, and closing any gives up every lock of the process.
        locks = BuildLocks(directory, defer_to_pool, clock)
        self._tools = _Tools(clock, defer_to_pool, ttl_seconds, observer or _Unobserved(), mark, locks)
        self._directory = directory
        self._tables: dict[str, _Table] = {}
        self.replace_sources(sources)

    def replace_sources(self, sources: Mapping[str, TableSource]) -> None:
        """Take over the tables of a reloaded configuration. The index of a table that stays where it is is
        kept.
        """
        self._tables = {alias: self._taken_over(alias, source) for alias, source in sources.items()}

    def successor(self, sources: Mapping[str, TableSource]) -> MetadataCache:
        """The cache of a reloaded configuration: tables that stay where they are are shared with this one.

        This one goes on to answer for the tables it had, to requests that began under the old configuration.
        """
        made = copy(self)
        made.replace_sources(sources)
        return made

    def _taken_over(self, alias: str, source: TableSource) -> _Table:
        known = self._tables.get(alias)
        if known is not None and known.place.identity == source.identity:
            known.source = source
            return known
        place = Place(source.identity, source.root, self._directory)
        return _Table(alias, place, source, self._tools)

    def _table(self, alias: str) -> _Table:
        if alias not in self._tables:
            raise UnknownTable(alias)
        return self._tables[alias]

    async def table(self, alias: str) -> TableIndex:
        """The index of a table, built if there is none yet.

        Raises UnknownTable, NotATable when there is no Delta log, LogError when it cannot be understood, and
        S3Error when it cannot be read. A failure is answered again for a second before the next try.
        """
        return await self._table(alias).current()

    def at_hand(self, alias: str) -> TableIndex | None:
        """The index of a table as it stands, without a look at the store; None when there is none."""
        table = self._tables.get(alias)
        return table.at_hand if table else None

    async def refreshed(self, alias: str, min_interval: float = _REFRESH_SECONDS) -> TableIndex:
        """The index as of a listing of the log that began after this call: what was committed before is in
        it.

        Listings of one table begin at least `min_interval` seconds apart; calls in between share the next
        one. Raises as `table` does.
        """
        return await self._table(alias).refreshed(min_interval)

    async def as_of(self, alias: str, moment: float) -> TableIndex:
        """The index with its history, as of a listing of the log that began after the moment (by the clock):
        a table that had replaced another by then is not taken for it. Raises as `table` does.
        """
        return await self._table(alias).as_of(moment)

    async def complete(self, alias: str) -> TableIndex:
        """The index with what remains of the log before its base. It is read once, from the first build
        on.
        """
        return await self._table(alias).complete()

    async def locate(self, alias: str, path: str) -> tuple[TableIndex, tuple[Entry, ...]]:
        """The entries of a path, with those of older versions: values that it had then count as well.

        No entries: as of the start of this call the log says nothing about the path.
        """
        table = self._table(alias)
        index = table.fresh() or await table.current()
        entries = index.lookup(path)
        if entries and index.complete:
            return index, entries
        if not entries:
            index = await table.refreshed(_REFRESH_SECONDS)
        if not index.complete:
            index = await table.complete()
        return index, index.lookup(path)

    def state(self, alias: str) -> IndexState | None:
        """How the index of a table stands; None when there is none."""
        table = self._tables.get(alias)
        return table.state() if table else None


@attrs.frozen
class _Tools:
    """What every table works with."""

    clock: IReactorTime
    defer_to_pool: DeferToPool
    ttl: float
    observer: IndexObserver
    mark: Mark
    locks: BuildLocks


class _Table:
    """The index of one table and the work on it. `index` is only replaced while `_lock` is held."""

    def __init__(self, alias: str, place: Place, source: TableSource, tools: _Tools) -> None:
        self.place = place
        self.source = source
        self._alias = alias
        self._clock = tools.clock
        self._defer_to_pool = tools.defer_to_pool
        self._ttl = tools.ttl
        self._observer = tools.observer
        self._mark = tools.mark
        self._marked = 0
        self._lock = DeferredLock()
        self._locks = tools.locks
        self._index: TableIndex | None = None
        self._names: tuple[str, ...] = ()
        self._right_at = 0.0
        self._known_since = float("-inf")
        self._build_seconds = 0.0
        self._building: Flight[TableIndex] | None = None
        self._built_at = 0.0
        self._built_mark = 0
        self._listing: Flight[TableIndex] | None = None
        self._next_listing: Flight[TableIndex] | None = None
        self._listed_at = float("-inf")
        self._completing: Flight[TableIndex] | None = None

    @property
    def log(self) -> LogSource:
        """The table's log."""
        return self.source.log

    @property
    def at_hand(self) -> TableIndex | None:
        """The index as it stands."""
        return self._index

    def state(self) -> IndexState | None:
        """How the index stands."""
        index = self._index
        if index is None:
            return None
        return IndexState(index.version, index.rows, self._right_at, index.complete, self._build_seconds)

    async def current(self) -> TableIndex:
        """The index, advanced in the background when it is old; at twice that age it decides nothing more."""
        index = self.fresh()
        if index is not None:
            return index
        if self._index is None:
            return await self._build_flight().wait()
        written = self._mark(self.place.identity) != self._marked
        return await self._listing_to_come(0.0 if written else _REFRESH_SECONDS).wait()

    def fresh(self) -> TableIndex | None:
        """The index where it may decide without a look at the log, which is begun when it is due."""
        index = self._index
        if index is None or self._mark(self.place.identity) != self._marked:
            return None
        age = self._clock.seconds() - self._right_at
        # An index of the future is of a clock that was set back since: who knows how old it is.
        if 0 <= age < self._ttl:
            return index
        self._listing_to_come(_REFRESH_SECONDS)
        return index if 0 <= age < 2 * self._ttl else None

    async def refreshed(self, min_interval: float) -> TableIndex:
        """The index as of a listing that began after this call."""
        if self._index is None:
            joined = self._building is not None and not self._building.landed
            index = await self._build_flight().wait()
            if not joined:
                return index
        return await self._listing_to_come(min_interval).wait()

    async def as_of(self, moment: float) -> TableIndex:
        """The index with the history, as of a listing that began after the moment."""
        index = await self.complete()
        if self._known_since > moment:
            return index
        await self._listing_to_come(0.0).wait()
        return await self.complete()

    async def complete(self) -> TableIndex:
        """The index with the history."""
        index = self.fresh() or await self.current()
        if index.complete:
            return index
        return await self._complete_flight().wait()

    def _build_flight(self) -> Flight[TableIndex]:
        """The build that is running, or that failed a moment ago, or a new one."""
        flight = self._building
        if flight is None or (flight.landed and not self._failed_just_now(flight)):
            flight = self._building = Flight(self._locked(self._load_or_build))
        return flight

    def _failed_just_now(self, flight: Flight[TableIndex]) -> bool:
        unchanged = self._mark(self.place.identity) == self._built_mark
        return flight.failed and unchanged and self._clock.seconds() - self._built_at < _RETRY_SECONDS

    def _complete_flight(self) -> Flight[TableIndex]:
        flight = self._completing
        if flight is None or flight.landed:
            flight = self._completing = Flight(self._complete())
        return flight

    def _listing_to_come(self, min_interval: float) -> Flight[TableIndex]:
        """The next listing of the log: one that already runs may have been too early."""
        if self._next_listing is None:
            self._next_listing = Flight(self._list_after(self._listing, min_interval))
        return self._next_listing

    async def _list_after(self, before: Flight[TableIndex] | None, min_interval: float) -> TableIndex:
        if before is not None and not before.landed:
            ended: Deferred[object] = Deferred()
            before.wait().addBoth(ended.callback)
            await ended
        wait = self._listed_at + min_interval - self._clock.seconds()
        # Never longer, though the clock be set back.
        await deferLater(self._clock, min(max(0.0, wait), min_interval))
        self._listing, self._next_listing = self._next_listing, None
        self._listed_at = self._clock.seconds()
        return await self._locked(self._advance)

    async def _locked(self, work: Callable[[], Coroutine[Deferred[Any], Any, T]]) -> T:
        await self._lock.acquire()
        marked = self._mark(self.place.identity)
        try:
            return await work()
        except Exception as error:
            _log.warn("table {alias}: {error}", alias=self._alias, error=str(error) or repr(error))
            raise
        finally:
            self._built_at, self._built_mark = self._clock.seconds(), marked
            self._lock.release()

    async def _load_or_build(self) -> TableIndex:
        """The index of an earlier process if it still fits the log, else a new one. The history follows."""
        started, marked = self._clock.seconds(), self._mark(self.place.identity)
        loaded: TableIndex | None = await self._defer_to_pool(build.load, self.place)
        index = await self._built_once_by_all() if loaded is None else await self._advanced(loaded)
        self._take(index, started, marked)
        self._build_seconds = self._clock.seconds() - started
        self._observer.index_built(self._alias, index.rows, self._build_seconds)
        if not index.complete:
            self._complete_flight()
        return index

    async def _built_once_by_all(self) -> TableIndex:
        """A new index; where another process just builds it, the one of that process."""
        async with self._locks.held(self.place.file.name):
            loaded: TableIndex | None = await self._defer_to_pool(build.load, self.place)
            if loaded is None:
                return await self._built(None)
        return await self._advanced(loaded)

    async def _advance(self) -> TableIndex:
        known, started, marked = self._index, self._clock.seconds(), self._mark(self.place.identity)
        if known is None:
            return await self._load_or_build()
        try:
            index = await self._advanced(known)
        except NotATable:
            self._index = None
            raise
        self._take(index, started, marked)
        self._observer.index_advanced(self._alias, index.rows)
        if not index.complete and index.since != known.since:
            self._complete_flight()
        return index

    def _take(self, index: TableIndex, started: float, marked: int) -> None:
        self._index = index
        self._marked = marked
        self._known_since = started
        self._right_at = self._clock.seconds()

    async def _advanced(self, index: TableIndex) -> TableIndex:
        """The index and the commits after it; a new one when its last file is no longer what it was."""
        listed = await self._list(index.version)
        anchor = listed.get(index.anchor.name)
        if anchor is None or anchor.etag != index.anchor.etag:
            return await self._built(index)
        commits = _commits_after(listed, index.version)
        if not commits:
            return index
        with_etag = Anchor(commits[-1].name, listed[commits[-1].name].etag)
        async with _Scratch(self._defer_to_pool, self.place.directory) as scratch:
            contents = await self._fetch(commits, listed, scratch)
            advanced: TableIndex = await self._defer_to_pool(
                build.advance, self.place, index, contents, with_etag
            )
        return advanced

    async def _built(self, previous: TableIndex | None) -> TableIndex:
        """A new index of the newest version. A log that is cleaned up at this very moment is listed again."""
        try:
            return await self._build_once(previous)
        except NotATable:
            raise
        except NoSuchKey:
            return await self._build_once(previous)

    async def _build_once(self, previous: TableIndex | None) -> TableIndex:
        self.source.forget()
        listed = await self._list(0)
        segment = select_segment(listed)
        anchor = _anchor(segment, listed)
        async with _Scratch(self._defer_to_pool, self.place.directory) as scratch:
            # The checkpoint is the larger part, and asks for most round trips.
            checkpoint, commits = await both(
                self._fetch_checkpoint_of(segment, listed, scratch),
                self._fetch(segment.commits, listed, scratch),
            )
            built: TableIndex = await self._defer_to_pool(
                build.build, self.place, checkpoint, commits, anchor, previous
            )
        return built

    async def _complete(self) -> TableIndex:
        """Read the history of the index there is; if that was replaced meanwhile, the history of the new
        one.
        """
        for _ in range(_TRIES):
            index = self._index
            if index is None:
                raise NotATable
            if index.complete:
                return index
            try:
                async with _Scratch(self._defer_to_pool, self.place.directory) as scratch:
                    history = await self._fetch_history(index, scratch)
                    grown = await self._locked(partial(self._with_history, index, *history))
            except NoSuchKey:
                await deferLater(self._clock, _RETRY_SECONDS)
                continue
            if grown is not None:
                return grown
        raise ServiceUnavailable

    async def _with_history(
        self, index: TableIndex, checkpoints: list[CheckpointContent], commits: list[LogContent]
    ) -> TableIndex | None:
        current = self._index
        if current is None or current.identity != index.identity or current.since != index.since:
            return None
        grown: TableIndex = await self._defer_to_pool(
            build.add_history, self.place, current, checkpoints, commits
        )
        self._index = grown
        return grown

    async def _fetch_history(
        self, index: TableIndex, scratch: Path
    ) -> tuple[list[CheckpointContent], list[LogContent]]:
        listed = await self._list(0)
        history = select_history(listed, index.since)
        commits = await self._fetch(history.commits, listed, scratch)
        checkpoints = [
            await self._fetch_checkpoint(checkpoint, listed, scratch) for checkpoint in history.checkpoints
        ]
        return checkpoints, commits

    async def _list(self, version: int) -> dict[str, ListedFile]:
        """The files of the log from a version on, by their names. What does not begin with a digit sorts
        behind.
        """
        found: dict[str, ListedFile] = {}
        after = f"{LOG_DIRECTORY}{version:020d}"
        while True:
            page = await self.log.list(LOG_DIRECTORY, start_after=after)
            found.update((listed.path[len(LOG_DIRECTORY) :], listed) for listed in page.objects)
            after = max((listed.path for listed in page.objects), default=_BEHIND_VERSIONS)
            if not page.truncated or after >= _BEHIND_VERSIONS:
                return {name: listed for name, listed in found.items() if name[:1].isdigit()}

    async def _fetch(
        self, files: Iterable[LogFile], listed: Mapping[str, ListedFile], scratch: Path
    ) -> list[LogContent]:
        """Files of the log: small ones in memory, up to a bound, the others in the scratch folder."""
        left = _IN_MEMORY
        jobs: list[Callable[[], Coroutine[Deferred[Any], Any, LogContent]]] = []
        for number, file in enumerate(files):
            size = listed[file.name].size if file.name in listed else _SMALL
            small = size < min(_SMALL, left) and not file.name.endswith(".parquet")
            left -= size if small else 0
            into = None if small else scratch / f"{number}-{file.name.rpartition('/')[2]}"
            jobs.append(partial(self._fetch_one, file, into))
        return list(await in_parallel(_FETCHES, jobs))

    async def _fetch_one(self, file: LogFile, into: Path | None) -> LogContent:
        version = file.version or 0
        if into is None:
            return LogContent(file.name, version, (await self.log.read(file.path, limit=_SMALL)).body)
        await self.log.download(file.path, into)
        return LogContent(file.name, version, into)

    async def _fetch_checkpoint_of(
        self, segment: LogSegment, listed: Mapping[str, ListedFile], scratch: Path
    ) -> CheckpointContent | None:
        checkpoint = segment.checkpoint
        return await self._fetch_checkpoint(checkpoint, listed, scratch) if checkpoint else None

    async def _fetch_checkpoint(
        self, checkpoint: Checkpoint, listed: Mapping[str, ListedFile], scratch: Path
    ) -> CheckpointContent:
        files = await self._fetch(checkpoint.files, listed, scratch)
        names: tuple[str, ...] = await self._defer_to_pool(build.sidecar_names, self.place.root, files)
        sidecars = await self._fetch([LogFile(name, LogKind.SIDECAR) for name in names], listed, scratch)
        return CheckpointContent(checkpoint.version, tuple(files), tuple(sidecars))


_BEHIND_VERSIONS: Final = LOG_DIRECTORY + ":"


def _commits_after(listed: Iterable[str], version: int) -> list[LogFile]:
    files = map(classify_log_name, listed)
    commits = [
        file
        for file in files
        if file.kind is LogKind.COMMIT and file.version is not None and file.version > version
    ]
    commits.sort(key=lambda file: file.name)
    require_dense(commits, version + 1)
    return commits


def _anchor(segment: LogSegment, listed: Mapping[str, ListedFile]) -> Anchor:
    """The commit of the version if it is still there, else the checkpoint."""
    name = commit_name(segment.version)
    if name not in listed and segment.checkpoint is not None:
        name = segment.checkpoint.files[0].name
    return Anchor(name, listed[name].etag)


class _Scratch:
    """A folder for downloads, made and removed in the thread pool."""

    def __init__(self, defer_to_pool: DeferToPool, directory: Path) -> None:
        self._defer_to_pool = defer_to_pool
        self._directory = directory
        self._path = ""

    async def __aenter__(self) -> Path:
        make = partial(tempfile.mkdtemp, prefix=f"fetched-{owner()}-", dir=self._directory)
        self._path = await self._defer_to_pool(make)
        return Path(self._path)

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        remove = partial(shutil.rmtree, self._path, ignore_errors=True)
        if kind is GeneratorExit:
            # The process ends in the middle of it: nothing can be waited for any more.
            remove()
        else:
            await self._defer_to_pool(remove)
