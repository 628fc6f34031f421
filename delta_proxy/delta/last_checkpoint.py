"""`_last_checkpoint` as a grant sees it.

Source: Delta PROTOCOL, "Last Checkpoint File". `size` is required there and by the Rust kernel, so it says
-1: "not known" to delta-spark. Counts, byte sums, tags, embedded actions and the checksum over them are left
out.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import orjson

from .view_names import Checkpoint, complete_checkpoints

MAX_BYTES = 16 * 1024 * 1024
_COUNTS = ("sizeInBytes", "modificationTime")


def rewrite(original: bytes, present: Collection[str]) -> bytes | None:
    """The file in the view, as long as `original`; None: it does not exist there.

    `present` are the names below `_delta_log/` that the view holds. The hint names the same checkpoint as the
    original when the view holds all of it, else the newest complete one. An original that is no JSON object
    has no counterpart, nor has one that is too short.
    """
    hint = _parsed(original)
    if hint is None:
        return None
    complete = complete_checkpoints(present)
    named = _named(hint, complete)
    for candidate in (_same(hint, named) if named else []) or _newest(complete):
        encoded = orjson.dumps(candidate)
        if len(encoded) <= len(original):
            return encoded.ljust(len(original))
    return None


def _parsed(original: bytes) -> dict[str, Any] | None:
    if len(original) > MAX_BYTES:
        return None
    try:
        hint = orjson.loads(original)
    except ValueError:
        return None
    return hint if isinstance(hint, dict) and type(hint.get("version")) is int else None


def _named(hint: dict[str, Any], complete: Collection[Checkpoint]) -> Checkpoint | None:
    v2 = hint.get("v2Checkpoint")
    path = v2.get("path") if isinstance(v2, dict) else None
    for checkpoint in complete:
        if checkpoint.version != hint["version"]:
            continue
        if checkpoint.names == (path,) or (
            v2 is None and checkpoint.parts == hint.get("parts") and not checkpoint.v2
        ):
            return checkpoint
    return None


def _same(hint: dict[str, Any], checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """The hint without what tells of other partitions: with the checkpoint's schema, and without."""
    base = _base(checkpoint)
    if checkpoint.v2:
        kept = {
            name: hint["v2Checkpoint"][name]
            for name in _COUNTS
            if type(hint["v2Checkpoint"].get(name)) is int
        }
        if len(kept) != len(_COUNTS):
            return []
        base["v2Checkpoint"] = {"path": checkpoint.names[0], **kept}
    schema = hint.get("checkpointSchema")
    return [base | {"checkpointSchema": schema}, base] if isinstance(schema, dict) else [base]


def _newest(complete: Collection[Checkpoint]) -> list[dict[str, Any]]:
    """A hint of the newest checkpoint; of a V2 one it could not tell size and time, so there is none."""
    newest = max(complete, key=lambda checkpoint: checkpoint.version, default=None)
    return [] if newest is None or newest.v2 else [_base(newest)]


def _base(checkpoint: Checkpoint) -> dict[str, Any]:
    hint = {"version": checkpoint.version, "size": -1}
    return hint if checkpoint.parts is None else hint | {"parts": checkpoint.parts}
