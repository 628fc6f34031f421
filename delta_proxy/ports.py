"""The ports, tried before twistd goes to the background: what fails after that is told with a traceback."""

from __future__ import annotations

import contextlib
import socket

from delta_proxy.config import Config


class UnusablePort(Exception):
    """A port that cannot be listened on; the text names the key and tells why."""


def check_ports(config: Config) -> None:
    """Raises UnusablePort when `port` or `metricsPort` is taken, or its interface is not of this machine."""
    _try("port", config.interface, config.port)
    if config.metrics_port is not None:
        _try("metricsPort", config.metrics_interface, config.metrics_port)


def _try(key: str, interface: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in interface else socket.AF_INET
    with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((interface, port))
        except OSError as error:
            where = f"port {port} of {interface or 'all addresses'}"
            raise UnusablePort(f"{key}: cannot listen on {where}: {error.strerror}") from None
