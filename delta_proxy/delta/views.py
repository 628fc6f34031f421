"""The Delta log, and deletion vectors, as a grant sees them: which files there are, where their bytes lie.

A file of the view has the name and the size of the original and an ETag of its own. It is made once from the
original, in the thread pool, and kept on disk under the original's ETag and the view's key, so that
principals who see the same share it.
"""

from __future__ import annotations

import hashlib
import weakref
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Final, TypeVar

import attrs
import numpy as np
import orjson
import pyarrow as pa
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from delta_proxy.access.policy import Grant, Reason
from delta_proxy.delta import checkpoints, commits, deletion_vectors, last_checkpoint
from delta_proxy.delta.actions import LogError
from delta_proxy.delta.ahead import KINDS, NeedsIndex, by_values_alone
from delta_proxy.delta.cache import DeferToPool, MetadataCache
from delta_proxy.delta.catalog import CatalogedStore, LogCatalog
from delta_proxy.delta.deletion_vectors import Region
from delta_proxy.delta.disk_cache import DiskCache, Make, MemoryCache, OpenFile
from delta_proxy.delta.flight import Flight, Successive
from delta_proxy.delta.index import TableIndex, TupleTable
from delta_proxy.delta.log import NotATable, select_segment
from delta_proxy.delta.masks import GrantMask, GrantMasks, closed
from delta_proxy.delta.paths import LOG_DIRECTORY, LogFile, LogKind, TableRoot
from delta_proxy.delta.scan import LogContent, Scanner
from delta_proxy.delta.segment import Bits
from delta_proxy.delta.sidecars import ManifestId, SidecarNames
from delta_proxy.delta.view_grant import Columns, StaleIndex, ViewError, ViewGrant
from delta_proxy.delta.view_history import lost, view_grant
from delta_proxy.delta.view_names import view_file
from delta_proxy.s3.errors import NoSuchKey, NotModified, S3Error, ServiceUnavailable
from delta_proxy.upstream.client import ListedObject, ObjectStat, SmallObject, TableClient

REWRITER_VERSION: Final = 2
"""Part of every ETag and cache key: raise it with any change of what a rewrite writes."""

_CHUNK: Final = 256 * 1024
_SMALL: Final = 1024 * 1024
_REMEMBERED: Final = 10_000
_RECENT_BYTES: Final = 8 << 20
_AHEAD: Final = 2
"""How many grants may have a checkpoint made ahead at the same time."""
_HINT: Final = LOG_DIRECTORY + "_last_checkpoint"

K = TypeVar("K")
V = TypeVar("V")

_log = Logger()


@attrs.frozen
class ViewedFile:
    """A file as it is shown: its bytes, or the file that whoever gets it must close in the thread pool; its
    quoted ETag; the original's Last-Modified, an HTTP date.
    """

    content: OpenFile | bytes
    etag: str
    last_modified: str

    @property
    def size(self) -> int:
        """The size in bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.size


class Replaced(Exception):
    """The store's file is another than the one asked for."""


class RefusedView(Exception):
    """A file that exists and is not shown, for a reason the audit log tells."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


def no_commits() -> MemoryCache:
    """Room for the commits that an index was just made of, until their views are."""
    return MemoryCache(_RECENT_BYTES)


@attrs.frozen
class TableViews:
    """What the views of one table are made of. `identity` tells the table from every other; `recent` has the
    commits that its index was just made of, by the keys of `original_key`.
    """

    identity: str
    root: TableRoot
    store: TableClient
    catalog: LogCatalog
    recent: MemoryCache = attrs.field(factory=no_commits)


def original_key(table: TableViews, path: str, etag: str) -> str:
    """What tells an original in the cache from every other."""
    return f"{table.identity} {path} {etag}"


def original(table: TableViews, path: str, stat: ObjectStat, defer_to_pool: DeferToPool) -> tuple[str, Make]:
    """The cache key of an original and how to get it, which raises Replaced when the store has another."""
    key = original_key(table, path, stat.etag)

    async def make(target: Path) -> None:
        body = table.recent.get(key)
        if body is not None:
            table.recent.discard(key)
            await defer_to_pool(target.write_bytes, body)
        elif (await table.store.download(path, target)).etag != stat.etag:
            table.catalog.forget(path)
            raise Replaced

    return key, make


class _Translated:
    """What goes wrong with a file's content, as the answer it leads to.

    A class: each read of the log enters it twice, and a generator costs three times as much.
    """

    __slots__ = ("_path", "_table")

    def __init__(self, table: TableViews, path: str) -> None:
        self._table, self._path = table, path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, Replaced):
            raise ServiceUnavailable() from None
        if isinstance(error, ViewError | LogError):
            _log.error(
                "{table}: {path}: {error}", table=self._table.identity, path=self._path, error=str(error)
            )
            raise RefusedView(Reason.UNREADABLE_LOG) from None


@lru_cache(maxsize=_REMEMBERED)
def derived_etag(etag: str, view: str) -> str:
    """The ETag of a viewed file: never of the form of an MD5, which SDKs would hold the body against."""
    text = f"{REWRITER_VERSION}\n{etag}\n{view}"
    return f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}-v{REWRITER_VERSION}"'


def view_key(grant: Grant, mask: GrantMask) -> str:
    """What tells one view of a table from another, the same in every process.

    Besides the grant that is what a grant that moves with the clock sees, by its values, and the files that
    disappear from old versions because a later one gave them values that are not granted.
    """
    told = sorted(set(lost(mask)))
    if grant.is_relative:
        partitions = mask.index.partitions
        told += sorted(repr(partitions[number]) for number in np.flatnonzero(mask.bits).tolist())
    if not told:
        return grant.fingerprint
    return f"{grant.fingerprint}-{hashlib.sha256(repr(told).encode('utf-8', 'surrogatepass')).hexdigest()}"


def view_name(table: TableViews, path: str, stat: ObjectStat, key: str) -> str:
    """The name in the cache of what a view has of a file."""
    return f"{table.identity} {path} {stat.etag} {key}"


def vector_key(shown: Sequence[Region]) -> str:
    """What tells one view of a deletion vector file from another."""
    return " ".join(f"{region.start}-{region.stop}" for region in shown)


class LogViews:
    """Makes and keeps the views of all tables."""

    def __init__(
        self,
        tables: Mapping[str, TableViews],
        *,
        cache: MetadataCache,
        disk: DiskCache,
        memory: MemoryCache,
        masks: GrantMasks,
        defer_to_pool: DeferToPool,
        now: Callable[[], datetime],
    ) -> None:
        # With its first array pyarrow imports pandas, where there is one: not while somebody waits.
        pa.array([])
        self._tables = tables
        self._cache = cache
        self._disk = disk
        self._memory = memory
        self._masks = masks
        self._defer_to_pool = defer_to_pool
        self._now = now
        self._hints: OrderedDict[tuple[str, str], bytes | None] = OrderedDict()
        # Of each table: the hint as last read, and the reading of it.
        self._last_hints: dict[str, SmallObject] = {}
        self._hint_reads: dict[str, Successive[SmallObject]] = {}
        self._sidecars = SidecarNames()
        self._keys: OrderedDict[tuple[str, str], tuple[weakref.ref[TableIndex], Bits, str]] = OrderedDict()
        self._ahead: OrderedDict[tuple[str, str], Flight[None]] = OrderedDict()

    def listable(self, alias: str) -> CatalogedStore:
        """The table's LIST; what it tells of the log is remembered."""
        table = self._tables[alias]
        return CatalogedStore(table.store, table.catalog)

    async def original(self, alias: str, path: str) -> ViewedFile:
        """An immutable log file as it is. Raises S3Error."""
        table = self._tables[alias]
        stat = await self._stat(table, path)
        key, make = original(table, path, stat, self._defer_to_pool)
        with _Translated(table, path):
            return ViewedFile(await self._content(key, make, "log"), stat.etag, stat.last_modified)

    async def log_file(self, alias: str, grant: Grant, path: str, known: str | None = None) -> ViewedFile:
        """A log file as a restricted grant sees it; `known` is what `key` just gave, if it was asked.

        Raises NoSuchKey for a file that the view does not have, RefusedView for one that cannot be shown with
        certainty, and what the store answers (S3Error).
        """
        table, file = self._tables[alias], view_file(path[len(LOG_DIRECTORY) :])
        if file is None:
            raise NoSuchKey()
        if file.kind is LogKind.LAST_CHECKPOINT:
            return await self._last_checkpoint(table, known or await self.key(alias, grant))
        stat, now = await self._stat(table, path), self._now()
        make = partial(self._rewrite, alias, grant, file, stat, now)
        with _Translated(table, path):
            key = await self._key_of(alias, grant, file, stat, now, known)
            content = await self._view(view_name(table, path, stat, key), make)
        return ViewedFile(content, derived_etag(stat.etag, key), stat.last_modified)

    async def _view(self, name: str, make: Make) -> OpenFile | bytes:
        """A view, made with the index where what was made ahead came to nothing."""
        try:
            return await self._content(name, make, "view")
        except NeedsIndex:
            return await self._content(name, make, "view")

    async def vector(self, alias: str, path: str, shown: Sequence[Region]) -> ViewedFile:
        """A deletion vector file with zeros outside what is shown. Raises S3Error."""
        table, key = self._tables[alias], vector_key(shown)
        stat = await table.store.stat(path)

        async def make(target: Path) -> None:
            async with self._raw(table, path, stat) as original:
                await self._defer_to_pool(_write_masked, original, target, shown)

        with _Translated(table, path):
            content = await self._content(view_name(table, path, stat, key), make, "view")
        return ViewedFile(content, derived_etag(stat.etag, key), stat.last_modified)

    async def key(self, alias: str, grant: Grant) -> str:
        """The key of a grant's view at this moment. Raises RefusedView when the table is closed to it."""
        self._begin_ahead(alias, grant)
        with _Translated(self._tables[alias], LOG_DIRECTORY):
            return self._key(alias, await self._cache.complete(alias), grant, self._now())

    def _begin_ahead(self, alias: str, grant: Grant) -> None:
        """Make the views of the newest checkpoint while the table's index is being built."""
        if self._cache.at_hand(alias) is not None:
            return
        slot, flying = (alias, grant.fingerprint), (not each.landed for each in self._ahead.values())
        if not grant.is_relative and slot not in self._ahead and sum(flying) < _AHEAD:
            flight = Flight(self._make_ahead(self._tables[alias], grant, self._now()))
            flight.wait().addErrback(_expected)
            _remember(self._ahead, slot, flight)

    async def _make_ahead(self, table: TableViews, grant: Grant, now: datetime) -> None:
        found = await self._read_hint(table)
        checkpoint = select_segment(await self._names(table, _hinted_version(found.body))).checkpoint
        columns: Columns | None = None
        for file in checkpoint.files if checkpoint else ():
            if file.kind in KINDS:
                columns = await self._file_ahead(table, file, grant, columns, now) or columns

    async def _file_ahead(
        self, table: TableViews, file: LogFile, grant: Grant, columns: Columns | None, now: datetime
    ) -> Columns | None:
        """Make the view of one file; the partition columns that the file tells, if it does."""
        stat = await self._stat(table, file.path)
        async with self._raw(table, file.path, stat) as original:
            manifest: checkpoints.Manifest = await self._defer_to_pool(checkpoints.read_manifest, original)
            questions = by_values_alone(grant, manifest.columns or columns, now)

            async def make(target: Path) -> None:
                try:
                    await self._defer_to_pool(checkpoints.rewrite, original, target, questions)
                except ViewError:
                    raise NeedsIndex("the view of a checkpoint was not made ahead") from None

            await self._disk.get(view_name(table, file.path, stat, grant.fingerprint), make, kind="view")
        return manifest.columns

    async def _key_of(  # noqa: PLR0917 - what a key is made of
        self, alias: str, grant: Grant, file: LogFile, stat: ObjectStat, now: datetime, known: str | None
    ) -> str:
        """The key of the view that a file is in. What the file itself adds has its part in it: were it made
        under a key without that, it would come back under that key when the grant has moved on. And what was
        made of a checkpoint ahead is right by an index that knows the file.
        """
        if not grant.is_relative and file.kind not in KINDS:
            return known or await self.key(alias, grant)
        self._begin_ahead(alias, grant)
        with _Translated(self._tables[alias], file.path):
            return self._key(alias, await self._index_with(alias, file, stat), grant, now)

    def _key(self, alias: str, index: TableIndex, grant: Grant, now: datetime) -> str:
        """`view_key`, worked out once for an index and what a mask shows of it; never of a closed table."""
        mask, slot = self._masks.of(index, grant, now), (alias, grant.fingerprint)
        known = self._keys.get(slot)
        if known is None or known[0]() is not index or known[1] is not mask.bits:
            reason = closed(index, grant)
            if reason is not None:
                raise RefusedView(reason)
            known = (weakref.ref(index), mask.bits, view_key(grant, mask))
            _remember(self._keys, slot, known)
        return known[2]

    async def _stat(self, table: TableViews, path: str) -> ObjectStat:
        """What the store says of a log file: of an immutable one, what it said last."""
        known = table.catalog.find(path)
        if known is None:
            known = await table.store.stat(path)
            table.catalog.learn(path, known)
        return known

    async def _content(self, key: str, make: Make, kind: str) -> OpenFile | bytes:
        """A file of the cache: small ones from memory."""
        known = self._memory.get(key)
        if known is not None:
            return known
        file = await self._disk.open(key, make, kind=kind)
        if file.size > _SMALL:
            return file
        try:
            data: bytes = await self._defer_to_pool(file.read_at, 0, file.size)
        finally:
            self._defer_to_pool(file.close)
        self._memory.put(key, data)
        return data

    @asynccontextmanager
    async def _raw(self, table: TableViews, path: str, stat: ObjectStat) -> AsyncIterator[Path]:
        """The original, open, so that it stays readable when it is evicted meanwhile."""
        key, make = original(table, path, stat, self._defer_to_pool)
        file = await self._disk.open(key, make, kind="log")
        try:
            yield file.path
        finally:
            self._defer_to_pool(file.close)

    async def _rewrite(  # noqa: PLR0917 - what a file of a view is made of
        self, alias: str, grant: Grant, file: LogFile, stat: ObjectStat, now: datetime, target: Path
    ) -> None:
        index = await self._index_with(alias, file, stat)
        async with self._raw(self._tables[alias], file.path, stat) as original:
            try:
                questions = await self._questions(alias, index, grant, file, now)
                await self._defer_to_pool(_write_view, original, target, file, questions)
            except StaleIndex:
                await self._cache.refreshed(alias)
                questions = await self._questions(alias, await self._cache.complete(alias), grant, file, now)
                await self._defer_to_pool(_write_view, original, target, file, questions)

    async def _questions(
        self, alias: str, index: TableIndex, grant: Grant, file: LogFile, now: datetime
    ) -> Callable[[], ViewGrant]:
        """What the rewrite will ask, to be prepared in the thread pool. Raises ViewError."""
        reason = closed(index, grant)
        if reason is not None:
            raise RefusedView(reason)
        table = self._tables[alias]
        columns = await self._columns(index, table, file)
        return partial(view_grant, grant, self._masks.of(index, grant, now), table.root, now, columns)

    async def _index_with(self, alias: str, file: LogFile, stat: ObjectStat) -> TableIndex:
        """The index with all of the log that remains, as of a moment at which the store had this very file.
        Raises Replaced when it has it no more.
        """
        table = self._tables[alias]
        index = await self._cache.as_of(alias, table.catalog.since(file.path))
        if (await self._stat(table, file.path)).etag != stat.etag:
            raise Replaced
        if file.version is not None and file.version > index.version:
            raise ViewError("the log has no version of this number")
        return index

    async def _columns(self, index: TableIndex, table: TableViews, file: LogFile) -> Columns | None:
        """The partition columns in force before a commit, or for the files of a checkpoint."""
        if file.version is None:
            return await self._sidecar_columns(table, file)
        if file.kind is LogKind.COMMIT:
            return index.columns_before(file.version)
        return index.columns_before(file.version + 1)

    async def unserved(self, alias: str, listed: Iterable[ListedObject]) -> frozenset[str]:
        """Those of the listed paths that have the name of a file of the view and are none: a sidecar that no
        checkpoint names, a hint at no checkpoint.
        """
        table, hidden = self._tables[alias], set[str]()
        for found in listed:
            file = (
                view_file(found.path[len(LOG_DIRECTORY) :]) if found.path.startswith(LOG_DIRECTORY) else None
            )
            if file is None:
                continue
            sidecar = file.kind is LogKind.SIDECAR
            hint = file.kind is LogKind.LAST_CHECKPOINT
            if (sidecar and not await self._is_named(table, file)) or (
                hint and await self._hint(table, found.etag) is None
            ):
                hidden.add(found.path)
        return frozenset(hidden)

    async def _is_named(self, table: TableViews, file: LogFile) -> bool:
        try:
            await self._sidecar_columns(table, file)
        except (NoSuchKey, ViewError):
            return False
        return True

    async def _sidecar_columns(self, table: TableViews, file: LogFile) -> Columns:
        """The partition columns of the newest checkpoint that names a sidecar, else NoSuchKey."""
        name = file.name.rpartition("/")[2]
        if self._sidecars.columns(table.identity, name) is None:
            await self._read_manifests(table)
        columns = self._sidecars.columns(table.identity, name)
        if columns is None:
            raise NoSuchKey()
        return columns

    async def _read_manifests(self, table: TableViews) -> None:
        """Take in which sidecars the checkpoints name, each of which is read once."""
        manifests = filter(_is_manifest, await self._names(table, 0))
        for name in sorted(manifests):
            path = LOG_DIRECTORY + name
            stat = await self._stat(table, path)
            manifest = ManifestId(table.identity, name, stat.etag)
            if not self._sidecars.has_read(manifest):
                async with self._raw(table, path, stat) as raw:
                    told = await self._defer_to_pool(_read_manifest, raw, name, table.root)
                self._sidecars.take(manifest, *told)

    async def _last_checkpoint(self, table: TableViews, key: str) -> ViewedFile:
        """The hint, naming a checkpoint that the view has. It may change, so the store is asked each time."""
        found = await self._read_hint(table)
        body = await self._hint_of(table, found)
        if body is None:
            raise NoSuchKey()
        return ViewedFile(body, derived_etag(found.etag, key), found.last_modified)

    def _read_hint(self, table: TableViews) -> Deferred[SmallObject]:
        """The store's hint, as of a request sent after this call."""
        reads = self._hint_reads.get(table.identity)
        if reads is None:
            reads = self._hint_reads[table.identity] = Successive(partial(self._ask_for_hint, table))
        return reads.ask()

    async def _ask_for_hint(self, table: TableViews) -> SmallObject:
        known = self._last_hints.get(table.identity)
        try:
            unless = "" if known is None else known.etag
            found = await table.store.read(_HINT, limit=last_checkpoint.MAX_BYTES, unless=unless)
        except NotModified:
            if known is None:
                raise ServiceUnavailable() from None
            return known
        self._last_hints[table.identity] = found
        return found

    async def _hint(self, table: TableViews, etag: str) -> bytes | None:
        """The hint in the view, from what is known of this ETag, or from the store."""
        known = (table.identity, etag)
        if known in self._hints:
            return self._hints[known]
        return await self._hint_of(table, await self._read_hint(table))

    async def _hint_of(self, table: TableViews, found: SmallObject) -> bytes | None:
        known = (table.identity, found.etag)
        if known not in self._hints:
            names = await self._names(table, _hinted_version(found.body))
            _remember(self._hints, known, last_checkpoint.rewrite(found.body, names))
        return self._hints[known]

    async def _names(self, table: TableViews, version: int) -> list[str]:
        """The names of the versioned log files from a version on; what the listing tells is remembered."""
        names: list[str] = []
        after, behind = f"{LOG_DIRECTORY}{version:020d}", f"{LOG_DIRECTORY}:"
        while after < behind:
            page = await CatalogedStore(table.store, table.catalog).list(LOG_DIRECTORY, start_after=after)
            names.extend(listed.path[len(LOG_DIRECTORY) :] for listed in page.objects)
            after = (
                max((listed.path for listed in page.objects), default=behind) if page.truncated else behind
            )
        return names


def _expected(failure: Failure) -> None:
    """What was not made ahead is made when it is asked for, and told then."""
    failure.trap(S3Error, ViewError, LogError, NotATable, Replaced, OSError)  # type: ignore[no-untyped-call]


def _remember(memory: OrderedDict[K, V], key: K, value: V) -> None:
    memory[key] = value
    while len(memory) > _REMEMBERED:
        memory.popitem(last=False)


def _is_manifest(name: str) -> bool:
    """Whether a file may name sidecars: a V2 checkpoint may have the classic name as well."""
    file = view_file(name)
    return file is not None and file.kind in {LogKind.CHECKPOINT_V2, LogKind.CHECKPOINT}


def _read_manifest(path: Path, name: str, root: TableRoot) -> tuple[Columns, tuple[str, ...]]:
    """The partition columns of a checkpoint and the names of its sidecars; one that cannot be understood
    names none.
    """
    try:
        header = Scanner(TupleTable(), root).header(LogContent(name, 0, path))
    except LogError:
        return (), ()
    return (header.metadata.columns, header.sidecars) if header.metadata else ((), ())


def _hinted_version(body: bytes) -> int:
    """The version that a `_last_checkpoint` names, 0 when it is none."""
    try:
        version = orjson.loads(body)["version"]
    except (ValueError, TypeError, KeyError):
        return 0
    return version if type(version) is int and version > 0 else 0


def _write_view(source: Path, target: Path, file: LogFile, questions: Callable[[], ViewGrant]) -> None:
    """Write what a grant sees of a log file, in exactly the bytes of the original. Raises ViewError."""
    if file.name.endswith(".parquet"):
        checkpoints.rewrite(source, target, questions())
        return
    role = commits.FileRole.COMMIT if file.kind is LogKind.COMMIT else commits.FileRole.MANIFEST
    facts = commits.scan(source, questions(), role)
    with target.open("wb") as out:
        out.writelines(commits.emit(source, facts))


def _write_masked(source: Path, target: Path, shown: Sequence[Region]) -> None:
    with source.open("rb") as original, target.open("wb") as out:
        position = 0
        while chunk := original.read(_CHUNK):
            out.write(deletion_vectors.mask(chunk, position, shown))
            position += len(chunk)
