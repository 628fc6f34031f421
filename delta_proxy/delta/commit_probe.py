"""Whether a store keeps two writers from committing the same version.

A Delta commit is atomic only where `If-None-Match: *` is honoured: a store that ignores it lets one commit
overwrite another, and the rows of the first are lost. So it is tried before anything is written, with an
object of its own that no reader looks at (hidden by its dot, and before the versions in the order of names).

Some stores honour the condition of a PutObject and ignore that of a copy, or of a multipart upload that is
completed. Clients commit by those too, if seldom: each is tried before the first that comes with a condition.

The same object tells whether the store holds a body against the SHA-256 that its request is signed with.
Where it does, the proxy need not compute it as well, which is most of what a large upload costs it.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from enum import Enum
from types import MappingProxyType
from typing import Final

from twisted.logger import Logger

from delta_proxy.s3 import write_xml
from delta_proxy.s3.chunked import ChunkSigning
from delta_proxy.s3.copying import HEADER as COPY_SOURCE
from delta_proxy.s3.errors import (
    ConditionalRequestConflict,
    NoSuchKey,
    NoSuchUpload,
    NotImplementedByProxy,
    PreconditionFailed,
    S3Error,
    XAmzContentSHA256Mismatch,
)
from delta_proxy.s3.operation import Operation
from delta_proxy.s3.request import S3Request
from delta_proxy.s3.sigv4 import quote_path
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

_log = Logger()


class Way(Enum):
    """A way to make an object that must not be there yet; the text is what is refused if it is not safe."""

    PUT = "Writing to this table"
    COPY = "A copy with a condition"
    COMPLETION = "A condition on the end of a multipart upload"


_WAYS: Final = MappingProxyType(
    {Operation.COPY_OBJECT: Way.COPY, Operation.COMPLETE_MULTIPART_UPLOAD: Way.COMPLETION}
)
_CONDITIONS: Final = frozenset({"if-none-match", "if-match"})


class CommitProbes:
    """What is known of the stores, each bucket tried once. It outlives a reloaded configuration."""

    def __init__(self) -> None:
        self._flights: dict[tuple[str | None, str, Way], Flight[bool]] = {}
        self._verifying: set[tuple[str | None, str]] = set()

    async def check(self, writer: TableWriter, request: S3Request | None = None) -> None:
        """Raises NotImplementedByProxy when the table's store does not honour If-None-Match.

        A request whose operation is one of the other ways is held to that as well if it has a condition.
        Raises S3Error when that cannot be tried; the next call tries again.
        """
        if writer.location.commit_probe is CommitProbe.OFF:
            return
        await self._check(writer, Way.PUT)
        if request is not None and request.operation in _WAYS and not request.headers.lacks(_CONDITIONS):
            await self._check(writer, _WAYS[request.operation])

    async def _check(self, writer: TableWriter, way: Way) -> None:
        place = (*_place(writer.location), way)
        flight = self._flights.get(place)
        if flight is None or flight.failed:
            flight = self._flights[place] = Flight(self._try(writer, way))
        if not await flight.wait():
            raise NotImplementedByProxy(
                f"{way.value} is refused: its store does not honour If-None-Match, so commits could "
                "overwrite each other."
            )

    def verifies_hashes(self, location: TableLocation) -> bool:
        """Whether the table's store was seen to refuse a body that has not the SHA-256 it was signed with."""
        return _place(location) in self._verifying

    async def _try(self, writer: TableWriter, way: Way) -> bool:
        path = f"{_NAME}{uuid.uuid4()}"
        try:
            honoured = await _honours_conditions(writer, path, way)
            if honoured and way is Way.PUT and await _verifies_hashes(writer, path):
                self._verifying.add(_place(writer.location))
        finally:
            await _delete(writer, path)
        return honoured


def _place(location: TableLocation) -> tuple[str | None, str]:
    return location.store.endpoint, location.bucket


async def _honours_conditions(writer: TableWriter, path: str, way: Way) -> bool:
    try:
        await _put(writer, path)
        honoured = await _is_refused(_TRIALS[way](writer, path))
    except NotImplementedByProxy:
        honoured = False
    if not honoured:
        _log.critical(
            "{uri}: the store does not honour If-None-Match. {what} is refused",
            uri=writer.location.uri,
            what=way.value,
        )
    return honoured


async def _put(writer: TableWriter, path: str) -> None:
    await writer.send(Write("PutObject", "PUT", path, headers=_ABSENT, body=_BODY))


async def _copy(writer: TableWriter, path: str) -> None:
    """Copy the object onto itself, which takes new metadata to be allowed."""
    source = quote_path(f"{writer.location.bucket}/{writer.location.object_key(path)}")
    fields = ((COPY_SOURCE, source), ("x-amz-metadata-directive", "REPLACE"))
    await writer.send(Write("CopyObject", "PUT", path, headers=(*_ABSENT, *fields)))


async def _complete(writer: TableWriter, path: str) -> None:
    created = await writer.send(Write("CreateMultipartUpload", "POST", path, (("uploads", ""),)))
    upload = ("uploadId", (await writer.told(created, write_xml.document_of)).text("UploadId"))
    try:
        numbered = (("partNumber", "1"), upload)
        part = await writer.send(Write("UploadPart", "PUT", path, numbered, body=_BODY))
        parts = write_xml.complete_document([write_xml.Part(1, part.headers.get("etag") or "")])
        await writer.send(Write("CompleteMultipartUpload", "POST", path, (upload,), _ABSENT, parts))
    except S3Error:
        # Some stores have ended it already.
        with suppress(NoSuchUpload):
            await writer.send(Write("AbortMultipartUpload", "DELETE", path, (upload,)))
        raise


_TRIALS: Final[Mapping[Way, Callable[[TableWriter, str], Awaitable[None]]]] = MappingProxyType(
    {Way.PUT: _put, Way.COPY: _copy, Way.COMPLETION: _complete}
)


async def _is_refused(trial: Awaitable[None]) -> bool:
    try:
        await trial
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
