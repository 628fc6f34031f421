"""Which sidecars the checkpoints name, and under which partition columns: what is known of all tables."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

import attrs

from delta_proxy.delta.view_grant import Columns

_REMEMBERED: Final = 100_000


@attrs.frozen
class ManifestId:
    """A checkpoint's top-level file: its table's identity, its name below `_delta_log/`, its ETag."""

    table: str
    name: str
    etag: str


class SidecarNames:
    """What the manifests that were read name. Of more than `limit` names the oldest are forgotten, and with
    each the manifest that names it, so that it is read again.
    """

    def __init__(self, limit: int = _REMEMBERED) -> None:
        self._limit = limit
        self._named: OrderedDict[tuple[str, str], tuple[Columns, ManifestId]] = OrderedDict()
        self._read: OrderedDict[ManifestId, None] = OrderedDict()

    def has_read(self, manifest: ManifestId) -> bool:
        """Whether what a manifest names is known."""
        return manifest in self._read

    def take(self, manifest: ManifestId, columns: Columns, names: Iterable[str]) -> None:
        """A manifest names these files below `_delta_log/_sidecars/`; the last word of several counts."""
        self._read[manifest] = None
        for name in names:
            self._named[manifest.table, name] = columns, manifest
            self._named.move_to_end((manifest.table, name))
        while len(self._named) > self._limit:
            _, (_, forgotten) = self._named.popitem(last=False)
            self._read.pop(forgotten, None)
        while len(self._read) > self._limit:
            self._read.popitem(last=False)

    def columns(self, table: str, name: str) -> Columns | None:
        """The partition columns of the manifest that names a sidecar; None when none does."""
        found = self._named.get((table, name))
        return None if found is None else found[0]
