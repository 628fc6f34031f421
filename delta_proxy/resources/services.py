"""What every resource needs, handed down from service.py as one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import attrs

from delta_proxy.access.identity import ANONYMOUS, Principal
from delta_proxy.config import GetMode
from delta_proxy.delta.disk_cache import OpenFile
from delta_proxy.delta.gate import Gate
from delta_proxy.resources.server import EdgeRequest
from delta_proxy.s3.request import Addressing, S3Request
from delta_proxy.upstream.client import TableClient
from delta_proxy.upstream.spool import DeferToPool


class Authenticator(Protocol):
    """Tells who sent a request."""

    async def authenticate(self, s3: S3Request, request: EdgeRequest) -> Principal:
        """The principal. Raises S3Error when the request proves nobody."""
        ...


class Anonymous:
    """Without users everyone is the anonymous principal."""

    async def authenticate(self, s3: S3Request, request: EdgeRequest) -> Principal:
        """Anybody."""
        return ANONYMOUS


@attrs.frozen
class Settings:
    """The part of the configuration that decides how an answer looks."""

    addressing: Addressing
    region: str
    read_only: bool
    get_mode: GetMode
    proxy_partial: bool
    presign_expiry_seconds: int
    never_redirect: tuple[str, ...]


@attrs.frozen
class Services:
    """Settings, who asks, what they may read, and where the tables lie."""

    settings: Settings
    authenticator: Authenticator
    gate: Gate
    tables: Mapping[str, TableClient]
    defer_to_pool: DeferToPool

    def close(self, content: OpenFile | bytes) -> None:
        """Give back the content of an answer that is not sent, or has been."""
        if not isinstance(content, bytes):
            self.defer_to_pool(content.close)
