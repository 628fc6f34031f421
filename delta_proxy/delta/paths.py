"""What the paths of a Delta log mean: `add.path` to a path relative to the table root, and the names of log
files.

Rules of the Delta protocol, "Add File and Remove File", "Deletion Vector Descriptor Schema" and "File Types".
The result is the key below the table root as the store knows it, and is the one value that is both authorised
and sent.
"""

from __future__ import annotations

import re
import uuid
from enum import Enum
from functools import lru_cache
from typing import Final
from urllib.parse import unquote

import attrs

LOG_DIRECTORY: Final = "_delta_log/"


class OutsideTable(ValueError):
    """The path does not name an object below the table root, or no object at all."""


@attrs.frozen
class TableRoot:
    """Where a table lies: the bucket and a prefix without slashes at its ends ("" is the whole bucket)."""

    bucket: str
    prefix: str


_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")
_STORE_SCHEMES: Final = frozenset({"s3", "s3a", "s3n"})


def object_path(add_path: str, root: TableRoot) -> str:
    """The path, relative to the table root, of the object that a log entry names.

    `add_path` is an RFC 2396 URI reference: it is percent-decoded exactly once, `.` and `..` segments are
    resolved, and an absolute s3, s3a or s3n URI (or an absolute path, which is in the table's bucket) is made
    relative. A `%` that starts no escape stands for itself, as in delta-rs. Raises OutsideTable for
    everything that is not below the root, for other schemes and for paths that are not UTF-8.
    """
    match = _SCHEME.match(add_path)
    if match is not None:
        return _within(_path_of_uri(add_path, match, root), root)
    path = _decode(add_path)
    if path.startswith("/"):
        return _within(path, root)
    return _resolve(path)


def _path_of_uri(uri: str, scheme: re.Match[str], root: TableRoot) -> str:
    if scheme[1].lower() not in _STORE_SCHEMES or not uri.startswith("//", scheme.end() - 1):
        raise OutsideTable("not a URI of the table's store")
    bucket, slash, path = uri[scheme.end() + 1 :].partition("/")
    if bucket != root.bucket or not slash:
        raise OutsideTable("a URI of another bucket")
    return "/" + _decode(path)


def _within(absolute: str, root: TableRoot) -> str:
    path = _resolve(absolute[1:])
    if not root.prefix:
        return path
    if not path.startswith(root.prefix + "/") or path == root.prefix + "/":
        raise OutsideTable("a path outside the table root")
    return path[len(root.prefix) + 1 :]


def _decode(path: str) -> str:
    if "%" not in path:
        return path
    try:
        return unquote(path, errors="strict")
    except UnicodeDecodeError:
        raise OutsideTable("a path that is not UTF-8") from None


def _resolve(path: str) -> str:
    if "." in path and not _DOTS.isdisjoint(path.split("/")):
        path = _without_dots(path)
    if not path or path.endswith("/") or "\0" in path:
        raise OutsideTable("a path that names no object")
    return path


_DOTS: Final = frozenset({".", ".."})


def _without_dots(path: str) -> str:
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            if not kept:
                raise OutsideTable("a path above the root")
            kept.pop()
        elif segment != ".":
            kept.append(segment)
    return "/".join(kept)


_Z85: Final = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_Z85_VALUES: Final = {character: value for value, character in enumerate(_Z85)}
_ENCODED_UUID: Final = 20


def decode_z85(text: str) -> bytes:
    """Z85 (ZeroMQ RFC 32): every five characters are four bytes. Raises ValueError for anything else."""
    if len(text) % 5:
        raise ValueError("the length of Z85 is a multiple of five")
    decoded = bytearray()
    for start in range(0, len(text), 5):
        number = 0
        for character in text[start : start + 5]:
            if character not in _Z85_VALUES:
                raise ValueError("a character outside the Z85 alphabet")
            number = number * 85 + _Z85_VALUES[character]
        if number > 0xFFFFFFFF:
            raise ValueError("a Z85 group above four bytes")
        decoded += number.to_bytes(4, "big")
    return bytes(decoded)


def deletion_vector_path(storage: str, value: str, root: TableRoot) -> str | None:
    """The path, relative to the table root, of the file a deletion vector descriptor names; None when inline.

    `storage` is storageType and `value` pathOrInlineDv. 'u': the last 20 characters are the Z85 of a UUID and
    what is before them a directory below the root; 'p': an absolute URI; 'i': the vector itself. Raises
    OutsideTable for anything else and for a file that is not below the root.
    """
    if storage == "i":
        return None
    if storage == "p":
        return object_path(value, root)
    if storage != "u" or len(value) < _ENCODED_UUID:
        raise OutsideTable("a deletion vector descriptor that names no file")
    try:
        name = uuid.UUID(bytes=decode_z85(value[-_ENCODED_UUID:]))
    except ValueError:
        raise OutsideTable("a deletion vector descriptor that names no file") from None
    directory = value[:-_ENCODED_UUID]
    file = f"deletion_vector_{name}.bin"
    return _resolve(f"{directory}/{file}" if directory else file)


class LogKind(Enum):
    """The kinds of files below `_delta_log/`."""

    # Enum hashes its name anew each time; members are equal only to themselves.
    __hash__ = object.__hash__

    COMMIT = "commit"
    CHECKPOINT = "checkpoint"
    CHECKPOINT_PART = "checkpoint part"
    CHECKPOINT_V2 = "checkpoint named by UUID"
    SIDECAR = "sidecar"
    LAST_CHECKPOINT = "last checkpoint"
    CHECKSUM = "checksum"
    COMPACTED = "compacted commits"
    STAGED_COMMIT = "staged commit"
    TEMPORARY = "temporary"
    OTHER = "other"


@attrs.frozen
class LogFile:
    """A file of the log. `name` is relative to `_delta_log/`.

    `part` and `parts` number a CHECKPOINT_PART from 1; `uuid` names a CHECKPOINT_V2; `last` is the last
    version of COMPACTED commits.
    """

    name: str
    kind: LogKind
    version: int | None = None
    part: int | None = None
    parts: int | None = None
    uuid: str | None = None
    last: int | None = None

    @property
    def path(self) -> str:
        """The path relative to the table root."""
        return LOG_DIRECTORY + self.name


_UUID: Final = r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
_VERSIONED: Final = (
    (LogKind.COMMIT, r"(?P<version>[0-9]{20})\.json"),
    (LogKind.CHECKPOINT, r"(?P<version>[0-9]{20})\.checkpoint\.parquet"),
    (
        LogKind.CHECKPOINT_PART,
        r"(?P<version>[0-9]{20})\.checkpoint\.(?P<part>[0-9]{10})\.(?P<parts>[0-9]{10})\.parquet",
    ),
    (LogKind.CHECKPOINT_V2, rf"(?P<version>[0-9]{{20}})\.checkpoint\.(?P<uuid>{_UUID})\.(?:json|parquet)"),
    (LogKind.CHECKSUM, r"(?P<version>[0-9]{20})\.crc"),
    (LogKind.COMPACTED, r"(?P<version>[0-9]{20})\.(?P<last>[0-9]{20})\.compacted\.json"),
    (LogKind.STAGED_COMMIT, rf"_staged_commits/(?P<version>[0-9]{{20}})\.(?:{_UUID})\.json"),
    (LogKind.SIDECAR, r"_sidecars/[^/]+\.parquet"),
    (LogKind.LAST_CHECKPOINT, r"_last_checkpoint"),
    (LogKind.TEMPORARY, r"\.tmp/.*|_commit_.*\.json\.tmp|(?:.*/)?\.[^/]*|.*\.tmp"),
)
_NAMES: Final = tuple((kind, re.compile(pattern, re.ASCII)) for kind, pattern in _VERSIONED)


@lru_cache(maxsize=4096)
def classify_log_name(name: str) -> LogFile:
    """What a file of the log is, by its name relative to `_delta_log/`. A name of no known form is OTHER."""
    for kind, pattern in _NAMES:
        match = pattern.fullmatch(name)
        if match is not None:
            return _log_file(name, kind, match.groupdict())
    return LogFile(name, LogKind.OTHER)


def _log_file(name: str, kind: LogKind, found: dict[str, str]) -> LogFile:
    numbers = {field: int(text) for field, text in found.items() if field != "uuid"}
    if kind is LogKind.CHECKPOINT_PART and not 1 <= numbers["part"] <= numbers["parts"]:
        return LogFile(name, LogKind.OTHER)
    return LogFile(name, kind, uuid=found.get("uuid"), **numbers)


def commit_name(version: int) -> str:
    """The name of the commit of a version, relative to `_delta_log/`."""
    return f"{version:020d}.json"
