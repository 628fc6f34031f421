"""Commits, and JSON manifests of V2 checkpoints, as a grant sees them: same length, fewer lines.

Two passes over a local file, both in constant memory: `scan` decides each line, `emit` writes them out.
Source of the rules: Delta PROTOCOL, "Actions" and "Change Data Files". What readers need of `commitInfo`:
delta-spark accepts any of its fields absent; the Java kernel's `CommitInfo` unboxes `timestamp` and
`isBlindAppend` and refuses a null `engineInfo`, `operation` or `txnId`, so those keep their place,
`engineInfo` and `operationParameters` emptied.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Mapping
from enum import Enum, IntEnum
from typing import Any, BinaryIO

import attrs
import orjson

from .view_grant import (
    KEPT_DOMAINS,
    Columns,
    Judge,
    StaleIndex,
    ViewError,
    ViewGrant,
    check_protocol,
    partition_columns,
)

MAX_LINE_BYTES = 64 * 1024 * 1024
MAX_LINES = 16_000_000
CHUNK_BYTES = 256 * 1024
# Each read gives up the interpreter for a moment: many small ones starve the other threads.
BLOCK_BYTES = 1024 * 1024
# What stands in a commit of which nothing else is left: `{}` breaks writers of deltalake, blank lines
# delta-spark.
NOTHING = b'{"commitInfo":{}}'


_NEWLINE = orjson.OPT_APPEND_NEWLINE
_NO_ACTION: tuple[str, dict[str, Any]] = ("", {})


class FileRole(Enum):
    """What a JSON log file is: `N.json`, or the manifest `N.checkpoint.UUID.json` of a V2 checkpoint."""

    COMMIT = "commit"
    MANIFEST = "manifest"


class _Fate(IntEnum):
    DROP = 0
    KEEP = 1
    REPLACE = 2
    LOUD = 3  # a kept add or remove whose dataChange is not false
    QUIET = 4  # kept, dataChange set to false
    BARE = 5  # the same, without stats


@attrs.frozen
class CommitFacts:
    """What `scan` found: everything `emit` needs, and what a caller may want to know of the file.

    `size` in bytes; `fates` one byte a line; `replacements` by line number; `padding` in bytes; `last` the
    number of the last kept line (-1: none). `has_cdc` and `keeps_cdc` tell of change data actions, `columns`
    are the partition columns of the file's own `metaData` (None: it has none), `sidecars` the file names that
    a manifest names.
    """

    size: int
    fates: bytes = attrs.field(repr=False)
    replacements: Mapping[int, bytes] = attrs.field(repr=False)
    last: int
    padding: int
    ends_with_newline: bool
    has_cdc: bool
    keeps_cdc: bool
    columns: Columns | None
    sidecars: tuple[str, ...]


def scan(path: pathlib.Path, grant: ViewGrant, role: FileRole = FileRole.COMMIT) -> CommitFacts:
    """Decide every line of a commit or manifest.

    Raises ViewError when the file cannot be filtered with certainty: an unparsable line, a key twice in one
    object, two actions on a line, two `metaData`, an unknown reader feature, a line over 64 MiB, no room.
    Raises StaleIndex for a granted `add` or `cdc` of a path the index does not know.
    """
    scanning = _Scan.start(grant, role, None)
    while not _run(path, scanning):
        # Its metaData stands behind file actions and governs those too.
        scanning = _Scan.start(grant, role, scanning.columns)
    return _facts(path, scanning)


def emit(path: pathlib.Path, facts: CommitFacts) -> Iterator[bytes]:
    """The filtered file in chunks, `facts.size` bytes in all. Raises ViewError if the file has changed."""
    written = 0
    for chunk in _gathered(_pieces(path, facts)):
        written += len(chunk)
        yield chunk
    if written != facts.size:
        raise ViewError("the file changed while it was filtered")


@attrs.define
class _Scan:
    grant: ViewGrant
    role: FileRole
    permits: Judge
    permits_before: Judge
    columns: Columns | None
    fates: bytearray = attrs.Factory(bytearray)
    replacements: dict[int, bytes] = attrs.Factory(dict)
    sidecars: list[str] = attrs.Factory(list)
    kept_bytes: int = 0
    ends_with_newline: bool = False
    seen_metadata: bool = False
    seen_commit_info: bool = False
    judged: bool = False
    has_cdc: bool = False
    keeps_cdc: bool = False

    @classmethod
    def start(cls, grant: ViewGrant, role: FileRole, columns: Columns | None) -> _Scan:
        before = _undecided if grant.columns is None else grant.judge(grant.columns)
        return cls(grant, role, before if columns is None else grant.judge(columns), before, columns)


def _undecided(_: Mapping[str, str | None]) -> bool:
    """Stands for a judge until the file's own metaData is found, with which the file is scanned again."""
    return False


def _run(path: pathlib.Path, scanning: _Scan) -> bool:
    """Scan the file; False when it must be scanned again under the metaData that was found late."""
    rules, fates, kept = _RULES[scanning.role], scanning.fates, 0
    with path.open("rb", buffering=BLOCK_BYTES) as file:
        for line in _lines(file):
            name, action = _action(line)
            if name == "metaData" and not _take_metadata(scanning, action):
                return False
            outcome = rules[name](scanning, action)
            if isinstance(outcome, bytes):
                scanning.replacements[len(fates)] = outcome
                kept += _fitting(name, outcome, line)
                fates.append(_Fate.REPLACE)
                continue
            fates.append(outcome)
            if outcome:
                kept += len(line) - line.endswith(b"\n")
        scanning.ends_with_newline = bool(fates) and line.endswith(b"\n")
    if scanning.judged and scanning.columns is None and scanning.grant.columns is None:
        raise ViewError("no metaData is in force for the files of the log file")
    scanning.kept_bytes = kept
    return True


def _fitting(name: str, reduced: bytes, line: bytes) -> int:
    if len(reduced) > len(line.removesuffix(b"\n")):
        raise ViewError(f"a reduced {name} does not fit its line")
    return len(reduced)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    count = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        count += 1
        if len(line) > MAX_LINE_BYTES:
            raise ViewError("a line of the log is longer than 64 MiB")
        if count > MAX_LINES:
            raise ViewError("a log file has more than 16 million lines")
        yield line


def _action(line: bytes) -> tuple[str, dict[str, Any]]:
    """The one action on a line; `_NO_ACTION` for a line without a known one."""
    parsed = _decoded(line)
    if len(parsed) == 1:
        ((name, action),) = parsed.items()
    else:
        present = [item for item in parsed.items() if item[1] is not None]
        if len(present) > 1:
            raise ViewError("a line of the log holds more than one action")
        name, action = present[0] if present else _NO_ACTION
    if action is None or name not in _KNOWN:
        return _NO_ACTION
    if type(action) is not dict:
        raise ViewError(f"the {name} of a line is no object")
    return name, action


def _decoded(line: bytes) -> dict[str, Any]:
    """A JSON object in which no key stands twice: parsers differ on which of the two counts."""
    try:
        parsed = orjson.loads(line)
        # A line that comes out of the encoder as it went into the decoder lost no key on the way.
        if orjson.dumps(parsed, option=_NEWLINE) != line:
            json.loads(line, object_pairs_hook=_unique)
    except (ValueError, TypeError, RecursionError) as error:
        if not line.strip(b" \t\r\n"):
            return {}
        raise ViewError("a line of the log is not valid JSON") from error
    if type(parsed) is not dict:
        raise ViewError("a line of the log is no JSON object")
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> None:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ViewError("a line of the log holds a key twice")


def _take_metadata(scanning: _Scan, action: dict[str, Any]) -> bool:
    if scanning.seen_metadata:
        raise ViewError("a log file holds two metaData actions")
    scanning.seen_metadata = True
    if scanning.columns is None:
        scanning.columns = partition_columns(action)
        scanning.permits = scanning.grant.judge(scanning.columns)
        return not scanning.judged
    return True


def _path(action: dict[str, Any]) -> str:
    path = action.get("path")
    if type(path) is not str or not path:
        raise ViewError("a file action of the log names no path")
    return path


def _shown(scanning: _Scan, action: dict[str, Any]) -> bool:
    """Whether a file that a line adds is granted: by its values here and by all the path ever had."""
    scanning.judged = True
    path = _path(action)
    values = action.get("partitionValues")
    if type(values) is not dict or not scanning.permits(values):
        return False
    history = scanning.grant.history(path)
    if history is None:
        raise StaleIndex("the index does not know a file of this log file yet")
    return history


def _add(scanning: _Scan, action: dict[str, Any]) -> _Fate:
    return _loudness(action) if _shown(scanning, action) else _Fate.DROP


def _loudness(action: dict[str, Any]) -> _Fate:
    return _Fate.KEEP if action.get("dataChange") is False else _Fate.LOUD


def _remove(scanning: _Scan, action: dict[str, Any]) -> _Fate:
    """A file leaves the table under the values it had: by the metaData before, should the columns change."""
    scanning.judged = True
    history = scanning.grant.history(_path(action))
    values = action.get("partitionValues")
    if values is None:
        granted = history is True
    elif history is False or not isinstance(values, dict):
        granted = False
    else:
        granted = scanning.permits_before(values) or scanning.permits(values)
    return _loudness(action) if granted else _Fate.DROP


def _cdc(scanning: _Scan, action: dict[str, Any]) -> _Fate:
    scanning.has_cdc = True
    if not _shown(scanning, action):
        return _Fate.DROP
    scanning.keeps_cdc = True
    return _Fate.KEEP


def _protocol(_: _Scan, action: dict[str, Any]) -> _Fate:
    check_protocol(action)
    return _Fate.KEEP


def _domain(_: _Scan, action: dict[str, Any]) -> _Fate:
    return _Fate.KEEP if action.get("domain") in KEPT_DOMAINS else _Fate.DROP


def _commit_info(scanning: _Scan, action: dict[str, Any]) -> _Fate | bytes:
    if scanning.seen_commit_info:
        return _Fate.DROP
    scanning.seen_commit_info = True
    kept = {name: value for name, value in action.items() if type(value) is _COMMIT_INFO.get(name)}
    emptied = {name: _EMPTIED[name] for name in action if name in _EMPTIED and action[name] is not None}
    return orjson.dumps(
        {"commitInfo": {name: (kept | emptied)[name] for name in action if name in kept | emptied}}
    )


_COMMIT_INFO: dict[str, type] = {
    "timestamp": int,
    "inCommitTimestamp": int,
    "txnId": str,
    "operation": str,
    "isBlindAppend": bool,
}
_EMPTIED: dict[str, object] = {"engineInfo": "", "operationParameters": {}}


def _checkpoint_metadata(_: _Scan, action: dict[str, Any]) -> bytes:
    return orjson.dumps({"checkpointMetadata": {"version": _integer(action, "version")}})


def _sidecar(scanning: _Scan, action: dict[str, Any]) -> bytes:
    path = sidecar_name(action.get("path"))
    scanning.sidecars.append(path)
    # The name stays as it is spelt: a reader that decodes it and one that does not must find the same file.
    reduced = {name: _integer(action, name) for name in ("sizeInBytes", "modificationTime") if name in action}
    return orjson.dumps({"sidecar": {"path": path, **reduced}})


def sidecar_name(path: object) -> str:
    """The name below `_delta_log/_sidecars/` that a `sidecar` action gives. Raises ViewError for others."""
    if not isinstance(path, str) or not path.endswith(".parquet") or not set("/\\%:").isdisjoint(path):
        raise ViewError("a sidecar lies outside the log")
    return path


def _integer(action: dict[str, Any], name: str) -> int:
    value = action.get(name)
    if type(value) is not int:
        raise ViewError(f"{name} is no number")
    return value


def _keep(_: _Scan, __: dict[str, Any]) -> _Fate:
    return _Fate.KEEP


def _drop(_: _Scan, __: dict[str, Any]) -> _Fate:
    return _Fate.DROP


_COMMIT_RULES = {
    "add": _add,
    "remove": _remove,
    "cdc": _cdc,
    "metaData": _keep,
    "protocol": _protocol,
    "domainMetadata": _domain,
    "commitInfo": _commit_info,
    "txn": _drop,
    "checkpointMetadata": _drop,
    "sidecar": _drop,
    _NO_ACTION[0]: _drop,
}
_RULES = {
    FileRole.COMMIT: _COMMIT_RULES,
    FileRole.MANIFEST: _COMMIT_RULES
    | {
        "remove": _drop,
        "cdc": _drop,
        "commitInfo": _drop,
        "checkpointMetadata": _checkpoint_metadata,
        "sidecar": _sidecar,
    },
}
_KNOWN = frozenset(_COMMIT_RULES) - {_NO_ACTION[0]}


def _facts(path: pathlib.Path, scanning: _Scan) -> CommitFacts:
    size = path.stat().st_size
    fates = scanning.fates
    kept = len(fates) - fates.count(_Fate.DROP)
    newlines = max(kept - 1, 0) + scanning.ends_with_newline
    if scanning.has_cdc and not scanning.keeps_cdc:
        room = size - newlines - scanning.kept_bytes
        scanning.kept_bytes += _silence(path, fates, room)
    if not kept and size:
        if scanning.role is FileRole.MANIFEST:
            raise ViewError("a checkpoint manifest without protocol and metaData")
        scanning.kept_bytes = len(NOTHING)
    padding = size - newlines - scanning.kept_bytes
    if padding < 0:
        raise ViewError("the filtered log file does not fit the size of the original")
    last = max((fates.rfind(fate) for fate in _Fate if fate is not _Fate.DROP), default=-1)
    return CommitFacts(
        size=size,
        fates=bytes(fates),
        replacements=scanning.replacements,
        last=last,
        padding=padding,
        ends_with_newline=scanning.ends_with_newline,
        has_cdc=scanning.has_cdc,
        keeps_cdc=scanning.keeps_cdc,
        columns=scanning.columns,
        sidecars=tuple(scanning.sidecars),
    )


def _silence(path: pathlib.Path, fates: bytearray, room: int) -> int:
    """Turn LOUD lines QUIET, and as many BARE as it takes to fit; the bytes by which the file grows."""
    growth = sum(len(_quiet(text)) - len(text) for _, text in _loud(path, fates))
    for number, text in _loud(path, fates):
        fates[number] = _Fate.QUIET
        saved = len(_quiet(text)) - len(_bare(text)) if growth > room else 0
        if saved > 0:
            fates[number] = _Fate.BARE
            growth -= saved
    return growth


def _loud(path: pathlib.Path, fates: bytearray) -> Iterator[tuple[int, bytes]]:
    with path.open("rb", buffering=BLOCK_BYTES) as file:
        for number, line in enumerate(_lines(file)):
            if fates[number] == _Fate.LOUD:
                yield number, line.removesuffix(b"\n")


def _quiet(text: bytes) -> bytes:
    """A file action with dataChange false; otherwise its own bytes, where they can be kept."""
    wanted = _silenced(text)
    edited = text.replace(b'"dataChange":true', b'"dataChange":false', 1)
    return edited if orjson.loads(edited) == wanted else orjson.dumps(wanted)


def _bare(text: bytes) -> bytes:
    wanted = _silenced(text)
    for action in wanted.values():
        if isinstance(action, dict):
            action.pop("stats", None)
    return orjson.dumps(wanted)


def _silenced(text: bytes) -> dict[str, Any]:
    parsed: dict[str, Any] = orjson.loads(text)
    for action in parsed.values():
        if isinstance(action, dict):
            action["dataChange"] = False
    return parsed


def _pieces(path: pathlib.Path, facts: CommitFacts) -> Iterator[bytes]:
    if facts.last < 0 and facts.size:
        yield NOTHING
        yield from _tail(facts)
        return
    with path.open("rb", buffering=BLOCK_BYTES) as file:
        for number, line in enumerate(_lines(file)):
            if number >= len(facts.fates):
                raise ViewError("the file changed while it was filtered")
            fate = facts.fates[number]
            if fate == _Fate.DROP:
                continue
            if number == facts.last:
                yield _written(number, fate, line, facts).removesuffix(b"\n")
                yield from _tail(facts)
                return
            yield _written(number, fate, line, facts)


def _written(number: int, fate: int, line: bytes, facts: CommitFacts) -> bytes:
    if fate in {_Fate.KEEP, _Fate.LOUD}:
        return line
    if fate == _Fate.REPLACE:
        return facts.replacements[number] + b"\n"
    return (_quiet if fate == _Fate.QUIET else _bare)(line.removesuffix(b"\n")) + b"\n"


def _tail(facts: CommitFacts) -> Iterator[bytes]:
    spaces = b" " * min(facts.padding, CHUNK_BYTES)
    for _ in range(facts.padding // CHUNK_BYTES):
        yield spaces
    yield spaces[: facts.padding % CHUNK_BYTES]
    if facts.ends_with_newline:
        yield b"\n"


def _gathered(pieces: Iterator[bytes]) -> Iterator[bytes]:
    buffer = bytearray()
    for piece in pieces:
        buffer += piece
        if len(buffer) >= CHUNK_BYTES:
            yield bytes(buffer)
            buffer.clear()
    if buffer:
        yield bytes(buffer)
