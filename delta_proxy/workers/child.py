"""The worker's side: what the parent gave it, and how it answers the parent."""

from __future__ import annotations

import socket
from collections.abc import Collection, Mapping
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from delta_proxy.access.policy import PolicyError
from delta_proxy.config import Config, parse
from delta_proxy.metrics import Moment
from delta_proxy.reload import continued, merged
from delta_proxy.resources.health import Checks
from delta_proxy.resources.status import Status
from delta_proxy.workers.counts import write_counts
from delta_proxy.workers.link import Link, Message, pack, pack_checks, read_now
from delta_proxy.workers.logfile import SharedLogFile

_SOURCE = "the configuration"

_log = Logger()


class Working(Protocol):
    """The proxy in this process, as its parent asks for it."""

    @property
    def config(self) -> Config:
        """The configuration in force."""

    def apply(self, config: Config) -> None:
        """Put another one in force."""

    async def check_grants(self, config: Config, aliases: Collection[str]) -> None:
        """Raises PolicyError."""

    def readiness(self) -> Checks:
        """Whether requests can be answered."""

    def status(self) -> Status:
        """For the status page."""

    def moment(self) -> Moment:
        """The figures of the moment."""

    def reopen(self) -> None:
        """Go on in new log files."""

    def stop(self) -> None:
        """Drain and end."""


def _of_hex(text: str) -> bytes:
    return bytes.fromhex(text)


@attrs.frozen
class Given:
    """What the parent gives a worker that starts.

    `start` is the text of the configuration that the parent started with, `current` of the one in force;
    `listener` the descriptor of the socket that listens; `log` the file that standard error is, if it is one;
    `list_key` what vouches for list tokens in all workers, on the link in hexadecimal; `replaces` says that
    workers were up before.
    """

    number: int
    start: str
    current: str
    listener: int
    log: str | None
    list_key: bytes = attrs.field(converter=_of_hex, repr=False)
    replaces: bool = False

    def config(self, environ: Mapping[str, str]) -> Config:
        """The configuration in force. Raises ConfigError."""
        start = parse(self.start, _SOURCE, environ)
        if self.current == self.start:
            return start
        # Whether it may be in force was decided step by step: from the first to the last may be too far.
        return continued(start, parse(self.current, _SOURCE, environ))


class WorkerEnd:
    """The link to the parent. What comes is answered from `attach` on.

    Reading what is given blocks. Raises EOFError when the parent is gone.
    """

    def __init__(self, descriptor: int, environ: Mapping[str, str]) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._environ = environ
        self.given = Given(**read_now(self._socket))
        self._link = Link(self._received)
        self._working: Working | None = None

    def attach(self, working: Working, reactor: Any) -> None:
        """Answer for this proxy; it ends when the parent is gone."""
        self._working = working
        self._socket.setblocking(False)
        reactor.adoptStreamConnection(self._socket.fileno(), socket.AF_UNIX, OneProtocol(self._link))
        self._socket.close()
        self._link.closed.addCallback(lambda _: working.stop())

    def up(self) -> None:
        """Tell that requests are answered."""
        self._link.send({"up": True})

    def refuse(self, problem: str) -> bool:
        """Whether a grant that cannot be meant keeps this worker from starting; then the parent is told.

        One that takes the place of another goes on: what denies beside it denies here too.
        """
        if self.given.replaces:
            _log.error("a grant gives nothing: {problem}", problem=problem)
            return False
        self._link.send({"refused": problem})
        return True

    async def close(self) -> None:
        """Say what is still to be said, and part."""
        write_counts()
        if self._link.open:
            self._link.close()
            await self._link.closed

    def _received(self, message: Message) -> None:
        Deferred.fromCoroutine(self._do(message)).addErrback(_unexpected)

    async def _do(self, message: Message) -> None:
        assert self._working is not None
        match message:
            case {"do": "reopen"}:
                self._reopen(self._working)
            case {"do": "apply", "config": str(text)}:
                self._apply(self._working, text)
            case {"ask": str(what), "id": number}:
                answer = await self._answer(self._working, what, message)
                self._link.send({"id": number, "answer": answer})

    def _reopen(self, working: Working) -> None:
        if self.given.log is not None:
            SharedLogFile.of_standard_error(self.given.log).reopen()
        working.reopen()

    def _apply(self, working: Working, text: str) -> None:
        try:
            working.apply(self._merged(working, text))
        except Exception:
            # One that answers by another configuration than its brothers is worse than none.
            working.stop()
            raise

    def _merged(self, working: Working, text: str) -> Config:
        return merged(working.config, parse(text, _SOURCE, self._environ))

    async def _answer(self, working: Working, what: str, message: Message) -> Any:
        match what:
            case "beat":
                # Often enough that a worker which is killed takes little with it.
                write_counts()
                return None
            case "figures":
                write_counts()
                return pack(working.moment())
            case "health":
                return pack_checks(working.readiness())
            case "status":
                return pack(working.status())
            case "check":
                return await self._check(working, message["config"], message["aliases"])
        return None

    async def _check(self, working: Working, text: str, aliases: Collection[str]) -> list[str]:
        try:
            await working.check_grants(self._merged(working, text), frozenset(aliases))
        except PolicyError as error:
            return [error.spot, error.problem]
        return []


class OneProtocol(Factory):
    """The factory of one connection that is there already."""

    noisy = False

    def __init__(self, protocol: Link) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: IAddress | None) -> Link:  # noqa: N802 - Twisted's name
        """The protocol."""
        return self._protocol


def _unexpected(failure: Any) -> None:
    _log.failure("a wish of the parent failed", failure=failure)
