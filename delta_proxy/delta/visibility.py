"""Which paths of a table a listing shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import attrs

from delta_proxy.delta.masks import GrantMask

LOG_PREFIX = "_delta_log/"


class Visibility(Protocol):
    """What a principal may see of one table's paths (relative to the table root)."""

    def shows(self, path: str) -> bool:
        """Whether GET would serve this path."""
        ...

    def below(self, prefix: str) -> bool | None:
        """Whether anything shown exists below a common prefix; None when only the store can tell."""
        ...

    def next_after(self, path: str, prefix: str) -> str | None:
        """The smallest path after `path` that starts with `prefix` and may be shown, or None."""
        ...


@attrs.frozen
class WholeTable:
    """An unrestricted principal sees the table as it is."""

    def shows(self, path: str) -> bool:
        """Every path is shown."""
        return True

    def below(self, prefix: str) -> bool | None:
        """The store lists only prefixes that hold something."""
        return True

    def next_after(self, path: str, prefix: str) -> str | None:
        """Nothing is hidden, so the next path is the store's to tell."""
        return path


@attrs.frozen
class GrantedPaths:
    """A restricted principal sees the granted paths of the index and the log files of its view.

    `shows_log` judges a path below `_delta_log/`.
    """

    mask: GrantMask
    shows_log: Callable[[str], bool]

    def shows(self, path: str) -> bool:
        """A log file of the view, or a path whose every partition value is granted."""
        if path.startswith(LOG_PREFIX):
            return self.shows_log(path)
        return self.mask.allows(self.mask.index.lookup(path))

    def below(self, prefix: str) -> bool | None:
        """A live granted file exists by the protocol; of a tombstoned one only the store can tell."""
        if prefix.startswith(LOG_PREFIX):
            return None
        if self.mask.index.has_live_below(prefix, self.mask.bits):
            return True
        return None if self._next_data(prefix, prefix) is not None else LOG_PREFIX.startswith(prefix)

    def next_after(self, path: str, prefix: str) -> str | None:
        """The next granted path of the index, or the log directory when that comes first."""
        data = self._next_data(path, prefix)
        log = max(LOG_PREFIX, prefix) if path < LOG_PREFIX + "\U0010ffff" and _overlaps(prefix) else None
        candidates = [candidate for candidate in (data, log) if candidate is not None]
        return min(candidates, default=None)

    def _next_data(self, path: str, prefix: str) -> str | None:
        return self.mask.index.next_visible(path, prefix, self.mask.bits)


def _overlaps(prefix: str) -> bool:
    return LOG_PREFIX.startswith(prefix) or prefix.startswith(LOG_PREFIX)
