"""The clients of the matrix: how each is run, what it can do, and what it cannot."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from tests.integration.tools import ROOT, Unavailable

from .toolchains import HERE, MC, TOOLS

BUCKET_DOMAIN = "s3.localhost"


@attrs.frozen
class Program:
    """One row of the matrix.

    `rule` names the client of s3/user_agents.py it is. `operations` are those its program has. `command`
    gives the command to run, and may raise Unavailable; `sources` are the files that the lines to paste come
    from, `sections` the blocks of these that are the program's own, None for all; `version` is what is shown.
    `virtual` says why it does not use virtual-host style, None if it does; `resolves`, that it finds such
    hosts by itself. `most_denied` bounds its requests for one denied key. `faults` says, by the label of a
    step, why the client fails at it before any S3 server.
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
    sections: frozenset[str] | None = None
    resolves: bool = False
    slow: bool = True

    @property
    def slug(self) -> str:
        """The name as an identifier."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.name.lower())

    def lines(self) -> str:
        """The lines to paste: what stands between the markers of its sources, each block dedented."""
        texts = [source.read_text() for source in self.sources]
        blocks = [
            block
            for text in texts
            for section, block in pasted(text)
            if self.sections is None or section in self.sections
        ]
        leading = [line for text in texts for line in imports(text)] if self.language == "python" else []
        return "\n".join([*leading, *([""] if leading else []), *blocks])


def imports(text: str) -> list[str]:
    """The lines by which a Python program imports its client."""
    found = re.findall(r"^(?:import|from) ([a-z_0-9]+).*$", text, re.MULTILINE)
    lines = [line for line in text.splitlines() if re.match(r"(import|from) [a-z_0-9]", line)]
    known = sys.stdlib_module_names | {"delta_proxy"}
    return [line for name, line in zip(found, lines, strict=True) if name not in known]


def pasted(text: str) -> list[tuple[str, str]]:
    """The blocks between `paste from here` and `paste to here`, each after the word before, without its
    indentation."""
    blocks: list[tuple[str, list[str]]] = []
    inside = False
    for line in text.splitlines():
        if line.endswith("paste to here"):
            inside = False
        elif line.endswith("paste from here"):
            inside = True
            word = line.removesuffix("paste from here").strip("\t #/:")
            blocks.append((word, []))
        elif inside:
            blocks[-1][1].append(line)
    return [(word, textwrap.dedent("\n".join(lines))) for word, lines in blocks]


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


def _crate() -> str:
    found = re.search(r'object_store = \{ version = "=([^"]+)"', (HERE / "rust" / "Cargo.toml").read_text())
    assert found is not None
    return found[1]


_DUCKDB = (HERE / "python" / "duckdb_connection.py",)

PROGRAMS: tuple[Program, ...] = (
    _python("deltalake", "deltalake_table", "object_store before 0.14", "deltalake", "table"),
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
        virtual="delta_scan leaves the bucket out where it reads the log",
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


_OBJECTS = frozenset({"open", "list", "read", "range"})


def _go_module(name: str, module: str) -> Callable[[], str]:
    def version() -> str:
        for line in (HERE / "go" / name / "go.mod").read_text().splitlines():
            words = line.removeprefix("require").split()
            if words[:1] == [module]:
                return words[1]
        raise LookupError(module)

    return version


def _go_sdk(name: str, reader: str, module: str, operations: frozenset[str]) -> Program:
    return Program(
        name=f"Go: {name}",
        rule="AWS SDK for Go v2",
        language="go",
        operations=operations,
        command=lambda: [str(TOOLS["sdk"].ready() / "sdk")],
        sources=(HERE / "go" / "sdk" / "main.go",),
        sections=frozenset({"", reader}),
        version=_go_module("sdk", f"github.com/aws/aws-sdk-go-v2/{module}"),
        options={"reader": reader},
    )


def _jar(property_: str) -> Callable[[], str]:
    def version() -> str:
        found = re.search(f"<{property_}>(.*)</{property_}>", (HERE / "java" / "pom.xml").read_text())
        assert found is not None
        return found[1]

    return version


def _java(main: str) -> Callable[[], Sequence[str]]:
    def command() -> Sequence[str]:
        folder = TOOLS["java"].ready()
        hosts = folder / "hosts"
        names = (
            "localhost",
            BUCKET_DOMAIN,
            *(f"{name}.{BUCKET_DOMAIN}" for name in ("datalake", "warehouse")),
        )
        hosts.write_text(f"127.0.0.1 {' '.join(names)}\n")
        path = f"{folder / 'classes'}:{(folder / 'classpath').read_text().strip()}"
        options = ["-XX:TieredStopAtLevel=1", "-Xshare:auto", f"-Djdk.net.hosts.file={hosts}"]
        return ["java", *options, "-cp", path, main]

    return command


def _java_v2(http: str, **more: Any) -> Program:
    return Program(
        name=f"Java v2: {http}",
        rule="AWS SDK for Java",
        language="java",
        operations=_OBJECTS,
        command=_java("V2"),
        sources=(HERE / "java" / "src" / "main" / "java" / "V2.java",),
        sections=frozenset({"netty"} if http == "netty" else {"sync", http}),
        version=_jar("v2"),
        options={"http": http},
        resolves=True,
        **more,
    )


def _tool(
    name: str, rule: str, operations: str, version: Callable[[], str], tool: str | None, **more: Any
) -> Program:
    script = HERE / "cli" / f"{name.partition('-')[0]}.sh"

    def command() -> Sequence[str]:
        found = shutil.which(name) if tool is None else str(TOOLS[tool].ready())
        if found is None:
            raise Unavailable(f"{name} is not installed")
        folder = pathlib.Path(found) / "bin" if tool == "venv" else pathlib.Path(found)
        path = [] if tool is None else ["env", f"PATH={folder}:{os.environ['PATH']}"]
        return [*path, sys.executable, "-m", f"{__package__}.python.commands", str(script)]

    return Program(
        name=name,
        rule=rule,
        language="sh",
        operations=frozenset(operations.split()),
        command=command,
        sources=(script,),
        version=version,
        **more,
    )


PROGRAMS += (
    _tool("aws-cli", "aws-cli", "list read range folder", _pinned("awscli"), "venv"),
    _tool(
        "s5cmd",
        "AWS SDK for Go v1",
        "list read",
        _go_module("s5cmd", "github.com/peak/s5cmd/v2"),
        "s5cmd",
        virtual="it uses path style before an endpoint of one's own",
    ),
    _tool(
        "rclone",
        "rclone",
        "list read range",
        _go_module("rclone", "github.com/rclone/rclone"),
        "rclone",
        most_denied=4,
    ),
    _tool(
        "mc",
        "MinIO",
        "list read",
        lambda: MC.partition("@")[2],
        "mc",
        virtual="an alias of the environment has path style",
    ),
    _tool(
        "curl",
        "curl",
        "read range",
        lambda: "presigned URL",
        None,
        virtual="the URL is what it was presigned to be",
    ),
    _go_sdk("GetObject", "GetObject", "service/s3", _OBJECTS),
    _go_sdk("manager", "manager", "feature/s3/manager", frozenset({"read", "parallel"})),
    _go_sdk(
        "transfermanager", "transfermanager", "feature/s3/transfermanager", frozenset({"read", "parallel"})
    ),
    Program(
        name="JavaScript v3",
        rule="other AWS SDKs",
        language="js",
        operations=_OBJECTS,
        command=lambda: ["node", str(TOOLS["js"].ready() / "main.mjs")],
        sources=(HERE / "js" / "main.mjs",),
        version=lambda: json.loads((HERE / "js" / "package.json").read_text())["dependencies"][
            "@aws-sdk/client-s3"
        ],
    ),
    Program(
        name="Java v1",
        rule="AWS SDK for Java",
        language="java",
        operations=_OBJECTS,
        command=_java("V1"),
        sources=(HERE / "java" / "src" / "main" / "java" / "V1.java",),
        version=_jar("v1"),
        resolves=True,
    ),
    _java_v2("apache"),
    _java_v2("apache5"),
    _java_v2("netty"),
    _java_v2("url-connection"),
    _java_v2("crt", virtual="its resolver does not know the names of the test"),
    Program(
        name="Rust object_store",
        rule="object_store",
        language="rust",
        operations=_OBJECTS,
        command=lambda: [str(TOOLS["rust"].ready() / "debug" / "matrix")],
        sources=(HERE / "rust" / "src" / "main.rs",),
        version=_crate,
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
