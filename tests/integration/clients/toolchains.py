"""Builds the clients of the matrix, each once, into .cache/clients of the checkout, with pinned versions.

`python -m tests.integration.clients.toolchains` builds all of them: bin/test --all does that beside its other
steps. A client whose toolchain or download is missing is Unavailable, with the reason.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import attrs

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]
CACHE = ROOT / ".cache" / "clients"
BUILD_SECONDS = 1500
MC = "github.com/minio/mc@v0.0.0-20250313080218-cf909e1063a9"


class Unavailable(Exception):
    """A client cannot be had here; its text says why in one line."""


@attrs.frozen
class Tool:
    """Something to be built: `build` is run in a fresh folder when a file of `sources` has changed."""

    name: str
    needs: str
    sources: pathlib.Path | str
    build: Callable[[pathlib.Path, Step], None]

    def ready(self) -> pathlib.Path:
        """The folder of what was built, building it first if need be. Raises Unavailable."""
        if shutil.which(self.needs) is None:
            raise Unavailable(f"{self.needs} is not installed")
        CACHE.mkdir(parents=True, exist_ok=True)
        with _locked(CACHE / f"{self.name}.lock"):
            folder, stamp = CACHE / self.name, CACHE / f"{self.name}.stamp"
            wanted = self._fingerprint()
            if not (stamp.exists() and stamp.read_text() == wanted):
                folder.mkdir(exist_ok=True)
                self.build(folder, Step(CACHE / f"{self.name}.log"))
                stamp.write_text(wanted)
            return folder

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.name} {sys.version}".encode())
        if isinstance(self.sources, str):
            digest.update(self.sources.encode())
        else:
            for file in sorted(each for each in self.sources.rglob("*") if each.is_file()):
                digest.update(file.name.encode() + file.read_bytes())
        return digest.hexdigest()


@attrs.frozen
class Step:
    """Runs one command of a build; the output goes to the log."""

    log: pathlib.Path

    def __call__(
        self, command: Sequence[str], cwd: pathlib.Path, env: Mapping[str, str] | None = None
    ) -> None:
        """Raises Unavailable with the last line of the output."""
        with self.log.open("wb") as output:
            try:
                subprocess.run(
                    command,
                    cwd=cwd,
                    env={**os.environ, **(env or {})},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=BUILD_SECONDS,
                    check=True,
                )
            except (subprocess.SubprocessError, OSError):
                lines = self.log.read_text(errors="replace").strip().splitlines() or ["no output"]
                raise Unavailable(f"{command[0]} failed: {lines[-1][:160]}") from None


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _environment(folder: pathlib.Path, run: Step) -> None:
    run([sys.executable, "-m", "venv", "--clear", str(folder)], folder)
    requirements = HERE / "python" / "requirements.txt"
    run([str(folder / "bin" / "pip"), "install", "-q", "-r", str(requirements)], folder)


def _go(name: str, package: str = ".") -> Callable[[pathlib.Path, Step], None]:
    def build(folder: pathlib.Path, run: Step) -> None:
        run(["go", "build", "-o", str(folder / name), package], HERE / "go" / name)

    return build


def _mc(folder: pathlib.Path, run: Step) -> None:
    run(["go", "install", MC], folder, {"GOBIN": str(folder)})


def _javascript(folder: pathlib.Path, run: Step) -> None:
    shutil.copytree(HERE / "js", folder, dirs_exist_ok=True)
    run(["npm", "ci", "--no-audit", "--no-fund"], folder)


def _java(folder: pathlib.Path, run: Step) -> None:
    goals = ["compile", "dependency:build-classpath", f"-Dmdep.outputFile={folder / 'classpath'}"]
    run(["mvn", "-q", "-B", f"-Dout={folder}", *goals], HERE / "java")


def _rust(folder: pathlib.Path, run: Step) -> None:
    run(["cargo", "build", "--locked"], HERE / "rust", {"CARGO_TARGET_DIR": str(folder)})


TOOLS: Mapping[str, Tool] = {
    tool.name: tool
    for tool in (
        Tool("venv", "python3", (HERE / "python" / "requirements.txt").read_text(), _environment),
        Tool("js", "npm", HERE / "js", _javascript),
        Tool("java", "mvn", HERE / "java", _java),
        Tool("sdk", "go", HERE / "go" / "sdk", _go("sdk")),
        Tool("rust", "cargo", HERE / "rust", _rust),
        Tool("s5cmd", "go", HERE / "go" / "s5cmd", _go("s5cmd", "github.com/peak/s5cmd/v2")),
        Tool("rclone", "go", HERE / "go" / "rclone", _go("rclone")),
        Tool("mc", "go", MC, _mc),
    )
}


def main() -> None:
    """Build every tool, saying of each what came of it."""
    for tool in TOOLS.values():
        try:
            tool.ready()
        except Unavailable as unavailable:
            print(f"{tool.name}: {unavailable}")


if __name__ == "__main__":
    main()
