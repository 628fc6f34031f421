"""What every resource needs, handed down from service.py as one frozen value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

import attrs

from delta_proxy.access.audit import AuditLog
from delta_proxy.access.identity import ANONYMOUS, AuthKind, Principal
from delta_proxy.config import GetMode
from delta_proxy.delta.disk_cache import OpenFile
from delta_proxy.delta.gate import Gate
from delta_proxy.resources.places import PrincipalPlaces
from delta_proxy.resources.server import EdgeRequest
from delta_proxy.s3.chunked import ChunkSigning
from delta_proxy.s3.cors import CorsRule
from delta_proxy.s3.request import Addressing, S3Request
from delta_proxy.upstream.client import TableClient
from delta_proxy.upstream.spool import DeferToPool

if TYPE_CHECKING:
    from delta_proxy.resources.forward import Forwarding
    from delta_proxy.resources.sts import SessionService
    from delta_proxy.resources.writing import Writing


class Authenticator(Protocol):
    """Tells who sent a request."""

    async def authenticate(self, s3: S3Request, request: EdgeRequest) -> Principal:
        """The principal. Raises S3Error when the request proves nobody."""
        ...

    def body_signing(self, s3: S3Request) -> ChunkSigning | None:
        """What the chunks of the request's body are verified with, None where nobody's secret is known."""
        ...


class Anonymous:
    """Without users everyone is the anonymous principal."""

    async def authenticate(self, s3: S3Request, request: EdgeRequest) -> Principal:
        """Anybody."""
        request.note.auth = AuthKind.ANONYMOUS.value
        return ANONYMOUS

    def body_signing(self, s3: S3Request) -> ChunkSigning | None:
        """Nothing: an announced hash, or the store, protects the body."""
        return None


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
    cors: tuple[CorsRule, ...] = ()


PartitionValues = tuple[Mapping[str, str | None], ...]


def _unknown_values(alias: str, path: str) -> PartitionValues:
    return ()


@attrs.frozen
class Services:
    """Settings, who asks, what they may read, and where the tables lie.

    `sts` gives sessions, None where there are no principals; `forward` is the way for requests that the store
    verifies; `writing` carries out writes, None in read-only mode. `audit` is None without an audit log;
    `partitions` gives it the sets of partition values that a path of a table ever had, as far as they are at
    hand. `places` bounds what a known principal has under way; None is no bound.
    """

    settings: Settings
    authenticator: Authenticator
    gate: Gate
    tables: Mapping[str, TableClient]
    defer_to_pool: DeferToPool
    sts: SessionService | None = None
    forward: Forwarding | None = None
    audit: AuditLog | None = None
    writing: Writing | None = None
    partitions: Callable[[str, str], PartitionValues] = _unknown_values
    places: PrincipalPlaces | None = None

    def close(self, content: OpenFile | bytes) -> None:
        """Give back the content of an answer that is not sent, or has been."""
        if not isinstance(content, bytes):
            self.defer_to_pool(content.close)
