"""What tests need from package registries: each tool is built once, by one process, into `.cache`.

A tool whose toolchain is missing, or that a registry does not give in time, is Unavailable with the reason,
and its tests are skipped. Such a failure holds for the run (`TOOLS_RUN`) that met it: nobody waits twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import attrs

ROOT = pathlib.Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "tools"
RUN, UNTIL = "TOOLS_RUN", "TOOLS_UNTIL"
STEP_SECONDS = 900.0


class Unavailable(Exception):
    """A tool cannot be had here; its text says why in one line."""


@attrs.frozen
class Step:
    """Runs one command of a build; the output goes to the log."""

    log: pathlib.Path

    def __call__(
        self, command: Sequence[str], cwd: pathlib.Path, env: Mapping[str, str] | None = None
    ) -> None:
        """Raises Unavailable with the last line of the output, or when the time is over."""
        with self.log.open("wb") as output:
            child = subprocess.Popen(
                command,
                cwd=cwd,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                status = child.wait(_seconds_left())
            except BaseException as error:
                # Its children are in its session, and go with it.
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
                if isinstance(error, subprocess.TimeoutExpired):
                    raise Unavailable(f"{pathlib.Path(command[0]).name} did not end in time") from None
                raise
        if status:
            lines = self.log.read_text(errors="replace").strip().splitlines() or ["no output"]
            raise Unavailable(f"{pathlib.Path(command[0]).name} failed: {lines[-1][:160]}")


@attrs.frozen
class Tool:
    """Something built in a folder of its own, anew when `wanted` or a file of `sources` has changed.

    `resumes`: a build goes on from what an earlier one left in the folder.
    """

    name: str
    needs: Sequence[str]
    build: Callable[[pathlib.Path, Step], None]
    sources: Sequence[pathlib.Path] = ()
    wanted: str = ""
    resumes: bool = False
    cache: pathlib.Path = CACHE

    def ready(self) -> pathlib.Path:
        """The folder of what was built, building it first if need be. Raises Unavailable."""
        for needed in self.needs:
            if shutil.which(needed) is None:
                raise Unavailable(f"{needed} is not installed")
        self.cache.mkdir(parents=True, exist_ok=True)
        folder, stamp, failure = (
            self.cache / f"{self.name}{ending}" for ending in ("", ".stamp", ".failure")
        )
        wanted = self._fingerprint()
        with _locked(self.cache / f"{self.name}.lock"):
            if stamp.exists() and stamp.read_text() == wanted:
                return folder
            met = [os.environ.get(RUN, str(os.getpid())), wanted]
            if failure.exists() and (told := json.loads(failure.read_text()))[:2] == met:
                raise Unavailable(told[2])
            try:
                self._build(folder, stamp)
            except Unavailable as unavailable:
                failure.write_text(json.dumps([*met, str(unavailable)]))
                raise
            stamp.write_text(wanted)
            return folder

    def _build(self, folder: pathlib.Path, stamp: pathlib.Path) -> None:
        if _seconds_left() <= 0:
            raise Unavailable("no time is left to build it")
        stamp.unlink(missing_ok=True)
        if not self.resumes:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        self.build(folder, Step(self.cache / f"{self.name}.log"))

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.name} {sys.version} {self.wanted}".encode())
        files = (each for source in self.sources for each in (source, *source.rglob("*")) if each.is_file())
        for file in sorted(files):
            digest.update(file.name.encode() + file.read_bytes())
        return digest.hexdigest()


def _seconds_left() -> float:
    """How long a step may take: the run gives all of them until `TOOLS_UNTIL`, seconds of the epoch."""
    until = os.environ.get(UNTIL)
    return STEP_SECONDS if until is None else min(STEP_SECONDS, float(until) - time.time())


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
