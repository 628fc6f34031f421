"""What somebody is told who is refused: what to do about it, and nothing of what is hidden.

Why a file is denied may tell of its partition values, so all reasons that a single file can have read alike;
the audit log tells them apart.
"""

from __future__ import annotations

from typing import Final

from delta_proxy.access.policy import Reason
from delta_proxy.access.writing import Bar
from delta_proxy.s3.errors import AccessDenied

_START: Final = AccessDenied.default_message
NO_SIGNATURE: Final = f"{_START}: the request is not signed. Set the access key and secret of a user."
_NO_GRANT: Final = f"{_START}: you have no grant on this table. Ask whoever runs the proxy for one."
_OTHER_PARTITION: Final = (
    f"{_START}: this file is of a partition that you are not granted. Filter on those that you are, "
    "or ask whoever runs the proxy for more."
)
_CLOSED: Final = (
    f"{_START}: the proxy cannot tell which part of this table is yours. Whoever runs it finds the reason "
    "in the audit log, under the id of this request."
)
OTHER_SOURCE: Final = f"{_START}: a copy needs a grant of the whole table that it is made from."
_TOLD_WRITERS: Final = {
    Bar.READ_ONLY_USER: f"{_START}: you may read, but not write.",
    Bar.NO_GRANT: _NO_GRANT,
    Bar.RESTRICTED: f"{_START}: writing needs a grant of the whole table. Ask whoever runs the proxy.",
}


def denied(reason: Reason, *, alone: bool = False) -> AccessDenied:
    """The error for whoever may not read a table, or a file `alone`."""
    if reason is Reason.NO_GRANT:
        return AccessDenied(_NO_GRANT)
    return AccessDenied(_OTHER_PARTITION if alone else _CLOSED)


def barred(bar: Bar) -> AccessDenied:
    """The error for whoever may not write to a table."""
    return AccessDenied(_TOLD_WRITERS.get(bar))
