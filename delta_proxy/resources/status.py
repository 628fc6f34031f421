"""The status page: one small HTML document for people, without scripts or foreign assets."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from attrs import field, frozen

_STYLE = (
    "body{font:14px/1.5 sans-serif;margin:2em;max-width:60em}"
    "table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.2em .6em;text-align:left}"
    "td.n{text-align:right}"
)


@frozen
class TableStatus:
    """One table; None where its log has not been read yet. The age is since the index was last right."""

    alias: str
    version: int | None = None
    files: int | None = None
    age_seconds: float | None = None


@frozen
class Status:
    """What the page shows. `counters` are names and figures, in their order."""

    version: str
    uptime_seconds: float
    tables: tuple[TableStatus, ...] = ()
    counters: Mapping[str, float] = field(factory=dict)


def page(status: Status) -> str:
    """The HTML document of a status."""
    tables = "".join(
        _row(table.alias, _number(table.version), _number(table.files), _duration(table.age_seconds))
        for table in status.tables
    )
    counters = "".join(_row(name, _number(value)) for name, value in status.counters.items())
    return (
        "<!DOCTYPE html><html lang=en><meta charset=utf-8><title>Delta S3 Proxy</title>"
        f"<style>{_STYLE}</style><h1>Delta S3 Proxy {escape(status.version)}</h1>"
        f"<p>Up for {_duration(status.uptime_seconds)}.</p>"
        f"<h2>Tables</h2><table><tr><th>Alias<th>Version<th>Files<th>Age</tr>{tables}</table>"
        f"<h2>Figures</h2><table>{counters}</table>"
        '<p><a href="/metrics">Metrics</a>, <a href="/health/ready">readiness</a></p></html>\n'
    )


def _row(name: str, *cells: str) -> str:
    return f"<tr><td>{escape(name)}{''.join(f'<td class=n>{escape(cell)}' for cell in cells)}</tr>"


def _number(value: float | None) -> str:
    if value is None:
        return "not read"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.3f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "not read"
    whole = int(max(0.0, seconds))
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    parts = ((days, "d"), (hours, "h"), (minutes, "min"), (whole % 60, "s"))
    return " ".join(f"{value} {unit}" for value, unit in parts if value) or "0 s"
