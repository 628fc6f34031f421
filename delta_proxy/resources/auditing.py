"""From a request that is over to its line in the audit log."""

from __future__ import annotations

from datetime import datetime

from delta_proxy.access.audit import AuditRecord
from delta_proxy.resources.server import RequestRecord

_ALLOWED = "allowed"
_NOBODY = "-"


def record_decision(record: RequestRecord, now: datetime) -> None:
    """Write the line, if the request has a place in the log; a request without a decision gives it back."""
    place = record.note.place
    if place is None:
        return
    if record.note.decision:
        place.record(audit_record(record, now))
    else:
        place.release()


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
        partitions=note.partitions,
        grant=note.grant,
        decision=_ALLOWED if allowed else "denied",
        reason=None if allowed else note.reason or note.decision,
        status=record.status,
        bytes_sent=record.bytes_sent,
        bytes_received=record.bytes_received,
        duration=round(record.seconds, 6),
    )
