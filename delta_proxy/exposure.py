"""What a configuration leaves unprotected, told to the operator in the log."""

from __future__ import annotations

from typing import Final

from twisted.logger import Logger

from delta_proxy.config import LOOPBACK, AuthMode, Config, LogView

_log = Logger()

_SHORT_SECRET: Final = 16
_LOOPBACK: Final = frozenset({LOOPBACK, "::1"})


def say_what_is_open(config: Config) -> None:
    """Tell the operator, at each start and reload, what is not protected."""
    beyond = config.interface not in _LOOPBACK
    if config.metrics_port is not None and config.metrics_interface not in _LOOPBACK:
        _log.warn("metricsPort listens beyond loopback: whoever reaches it learns the names of the tables")
    if config.log_view is LogView.PASSTHROUGH:
        _log.warn(
            "logView is passthrough: the contents of _delta_log/ are not filtered; whoever may read any "
            "partition of a table sees the file names and statistics of all of them"
        )
    if beyond and not config.verifies and config.default_auth_mode is AuthMode.IAM:
        _log.warn("nobody is asked who they are, and the proxy listens beyond loopback")
    if beyond and config.verifies and config.tls is None:
        _log.warn(
            "the proxy listens beyond loopback without tls: data and session tokens travel in the clear"
        )
    if not config.read_only and not config.verifies and config.default_auth_mode is AuthMode.IAM:
        _log.warn("readOnly is false and nobody is asked who they are: anybody may change the open tables")
    unnamed = config.policy.unnamed
    if unnamed and (config.verifies or any(config.grants)):
        _log.warn(
            "no grant names these tables, so whoever may ask reads all of them: {tables}",
            tables=", ".join(unnamed),
        )
    for name, user in config.users.items():
        if len(user.secret_key.value) < _SHORT_SECRET:
            _log.warn("the secret of {user} is short: it can be guessed from one request", user=name)
