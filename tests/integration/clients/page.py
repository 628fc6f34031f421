"""docs/clients.md: written from the results of a run, the programs, and the table of s3/user_agents.py."""

from __future__ import annotations

from collections.abc import Mapping

from delta_proxy.s3.user_agents import CLIENTS
from tests.integration.tools import ROOT

from .programs import PROGRAMS, Program
from .report import COLUMNS, Row, merged, notes

PAGE = ROOT / "docs" / "clients.md"
_INTRODUCTION = """\
# Clients

What each client does through the proxy, unmodified. `bin/test --all` runs every one of them against a store
directly and through the proxy, in both values of `getMode`, and writes this page.

In the lines to paste, `endpoint` is the proxy (`http://localhost:18080`), `bucket` the virtual bucket
(`datalake`), `access_key` and `secret_key` a user's, `region` is `us-east-1` or that of `storage`, `style` is
`path`, `token` is for sessions (else nothing), `key` is an alias and a path, `url` is presigned by Signature
Version 4 (boto3: `Config(signature_version="s3v4")`). They are the very lines that the tests run.
With `tls` the endpoint is `https://`, see [operating](operating.md#tls).

- open: HEAD; list: over several pages; whole: 700 bytes and 24 MiB; ranges: also by the parallel parts of a
  download manager; rows: of a Parquet file or a table; hard names: blanks, letters beyond ASCII and
  `+ % ' ( ) ! * ~ @ & $ = ; , : # ? [ ] { } ^ | < >`.
- denied: a key outside the grant is the client's own AccessDenied after a few requests, never an empty
  answer.
- virtual host: the same with the bucket in the host name.
- a GET is redirected, or streamed to a client that cannot follow a 307; the [local helper](local-helper.md)
  follows for it.
- own fault: the client fails in the same way before the store itself.
- \\-: the client has no such operation.
"""


def write(rows: Mapping[str, Row]) -> str:
    """Write the page if every client was run, and well; returns a line that says what was done."""
    missing = [program.name for program in PROGRAMS if program.name not in rows]
    if missing:
        return f"docs/clients.md is left as it is: not every client was run ({', '.join(missing)})"
    if any(cell.state == "bad" for row in rows.values() for cell in row.values()):
        return "docs/clients.md is left as it is: something failed"
    text = rendered(rows)
    if PAGE.exists() and PAGE.read_text() == text:
        return "docs/clients.md is up to date"
    PAGE.write_text(text)
    return "docs/clients.md was written"


def rendered(rows: Mapping[str, Row]) -> str:
    """The whole page."""
    parts = [_INTRODUCTION, _table(rows), _reasons(rows), _agents()]
    parts += [_section(program) for program in PROGRAMS]
    return "\n".join(parts)


def _table(rows: Mapping[str, Row]) -> str:
    headings = ("client", *("hard names" if name == "special" else name for name in COLUMNS[:-1]), "a GET is")
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for program in PROGRAMS:
        cells = [merged(rows[program.name], column) for column in COLUMNS]
        words = ["-" if cell is None or cell.state == "none" else cell.text for cell in cells]
        lines.append(f"| {program.name} ({program.version()}) | {' | '.join(words)} |")
    return "\n".join(lines) + "\n"


def _reasons(rows: Mapping[str, Row]) -> str:
    lines = [f"- {program.name}: {note}." for program in PROGRAMS for note in notes(rows[program.name])]
    return "\n".join(lines) + "\n"


def _agents() -> str:
    lines = [
        "## Who is redirected\n",
        "By its User-Agent; what no line names is redirected. `neverRedirect` takes the place of the lines",
        "that are streamed to. A client that drops its session token is sent to a URL without it.\n",
        "| client | User-Agent | a GET is | session token |",
        "|---|---|---|---|",
    ]
    for client in CLIENTS:
        patterns = " ".join(f"`{pattern}`" for pattern in client.patterns)
        token = ("sent again" if client.resends_token else "dropped") if client.follows else "-"
        lines.append(
            f"| {client.name} | {patterns} | {'redirected' if client.follows else 'streamed'} | {token} |"
        )
    return "\n".join(lines) + "\n"


def _section(program: Program) -> str:
    return f"## {program.name}\n\n```{program.language}\n{program.lines()}\n```\n"
