"""`delta-s3-proxy-local`: the program."""

# mypy: allow-untyped-calls
from __future__ import annotations

import argparse
import ipaddress
import os
import pathlib
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.threads import deferToThreadPool
from twisted.logger import (
    FilteringLogObserver,
    ILogObserver,
    Logger,
    LogLevel,
    LogLevelFilterPredicate,
    globalLogBeginner,
)
from twisted.python.threadpool import ThreadPool
from twisted.web.client import HTTPConnectionPool

from delta_proxy.local_helper.authority import (
    LocalAuthority,
    UnusableAuthority,
    certificate_file,
    open_authority,
)
from delta_proxy.local_helper.exchange import Exchange, Origins
from delta_proxy.local_helper.signing import Signer
from delta_proxy.local_helper.site import Helper, HelperSite, Interception
from delta_proxy.local_helper.targets import Origin, parse_endpoint
from delta_proxy.logs import LogFormat, observer
from delta_proxy.upstream.agent import make_endpoints, make_pool
from delta_proxy.upstream.credentials import BotocoreCredentials
from delta_proxy.upstream.retry import Pacing, RetryPolicy, Timeouts

_NAME = "delta-s3-proxy-local"
_PORT = 28080
_BACKLOG = 1024
_DRAIN_SECONDS = 10.0
# The proxy may have to build its index first.
_TIMEOUTS = Timeouts(connect=10.0, first_byte=60.0, idle=60.0)

_log = Logger()


class UsageError(Exception):
    """Options that contradict each other; the text is the one line to print."""


@frozen
class Settings:
    """The options. `endpoints` are the Delta S3 Proxies that `sign` and `mitm` are for."""

    port: int
    interface: str
    endpoints: frozenset[Origin]
    sign: bool
    profile: str | None
    region: str | None
    mitm: bool
    ca_directory: pathlib.Path

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the helper."""
        try:
            return ipaddress.ip_address(self.interface).is_loopback
        except ValueError:
            return False


class LocalHelper:
    """The helper's parts, put together for a reactor; `start` listens, `stop` ends what is in flight."""

    def __init__(self, settings: Settings, reactor: Any, authority: LocalAuthority | None = None) -> None:
        self._settings = settings
        self._reactor = reactor
        self._threads = ThreadPool(0, 1, name=_NAME)
        self._kept = make_pool(reactor)
        self._port: Any = None
        single = HTTPConnectionPool(reactor, persistent=False)
        single.retryAutomatically = False
        pacing = Pacing(reactor, random.random, _TIMEOUTS, RetryPolicy())
        origins = Origins(make_endpoints(reactor, timeouts=_TIMEOUTS), self._kept, single)
        exchange = Exchange(origins, pacing, self._signer() if settings.sign else None)
        interception = None
        if authority is not None:
            secure = frozenset(each for each in settings.endpoints if each.scheme == "https")
            interception = Interception(secure, authority.context, _now)
        self.site = HelperSite(Helper(reactor, exchange, pacing, interception))

    def start(self) -> int:
        """Listen; returns the port. Raises CannotListenError."""
        self._port = self._reactor.listenTCP(
            self._settings.port, self.site, backlog=_BACKLOG, interface=self._settings.interface
        )
        self._threads.start()
        return int(self._port.getHost().port)

    async def stop(self) -> None:
        """Take no more, let what is in flight end for ten seconds, then end it."""
        self.site.stop_accepting()
        if self._port is not None:
            await maybeDeferred(self._port.stopListening)
        await self.site.drained(_DRAIN_SECONDS)
        await self._kept.closeCachedConnections()
        self._threads.stop()

    def _signer(self) -> Signer:
        settings = self._settings
        source = BotocoreCredentials(settings.profile, self._defer_to_pool, self._reactor)
        return Signer(settings.endpoints, source, _now, settings.region)

    def _defer_to_pool(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Deferred[Any]:
        return deferToThreadPool(self._reactor, self._threads, function, *args, **kwargs)


def parse(arguments: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """The settings of a command line. Raises UsageError; what argparse understands, it answers itself."""
    given = _parser(environ).parse_args(arguments)
    try:
        endpoints = frozenset(parse_endpoint(url) for url in given.endpoint)
    except ValueError as error:
        raise UsageError(f"--endpoint: {error}") from None
    if given.sign and not endpoints:
        raise UsageError("--sign needs --endpoint: signatures are made for the endpoints named, and no other")
    if given.mitm and not any(each.scheme == "https" for each in endpoints):
        raise UsageError("--mitm needs --endpoint https://...: only connections to those endpoints are read")
    return Settings(
        given.port,
        given.interface,
        endpoints,
        given.sign,
        given.profile,
        given.region,
        given.mitm,
        given.ca_directory,
    )


def main() -> None:
    """Run until SIGINT or SIGTERM; a mistake is one line and exit status 1."""
    from twisted.internet import reactor  # noqa: PLC0415 - importing it installs it: not before it is needed

    try:
        settings = parse(sys.argv[1:], os.environ)
        globalLogBeginner.beginLoggingTo([_log_observer()], redirectStandardIO=False)
        authority = open_authority(settings.ca_directory, _now()) if settings.mitm else None
        _run(LocalHelper(settings, reactor, authority), settings, reactor)
    except (UsageError, UnusableAuthority, CannotListenError) as error:
        raise SystemExit(f"{_NAME}: {error}") from None


def _run(helper: LocalHelper, settings: Settings, reactor: Any) -> None:
    port = helper.start()
    _say_what_is_open(settings, port)
    reactor.addSystemEventTrigger("before", "shutdown", lambda: Deferred.fromCoroutine(helper.stop()))
    reactor.run()


def _say_what_is_open(settings: Settings, port: int) -> None:
    host = f"[{settings.interface}]" if ":" in settings.interface else settings.interface
    _log.info("HTTP proxy at http://{host}:{port}", host=host, port=port)
    if settings.mitm:
        _log.info("clients have to trust {file}", file=str(certificate_file(settings.ca_directory)))
    if not settings.is_local:
        _log.warn(
            "whoever reaches {host} may use this proxy{sign}",
            host=host,
            sign=", and reads with your credentials" if settings.sign else "",
        )


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_NAME,
        description="An HTTP proxy beside an S3 client that cannot follow a redirect: it follows for the "
        "client, so that the bytes come from the store and not through the Delta S3 Proxy.",
    )
    parser.add_argument(
        "--port", type=int, default=_PORT, help=f"where clients connect, {_PORT} unless given"
    )
    parser.add_argument(
        "--interface", default="127.0.0.1", help="address to listen on, 127.0.0.1 unless given"
    )
    parser.add_argument(
        "--endpoint",
        action="append",
        default=[],
        metavar="URL",
        help="a Delta S3 Proxy that --sign and --mitm are for; may be repeated",
    )
    parser.add_argument(
        "--sign",
        action="store_true",
        help="sign reads that carry no signature, with the credentials that AWS tools would find",
    )
    parser.add_argument("--profile", help="the profile of those credentials")
    parser.add_argument("--region", help="the region to sign for, that of the profile unless given")
    parser.add_argument(
        "--mitm",
        action="store_true",
        help="read https connections to the endpoints, by certificates of an authority of this helper's own",
    )
    parser.add_argument(
        "--ca-directory",
        type=pathlib.Path,
        default=_data_home(environ) / _NAME,
        help="where that authority is kept (ca.pem, ca.key); %(default)s unless given",
    )
    return parser


def _log_observer() -> ILogObserver:
    """Standard error, without a line for each connection that Twisted opens."""
    levels = LogLevelFilterPredicate()
    levels.setLogLevelForNamespace("twisted.web.client", LogLevel.warn)
    return FilteringLogObserver(observer(LogFormat.TEXT, sys.stderr), [levels])


def _data_home(environ: Mapping[str, str]) -> pathlib.Path:
    """Where programs keep what is theirs (XDG Base Directory Specification)."""
    named = environ.get("XDG_DATA_HOME", "")
    return pathlib.Path(named) if named.startswith("/") else pathlib.Path.home() / ".local" / "share"


def _now() -> datetime:
    return datetime.now(UTC)
