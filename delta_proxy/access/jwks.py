"""The issuer's keys: fetched when needed, kept, fetched again when a token names an unknown one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import attrs
import orjson
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from delta_proxy.access.oidc import (
    KeySet,
    OidcIdentity,
    TokenRules,
    checked_url,
    jwks_location,
    parse_keys,
    read_header,
)
from delta_proxy.s3.sts_xml import IDPCommunicationError, InvalidIdentityToken

Fetch = Callable[[str], Awaitable[bytes]]
MAX_DOCUMENT_BYTES = 1 << 20


@attrs.frozen
class _Fetched:
    keys: KeySet
    at: float


class IssuerKeys:
    """The keys of one issuer, asked for by one flight at a time however many wait.

    `fetch(url)` gives the body of a GET (and bounds its own time and size). Keys are fresh for
    `fresh_seconds`; when the issuer cannot be reached they serve on until `usable_seconds`. An unknown kid
    asks the issuer again, but no more often than every `refetch_seconds`, so that made-up tokens cannot
    make the proxy hammer it.
    """

    _log = Logger()

    def __init__(
        self,
        issuer: str,
        *,
        fetch: Fetch,
        clock: IReactorTime,
        jwks_uri: str | None = None,
        fresh_seconds: float = 600.0,
        usable_seconds: float = 3600.0,
        refetch_seconds: float = 30.0,
    ) -> None:
        """ValueError for a URL that keys may not be taken from."""
        self._issuer = checked_url(issuer)
        self._jwks_uri = None if jwks_uri is None else checked_url(jwks_uri)
        self._fetch, self._clock = fetch, clock
        self._fresh, self._usable, self._refetch = fresh_seconds, usable_seconds, refetch_seconds
        self._fetched: _Fetched | None = None
        self._tried: float | None = None
        self._waiting: list[Deferred[None]] | None = None

    async def get(self, *, newer: bool = False) -> KeySet:
        """The keys; with `newer`, asked for again if that was not done a moment ago.

        Raises IDPCommunicationError when there are none that may still be used.
        """
        if self._age() >= self._fresh or newer:
            await self._refresh()
        if self._fetched is None or self._age() >= self._usable:
            raise IDPCommunicationError
        return self._fetched.keys

    def _age(self) -> float:
        return float("inf") if self._fetched is None else self._since(self._fetched.at)

    def _since(self, moment: float) -> float:
        """Seconds from a moment to now; for ever from one that is to come: the clock was set back."""
        seconds = self._clock.seconds() - moment
        return seconds if seconds >= 0 else float("inf")

    async def _refresh(self) -> None:
        waiter: Deferred[None] = Deferred()
        if self._waiting is None:
            now = self._clock.seconds()
            if self._tried is not None and self._since(self._tried) < self._refetch:
                return
            self._tried, self._waiting = now, [waiter]
            # A flight of its own: a caller that goes away must not take it from the others.
            Deferred.fromCoroutine(self._fly(now))
        else:
            self._waiting.append(waiter)
        await waiter

    async def _fly(self, now: float) -> None:
        try:
            self._fetched = _Fetched(await self._load(), now)
        except Exception as error:  # noqa: BLE001 - whatever the fetch met, the old keys serve on or get() tells
            self._log.warn("no keys from {issuer}: {error}", issuer=self._issuer, error=str(error))
        waiting, self._waiting = self._waiting or [], None
        for waiter in waiting:
            waiter.callback(None)

    async def _load(self) -> KeySet:
        location = self._jwks_uri
        if location is None:
            discovery = self._issuer.rstrip("/") + "/.well-known/openid-configuration"
            location = jwks_location(await self._json(discovery), self._issuer)
        return parse_keys(await self._json(location))

    async def _json(self, url: str) -> Any:
        body = await self._fetch(url)
        if len(body) > MAX_DOCUMENT_BYTES:
            raise ValueError("the issuer's document is too long")
        return orjson.loads(body)


@attrs.frozen
class OidcVerifier:
    """From a web identity token to an identity."""

    rules: TokenRules
    keys: IssuerKeys

    async def verify(self, token: str, now: datetime) -> OidcIdentity:
        """Who `token` is about.

        Raises InvalidIdentityToken, ExpiredTokenException, IDPRejectedClaim, IDPCommunicationError (all
        StsError).
        """
        header = read_header(token)
        found = (await self.keys.get()).find(header.kid, header.algorithm)
        if not found:
            found = (await self.keys.get(newer=True)).find(header.kid, header.algorithm)
        if not found:
            raise InvalidIdentityToken("The token is signed with a key that the issuer does not publish")
        return self.rules.verify(token, header, found, now)
