"""The clients of the matrix: how each is run, what it can do, and what it cannot."""

from __future__ import annotations

import os
import pathlib
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from .toolchains import HERE, ROOT, TOOLS

BUCKET_DOMAIN = "s3.localhost"


@attrs.frozen
class Program:
    """One row of the matrix.

    `rule` names the client of s3/user_agents.py it is. `operations` are those its program has. `command`
    gives the command to run, and may raise Unavailable; `sources` are the files that the lines to paste come
    from; `version` is what is shown. `virtual` says why it does not use virtual-host style, None if it does.
    `most_denied` bounds its requests for one denied key. `faults` says, by the label of a step, why the
    client fails at it before any S3 server.
    """

    name: str
    rule: str
    language: str
    operations: frozenset[str]
    command: Callable[[], Sequence[str]]
    sources: tuple[pathlib.Path, ...]
    version: Callable[[], str]
    virtual: str | None = None
    most_denied: int = 2
    faults: Mapping[str, str] = attrs.field(factory=dict)
    environment: Mapping[str, str] = attrs.field(factory=dict)
    options: Mapping[str, Any] = attrs.field(factory=dict)
    slow: bool = True

    @property
    def slug(self) -> str:
        """The name as an identifier."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.name.lower())

    def lines(self) -> str:
        """The lines to paste: what stands between the markers of its sources, each block dedented."""
        return "\n".join(block for source in self.sources for block in pasted(source.read_text()))


def pasted(text: str) -> list[str]:
    """The blocks between `paste from here` and `paste to here`, each without its indentation."""
    blocks: list[list[str]] = []
    inside = False
    for line in text.splitlines():
        if line.endswith("paste to here"):
            inside = False
        elif line.endswith("paste from here"):
            inside = True
            blocks.append([])
        elif inside:
            blocks[-1].append(line)
    return [textwrap.dedent("\n".join(block)) for block in blocks]


def _installed(package: str) -> Callable[[], str]:
    def version() -> str:
        from importlib.metadata import version as find

        return f"{package} {find(package)}"

    return version


def _pinned(package: str) -> Callable[[], str]:
    def version() -> str:
        for line in (HERE / "python" / "requirements.txt").read_text().splitlines():
            name, _, found = line.partition("==")
            if name == package:
                return f"{package} {found}"
        raise LookupError(package)

    return version


def _python(name: str, module: str, rule: str, package: str, operations: str, **more: Any) -> Program:
    return Program(
        name=name,
        rule=rule,
        language="python",
        operations=frozenset(operations.split()),
        command=lambda: [sys.executable, "-m", f"{__package__}.python.{module}"],
        sources=(*more.pop("before", ()), HERE / "python" / f"{module}.py"),
        version=_installed(package),
        **more,
    )


def _in_venv(module: str) -> Callable[[], Sequence[str]]:
    return lambda: [str(TOOLS["venv"].ready() / "bin" / "python"), "-m", f"{__package__}.python.{module}"]


_DUCKDB = (HERE / "python" / "duckdb_connection.py",)

PROGRAMS: tuple[Program, ...] = (
    _python("deltalake", "deltalake_table", "object_store", "deltalake", "table"),
    _python(
        "polars scan_delta",
        "polars_delta",
        "polars",
        "polars",
        "table",
        most_denied=4,
        faults={"special": "scan_delta quotes the names of the log once more"},
    ),
    _python("polars scan_parquet", "polars_parquet", "polars", "polars", "file special", slow=False),
    _python(
        "duckdb delta",
        "duckdb_delta",
        "duckdb",
        "duckdb",
        "table",
        before=_DUCKDB,
        most_denied=6,
        faults={"special": "delta_scan takes the ? of a name for the start of a query"},
    ),
    _python(
        "duckdb httpfs",
        "duckdb_parquet",
        "duckdb",
        "duckdb",
        "file list",
        before=_DUCKDB,
        most_denied=6,
        faults={
            "[x]{y}^|<>": "read_parquet takes [ ] in a name for a pattern",
            "hash#question?": "read_parquet takes the ? of a name for the start of a query",
        },
    ),
    _python("pyarrow", "pyarrow_files", "AWS SDK for C++", "pyarrow", "open list read range file"),
    _python(
        "pandas, s3fs",
        "pandas_s3fs",
        "aiobotocore",
        "s3fs",
        "open list read range file",
        environment={"BOTO_DISABLE_CRT": "true"},
    ),
    Program(
        name="pandas, s3fs, awscrt",
        rule="aiobotocore with awscrt",
        language="python",
        operations=frozenset({"open", "list", "read", "range", "file"}),
        command=_in_venv("pandas_s3fs"),
        sources=(HERE / "python" / "pandas_s3fs.py",),
        version=_pinned("s3fs"),
    ),
    _python("boto3 get_object", "boto3_get", "boto3", "boto3", "open list read range", slow=False),
    _python("boto3 download_file", "boto3_download", "boto3", "boto3", "read parallel"),
    Program(
        name="daft",
        rule="other AWS SDKs",
        language="python",
        operations=frozenset({"file", "list"}),
        command=_in_venv("daft_parquet"),
        sources=(HERE / "python" / "daft_parquet.py",),
        version=_pinned("daft"),
        faults={
            "[x]{y}^|<>": "read_parquet takes [ ] in a name for a pattern",
            "denied": "a 403 without a body, which HEAD gets, is told as an unhandled error",
        },
    ),
)


def environment(program: Program, http_proxy: str | None) -> dict[str, str]:
    """A program's environment: this process's without settings of AWS, of proxies and of the programs."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith(("AWS_", "PROXY_", "RCLONE_", "MC_"))
        and not name.upper().endswith("_PROXY")
    }
    through = {"HTTP_PROXY": http_proxy, "http_proxy": http_proxy} if http_proxy else {}
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        **through,
        **program.environment,
    }
