"""From a request that is over to its line in the audit log."""

from __future__ import annotations

from datetime import datetime

import attrs

from delta_proxy.access.audit import AuditLog, AuditRecord, AuditUnavailable, Place
from delta_proxy.resources.server import REFUSED, RequestRecord

_ALLOWED = "allowed"
_NOBODY = "-"


def record_decision(record: RequestRecord, now: datetime, audit: AuditLog | None) -> None:
    """Write the line, or one for each table; a request without a decision gives its place back.

    What was refused before it had a place gets one now: a request that could not be understood. Where none is
    free its line is lost, and nothing else: no such request is ever answered with anything but its error.
    """
    for earlier in record.note.before:
        record_decision(attrs.evolve(record, note=earlier), now, audit)
    place = record.note.place
    if place is None and audit is not None and record.note.decision == REFUSED:
        place = _free_place(audit)
    if place is None:
        return
    if record.note.decision:
        place.record(audit_record(record, now))
    else:
        place.release()


def _free_place(audit: AuditLog) -> Place | None:
    try:
        return audit.reserve()
    except AuditUnavailable:
        return None


def audit_record(record: RequestRecord, now: datetime) -> AuditRecord:
    """What the log says of a request; `now` is when it was over."""
    note = record.note
    allowed = note.decision == _ALLOWED
    return AuditRecord(
        time=now,
        request_id=record.request_id,
        principal=note.principal or _NOBODY,
        auth=note.auth,
        access_key=note.access_key,
        source=note.source,
        operation=note.operation,
        table=note.table or None,
        path=note.path,
        copied_from=note.copied_from,
        partitions=note.partitions,
        grant=note.grant,
        decision=_ALLOWED if allowed else "denied",
        reason=None if allowed else note.reason or note.decision,
        status=record.status,
        bytes_sent=record.bytes_sent,
        bytes_received=record.bytes_received,
        duration=round(record.seconds, 6),
    )
