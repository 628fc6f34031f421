"""The head of an answer, made in one piece.

RFC 9112, sections 4 and 5. No value can end its field: line breaks become spaces, as twisted.web has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from twisted.web import http
from twisted.web.http_headers import Headers

SERVER = b"DeltaS3Proxy"
_LINE_BREAKS = re.compile(r"\r\n|\r|\n")


def answer_head(version: bytes, status: int, standing: str, fields: Iterable[tuple[str, str]]) -> bytes:
    """Status line and header fields, with the empty line that ends them.

    `standing` are lines that every answer has, each ended. Names are spelled as twisted.web does. Raises
    UnicodeEncodeError for what is not latin-1, and InvalidHeaderName for a name that is none.
    """
    lines = [_status_line(version, status), standing]
    for name, value in fields:
        lines.append(f"{_spelled(name)}: {_one_line(value)}\r\n")
    lines.append("\r\n")
    return "".join(lines).encode("latin-1")


def _one_line(value: str) -> str:
    return value if value.isprintable() else _LINE_BREAKS.sub(" ", value)


@lru_cache(maxsize=256)
def _status_line(version: bytes, status: int) -> str:
    reason = http.RESPONSES.get(status, b"Unknown Status")
    return f"{version.decode('ascii')} {status} {reason.decode('ascii')}\r\n"


@lru_cache(maxsize=1024)
def _spelled(name: str) -> str:
    headers = Headers()
    headers.addRawHeader(name.encode("ascii"), b"")
    ((spelled, _),) = headers.getAllRawHeaders()
    return spelled.decode("ascii")
