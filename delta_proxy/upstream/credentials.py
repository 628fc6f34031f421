"""Credentials for the stores: botocore's chain, asked only in the thread pool and refreshed ahead of their
end.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Protocol

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from delta_proxy.s3.errors import ServiceUnavailable
from delta_proxy.s3.sigv4 import Credentials
from delta_proxy.upstream.spool import DeferToPool

# botocore refreshes on its own from 15 minutes before the end ("advisory"), so a call made at 10 gets new
# ones.
_REFRESH_BEFORE = 600.0
# How long a failed refresh is left alone while the credentials at hand are good.
_REFRESH_PAUSE = 30.0

_log = Logger()


class CredentialSource(Protocol):
    """Where the credentials for a store come from."""

    async def get(self) -> Credentials:
        """Credentials that are good now. Raises ServiceUnavailable when there are none."""

    async def region(self) -> str | None:
        """The region configured beside them (profile, environment), or None."""


class StaticCredentials:
    """Credentials that never change."""

    def __init__(self, credentials: Credentials, region: str | None = None) -> None:
        self._credentials = credentials
        self._region = region

    async def get(self) -> Credentials:
        """The credentials."""
        return self._credentials

    async def region(self) -> str | None:
        """The region given, if any."""
        return self._region


@frozen
class _Resolved:
    credentials: Credentials
    expires: float | None
    region: str | None


def _botocore_session(profile: str | None) -> Any:
    """Blocking, and on a thread of the pool: the import alone takes a while."""
    import botocore.session  # noqa: PLC0415

    return botocore.session.Session(profile=profile)


class BotocoreCredentials:
    """Credentials by botocore's chain: environment, profile, assume-role, web identity, container, instance.

    botocore does blocking I/O, so it runs in the thread pool only, and one call at a time however many
    wait. From ten minutes before the credentials end each use of them has them refreshed in the background;
    when that fails, the ones at hand are used up to their end.
    """

    def __init__(
        self,
        profile: str | None,
        defer_to_pool: DeferToPool,
        clock: IReactorTime,
        make_session: Callable[..., Any] = _botocore_session,
    ) -> None:
        self._chain = _Chain(profile, make_session)
        self._defer_to_pool = defer_to_pool
        self._clock = clock
        self._resolved: _Resolved | None = None
        self._waiting: list[Deferred[_Resolved]] | None = None
        self._not_before = 0.0

    async def get(self) -> Credentials:
        """Credentials that are good now. Raises ServiceUnavailable when the chain gives none; the log says
        why.
        """
        return (await self._current()).credentials

    async def region(self) -> str | None:
        """The region of the profile or the environment. Raises ServiceUnavailable as `get` does."""
        return (await self._current()).region

    async def _current(self) -> _Resolved:
        resolved, now = self._resolved, self._clock.seconds()
        if resolved is None or (resolved.expires is not None and now >= resolved.expires):
            return await self._flight()
        due = resolved.expires is not None and now >= resolved.expires - _REFRESH_BEFORE
        if due and now >= self._not_before:
            self._not_before = now + _REFRESH_PAUSE
            self._flight().addErrback(lambda _: None)
        return resolved

    def _flight(self) -> Deferred[_Resolved]:
        waiter: Deferred[_Resolved] = Deferred()
        if self._waiting is None:
            self._waiting = [waiter]
            self._defer_to_pool(self._chain.resolve).addBoth(self._landed)
        else:
            self._waiting.append(waiter)
        return waiter

    def _landed(self, result: _Resolved | Failure) -> None:
        waiting, self._waiting = self._waiting or [], None
        if isinstance(result, Failure):
            # The text of botocore's errors names profiles, files and endpoints, never secrets.
            _log.error("no credentials for the store: {reason}", reason=result.getErrorMessage())
        else:
            self._resolved = result
        for waiter in waiting:
            if waiter.called:
                continue
            if isinstance(result, Failure):
                waiter.errback(ServiceUnavailable())
            else:
                waiter.callback(result)


class NoCredentials(Exception):
    """The chain was searched and has nothing."""


class _Chain:
    """botocore's session and credentials; touched by one thread of the pool at a time."""

    def __init__(self, profile: str | None, make_session: Callable[..., Any]) -> None:
        self._profile = profile
        self._make_session = make_session
        self._session: Any = None
        self._found: Any = None

    def resolve(self) -> _Resolved:
        """Blocking: the credentials of now, refreshed by botocore where it sees fit."""
        if self._session is None:
            self._session = self._make_session(profile=self._profile)
        if self._found is None:
            self._found = self._session.get_credentials()
        if self._found is None:
            # A new session, so that credentials that appear later are found.
            self._session = None
            raise NoCredentials(f"botocore's chain has none (profile {self._profile or 'default'})")
        frozen_credentials = self._found.get_frozen_credentials()
        expires: datetime | None = getattr(self._found, "_expiry_time", None)
        return _Resolved(
            Credentials(
                frozen_credentials.access_key, frozen_credentials.secret_key, frozen_credentials.token
            ),
            None if expires is None else expires.timestamp(),
            self._session.get_config_variable("region"),
        )
