"""Bounds of what clients may take, and what is told of a request when it is over."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from attrs import define, field, frozen

from delta_proxy.access.audit import Place
from delta_proxy.resources.head import HeadLimits

REFUSED: Final = "refused"
"""The decision on a request that was answered by an error before the policy was asked."""


@frozen
class EdgeLimits:
    """Bounds of what clients may take. Times in seconds, sizes in bytes.

    `refusals` is how many connections above `connections` are answered with 503 at a time; those above are
    just closed. `body` bounds the body of every request but PUT, whose body is never held. `write_seconds` is
    how long a client may read nothing of an answer that waits for it; `linger_*` is how much is read and
    dropped after a refusal, so that the client gets to read it.
    """

    connections: int = 4096
    refusals: int = 128
    requests: int = 4096
    head: HeadLimits = field(factory=HeadLimits)
    body: int = 2 * 1024 * 1024
    head_seconds: float = 20.0
    idle_seconds: float = 75.0
    body_seconds: float = 60.0
    write_seconds: float = 60.0
    linger_seconds: float = 10.0
    linger_bytes: int = 64 * 1024 * 1024


@define
class RequestNote:
    """What a resource found out about a request, for the access log, the metrics and the audit log.

    It is filled in while the request is answered: several times a request, so it is no frozen value.
    `decision` is "allowed", or a word for why not; `reason` says more. `copied_from` is the source of a copy,
    alias and path. `place` is the request's place in the audit log, None without one. `before` are the notes
    of the tables that the request was about before this one, each with a place of its own.
    """

    operation: str = ""
    table: str = ""
    decision: str = ""
    principal: str = ""
    proxied: bool = False
    reason: str = ""
    auth: str = ""
    access_key: str | None = None
    source: str = ""
    path: str | None = None
    copied_from: str | None = None
    partitions: tuple[Mapping[str, str | None], ...] = ()
    grant: str | None = None
    place: Place | None = None
    before: tuple[RequestNote, ...] = ()


@frozen
class RequestRecord:
    """A request that is over.

    `status` is 499 when the client left before there was an answer; `aborted` says that the answer did not
    reach its end. `uri` is the raw request target, with its secrets. `seconds` run from the end of the head
    to the end of the answer.
    """

    method: str
    uri: bytes
    status: int
    bytes_sent: int
    bytes_received: int
    seconds: float
    request_id: str
    aborted: bool = False
    note: RequestNote = field(factory=RequestNote)


def new_request_id() -> str:
    """16 upper-case hexadecimal digits, as S3's own, from 64 random bits."""
    return os.urandom(8).hex().upper()
