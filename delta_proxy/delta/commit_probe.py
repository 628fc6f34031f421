"""Whether a store keeps two writers from committing the same version.

A Delta commit is atomic only where `If-None-Match: *` is honoured: a store that ignores it lets one commit
overwrite another, and the rows of the first are lost. So it is tried before anything is written, with an
object of its own that no reader looks at (hidden by its dot, and before the versions in the order of names).
"""

from __future__ import annotations

import uuid
from typing import Final

from twisted.logger import Logger

from delta_proxy.s3.errors import (
    ConditionalRequestConflict,
    NoSuchKey,
    NotImplementedByProxy,
    PreconditionFailed,
    S3Error,
)
from delta_proxy.upstream.stores import CommitProbe
from delta_proxy.upstream.writer import TableWriter, Write

from .flight import Flight
from .paths import LOG_DIRECTORY

_NAME: Final = f"{LOG_DIRECTORY}.delta-s3-proxy-probe-"
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

    async def check(self, writer: TableWriter) -> None:
        """Raises NotImplementedByProxy when the table's store does not honour If-None-Match.

        Raises S3Error when that cannot be tried; the next call tries again.
        """
        location = writer.location
        if location.commit_probe is CommitProbe.OFF:
            return
        place = (location.store.endpoint, location.bucket)
        flight = self._flights.get(place)
        if flight is None or flight.failed:
            flight = self._flights[place] = Flight(_honours_conditions(writer))
        if not await flight.wait():
            raise NotImplementedByProxy(_REFUSAL)


async def _honours_conditions(writer: TableWriter) -> bool:
    path = f"{_NAME}{uuid.uuid4()}"
    put = Write("PutObject", "PUT", path, headers=_ABSENT, body=b"probe")
    try:
        await writer.send(put)
        honoured = await _is_refused(writer, put)
    except NotImplementedByProxy:
        honoured = False
    finally:
        await _delete(writer, path)
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
