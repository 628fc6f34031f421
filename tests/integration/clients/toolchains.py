"""The clients of the matrix that are built, each with pinned versions."""

from __future__ import annotations

import pathlib
import shutil
import sys
from collections.abc import Callable, Mapping

from tests.integration.tools import Step, Tool

HERE = pathlib.Path(__file__).resolve().parent
MC = "github.com/minio/mc@v0.0.0-20250313080218-cf909e1063a9"


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
        Tool("venv", ["python3"], _environment, [HERE / "python" / "requirements.txt"]),
        Tool("js", ["node", "npm"], _javascript, [HERE / "js"]),
        Tool("java", ["java", "mvn"], _java, [HERE / "java"]),
        Tool("sdk", ["go"], _go("sdk"), [HERE / "go" / "sdk"]),
        Tool("rust", ["cargo"], _rust, [HERE / "rust"], resumes=True),
        Tool("s5cmd", ["go"], _go("s5cmd", "github.com/peak/s5cmd/v2"), [HERE / "go" / "s5cmd"]),
        Tool("rclone", ["go"], _go("rclone"), [HERE / "go" / "rclone"]),
        Tool("mc", ["go"], _mc, wanted=MC),
    )
}
