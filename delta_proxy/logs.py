"""What the log looks like, and what must never be in it.

Two nets: `redact_target` blanks secrets where a request is described; `scrub` runs over every finished line
of every observer made here, tracebacks included, and blanks what slipped through.
"""

# mypy: allow-untyped-calls
from __future__ import annotations

import json
import os
import re
import sys
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from typing import Final, TextIO, cast
from urllib.parse import unquote_to_bytes

from twisted.logger import (
    FileLogObserver,
    ILogObserver,
    LogEvent,
    formatEvent,
    formatEventAsClassicLogText,
    formatTime,
)
from twisted.python.components import Componentized
from twisted.python.logfile import LogFile

HIDDEN = "***"
READY: Final = "{line}"
"""The format of an event whose field `line` is its finished text: Twisted's formatting is slow."""

_LONGEST_TARGET = 2048
# Each rotation renames all older files: at twistd's own megabyte, of two seconds under load, that stalls it.
_LOG_BYTES = 100_000_000
_SECRET_PARAMETERS = frozenset(
    {
        b"x-amz-signature",
        b"x-amz-credential",
        b"x-amz-security-token",
        b"signature",
        b"awsaccesskeyid",
        b"webidentitytoken",
    }
)
_UNPRINTABLE = re.compile(rb"[^!-~]")
# What a terminal obeys, or takes for the end of a line. Of what a request brings none is ever logged raw.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_USERINFO = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/?#]*@")
_SCRUBBED = (
    re.compile(
        r"((?:X-Amz-(?:Signature|Credential|Security-Token)|Signature|Credential|AWSAccessKeyId|WebIdentityToken)=)"
        r"[^&\s,\"'\\<>]+",
        re.IGNORECASE,
    ),
    re.compile(
        r"((?:authorization|x-amz-security-token|aws_?session_?token|(?:aws_?)?secret_?(?:access_?)?key)"
        r"\\?[\"']?\]?\s*[:=,]\s*(?:\[|\()?(?:b(?=\\?[\"']))?\\?[\"']?)"
        r"(?:AWS4-HMAC-SHA256 |AWS |Bearer |Basic )?[^\s,\"'\\)\]}&]+",
        re.IGNORECASE,
    ),
)
# Without one of these words in it no pattern finds anything; looking for words is far cheaper.
_TELLTALE = ("signature", "credential", "token", "accesskeyid", "authorization", "secret")


class LogFormat(Enum):
    """How a log line is written."""

    TEXT = "text"
    JSON = "json"


def redact_target(target: bytes) -> str:
    """A request target or URL for the log: printable ASCII, values of secret parameters blanked.

    Parameter names are compared as S3 reads them, decoded and without regard to case. At most 2048
    characters and what tells that there was more.
    """
    path, mark, query = target.partition(b"?")
    if mark and query:
        query = b"&".join(_redact_parameter(part) for part in query.split(b"&"))
        target = path + mark + query
    text = _printable(target)
    if "@" in text:
        text = _USERINFO.sub(rf"\1{HIDDEN}@", text)
    if len(text) > _LONGEST_TARGET:
        return f"{text[:_LONGEST_TARGET]}..."
    # The word behind it in a line, a status say, would be taken for the secret that it announces.
    return f"{text}{HIDDEN}" if _announces_secret(text) else text


def _printable(target: bytes) -> str:
    text = target.decode("latin-1")
    if text.isascii() and text.isprintable() and " " not in text:
        return text
    return _UNPRINTABLE.sub(lambda match: b"%%%02X" % match.group()[0], target).decode("ascii")


def scrub(text: str) -> str:
    """Text in which signatures, credentials, tokens and secret keys are blanked, wherever they stand."""
    if text.isascii():
        lower = text.lower()
        for word in _TELLTALE:
            if word in lower:
                break
        else:
            return text
    for pattern in _SCRUBBED:
        text = pattern.sub(rf"\1{HIDDEN}", text)
    return text


def observer(style: LogFormat, out: TextIO | None = None) -> ILogObserver:
    """An observer that writes scrubbed lines to `out`, standard output unless given."""
    format_event = _json_line if style is LogFormat.JSON else _text_line
    return FileLogObserver(sys.stdout if out is None else out, format_event)


def json_lines() -> ILogObserver:
    """For `twistd --logger delta_proxy.logs.json_lines`: scrubbed lines of JSON on standard output."""
    return observer(LogFormat.JSON)


def install(application: Componentized, style: LogFormat, path: str | None = None) -> LogFile | None:
    """Make twistd log through `observer`, to standard output or to a file, which is returned.

    Must run before twistd starts logging, so when the service gets its application as parent. A file is
    twistd's own kind, which is rotated at 100 MB.
    """
    file = None if path is None else LogFile.fromFullPath(path, rotateLength=_LOG_BYTES)
    application.setComponent(ILogObserver, observer(style, cast(TextIO | None, file)))
    return file


def rotate(file: LogFile) -> None:
    """Go on in a new file: that of a tool that has moved the old one away, else after moving it ourselves."""
    try:
        kept = os.path.samestat(os.stat(file.path), os.fstat(file._file.fileno()))
    except FileNotFoundError:
        kept = False
    if kept:
        file.rotate()
    else:
        file.reopen()


def _redact_parameter(part: bytes) -> bytes:
    name, equals, _ = part.partition(b"=")
    if equals and unquote_to_bytes(name).strip().lower() in _SECRET_PARAMETERS:
        return name + equals + HIDDEN.encode("ascii")
    return part


def _text_line(event: LogEvent) -> str | None:
    if event.get("log_format") == READY and "log_failure" not in event:
        moment, level = _time(int(event["log_time"])), event["log_level"].name
        line = event["line"].replace("\n", "\n\t")
        return scrub(f"{moment} [{event['log_namespace']}#{level}] {line}\n")
    text = formatEventAsClassicLogText(event)
    return None if text is None else scrub(_CONTROL.sub(_escaped, text))


def _escaped(control: re.Match[str]) -> str:
    return control.group().encode("unicode_escape").decode("ascii")


@lru_cache(maxsize=4)
def _time(second: int) -> str:
    return formatTime(second)


def _json_line(event: LogEvent) -> str:
    line: dict[str, object] = {name: value for name, value in event.items() if not name.startswith("log_")}
    line |= {
        "time": datetime.fromtimestamp(event.get("log_time", 0.0), UTC).isoformat(),
        "level": getattr(event.get("log_level"), "name", "info"),
        "namespace": event.get("log_namespace", "-"),
        "message": event["line"] if event.get("log_format") == READY else formatEvent(event),
    }
    failure = event.get("log_failure")
    if failure is not None:
        line["traceback"] = failure.getTraceback()
    return f"{json.dumps({name: _scrubbed(name, value) for name, value in line.items()}, default=repr)}\n"


def _scrubbed(name: str, value: object) -> object:
    """The value of a field of JSON, scrubbed before it is quoted: after that a text that a client chose could
    have the next field's name blanked, or half of an escape, and the line would be lost.
    """
    if _announces_secret(f"{name}:"):
        return HIDDEN
    text = value if isinstance(value, str) else repr(value)
    told = scrub(text)
    return value if told == text else told


def _announces_secret(text: str) -> bool:
    """Whether the next word behind a text is taken for a secret."""
    return scrub(f"{text} 0").endswith(HIDDEN)
