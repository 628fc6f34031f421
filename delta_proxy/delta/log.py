"""Which files of a Delta log make up its newest version, and which older ones still exist.

Rules of the Delta protocol, "Checkpoints" and "Action Reconciliation": the newest complete checkpoint and
every commit after it, without a hole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import attrs

from delta_proxy.s3.errors import NoSuchKey

from .actions import LogError
from .paths import LogFile, LogKind, classify_log_name, commit_name


class NotATable(NoSuchKey):
    """There is no Delta log at the place."""

    code = "NoSuchKey"
    default_message = "There is no Delta log here."


@attrs.frozen
class Checkpoint:
    """A complete checkpoint: one file, or every part of it."""

    version: int
    files: tuple[LogFile, ...]


@attrs.frozen
class LogSegment:
    """What makes up the newest version, oldest first."""

    checkpoint: Checkpoint | None
    commits: tuple[LogFile, ...]
    version: int


@attrs.frozen
class History:
    """What remains of the log at and before a segment's checkpoint: what old versions are read from, oldest
    first.
    """

    checkpoints: tuple[Checkpoint, ...]
    commits: tuple[LogFile, ...]


def select_segment(names: Iterable[str]) -> LogSegment:
    """The newest version among the files of a log; `names` are relative to `_delta_log/`, in any order.

    Raises NotATable when there is no commit and no complete checkpoint, and LogError when a commit is
    missing.
    """
    files = [classify_log_name(name) for name in names]
    commits = _commits(files)
    checkpoint = max(_checkpoints(files).values(), key=lambda found: found.version, default=None)
    if checkpoint is None and not commits:
        raise NotATable
    first = checkpoint.version + 1 if checkpoint else 0
    after = tuple(commits[version] for version in sorted(commits) if version >= first)
    require_dense(after, first)
    return LogSegment(checkpoint, after, first + len(after) - 1)


def require_dense(commits: Iterable[LogFile], first: int) -> None:
    """Raise LogError unless the commits are exactly those from version `first` on, in order."""
    for expected, commit in enumerate(commits, first):
        if commit.version != expected:
            raise LogError(commit_name(expected), None, "a commit is missing from the log")


def select_history(names: Iterable[str], until: int) -> History:
    """What must be read besides the checkpoint of version `until` (-1: there is none) to know every value
    that the remaining log gives a file.

    That is every commit up to the segment's checkpoint, and for each run of missing commits the complete
    checkpoints within it and the first one that covers it: every other checkpoint follows from these.
    """
    files = [classify_log_name(name) for name in names]
    commits = {version: file for version, file in _commits(files).items() if version <= until}
    checkpoints = {version: found for version, found in _checkpoints(files).items() if version < until}
    chosen: set[int] = set()
    covered = -1
    for version in sorted({*commits, until + 1}):
        if version > covered + 1:
            inside = {one for one in checkpoints if covered < one < version - 1}
            after = min((one for one in checkpoints if one >= version - 1), default=None)
            chosen.update(inside if after is None else {*inside, after})
        covered = version
    return History(
        tuple(checkpoints[version] for version in sorted(chosen)),
        tuple(commits[version] for version in sorted(commits)),
    )


def _commits(files: Iterable[LogFile]) -> dict[int, LogFile]:
    return {file.version: file for file in files if file.kind is LogKind.COMMIT and file.version is not None}


def _checkpoints(files: Iterable[LogFile]) -> Mapping[int, Checkpoint]:
    """The complete checkpoint of each version. Of several the one by UUID is taken, then the classic one."""
    complete: dict[int, Checkpoint] = {}
    for candidates in (
        _multi_part(files),
        _whole(files, LogKind.CHECKPOINT),
        _whole(files, LogKind.CHECKPOINT_V2),
    ):
        complete.update(candidates)
    return complete


def _whole(files: Iterable[LogFile], kind: LogKind) -> dict[int, Checkpoint]:
    found = sorted((file for file in files if file.kind is kind), key=lambda file: file.name)
    return {file.version: Checkpoint(file.version, (file,)) for file in found if file.version is not None}


def _multi_part(files: Iterable[LogFile]) -> dict[int, Checkpoint]:
    parts: defaultdict[tuple[int, int], dict[int, LogFile]] = defaultdict(dict)
    for file in files:
        if file.version is not None and file.part is not None and file.parts is not None:
            parts[file.version, file.parts][file.part] = file
    return {
        version: Checkpoint(version, tuple(found[part] for part in sorted(found)))
        for (version, total), found in sorted(parts.items())
        if len(found) == total
    }
