"""Conditional reads.

Sources: RFC 9110, section 13.2.2 (precedence); "GetObject" in the Amazon S3 API reference, which has the
same order: If-Match before If-Unmodified-Since, If-None-Match before If-Modified-Since, each date ignored
when its ETag condition is there.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime

from delta_proxy.s3.errors import NotModified, PreconditionFailed
from delta_proxy.s3.headers import Headers

# Nothing is taken back: what a client sends must not cost more than its length.
_ETAG = re.compile(r'(?:W/)?+(?:"([^"]*+)"|([^",\s][^",]*+))')


def check(headers: Headers, etag: str, last_modified: datetime) -> None:
    """Hold the conditions of a GET or HEAD against an object's ETag (quoted or not) and aware time.

    Raises PreconditionFailed, or NotModified with the ETag and Last-Modified it must carry. A date that is
    no HTTP date is ignored. S3 has strong ETags only, so that weak and strong comparison are the same here.
    """
    modified = last_modified.astimezone(UTC).replace(microsecond=0)
    _check_preconditions(headers, etag, modified)
    if _is_unchanged(headers, etag, modified):
        raise NotModified(headers=(("etag", etag), ("last-modified", format_datetime(modified, usegmt=True))))


def etag_matches(value: str, etag: str) -> bool:
    """Whether an If-Match or If-None-Match value names this ETag: `*`, quoted, unquoted, weak, or a list."""
    if value.strip() == "*":
        return True
    wanted = etag.removeprefix("W/").strip('"')
    return any((match[1] or match[2] or "").rstrip() == wanted for match in _ETAG.finditer(value))


def _check_preconditions(headers: Headers, etag: str, modified: datetime) -> None:
    if_match = _joined(headers, "if-match")
    if if_match is not None:
        if not etag_matches(if_match, etag):
            raise PreconditionFailed(fields={"Condition": "If-Match"})
        return
    since = _date(headers.get("if-unmodified-since"))
    if since is not None and modified > since:
        raise PreconditionFailed(fields={"Condition": "If-Unmodified-Since"})


def _is_unchanged(headers: Headers, etag: str, modified: datetime) -> bool:
    if_none_match = _joined(headers, "if-none-match")
    if if_none_match is not None:
        return etag_matches(if_none_match, etag)
    since = _date(headers.get("if-modified-since"))
    return since is not None and modified <= since


def _joined(headers: Headers, name: str) -> str | None:
    values = headers.all(name)
    return ",".join(values) if values else None


def _date(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        parsed = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return (parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)).astimezone(UTC)
