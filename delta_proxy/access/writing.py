"""Who may write: the one place where that is decided.

A view that a restricted principal has of a table must never be written back: a checkpoint of what it sees
would drop, and a vacuum of what it does not see delete, the rest of the table. So only a grant of everything
lets a principal write.
"""

from __future__ import annotations

from enum import Enum

from delta_proxy.access.identity import Principal
from delta_proxy.access.policy import Grant


class Bar(Enum):
    """What keeps a principal from writing to a table; the text is for the audit log."""

    READ_ONLY_PROXY = "the proxy is read-only"
    READ_ONLY_USER = "the user is read-only"
    NO_GRANT = "no grant on this table"
    RESTRICTED = "the grant is not everything"


def writing_barred(principal: Principal, grant: Grant | None, *, read_only: bool) -> Bar | None:
    """What keeps the principal from writing to a table, None when nothing does.

    `grant` is what the policy grants on the table, None where the table is closed or there is none;
    `read_only` is the configuration's `readOnly`.
    """
    if read_only:
        return Bar.READ_ONLY_PROXY
    if principal.read_only:
        return Bar.READ_ONLY_USER
    if grant is None:
        return Bar.NO_GRANT
    return None if grant.is_everything else Bar.RESTRICTED
