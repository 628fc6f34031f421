"""The parent: owns the socket, the metrics port and the signals, and answers no client itself."""

# The names are those of Twisted's interfaces.
# ruff: noqa: N802
# mypy: allow-untyped-calls
from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Protocol, TextIO, cast

import attrs
from twisted.application.internet import TCPServer
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError, ReactorNotRunning
from twisted.internet.interfaces import IProcessTransport
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.threads import deferToThreadPool
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from twisted.python.failure import Failure

from delta_proxy.access.policy import PolicyError
from delta_proxy.config import Config, parse, read
from delta_proxy.delta.leftovers import owner, remove_folders
from delta_proxy.identity import new_list_key
from delta_proxy.logs import LogFormat, observer
from delta_proxy.metrics import CONTENT_TYPE, render_workers
from delta_proxy.reload import Refused, Reload
from delta_proxy.resources.health import Checks, metrics_site
from delta_proxy.resources.status import Status
from delta_proxy.workers.child import OneProtocol
from delta_proxy.workers.figures import counted, joined_checks, joined_status
from delta_proxy.workers.link import Link, Message, unpack_checks, unpack_moment, unpack_status
from delta_proxy.workers.logfile import SharedLogFile
from delta_proxy.workers.supervisor import NoAnswer, Supervisor, Worker

LINK: Final = 3
LISTENER: Final = 4
"""The descriptors of a worker."""
_BACKLOG: Final = 1024
_CHECK_SECONDS: Final = 120.0

_log = Logger()


@attrs.frozen
class Setting:
    """What a worker's process gets from the command that started the parent.

    `file` is the configuration and `text` what it held, `directory` the one that relative paths in it start
    from; `arguments` are twistd's options for the log, `log` the file of the log if it goes to one.
    """

    file: Path
    text: str
    directory: str
    arguments: Sequence[str] = ()
    log: str | None = None


class ParentService(MultiService):
    """`workers` processes on one port. Stopping it lets all of them drain.

    `give_up` is told why no worker can start. OSError when the log file cannot be opened.
    """

    def __init__(
        self, config: Config, reactor: Any, setting: Setting, *, name: str, give_up: Callable[[str], None]
    ) -> None:
        super().__init__()
        self._config, self._reactor, self._setting, self._name = config, reactor, setting, name
        self._started_at = reactor.seconds()
        self._start_text = self._text = self._fresh_text = setting.text
        self._log_file = None if setting.log is None else SharedLogFile(setting.log)
        # A page may be asked of another worker than the one before it.
        self._list_key = new_list_key()
        self._listener: socket.socket | None = None
        self._figures: Path | None = None
        self._supervisor = Supervisor(
            config.workers,
            self,
            reactor,
            shutdown_seconds=config.limits.shutdown_seconds,
            give_up=give_up,
        )
        self._reload = Reload(self._load, self._in_thread, self)
        if config.metrics_port is not None:
            operators = metrics_site(
                reactor=reactor,
                readiness=self.readiness,
                render=self.render,
                content_type=CONTENT_TYPE,
                status=self.status,
            )
            TCPServer(config.metrics_port, operators, interface=config.metrics_interface).setServiceParent(
                self
            )

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self._config

    @property
    def workers(self) -> Sequence[Worker]:
        """The places of the workers."""
        return self._supervisor.workers

    def setServiceParent(self, parent: Any) -> None:
        """Make the application log to the file that the workers write as well, if it is a file."""
        if self._log_file is not None and isinstance(parent, Componentized):
            lines = observer(LogFormat.TEXT, cast(TextIO, self._log_file))
            parent.setComponent(ILogObserver, lines)
        super().setServiceParent(parent)

    def privilegedStartService(self) -> None:
        """Open the port. Raises CannotListenError."""
        super().privilegedStartService()
        self._listener = listening(self._config.interface, self._config.port)

    def startService(self) -> None:
        """Start the workers as soon as the reactor runs."""
        super().startService()
        self._figures = _figures_folder(f"{self._name}-figures")
        self._reactor.callWhenRunning(self._take_over_signals)
        self._reactor.callWhenRunning(self._supervisor.start)

    def stopService(self) -> Deferred[None]:
        """Close the port, and let the workers answer what is in flight."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._listener is not None:
            self._listener.close()
        stopped = super().stopService()
        if stopped is not None:
            await stopped
        await self._supervisor.stop()
        if self._figures is not None:
            shutil.rmtree(self._figures, ignore_errors=True)

    def _take_over_signals(self) -> None:
        in_reactor = self._reactor.callFromThread
        before = signal.getsignal(signal.SIGUSR1)
        signal.signal(signal.SIGTERM, lambda *_: in_reactor(stop_once, self._reactor))
        signal.signal(signal.SIGHUP, lambda *_: in_reactor(self._reload.ask))
        signal.signal(signal.SIGUSR1, lambda *arguments: self._rotated(before, *arguments))

    def _rotated(self, before: Any, *arguments: Any) -> None:
        if callable(before):
            before(*arguments)
        # After what the handler of before has put off in the same way.
        self._reactor.callFromThread(self.reopen)

    def reopen(self) -> None:
        """Go on in new log files, in every process."""
        if self._log_file is not None:
            self._log_file.reopen()
        self._supervisor.tell({"do": "reopen"})

    def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        pool = self._reactor.getThreadPool()
        return deferToThreadPool(self._reactor, pool, function, *arguments)

    def _load(self) -> Config:
        text = read(self._setting.file)
        config = parse(text, str(self._setting.file), os.environ)
        self._fresh_text = text
        return config

    async def check_grants(self, config: Config, aliases: Collection[str]) -> None:
        """Let a worker see whether the grants of the fresh configuration can be meant for these tables.

        Raises PolicyError, and Refused when no worker can tell.
        """
        try:
            problem = await self._supervisor.ask_one(
                "check", _CHECK_SECONDS, config=self._fresh_text, aliases=sorted(aliases)
            )
        except NoAnswer:
            raise Refused("no worker could check the grants") from None
        if problem:
            raise PolicyError(*problem)

    def apply(self, config: Config) -> None:
        """Let every worker, and each that starts from now on, answer by the fresh configuration."""
        self._config, self._text = config, self._fresh_text
        self._supervisor.tell({"do": "apply", "config": self._text})

    async def readiness(self) -> Checks:
        """Whether requests are taken and can be answered."""
        answers = await self._supervisor.ask("health")
        return joined_checks(map(unpack_checks, answers.values()), self._config.workers)

    async def status(self) -> Status:
        """What the status page shows."""
        answers = await self._supervisor.ask("status")
        uptime = self._reactor.seconds() - self._started_at
        mine = Status(version(self._name), uptime, counters=counted(answers))
        return joined_status(map(unpack_status, answers.values()), mine)

    async def render(self) -> bytes:
        """All figures in Prometheus' text format."""
        assert self._figures is not None
        answers = await self._supervisor.ask("figures")
        moments = [unpack_moment(answer) for answer in answers.values()]
        figures: bytes = await self._in_thread(render_workers, self._figures, moments)
        return figures

    def spawn(self, worker: Worker) -> _Process:
        """A process of this very program for a worker. Raises OSError."""
        assert self._listener is not None
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            process = _Process(worker)
            self._reactor.spawnProcess(
                process,
                sys.executable,
                [sys.executable, "-m", "delta_proxy.workers", str(worker.number), *self._setting.arguments],
                env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(self._figures)},
                path=self._setting.directory,
                childFDs={
                    0: 0,
                    1: 1,
                    2: 2 if self._log_file is None else self._log_file.descriptor,
                    LINK: theirs.fileno(),
                    LISTENER: self._listener.fileno(),
                },
            )
            self._reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, OneProtocol(process.link))
        process.send(self._given(worker.number))
        return process

    def _given(self, number: int) -> Message:
        return {
            "number": number,
            "start": self._start_text,
            "current": self._text,
            "listener": LISTENER,
            "log": self._setting.log,
            "list_key": self._list_key.hex(),
            "replaces": self._supervisor.was_up,
        }


class _Process(ProcessProtocol):
    """A worker's process, and the link to it."""

    transport: IProcessTransport

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.link = Link(worker.received)

    def send(self, message: Message) -> None:
        """Send it a message."""
        self.link.send(message)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        # Not by its number: that may belong to another process by now.
        self.transport.signalProcess(number.name.removeprefix("SIG"))

    def processEnded(self, reason: Failure) -> None:
        """It is gone."""
        self.link.close()
        self._worker.ended(how_it_ended(cast(Ended, reason.value)))


class Ended(Protocol):
    """ProcessDone or ProcessTerminated."""

    exitCode: int | None  # noqa: N815 - Twisted's name
    signal: int | None


def how_it_ended(ended: Ended) -> str:
    """The end of a process in words."""
    if ended.signal is not None:
        return f"ended by {signal.Signals(ended.signal).name}"
    return f"ended with status {ended.exitCode}"


def listening(interface: str, port: int) -> socket.socket:
    """A TCP socket that listens and that nobody accepts from yet. Raises CannotListenError."""
    family = socket.AF_INET6 if ":" in interface else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((interface, port))
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        raise CannotListenError(interface, port, error) from None
    made.setblocking(False)
    return made


def _figures_folder(kind: str) -> Path:
    """A new folder; those of parents that were killed are removed."""
    # Some machines let nobody list what others have there.
    with contextlib.suppress(OSError):
        remove_folders(Path(tempfile.gettempdir()), kind)
    return Path(tempfile.mkdtemp(prefix=f"{kind}-{owner()}-"))


def stop_once(reactor: Any) -> None:
    """Stop the reactor; a second wish to do so, while it drains, changes nothing."""
    with contextlib.suppress(ReactorNotRunning):
        reactor.stop()


def log_arguments(options: Mapping[str, Any]) -> tuple[tuple[str, ...], str | None]:
    """From twistd's options: those by which a worker logs as its parent does, and the log's file if any."""
    if options.get("logger"):
        return ("--logger", _dotted(options["logger"])), None
    if options.get("syslog"):
        return ("--syslog", "--prefix", options.get("prefix") or "twisted"), None
    file = options.get("logfile")
    if file == "-" or (options.get("nodaemon") and not file):
        return (), None
    return ("--logger", "delta_proxy.workers.logfile.observer"), os.path.abspath(file or "twistd.log")


def _dotted(factory: Any) -> str:
    return f"{factory.__module__}.{factory.__qualname__}"
