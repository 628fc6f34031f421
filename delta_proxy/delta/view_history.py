"""The questions of a log rewrite, answered from a table's index and one grant's mask of it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from delta_proxy.access.policy import Allowed, Grant, decide
from delta_proxy.delta.masks import GrantMask
from delta_proxy.delta.paths import OutsideTable, TableRoot, object_path
from delta_proxy.delta.rows import FileKind
from delta_proxy.delta.view_grant import Columns, ViewGrant

FOREIGN: Final = r":|\x00|%00|%2[EeFf]|(?:^|/)\.{0,2}(?:/|$)"
"""Spellings of `add.path` that may lead out of the table, and so are looked at one by one."""


def view_grant(
    grant: Grant, mask: GrantMask, root: TableRoot, now: datetime, columns: Columns | None
) -> ViewGrant:
    """What a rewrite of one log file asks. `columns` are the partition columns in force before the file."""
    history = granted_history(mask, root)
    return ViewGrant(
        columns=columns,
        permits=lambda partition: isinstance(decide(grant, partition, now), Allowed),
        history=history,
        histories=granted_histories(mask, history),
    )


def granted_history(mask: GrantMask, root: TableRoot) -> Callable[[str], bool | None]:
    """For `add.path` as the log spells it: whether every value the path ever had is granted, None if unknown.

    A path outside the table root is never granted.
    """

    def ask(add_path: str) -> bool | None:
        try:
            path = object_path(add_path, root)
        except OutsideTable:
            return False
        entries = tuple(e for e in mask.index.lookup(path) if e.kind is not FileKind.DELETION_VECTOR)
        return mask.allows(entries) if entries else None

    return ask


def lost(mask: GrantMask) -> list[str]:
    """The paths that are denied though some of the values they had are granted, in order."""
    relabelled = {path: _granted(mask, path) for path in mask.index.relabelled()}
    return sorted(path for path, granted in relabelled.items() if any(granted) and not all(granted))


def _granted(mask: GrantMask, path: str) -> list[bool]:
    """For each set of values that a file had, whether it is granted."""
    entries = mask.index.lookup(path)
    return [bool(mask.bits[e.tuple_id]) for e in entries if e.kind is not FileKind.DELETION_VECTOR]


def granted_histories(
    mask: GrantMask, history: Callable[[str], bool | None]
) -> Callable[[pa.Array], pa.Array]:
    """`granted_history` for an array of paths whose own values are granted, which the caller has judged.

    The index must have taken in the file that the paths are from: then the one way in which a path's history
    can differ from its own values is that it had others as well, and such paths are few.
    """
    relabelled = frozenset(mask.index.relabelled())
    denied = pa.array(sorted(path for path in relabelled if not all(_granted(mask, path))), pa.string())
    decoded_differently = "%" if len(denied) else None

    def ask(paths: pa.Array) -> pa.Array:
        paths = paths.cast(pa.string())
        answers = np.invert(pc.is_in(paths, denied).to_numpy(zero_copy_only=False))
        odd = pc.match_substring_regex(paths, FOREIGN)
        if decoded_differently:
            odd = pc.or_(odd, pc.match_substring(paths, decoded_differently))
        one_by_one = np.flatnonzero(odd.to_numpy(zero_copy_only=False)).tolist()
        known = [history(paths[row].as_py()) for row in one_by_one]
        answers[one_by_one] = [answer is True for answer in known]
        return pa.array(answers, pa.bool_())

    return ask
