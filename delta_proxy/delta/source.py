"""What the delta package asks of a table's store. `delta_proxy.upstream.client.TableClient` is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import attrs

from .paths import TableRoot


class ListedFile(Protocol):
    """An object of a listing; `path` is relative to the table root, `size` in bytes."""

    @property
    def path(self) -> str:
        """The path relative to the table root."""
        ...

    @property
    def size(self) -> int:
        """The size in bytes."""
        ...

    @property
    def etag(self) -> str:
        """The entity tag."""
        ...


class FileListing(Protocol):
    """A page of a listing, in the order of the UTF-8 bytes of the paths."""

    @property
    def objects(self) -> Sequence[ListedFile]:
        """The objects of the page."""
        ...

    @property
    def truncated(self) -> bool:
        """Whether more follow."""
        ...


class SmallFile(Protocol):
    """An object that was read whole."""

    @property
    def body(self) -> bytes:
        """Its bytes."""
        ...


class LogSource(Protocol):
    """The store of one table. Paths are relative to the table root."""

    async def list(
        self, prefix: str = "", *, delimiter: str = "", start_after: str = "", max_keys: int = 1000
    ) -> FileListing:
        """One page of the listing."""
        ...

    async def read(self, path: str, *, limit: int) -> SmallFile:
        """A small object, whole."""
        ...

    async def download(self, path: str, into: Path) -> object:
        """Stream an object to a file."""
        ...


def _nothing_known() -> None:
    """Of a source that remembers nothing."""


@attrs.frozen
class TableSource:
    """A table as the cache knows it. `identity` names the store and the place: an index of another is not
    used. `forget` is called before an index is made anew: the table may be another than the one whose files
    are known.
    """

    identity: str
    root: TableRoot
    log: LogSource
    forget: Callable[[], None] = _nothing_known
