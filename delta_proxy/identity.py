"""Who asks, as the service runs it: the users of the file, the database, the issuer of web identities.

Lives as long as the service; a reloaded configuration gets new parts from the same database and issuer.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from delta_proxy.access.jwks import MAX_DOCUMENT_BYTES, IssuerKeys, OidcVerifier
from delta_proxy.access.keys import SecretKeys
from delta_proxy.access.oidc import TokenRules
from delta_proxy.access.permission_feed import FeedState, PermissionFeed
from delta_proxy.access.principals import ConfiguredUser, Principals
from delta_proxy.access.snapshot import Snapshot, utc_now
from delta_proxy.access.sts import SessionTokens
from delta_proxy.config import AuthMode, Config, Sts
from delta_proxy.resources.authentication import SigV4Authenticator
from delta_proxy.resources.forward import Forwarding
from delta_proxy.resources.health import Degraded
from delta_proxy.resources.services import Anonymous, Authenticator
from delta_proxy.resources.sts import SessionService, WebIdentities
from delta_proxy.s3.sigv4 import SigningKeys
from delta_proxy.upstream.client import Upstream
from delta_proxy.upstream.fetch import fetch
from delta_proxy.upstream.forward import Forwarder, ForwardMap
from delta_proxy.upstream.origin import DEFAULT_REGION

_log = Logger()


@frozen
class Asking:
    """The parts that one configuration gives to the resources."""

    authenticator: Authenticator
    sts: SessionService | None
    forward: Forwarding | None


class Identity:
    """Makes the parts for a configuration; keeps the database's state and the issuer's keys at hand.

    `list_key` (secret bytes) vouches for list tokens where there are no secret keys; None makes one.
    """

    def __init__(
        self,
        config: Config,
        *,
        reactor: Any,
        defer_to_pool: Callable[..., Deferred[Any]],
        upstream: Upstream,
        list_key: bytes | None = None,
    ) -> None:
        self._reactor = reactor
        self._upstream = upstream
        self._signing_keys = SigningKeys()
        self._sessions = None if config.secret_keys is None else SessionTokens(config.secret_keys)
        self._list_key = _list_key(config.secret_keys, list_key)
        self._verifier: tuple[Sts, OidcVerifier] | None = None
        self._feed = _feed(config, reactor, defer_to_pool) if config.database_enabled else None

    async def start(self) -> None:
        """Load the users and grants of the database; returns also when it cannot be reached."""
        if self._feed is not None:
            await self._feed.start()

    async def stop(self) -> None:
        """Ask the database nothing more."""
        if self._feed is not None:
            await self._feed.stop()

    def readiness(self) -> bool | str | Degraded:
        """Whether the database's grants are in force; True without a database."""
        if self._feed is None:
            return True
        status = self._feed.status
        if status.state is FeedState.CURRENT:
            return True
        text = f"{status.state.value}: {status.error or 'no answer yet'}"
        return Degraded(text) if status.ready else text

    def asking(self, config: Config) -> Asking:
        """The parts for a configuration."""
        principals = configured_principals(config, None if self._feed is None else self._feed.snapshot)
        forward = self._forwarding(config, principals)
        if not config.verifies:
            return Asking(Anonymous(), None, forward)
        # Clients that are told no region sign for this one.
        regions = (config.storage.region or DEFAULT_REGION, DEFAULT_REGION)
        sessions = self._sessions if config.sts is not None else None
        authenticator = SigV4Authenticator(principals, regions, utc_now, sessions, self._signing_keys)
        sts = SessionService(authenticator, utc_now, self._web_identities(config))
        return Asking(authenticator, sts, forward)

    def _forwarding(self, config: Config, principals: Principals) -> Forwarding | None:
        if config.default_auth_mode is AuthMode.IAM and not config.allow_auth_mode_header:
            return None
        return Forwarding(
            ForwardMap(config.table_mapping),
            Forwarder(self._upstream),
            principals,
            config.default_auth_mode,
            config.allow_auth_mode_header,
            utc_now,
            self._list_key,
        )

    def _web_identities(self, config: Config) -> WebIdentities | None:
        if config.sts is None or self._sessions is None:
            return None
        if self._verifier is None or self._verifier[0] != config.sts:
            self._verifier = (config.sts, self._oidc(config.sts))
        return WebIdentities(self._verifier[1], self._sessions, config.sts.session_seconds)

    def _oidc(self, sts: Sts) -> OidcVerifier:
        keys = IssuerKeys(sts.issuer, fetch=self._fetch, clock=self._reactor, jwks_uri=sts.jwks_uri)
        return OidcVerifier(TokenRules(sts.issuer, sts.audience, sts.groups_claim), keys)

    async def _fetch(self, url: str) -> bytes:
        return await fetch(self._upstream, url, limit=MAX_DOCUMENT_BYTES)


def new_list_key() -> bytes:
    """What vouches for list tokens in the processes that are given it."""
    return os.urandom(32)


def _list_key(keys: SecretKeys | None, given: bytes | None) -> bytes:
    """What vouches for list tokens: the same in all replicas that have keys in common."""
    if keys is None:
        return given or new_list_key()
    return hmac.digest(keys.keys[0], b"delta-s3-proxy list token", hashlib.sha256)


def configured_principals(config: Config, snapshot: Callable[[], Snapshot] | None) -> Principals:
    """Who may ask by the configuration and, where there is one, the snapshot of the database."""
    users = (
        ConfiguredUser(
            name,
            user.access_key,
            user.secret_key,
            frozenset(user.groups),
            user.allowed_partitions,
            user.read_only,
        )
        for name, user in config.users.items()
    )
    groups = {name: group.allowed_partitions for name, group in config.groups.items()}
    return Principals.of(users, groups, snapshot)


def _feed(config: Config, reactor: Any, defer_to_pool: Callable[..., Deferred[Any]]) -> PermissionFeed:
    assert config.secret_keys is not None  # config has checked it
    from delta_proxy.access.migrated import MigratedStore  # noqa: PLC0415 - slow to import, and seldom needed

    return PermissionFeed(
        MigratedStore(config.database.uri, config.secret_keys.fernet()),
        clock=reactor,
        defer_to_pool=defer_to_pool,
        descriptors=reactor,
        poll_seconds=config.database.poll_seconds,
        stale_seconds=config.database.stale_seconds,
    )
