"""The twistd service: the only place that wires the parts together and names the reactor."""

# The names are those of Twisted's interfaces.
# ruff: noqa: N802, N815
# mypy: allow-untyped-calls
from __future__ import annotations

import atexit
import os
import pathlib
import random
import signal
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, ClassVar

from prometheus_client import CollectorRegistry
from twisted.application.internet import SSLServer, TCPServer
from twisted.application.service import IService, MultiService
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python import usage
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool
from twisted.web.http import TEMPORARY_REDIRECT

from delta_proxy.access.policy import PolicyError, check
from delta_proxy.config import Config, ConfigError, LogView, load
from delta_proxy.delta.actions import LogError
from delta_proxy.delta.cache import MetadataCache
from delta_proxy.delta.catalog import LogCatalog
from delta_proxy.delta.directory import UnusableDirectory, private_directory
from delta_proxy.delta.disk_cache import DiskCache, MemoryCache
from delta_proxy.delta.gate import Gate
from delta_proxy.delta.masks import GrantMasks
from delta_proxy.delta.paths import TableRoot
from delta_proxy.delta.source import TableSource
from delta_proxy.delta.views import LogViews, TableViews
from delta_proxy.metrics import CONTENT_TYPE, Metrics
from delta_proxy.resources.head import HeadLimits
from delta_proxy.resources.health import metrics_site
from delta_proxy.resources.root import RootResource
from delta_proxy.resources.server import EdgeLimits, RequestRecord, S3Site
from delta_proxy.resources.services import Anonymous, Services, Settings
from delta_proxy.resources.status import Status, TableStatus
from delta_proxy.s3.errors import S3Error
from delta_proxy.s3.request import Addressing
from delta_proxy.tls import UnusableCertificate, server_context
from delta_proxy.upstream.agent import make_agent, make_pool
from delta_proxy.upstream.client import TableClient, Upstream
from delta_proxy.upstream.credentials import BotocoreCredentials
from delta_proxy.upstream.retry import Timeouts

_BACKLOG = 1024
_NAME = "delta-s3-proxy"

_log = Logger()


class Options(usage.Options):
    """`twistd -n delta-s3-proxy --config FILE`."""

    synopsis = "[--config FILE]"
    optParameters: ClassVar[list[list[Any]]] = [
        ["config", "c", None, "The configuration, a JSON file; PROXY_* variables go before it."]
    ]

    loaded: Config

    def postOptions(self) -> None:
        """Read the configuration before anything is started; a mistake is one line and exit status 1."""
        if self["config"] is None:
            raise SystemExit(f"{_NAME}: --config FILE is needed")
        try:
            self.loaded = load(pathlib.Path(self["config"]), os.environ)
        except ConfigError as error:
            raise SystemExit(f"{_NAME}: {error}") from None


def makeService(options: Options) -> IService:
    """The proxy as twistd runs it."""
    from twisted.internet import reactor  # noqa: PLC0415 - importing it installs it: not before twistd has chosen

    try:
        return ProxyService(options.loaded, reactor)
    except (UnusableCertificate, UnusableDirectory) as error:
        raise SystemExit(f"{_NAME}: {error}") from None


class ProxyService(MultiService):
    """Listens on `port` and `metricsPort`; stopping it answers what is in flight first."""

    def __init__(self, config: Config, reactor: Any) -> None:
        super().__init__()
        self._config = config
        self._reactor = reactor
        self._pool = ThreadPool(1, config.limits.threads, name=_NAME)
        self._connections = make_pool(reactor, connections=config.limits.upstream_connections)
        self._started_at = reactor.seconds()
        self.metrics = Metrics(CollectorRegistry(), reactor, tables=config.table_mapping)
        tables = self._make_tables()
        directory = private_directory(config.cache.directory)
        self.cache = self._make_cache(tables, directory)
        self.disk = DiskCache(
            directory,
            limit_bytes=config.cache.disk_bytes,
            defer_to_pool=self._defer_to_pool,
            clock=reactor,
            observer=self.metrics,
        )
        self.site = self._make_site(tables)
        self._listen()

    def startService(self) -> None:
        """Start the threads, listen, and look at the tables that grants speak of."""
        self._pool.start()
        super().startService()
        self._reactor.callWhenRunning(self._take_over_sigterm)
        _say_what_is_open(self._config)
        Deferred.fromCoroutine(self.disk.start()).addErrback(_log_unexpected)
        Deferred.fromCoroutine(self._check_policies()).addErrback(_log_unexpected)

    def stopService(self) -> Deferred[None]:
        """Stop listening, answer what is in flight for at most `shutdownSeconds`, then end the threads."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self.site.stop_accepting()
        stopped = super().stopService()
        if stopped is not None:
            await stopped
        if not await self.site.drained(self._config.limits.shutdown_seconds):
            _log.warn("requests were still in flight after {s} s", s=self._config.limits.shutdown_seconds)
        self.disk.stop()
        await self._connections.closeCachedConnections()
        self._pool.stop()

    def _take_over_sigterm(self) -> None:
        """Twisted ends the process by the signal it got; a service that drained ends with status 0."""
        signal.signal(signal.SIGTERM, lambda *_: self._reactor.callFromThread(self._reactor.stop))

    def _defer_to_pool(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Deferred[Any]:
        return deferToThreadPool(self._reactor, self._pool, function, *args, **kwargs)

    def _make_tables(self) -> Mapping[str, TableClient]:
        limits = self._config.limits
        timeouts = Timeouts(
            connect=limits.upstream_connect_timeout_seconds,
            first_byte=limits.upstream_idle_timeout_seconds,
            idle=limits.upstream_idle_timeout_seconds,
        )
        upstream = Upstream(
            make_agent(self._reactor, self._connections, timeouts=timeouts),
            self._reactor,
            self._defer_to_pool,
            random.random,
            UpstreamMetrics(self.metrics),
            timeouts=timeouts,
            in_flight=limits.upstream_connections,
        )
        chains = {
            profile: BotocoreCredentials(profile, self._defer_to_pool, self._reactor)
            for profile in {location.store.profile for location in self._config.table_mapping.values()}
        }
        return {
            alias: upstream.table(location, chains[location.store.profile])
            for alias, location in self._config.table_mapping.items()
        }

    def _make_cache(self, tables: Mapping[str, TableClient], directory: pathlib.Path) -> MetadataCache:
        sources = {
            alias: TableSource(
                _identity(client),
                TableRoot(client.location.bucket, client.location.prefix),
                client,
            )
            for alias, client in tables.items()
        }
        return MetadataCache(
            sources,
            clock=self._reactor,
            defer_to_pool=self._defer_to_pool,
            directory=directory,
            ttl_seconds=self._config.cache.metadata_ttl_seconds,
            observer=self.metrics,
        )

    def _make_gate(self, tables: Mapping[str, TableClient]) -> Gate:
        config, masks = self._config, GrantMasks()
        views = LogViews(
            {
                alias: TableViews(
                    _identity(client),
                    TableRoot(client.location.bucket, client.location.prefix),
                    client,
                    LogCatalog(self._reactor, config.cache.metadata_ttl_seconds),
                )
                for alias, client in tables.items()
            },
            cache=self.cache,
            disk=self.disk,
            memory=MemoryCache(config.cache.memory_bytes),
            masks=masks,
            defer_to_pool=self._defer_to_pool,
            now=_now,
        )
        filtered = config.log_view is LogView.FILTERED
        return Gate(config.policy, self.cache, views, masks, _now, filtered=filtered)

    def _make_site(self, tables: Mapping[str, TableClient]) -> S3Site:
        config, limits = self._config, self._config.limits
        gate = self._make_gate(tables)
        settings = Settings(
            addressing=Addressing(config.bucket, config.domains),
            region=config.storage.region or "us-east-1",
            read_only=config.read_only,
            get_mode=config.get_mode,
            proxy_partial=config.proxy_partial,
            presign_expiry_seconds=config.presign_expiry_seconds,
            never_redirect=config.never_redirect,
        )
        site = S3Site(
            RootResource(Services(settings, Anonymous(), gate, tables, self._defer_to_pool)),
            reactor=self._reactor,
            limits=EdgeLimits(
                connections=limits.max_connections,
                requests=limits.max_requests_in_flight,
                head=HeadLimits(size=limits.max_header_bytes),
                body=limits.max_body_bytes,
                idle_seconds=limits.idle_timeout_seconds,
            ),
            on_finished=self._count,
        )
        self.metrics.watch(in_flight=lambda: site.in_flight, connections=lambda: len(site.channels))
        return site

    def _count(self, record: RequestRecord) -> None:
        note = record.note
        self.metrics.request_finished(
            note.operation,
            record.status,
            note.decision,
            note.table,
            record.seconds,
            record.bytes_sent,
            note.principal,
            note.proxied,
        )
        self.metrics.bytes_received(record.bytes_received)
        if record.status == TEMPORARY_REDIRECT:
            self.metrics.redirected()

    def _listen(self) -> None:
        config = self._config
        if config.tls is None:
            server: Any = TCPServer(config.port, self.site, backlog=_BACKLOG, interface=config.interface)
        else:
            server = SSLServer(
                config.port,
                self.site,
                server_context(config.tls.certificate, config.tls.private_key),
                backlog=_BACKLOG,
                interface=config.interface,
            )
        server.setServiceParent(self)
        if config.metrics_port is not None:
            operators = metrics_site(
                reactor=self._reactor,
                readiness=self.readiness,
                render=self.metrics.render,
                content_type=CONTENT_TYPE,
                status=self.status,
            )
            TCPServer(config.metrics_port, operators, interface=config.interface).setServiceParent(self)

    def readiness(self) -> Mapping[str, bool | str]:
        """What /health/ready tells: whether requests are taken."""
        return {"accepting": not self.site.draining}

    def status(self) -> Status:
        """What the status page shows."""
        now = self._reactor.seconds()
        tables = tuple(
            TableStatus(alias, state.version, state.files, now - state.at)
            if (state := self.cache.state(alias)) is not None
            else TableStatus(alias)
            for alias in sorted(self._config.table_mapping)
        )
        counters = {"requests in flight": self.site.in_flight, "connections": len(self.site.channels)}
        return Status(version(_NAME), now - self._started_at, tables, counters)

    async def _check_policies(self) -> None:
        """A grant that cannot be meant for its table ends the start; a table that cannot be read denies."""
        for alias, grant in self._config.allowed_partitions.items():
            if grant.is_everything or grant.is_nothing:
                continue
            try:
                index = await self.cache.table(alias)
                check(grant, index.metadata.columns, f"allowedPartitions.{alias}")
            except PolicyError as error:
                self._give_up(f"{error}")
            except (S3Error, LogError) as error:
                _log.error("table {alias} cannot be read: {error}", alias=alias, error=str(error))

    def _give_up(self, problem: str) -> None:
        """End the process with status 1; twistd itself knows only 0 and signals."""
        print(f"{_NAME}: {problem}", file=sys.stderr, flush=True)
        _log.critical("{problem}", problem=problem)
        atexit.register(os._exit, 1)
        self._reactor.stop()


class UpstreamMetrics:
    """Hands what happens towards the stores to the metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def request_finished(self, operation: str, outcome: str, seconds: float) -> None:
        """A store answered, or failed."""
        self._metrics.upstream_finished(operation, outcome, seconds)

    def bytes_received(self, count: int) -> None:
        """Body bytes of a store are counted where they are sent on."""


def _say_what_is_open(config: Config) -> None:
    """Tell the operator, at each start, what is not protected."""
    if config.log_view is LogView.PASSTHROUGH:
        _log.warn(
            "logView is passthrough: the contents of _delta_log/ are not yet filtered; whoever may read any "
            "partition of a table sees the file names and statistics of all of them"
        )
    if config.interface not in {"127.0.0.1", "::1"}:
        _log.warn("nobody is asked who they are, and the proxy listens beyond loopback")


def _identity(client: TableClient) -> str:
    """What tells a table from every other: the store and the place in it."""
    return f"{client.location.store.endpoint or 'aws'} {client.location.uri}"


def _now() -> datetime:
    return datetime.now(UTC)


def _log_unexpected(failure: Failure) -> None:
    _log.failure("starting up failed", failure=failure)
