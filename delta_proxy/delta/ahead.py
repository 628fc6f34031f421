"""Views of checkpoints made while the index of their table is still being built.

A rewrite needs the index for one thing: paths that had other partition values as well. Where there are none,
as in nearly every table, what it writes follows from the checkpoint and the grant alone, and its key is that
of the grant alone (`views.view_key`). So it can be made under this key before the index is there; where the
index then tells of such paths the key is another, and what was made ahead is not what is asked for.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from delta_proxy.access.policy import Allowed, Grant, decide

from .paths import LogKind
from .rows import from_flags
from .view_grant import Columns, ViewError, ViewGrant
from .view_history import FOREIGN

KINDS: Final = frozenset({LogKind.CHECKPOINT, LogKind.CHECKPOINT_PART})
"""The checkpoints that are made ahead: those whose adds are judged by their own `metaData`."""


class NeedsIndex(ViewError):
    """The file cannot be filtered without the index."""


def by_values_alone(grant: Grant, columns: Columns | None, now: datetime) -> ViewGrant:
    """The questions of a checkpoint's rewrite, answered as if no path had ever had other values.

    Where a path may mean another than it spells the answer is NeedsIndex.
    """

    def permits_all(paths: pa.Array) -> pa.Array:
        if pc.any(pc.match_substring_regex(paths, FOREIGN)).as_py():
            raise NeedsIndex("a path of the checkpoint may lead out of the table")
        return from_flags(np.ones(len(paths), np.bool_))

    return ViewGrant(
        columns=columns,
        permits=lambda partition: isinstance(decide(grant, partition, now), Allowed),
        history=lambda _: None,
        histories=permits_all,
    )
