"""The whole proxy in one process: the resource tree over a FakeStore, without a network, threads or waiting.

`Parts` are the classes it is built of, so that the tests of the tests can build it of altered ones.
"""

# mypy: allow-untyped-calls
from __future__ import annotations

import hashlib
import pathlib
import shutil
import urllib.parse
from collections import Counter
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any
from xml.etree import ElementTree

import attrs
from twisted.internet.address import IPv4Address
from twisted.internet.defer import maybeDeferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from delta_proxy.access.policy import Grant, Policy
from delta_proxy.config import GetMode
from delta_proxy.delta.cache import MetadataCache
from delta_proxy.delta.catalog import LogCatalog
from delta_proxy.delta.commit_probe import CommitProbes
from delta_proxy.delta.disk_cache import DiskCache, MemoryCache
from delta_proxy.delta.gate import Gate
from delta_proxy.delta.masks import GrantMasks
from delta_proxy.delta.paths import TableRoot
from delta_proxy.delta.shared_log import SharedLog
from delta_proxy.delta.source import TableSource
from delta_proxy.delta.views import LogViews, TableViews
from delta_proxy.delta.write_marks import WriteMarks
from delta_proxy.resources.root import RootResource
from delta_proxy.resources.server import RequestRecord, S3Site
from delta_proxy.resources.services import Anonymous, Authenticator, Services, Settings
from delta_proxy.resources.writing import Writing
from delta_proxy.s3.request import Addressing
from delta_proxy.s3.sigv4 import Credentials
from delta_proxy.upstream.client import TableClient, Upstream
from delta_proxy.upstream.credentials import StaticCredentials
from delta_proxy.upstream.relay import Silence
from delta_proxy.upstream.spool import DeferToPool
from delta_proxy.upstream.stores import AddressingStyle, StoreConfig, TableLocation
from delta_proxy.upstream.writer import TableWriter

from .fakes.agent import MemoryAgent
from .fakes.store import FakeStore

BUCKET = "warehouse"
NOW = datetime(2026, 11, 22, tzinfo=UTC)
_STORE = StoreConfig(endpoint="http://store.test", region="us-east-1", addressing_style=AddressingStyle.PATH)
_OTHER = attrs.evolve(_STORE, endpoint="http://other.test")
_PIECE = 64 * 1024
_CREDENTIALS = StaticCredentials(Credentials("key", "secret", None))


@attrs.frozen
class Parts:
    """The classes that decide what is shown."""

    log_views: Any = LogViews
    gate: Any = Gate
    masks: Any = GrantMasks
    root: Any = RootResource


@attrs.frozen
class Misses:
    """A CacheObserver that counts what is made."""

    made: Counter[str]

    def cache_hit(self, kind: str) -> None:
        """It was there."""

    def cache_miss(self, kind: str) -> None:
        """It is made."""
        self.made[kind] += 1


@attrs.frozen
class Answer:
    """Status, header fields with lower-case names, body, and what the access log was told."""

    status: int
    headers: Mapping[str, str]
    body: bytes = attrs.field(repr=lambda body: repr(body[:300]))
    record: RequestRecord = attrs.field(repr=False)

    @property
    def decision(self) -> str:
        """The decision in the request's note."""
        return self.record.note.decision


@attrs.frozen
class Listing:
    """A page of a LIST: keys with size and ETag, common prefixes, and where the next page begins."""

    keys: Mapping[str, tuple[int, str]]
    prefixes: tuple[str, ...]
    token: str | None


class MemoryProxy:
    """A proxy whose tables lie in a FakeStore under their aliases; `grants` are by alias, none is everything.

    Its cache is in `folder`; a second proxy over the same folder is the first one started again. `pool` runs
    what would block, at once unless told otherwise. The tables named by `elsewhere` lie in a store of another
    name, which is the same FakeStore. `made` counts the files that were made for the cache, by
    kind.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        grants: Mapping[str, Grant | None],
        *,
        store: FakeStore | None = None,
        parts: Parts | None = None,
        disk_bytes: int = 1 << 30,
        memory_bytes: int = 1 << 26,
        get_mode: GetMode = GetMode.PROXY,
        filtered: bool = True,
        read_only: bool = True,
        authenticator: Authenticator | None = None,
        location: Mapping[str, Any] | None = None,
        elsewhere: Collection[str] = (),
        pool: DeferToPool = maybeDeferred,
    ) -> None:
        self.store = store or FakeStore(BUCKET)
        self.agent = MemoryAgent(self.store)
        self.clock = Clock()
        self.clock.advance(NOW.timestamp())
        self.records: list[RequestRecord] = []
        parts = parts or Parts()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._pool = pool
        self.made: Counter[str] = Counter()
        upstream = Upstream(self.agent, self.clock, pool, lambda: 0.0, Silence())
        tables = {
            alias: upstream.table(
                TableLocation(BUCKET, alias, _OTHER if alias in elsewhere else _STORE, **(location or {})),
                _CREDENTIALS,
            )
            for alias in grants
        }
        self.marks = WriteMarks(folder)
        self.disk = DiskCache(
            folder, limit_bytes=disk_bytes, defer_to_pool=pool, clock=self.clock, observer=Misses(self.made)
        )
        viewed = {
            alias: TableViews(
                alias,
                TableRoot(BUCKET, alias),
                table,
                LogCatalog(self.clock, 120, partial(self.marks.of, alias)),
            )
            for alias, table in tables.items()
        }
        self.cache = self._make_cache(viewed, folder)
        self.masks = masks = parts.masks()
        self.views = views = parts.log_views(
            viewed,
            cache=self.cache,
            disk=self.disk,
            memory=MemoryCache(memory_bytes),
            masks=masks,
            defer_to_pool=pool,
            now=self._now,
        )
        policy = Policy(
            {alias: grant for alias, grant in grants.items() if grant is not None}, False, frozenset(grants)
        )
        self.gate = parts.gate(policy, self.cache, views, masks, self._now, filtered=filtered)
        settings = Settings(
            addressing=Addressing("datalake", ()),
            region="us-east-1",
            read_only=read_only,
            get_mode=get_mode,
            proxy_partial=False,
            presign_expiry_seconds=300,
            never_redirect=(),
        )
        self.site = S3Site(
            parts.root(
                Services(
                    settings,
                    authenticator or Anonymous(),
                    self.gate,
                    tables,
                    pool,
                    writing=None if read_only else self._writing(tables),
                )
            ),
            reactor=self.clock,
            on_finished=self.records.append,
        )

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self.clock.seconds(), UTC)

    def _make_cache(self, viewed: Mapping[str, TableViews], folder: pathlib.Path) -> MetadataCache:
        return MetadataCache(
            {
                alias: TableSource(
                    alias,
                    table.root,
                    SharedLog(table, self.disk, self._pool),
                    table.catalog.forget_all,
                )
                for alias, table in viewed.items()
            },
            clock=self.clock,
            defer_to_pool=self._pool,
            directory=folder,
            mark=self.marks.of,
        )

    def _writing(self, tables: Mapping[str, TableClient]) -> Writing:
        writers = {alias: TableWriter(table) for alias, table in tables.items()}
        return Writing(writers, CommitProbes(), self.marks.set, maybeDeferred)

    def upload(self, table: pathlib.Path, alias: str) -> None:
        """Put every file of a folder into the store as the table of an alias."""
        for file in sorted(table.rglob("*")):
            if file.is_file():
                self.store.put(f"{alias}/{file.relative_to(table).as_posix()}", file.read_bytes())

    def request(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        *,
        peer: str = "192.0.2.1",
    ) -> Answer:
        """The answer to one request, with the target exactly as given and the body in pieces."""
        transport = StringTransport(peerAddress=IPv4Address("TCP", peer, 1))
        channel: Any = self.site.buildProtocol(None)
        channel.makeConnection(transport)
        fields = {"Host": "proxy.test", "Connection": "close", **(headers or {})}
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        before = len(self.records)
        channel.dataReceived("\r\n".join([*lines, "", ""]).encode("latin-1"))
        for start in range(0, len(body), _PIECE):
            channel.dataReceived(body[start : start + _PIECE])
        for _ in range(300):
            if len(self.records) > before:
                break
            self._let_write(transport)
            self.clock.advance(0.1)
        else:
            raise AssertionError(f"{method} {target} is not answered")
        received = transport.value().removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
        head, _, body = received.partition(b"\r\n\r\n")
        status, *rest = head.decode("latin-1").split("\r\n")
        told = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}
        return Answer(int(status.split()[1]), told, body, self.records[-1])

    def _let_write(self, transport: StringTransport) -> None:
        producer: Any = transport.producer
        if producer is not None:
            producer.resumeProducing()

    def get(self, key: str, headers: Mapping[str, str] | None = None, query: str = "") -> Answer:
        """GET a key of the virtual bucket."""
        return self.request("GET", quoted(key) + query, headers)

    def head(self, key: str, headers: Mapping[str, str] | None = None) -> Answer:
        """HEAD a key of the virtual bucket."""
        return self.request("HEAD", quoted(key), headers)

    def page(self, **query: str) -> Listing:
        """One page of a LIST, v2."""
        asked = {name.replace("_", "-"): value for name, value in query.items()}
        text = urllib.parse.urlencode({"list-type": "2", **asked})
        answer = self.request("GET", f"/datalake?{text}")
        assert answer.status == 200, answer
        return parsed(answer.body)

    def list(self, prefix: str) -> Mapping[str, tuple[int, str]]:
        """Every key that begins with the prefix, with size and ETag."""
        found: dict[str, tuple[int, str]] = {}
        more: dict[str, str] = {}
        while True:
            page = self.page(prefix=prefix, **more)
            found.update(page.keys)
            if page.token is None:
                return found
            more = {"continuation_token": page.token}

    def copy(self, alias: str, into: pathlib.Path) -> pathlib.Path:
        """The table of an alias as a client sees it: every key listed, fetched whole, in a folder."""
        shutil.rmtree(into, ignore_errors=True)
        for key, (size, etag) in self.list(f"{alias}/").items():
            answer = self.get(key)
            assert (answer.status, len(answer.body), answer.headers["etag"]) == (200, size, etag), key
            target = into / key.partition("/")[2]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(answer.body)
        return into


def quoted(key: str) -> str:
    """The path of a key in the virtual bucket."""
    return f"/datalake/{urllib.parse.quote(key, safe='/-._~')}"


def parsed(body: bytes) -> Listing:
    """A listing out of its XML."""
    root = ElementTree.fromstring(body)
    space = {"s3": root.tag.partition("}")[0].removeprefix("{")}
    keys = {
        str(item.findtext("s3:Key", "", space)): (
            int(item.findtext("s3:Size", "", space)),
            str(item.findtext("s3:ETag", "", space)),
        )
        for item in root.iterfind("s3:Contents", space)
    }
    prefixes = tuple(
        str(item.findtext("s3:Prefix", "", space)) for item in root.iterfind("s3:CommonPrefixes", space)
    )
    return Listing(keys, prefixes, root.findtext("s3:NextContinuationToken", None, space))


def md5(body: bytes) -> str:
    """The ETag of a FakeStore."""
    return f'"{hashlib.md5(body).hexdigest()}"'
