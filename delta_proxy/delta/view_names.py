"""Which log files exist in a view.

Commits, checkpoints of the three kinds, sidecars and `_last_checkpoint` (Delta PROTOCOL, "File Types"). All
else below `_delta_log/` (checksums, compacted, staged, temporary and unknown files) may tell of other
partitions or is of no use to a reader, and does not exist.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import attrs

from .paths import LogFile, LogKind, classify_log_name

_CHECKPOINTS = frozenset({LogKind.CHECKPOINT, LogKind.CHECKPOINT_PART, LogKind.CHECKPOINT_V2})
_SHOWN = _CHECKPOINTS | {LogKind.COMMIT, LogKind.SIDECAR, LogKind.LAST_CHECKPOINT}
# Versions are signed 64 bit numbers; a name beyond them means something else to each reader.
_MAX_VERSION = (1 << 63) - 1


@attrs.frozen
class Checkpoint:
    """A checkpoint with all its top-level files. `parts` is None for one file; `v2`: named by UUID."""

    version: int
    names: tuple[str, ...]
    parts: int | None = None
    v2: bool = False


def view_file(name: str) -> LogFile | None:
    """What a name below `_delta_log/` is in the view; None: it does not exist there."""
    file = classify_log_name(name)
    shown = file.kind in _SHOWN and (file.version is None or file.version <= _MAX_VERSION)
    return file if shown and name.isprintable() else None


def complete_checkpoints(names: Iterable[str]) -> tuple[Checkpoint, ...]:
    """The checkpoints among names below `_delta_log/` of which no part is missing, by version."""
    found: list[Checkpoint] = []
    sets: dict[tuple[int, int], list[str]] = defaultdict(list)
    for name in sorted(set(names)):
        file = view_file(name)
        if file is None or file.version is None or file.kind not in _CHECKPOINTS:
            continue
        if file.parts is None:
            found.append(Checkpoint(file.version, (name,), v2=file.kind is LogKind.CHECKPOINT_V2))
        else:
            sets[file.version, file.parts].append(name)
    for (version, parts), members in sets.items():
        if len(members) == parts:
            found.append(Checkpoint(version, tuple(members), parts))
    return tuple(sorted(found, key=lambda checkpoint: (checkpoint.version, checkpoint.names)))
