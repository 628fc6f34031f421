"""Whether a store keeps two writers from committing the same version.

A Delta commit is atomic only where `If-None-Match: *` is honoured: a store that ignores it lets one commit
overwrite another, and the rows of the first are lost. So it is tried before anything is written, with an
object of its own that no reader looks at (hidden by its dot, and before the versions in the order of names).

The same object tells whether the store holds a body against the SHA-256 that its request is signed with.
Where it does, the proxy need not compute it as well, which is most of what a large upload costs it.
"""

from __future__ import annotations

import hashlib
import uuid
from typing import Final

from twisted.logger import Logger

from delta_proxy.s3.chunked import ChunkSigning
from delta_proxy.s3.errors import (
    ConditionalRequestConflict,
    NoSuchKey,
    NotImplementedByProxy,
    PreconditionFailed,
    S3Error,
    XAmzContentSHA256Mismatch,
)
from delta_proxy.upstream.stores import CommitProbe, TableLocation
from delta_proxy.upstream.upload import Outgoing, StoreGone
from delta_proxy.upstream.writer import Streamed, TableWriter, Write

from .flight import Flight
from .paths import LOG_DIRECTORY

_BODY: Final = b"probe"
_NAME: Final = f"{LOG_DIRECTORY}.delta-s3-proxy-probe-"
# More than stores hold in memory before they write: it must go the way that large bodies go.
_LIE_BYTES: Final = 1024 * 1024
_ABSENT: Final = (("if-none-match", "*"),)
_REFUSAL: Final = (
    "Writing to this table is refused: its store does not honour If-None-Match, so commits could overwrite "
    "each other."
)

_log = Logger()


class CommitProbes:
    """What is known of the stores, each bucket tried once. It outlives a reloaded configuration."""

    def __init__(self) -> None:
        self._flights: dict[tuple[str | None, str], Flight[bool]] = {}
        self._verifying: set[tuple[str | None, str]] = set()

    async def check(self, writer: TableWriter) -> None:
        """Raises NotImplementedByProxy when the table's store does not honour If-None-Match.

        Raises S3Error when that cannot be tried; the next call tries again.
        """
        location = writer.location
        if location.commit_probe is CommitProbe.OFF:
            return
        place = _place(location)
        flight = self._flights.get(place)
        if flight is None or flight.failed:
            flight = self._flights[place] = Flight(self._try(writer))
        if not await flight.wait():
            raise NotImplementedByProxy(_REFUSAL)

    def verifies_hashes(self, location: TableLocation) -> bool:
        """Whether the table's store was seen to refuse a body that has not the SHA-256 it was signed with."""
        return _place(location) in self._verifying

    async def _try(self, writer: TableWriter) -> bool:
        path = f"{_NAME}{uuid.uuid4()}"
        try:
            honoured = await _honours_conditions(writer, path)
            if honoured and await _verifies_hashes(writer, path):
                self._verifying.add(_place(writer.location))
        finally:
            await _delete(writer, path)
        return honoured


def _place(location: TableLocation) -> tuple[str | None, str]:
    return location.store.endpoint, location.bucket


async def _honours_conditions(writer: TableWriter, path: str) -> bool:
    put = Write("PutObject", "PUT", path, headers=_ABSENT, body=_BODY)
    try:
        await writer.send(put)
        honoured = await _is_refused(writer, put)
    except NotImplementedByProxy:
        honoured = False
    if not honoured:
        _log.critical(
            "{uri}: the store does not honour If-None-Match: writing to it is refused",
            uri=writer.location.uri,
        )
    return honoured


async def _is_refused(writer: TableWriter, put: Write) -> bool:
    try:
        await writer.send(put)
    except (PreconditionFailed, ConditionalRequestConflict):
        return True
    return False


async def _verifies_hashes(writer: TableWriter, path: str) -> bool:
    """Whether a lie is refused as one, and nothing of it is stored."""
    lie = Streamed(_LIE_BYTES, hashlib.sha256(b"another body").hexdigest(), _feed_lie)
    try:
        await writer.send(Write("PutObject", "PUT", path, body=lie))
    except XAmzContentSHA256Mismatch:
        return await _is_unchanged(writer, path)
    except (S3Error, StoreGone):
        return False
    return False


async def _is_unchanged(writer: TableWriter, path: str) -> bool:
    try:
        return (await writer.client.read(path, limit=len(_BODY))).body == _BODY
    except S3Error:
        return False


async def _feed_lie(signing: ChunkSigning, outgoing: Outgoing) -> None:
    await outgoing.write(bytes(_LIE_BYTES))


async def _delete(writer: TableWriter, path: str) -> None:
    try:
        await writer.send(Write("DeleteObject", "DELETE", path))
    except NoSuchKey:
        return
    except S3Error as error:
        _log.warn(
            "{uri}: the probe {path} is left behind: {error}",
            uri=writer.location.uri,
            path=path,
            error=str(error),
        )
