"""The twistd service: the only place that wires the parts together and names the reactor."""

# The names are those of Twisted's interfaces.
# ruff: noqa: N802, N815
# mypy: allow-untyped-calls
from __future__ import annotations

import atexit
import gc
import os
import pathlib
import random
import signal
import sys
from collections.abc import Callable, Collection, Mapping
from functools import partial
from importlib.metadata import version
from typing import Any, ClassVar

from prometheus_client import CollectorRegistry
from twisted.application.internet import TCPServer
from twisted.application.service import IService, MultiService
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python import usage
from twisted.python.components import Componentized
from twisted.python.failure import Failure
from twisted.python.logfile import LogFile
from twisted.python.threadpool import ThreadPool
from twisted.web.http import TEMPORARY_REDIRECT

from delta_proxy.access.audit import AuditLog
from delta_proxy.access.policy import PolicyError, check
from delta_proxy.access.snapshot import utc_now
from delta_proxy.config import Config, ConfigError, load, parse, read
from delta_proxy.delta.actions import LogError
from delta_proxy.delta.cache import MetadataCache
from delta_proxy.delta.commit_probe import CommitProbes
from delta_proxy.delta.directory import UnusableDirectory, private_directory
from delta_proxy.delta.disk_cache import DiskCache
from delta_proxy.delta.gate import Gate
from delta_proxy.delta.shared_log import SharedLog
from delta_proxy.delta.source import TableSource
from delta_proxy.delta.views import TableViews
from delta_proxy.delta.write_marks import WriteMarks
from delta_proxy.exposure import say_what_is_open
from delta_proxy.identity import Identity
from delta_proxy.logs import LogFormat, install, rotate
from delta_proxy.metrics import CONTENT_TYPE, Metrics, Moment
from delta_proxy.ports import UnusablePort, check_ports
from delta_proxy.reload import Reload
from delta_proxy.resources.auditing import record_decision
from delta_proxy.resources.head import HeadLimits
from delta_proxy.resources.health import Degraded, metrics_site
from delta_proxy.resources.places import PrincipalPlaces
from delta_proxy.resources.root import RootResource
from delta_proxy.resources.server import EdgeLimits, RequestRecord, S3Site
from delta_proxy.resources.services import Services, Settings
from delta_proxy.resources.status import Status, TableStatus
from delta_proxy.resources.writing import Writing
from delta_proxy.s3.errors import S3Error
from delta_proxy.s3.request import Addressing
from delta_proxy.tls import UnusableCertificate, server_context
from delta_proxy.upstream.agent import make_agent, make_pool, make_reads
from delta_proxy.upstream.bulk_tls import BulkTLSFactory
from delta_proxy.upstream.client import Upstream
from delta_proxy.upstream.credentials import BotocoreCredentials, CredentialSource
from delta_proxy.upstream.origin import DEFAULT_REGION
from delta_proxy.upstream.splice import Splicing
from delta_proxy.upstream.writer import TableWriter
from delta_proxy.wiring import make_gate, make_tables, make_timeouts
from delta_proxy.workers.child import WorkerEnd
from delta_proxy.workers.parent import ParentService, Setting, log_arguments, stop_once
from delta_proxy.workers.port import AdoptedPort

_BACKLOG = 1024
_NAME = "delta-s3-proxy"

MakeLog = Callable[[Componentized], LogFile | None]

_log = Logger()


class Options(usage.Options):
    """`twistd -n delta-s3-proxy --config FILE`."""

    synopsis = "[--config FILE]"
    optParameters: ClassVar[list[list[Any]]] = [
        ["config", "c", None, "The configuration, a JSON file; PROXY_* variables go before it."],
        ["worker", None, None, "For the proxy's own use: the descriptor of a worker's link to its parent."],
    ]

    file: pathlib.Path
    text: str
    loaded: Config
    end: WorkerEnd | None = None

    def postOptions(self) -> None:
        """Read the configuration before anything is started; a mistake is one line and exit status 1."""
        try:
            if self["worker"] is not None:
                self.end = WorkerEnd(int(self["worker"]), os.environ)
                self.loaded = self.end.given.config(os.environ)
                return
            if self["config"] is None:
                raise SystemExit(f"{_NAME}: --config FILE is needed")
            # twistd changes its directory when it goes to the background.
            self.file = pathlib.Path(self["config"]).absolute()
            self.text = read(self.file)
            self.loaded = parse(self.text, str(self.file), os.environ)
        except ConfigError as error:
            raise SystemExit(f"{_NAME}: {error}") from None
        except (OSError, ValueError) as error:
            if self["worker"] is None:
                raise
            raise SystemExit(f"{_NAME}: --worker is for the proxy's own use: {error}") from None

    def load(self) -> Config:
        """The configuration as it stands now. Raises ConfigError."""
        return load(self.file, os.environ)


def makeService(options: Options) -> IService:
    """The proxy as twistd runs it."""
    from twisted.internet import reactor  # noqa: PLC0415 - importing it installs it: not before twistd has chosen

    log = log_maker(options.parent or {})
    try:
        if options.end is not None:
            return ProxyService(options.loaded, reactor, end=options.end, log=log)
        check_ports(options.loaded)
        if options.loaded.workers > 1:
            return make_parent(options, reactor)
        return ProxyService(options.loaded, reactor, options.load, log=log)
    except (UnusableAudit, UnusableCertificate, UnusableDirectory, UnusablePort) as error:
        raise SystemExit(f"{_NAME}: {error}") from None


def make_parent(options: Options, reactor: Any) -> ParentService:
    """The parent of several workers; what would keep each of them from starting is found out here."""
    config = options.loaded
    private_directory(config.cache.directory)
    if config.tls is not None:
        server_context(config.tls.certificate, config.tls.private_key)
    audit = _open_audit(config.audit, lambda _: None)
    if audit is not None:
        audit.close()
    say_what_is_open(config)
    arguments, log = log_arguments(options.parent or {})
    setting = Setting(options.file, options.text, os.getcwd(), arguments, log)
    return ParentService(config, reactor, setting, name=_NAME, give_up=partial(give_up, reactor))


def log_maker(options: Mapping[str, Any]) -> MakeLog | None:
    """What makes an application log as `logs` has it, where twistd's options name a file or nothing."""
    told, file = log_arguments(options)
    return None if told and file is None else partial(install, style=LogFormat.TEXT, path=file)


class ProxyService(MultiService):
    """Listens on `port` and `metricsPort`; stopping it answers what is in flight first.

    `reload` reads the configuration again, blocking; it raises ConfigError. A worker has instead `end`, the
    link to its parent, which opened the port and reads the configuration for all. `log` makes the log of the
    application, whose file, if it is one, is rotated at SIGUSR1.
    """

    def __init__(
        self,
        config: Config,
        reactor: Any,
        reload: Callable[[], Config] | None = None,
        *,
        end: WorkerEnd | None = None,
        log: MakeLog | None = None,
    ) -> None:
        super().__init__()
        self._make_log = log
        self._log_file: LogFile | None = None
        self._config = config
        self._reactor = reactor
        self._reload = None if reload is None else Reload(reload, self._defer_to_pool, self)
        self._end = end
        self._pool = ThreadPool(1, config.limits.threads, name=_NAME)
        self._connections = make_pool(reactor, connections=config.limits.upstream_connections)
        self._reads = make_reads(
            reactor, connections=config.limits.upstream_connections, timeouts=make_timeouts(config)
        )
        least = config.limits.splice_bytes
        self._splicing = Splicing(reactor, least=least) if least else None
        self._started_at = reactor.seconds()
        self.metrics = Metrics(CollectorRegistry(), reactor, tables=config.table_mapping)
        self._upstream = self._make_upstream()
        self._chains: dict[str | None, BotocoreCredentials] = {}
        self._credentials = CredentialCheck()
        self._identity = Identity(
            config,
            reactor=reactor,
            defer_to_pool=self._defer_to_pool,
            upstream=self._upstream,
            list_key=None if end is None else end.given.list_key,
        )
        self._audit = _open_audit(config.audit, self._report)
        directory = private_directory(config.cache.directory)
        self.disk = DiskCache(
            directory,
            limit_bytes=config.cache.disk_bytes,
            defer_to_pool=self._defer_to_pool,
            clock=reactor,
            observer=self.metrics,
        )
        self._marks = WriteMarks(directory)
        self._probes = CommitProbes()
        self._places = PrincipalPlaces(reactor, limit=config.limits.max_requests_per_principal)
        tables = self._make_tables(config)
        self.cache = self._make_cache(tables, directory)
        self._root = RootResource(self._services(config, tables))
        self.site = self._make_site()
        self._listen()

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self._config

    def setServiceParent(self, parent: Any) -> None:
        """Make the application log before twistd would: no line of twistd's own observer is scrubbed."""
        if self._make_log is not None and isinstance(parent, Componentized):
            self._log_file = self._make_log(parent)
        super().setServiceParent(parent)

    def startService(self) -> None:
        """Start the threads, listen, and look at the tables that grants speak of."""
        self._pool.start()
        if self._audit is not None:
            self._audit.start()
        super().startService()
        self._reactor.callWhenRunning(self._take_over_signals)
        self._reactor.callWhenRunning(_spare_collections)
        if self._end is None:
            say_what_is_open(self._config)
        else:
            self._end.attach(self, self._reactor)
        for work in (self.disk.start(), self._identity.start(), self._check_at_start(), self._probe_stores()):
            Deferred.fromCoroutine(work).addErrback(_log_unexpected)

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
        await self._identity.stop()
        if self._audit is not None:
            await self._defer_to_pool(self._audit.close)
        await self._connections.closeCachedConnections()
        await self._reads.close()
        if self._splicing is not None:
            self._splicing.close()
        self._pool.stop()
        if self._end is not None:
            await self._end.close()

    def _take_over_signals(self) -> None:
        """Twisted ends the process by the signal it got; a service that drained ends with status 0."""
        in_reactor = self._reactor.callFromThread
        signal.signal(signal.SIGTERM, lambda *_: in_reactor(self.stop))
        # A worker is told by its parent; a signal to the whole group is not for it.
        ask = None if self._reload is None else self._reload.ask
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ask is None else lambda *_: in_reactor(ask))
        if self._log_file is not None:
            signal.signal(signal.SIGUSR1, lambda *_: in_reactor(rotate, self._log_file))
        if self._end is not None:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        elif self._audit is not None:
            signal.signal(signal.SIGUSR1, reopening(self._audit, signal.getsignal(signal.SIGUSR1)))

    def stop(self) -> None:
        """Drain, and end the process."""
        stop_once(self._reactor)

    def reopen(self) -> None:
        """Go on in a new audit log."""
        if self._audit is not None:
            self._audit.reopen()

    def moment(self) -> Moment:
        """The figures of the moment, for the parent."""
        return self.metrics.moment()

    def _report(self, line: str) -> None:
        """A line of the audit log's own thread."""
        self._reactor.callFromThread(_log.error, "{line}", line=line)

    def _defer_to_pool(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Deferred[Any]:
        return deferToThreadPool(self._reactor, self._pool, function, *args, **kwargs)

    def _make_upstream(self) -> Upstream:
        limits, timeouts = self._config.limits, make_timeouts(self._config)
        return Upstream(
            make_agent(self._reactor, self._connections, timeouts=timeouts),
            self._reactor,
            self._defer_to_pool,
            random.random,
            UpstreamMetrics(self.metrics),
            reads=self._reads,
            splicing=self._splicing,
            timeouts=timeouts,
            in_flight=limits.upstream_connections,
        )

    def _make_tables(self, config: Config) -> Mapping[str, TableViews]:
        return make_tables(config, self._upstream, self._chain, self._reactor, self._marks.of)

    def _chain(self, profile: str | None) -> BotocoreCredentials:
        if profile not in self._chains:
            chain = BotocoreCredentials(profile, self._defer_to_pool, self._reactor)
            self._chains[profile] = chain
            self._credentials.watch(profile, chain)
        return self._chains[profile]

    def _make_cache(self, tables: Mapping[str, TableViews], directory: pathlib.Path) -> MetadataCache:
        return MetadataCache(
            self._sources(tables),
            clock=self._reactor,
            defer_to_pool=self._defer_to_pool,
            directory=directory,
            ttl_seconds=self._config.cache.metadata_ttl_seconds,
            observer=self.metrics,
            mark=self._marks.of,
        )

    def apply(self, config: Config) -> None:
        """Answer the requests that come from now on by this configuration."""
        tables = self._make_tables(config)
        self.cache = self.cache.successor(self._sources(tables))
        self.metrics.set_tables(config.table_mapping)
        self._root.replace(self._services(config, tables))
        self._config = config

    def _sources(self, tables: Mapping[str, TableViews]) -> Mapping[str, TableSource]:
        return {alias: self._source(table) for alias, table in tables.items()}

    def _source(self, table: TableViews) -> TableSource:
        log = SharedLog(table, self.disk, self._defer_to_pool)
        return TableSource(table.identity, table.root, log, table.catalog.forget_all)

    def _make_gate(self, config: Config, tables: Mapping[str, TableViews]) -> Gate:
        return make_gate(
            config,
            tables,
            cache=self.cache,
            disk=self.disk,
            memory_bytes=config.cache.memory_bytes,
            defer_to_pool=self._defer_to_pool,
            now=utc_now,
        )

    def _services(self, config: Config, tables: Mapping[str, TableViews]) -> Services:
        asking = self._identity.asking(config)
        settings = Settings(
            addressing=Addressing(config.bucket, config.domains),
            region=config.storage.region or DEFAULT_REGION,
            read_only=config.read_only,
            get_mode=config.get_mode,
            proxy_partial=config.proxy_partial,
            presign_expiry_seconds=config.presign_expiry_seconds,
            never_redirect=config.never_redirect,
            cors=config.cors,
        )
        return Services(
            settings,
            asking.authenticator,
            self._make_gate(config, tables),
            {alias: table.store for alias, table in tables.items()},
            self._defer_to_pool,
            sts=asking.sts,
            forward=asking.forward,
            audit=self._audit,
            writing=None if config.read_only else self._writing(tables),
            partitions=self._partitions,
            places=self._places,
        )

    def _writing(self, tables: Mapping[str, TableViews]) -> Writing:
        return Writing(
            {alias: TableWriter(table.store) for alias, table in tables.items()},
            self._probes,
            lambda alias: self._marks.set(tables[alias].identity),
            self._defer_to_pool,
        )

    def _partitions(self, alias: str, path: str) -> tuple[Mapping[str, str | None], ...]:
        """The sets of partition values that a path has had, as far as the index at hand knows."""
        index = self.cache.at_hand(alias)
        if index is None:
            return ()
        numbers = dict.fromkeys(entry.tuple_id for entry in index.lookup(path))
        return tuple(dict(index.partitions[n].values) for n in numbers if n in range(len(index.partitions)))

    def _make_site(self) -> S3Site:
        limits = self._config.limits
        site = S3Site(
            self._root,
            reactor=self._reactor,
            limits=EdgeLimits(
                connections=limits.max_connections,
                requests=limits.max_requests_in_flight,
                head=HeadLimits(size=limits.max_header_bytes),
                body=limits.max_body_bytes,
                idle_seconds=limits.idle_timeout_seconds,
            ),
            on_finished=self._finished,
            prepare=self._root.prepare,
        )
        self.metrics.watch(in_flight=lambda: site.in_flight, connections=lambda: len(site.channels))
        return site

    def _finished(self, record: RequestRecord) -> None:
        if self._audit is not None:
            record_decision(record, utc_now(), self._audit)
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
        if record.bytes_received:
            self.metrics.bytes_received(record.bytes_received)
        if record.status == TEMPORARY_REDIRECT:
            self.metrics.redirected()

    def _listen(self) -> None:
        config = self._config
        factory: Any = self.site
        if config.tls is not None:
            context = server_context(config.tls.certificate, config.tls.private_key)
            factory = BulkTLSFactory(context, False, self.site, self._reactor)
        if self._end is not None:
            listener, connections = self._end.given.listener, lambda: len(self.site.channels)
            AdoptedPort(self._reactor, listener, factory, connections).setServiceParent(self)
            return
        where = {"backlog": _BACKLOG, "interface": config.interface}
        TCPServer(config.port, factory, **where).setServiceParent(self)
        if config.metrics_port is not None:
            operators = metrics_site(
                reactor=self._reactor,
                readiness=self.readiness,
                render=self.metrics.render,
                content_type=CONTENT_TYPE,
                status=self.status,
            )
            TCPServer(config.metrics_port, operators, interface=config.metrics_interface).setServiceParent(
                self
            )

    def readiness(self) -> Mapping[str, bool | str | Degraded]:
        """What /health/ready tells: whether requests are taken, and can be answered."""
        checks: dict[str, bool | str | Degraded] = {
            "accepting": not self.site.draining,
            "credentials": self._credentials.readiness(
                {location.store.profile for location in self._config.table_mapping.values()}
            ),
        }
        if self._config.database_enabled:
            checks["database"] = self._identity.readiness()
        if self._audit is not None:
            checks["audit"] = self._audit.ready if self._audit.failure is None else self._audit.failure
        return checks

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

    async def _check_at_start(self) -> None:
        """A grant that cannot be meant for its table ends the start; a table that cannot be read denies."""
        try:
            await self.check_grants(self._config, frozenset(self._config.table_mapping))
        except PolicyError as error:
            if self._end is None:
                give_up(self._reactor, f"{error}")
            elif self._end.refuse(f"{error}"):
                # The parent tells the operator, once for all workers.
                fail(self._reactor)
                return
        if self._end is not None:
            self._end.up()

    async def _probe_stores(self) -> None:
        """Try the stores that may be written to, so that the operator learns at once what is refused."""
        writing = self._root.services.writing
        for alias, writer in () if writing is None else writing.writers.items():
            try:
                await self._probes.check(writer)
            except S3Error as error:
                _log.error("table {alias} cannot be written to: {error}", alias=alias, error=str(error))

    async def check_grants(self, config: Config, aliases: Collection[str]) -> None:
        """Raises PolicyError for a grant that cannot be meant for its table, of those given."""
        for path, alias, grant in config.grants:
            if alias not in aliases or grant.is_everything or grant.is_nothing:
                continue
            try:
                index = await self.cache.table(alias)
            except (S3Error, LogError, OSError) as error:
                _log.error("table {alias} cannot be read: {error}", alias=alias, error=str(error))
            else:
                check(grant, index.metadata.columns, ".".join(path))


def give_up(reactor: Any, problem: str) -> None:
    """Tell the operator why, and end the process with status 1."""
    # Not sys.stderr, which twistd has made a part of the log.
    print(f"{_NAME}: {problem}", file=sys.__stderr__, flush=True)
    _log.critical("{problem}", problem=problem)
    fail(reactor)


def fail(reactor: Any) -> None:
    """End the process with status 1; twistd itself knows only 0 and signals."""
    atexit.register(os._exit, 1)
    stop_once(reactor)


class UpstreamMetrics:
    """Hands what happens towards the stores to the metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def request_finished(self, operation: str, outcome: str, seconds: float) -> None:
        """A store answered, or failed."""
        self._metrics.upstream_finished(operation, outcome, seconds)

    def bytes_received(self, count: int) -> None:
        """Body bytes of a store are counted where they are sent on."""


class CredentialCheck:
    """Whether the stores' credentials can be had; asked for again, without haste, while they cannot."""

    def __init__(self) -> None:
        self._chains: dict[str | None, CredentialSource] = {}
        self._problems: dict[str | None, str] = {}
        self._asking: set[str | None] = set()

    def watch(self, profile: str | None, chain: CredentialSource) -> None:
        """Count these credentials among those that are needed; until they came they are missing."""
        self._chains[profile] = chain
        self._problems[profile] = f"none yet for the profile {profile or 'default'}"

    def readiness(self, profiles: Collection[str | None]) -> bool | str:
        """True when those of these profiles are there, else what is wrong."""
        wanting = [profile for profile in self._problems if profile in profiles]
        for profile in wanting:
            if profile not in self._asking:
                self._asking.add(profile)
                Deferred.fromCoroutine(self._ask(profile)).addErrback(_log_unexpected)
        return "; ".join(self._problems[each] for each in wanting if each in self._problems) or True

    async def _ask(self, profile: str | None) -> None:
        try:
            await self._chains[profile].get()
            self._problems.pop(profile, None)
        except S3Error as error:
            self._problems[profile] = f"none for the profile {profile or 'default'}: {error.code}"
        finally:
            self._asking.discard(profile)


class UnusableAudit(Exception):
    """The audit log cannot be written."""


def _open_audit(path: str | None, report: Callable[[str], None]) -> AuditLog | None:
    """The log, not yet writing. Raises UnusableAudit."""
    try:
        return None if path is None else AuditLog(path, report=report)
    except OSError as error:
        raise UnusableAudit(f"audit: cannot write to {path}: {error.strerror}") from None


def reopening(audit: AuditLog, before: Any) -> Callable[..., None]:
    """A signal handler that reopens the log, and does what the signal did before."""

    def handle(*arguments: Any) -> None:
        audit.reopen()
        if callable(before):
            before(*arguments)

    return handle


def _spare_collections() -> None:
    """What start-up made lives on: a full garbage collection that looks at it all stalls the reactor."""
    gc.collect()
    gc.freeze()


def _log_unexpected(failure: Failure) -> None:
    _log.failure("starting up failed", failure=failure)
