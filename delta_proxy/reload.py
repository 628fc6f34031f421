"""SIGHUP: the configuration is read again, and put in force if it can be.

What cannot change in a running process stays, and the log says so. A file with a mistake, or one that would
let everybody in, is refused as a whole, and the old one stays in force.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final, Protocol

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from delta_proxy.access.policy import PolicyError
from delta_proxy.config import Config, ConfigError
from delta_proxy.exposure import say_what_is_open
from delta_proxy.structuring import key_of

NEED_A_RESTART: Final = (
    "port",
    "interface",
    "metrics_port",
    "metrics_interface",
    "tls",
    "database_enabled",
    "database",
    "audit",
    "cache",
    "workers",
    "limits",
    "secret_keys",
)

_log = Logger()


class Reloadable(Protocol):
    """What a configuration is put in force in."""

    @property
    def config(self) -> Config:
        """The configuration in force."""

    def apply(self, config: Config) -> None:
        """Put another one in force."""

    async def check_grants(self, config: Config, aliases: Collection[str]) -> None:
        """Raises PolicyError for a grant that cannot be meant for its table, of those given."""


class Reload:
    """One reload at a time; a wish that comes meanwhile is granted afterwards.

    `load` blocks and raises ConfigError; it runs on the thread pool.
    """

    def __init__(
        self, load: Callable[[], Config], defer_to_pool: Callable[..., Deferred[Any]], target: Reloadable
    ) -> None:
        self._load, self._defer_to_pool, self._target = load, defer_to_pool, target
        self._running = self._again = False

    def ask(self) -> None:
        """Reload."""
        self._again = True
        if not self._running:
            Deferred.fromCoroutine(self.run()).addErrback(
                lambda failure: _log.failure("reloading failed", failure=failure)
            )

    async def run(self) -> None:
        """Reload until nobody asks for it any more."""
        self._running = True
        try:
            while self._again:
                self._again = False
                await self._once()
        finally:
            self._running = False

    async def _once(self) -> None:
        old = self._target.config
        try:
            fresh = await self._defer_to_pool(self._load)
            config = merged(old, fresh)
            await self._target.check_grants(config, _unmoved(old, config))
        except (ConfigError, PolicyError, Refused) as error:
            _log.error("the configuration was not reloaded, the old one stays: {error}", error=str(error))
            return
        self._target.apply(config)
        _log.info("the configuration was reloaded")
        say_what_is_open(config)
        try:
            await self._target.check_grants(config, frozenset(config.table_mapping) - _unmoved(old, config))
        except PolicyError as error:
            _log.error("a grant on a new table gives nothing: {error}", error=str(error))
        except Refused as error:
            _log.error("the grants on new tables were not checked: {error}", error=str(error))


class Refused(Exception):
    """A configuration that must not be put in force without a restart."""


def continued(old: Config, fresh: Config) -> Config:
    """The fresh configuration, with the old values of what needs a restart."""
    config: Config = attrs.evolve(fresh, **{name: getattr(old, name) for name in NEED_A_RESTART})
    return config


def merged(old: Config, fresh: Config) -> Config:
    """`continued`, where that may be put in force after the old one. Raises Refused."""
    config = continued(old, fresh)
    kept = [name for name in NEED_A_RESTART if getattr(config, name) != getattr(fresh, name)]
    if old.verifies and not config.verifies:
        raise Refused("nobody would be asked any more who they are; that needs a restart")
    opened = _opened(old, config)
    if opened:
        raise Refused(
            f"{', '.join(opened)} would be open to everybody, for no grant would name it; give it one in "
            "allowedPartitions ([] is nothing, [{}] everything), or set denyByDefault"
        )
    if kept:
        _log.warn("needs a restart: {keys}", keys=", ".join(key_of(name) for name in kept))
    return config


def _opened(old: Config, new: Config) -> list[str]:
    """The tables that grants restricted, and that the last of them would leave open to every principal."""
    open_already = {alias for alias, grant in old.allowed_partitions.items() if grant.is_everything}
    known = old.table_mapping.keys() - open_already - set(old.policy.unnamed)
    return [alias for alias in new.policy.unnamed if alias in known]


def _unmoved(old: Config, new: Config) -> frozenset[str]:
    """The tables that lie where they lay."""
    return frozenset(
        alias for alias, location in new.table_mapping.items() if old.table_mapping.get(alias) == location
    )
