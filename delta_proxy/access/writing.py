"""Who may write: the one place where that is decided.

A view that a restricted principal has of a table must never be written back: a checkpoint of what it sees
would drop, and a vacuum of what it does not see delete, the rest of the table. So only a grant of everything
lets a principal write.
"""

from __future__ import annotations

from enum import Enum

from delta_proxy.access.identity import AuthKind, Principal
from delta_proxy.access.policy import Grant


class Bar(Enum):
    """What keeps a principal from writing to a table; the text is for the audit log."""

    READ_ONLY_PROXY = "the proxy is read-only"
    READ_ONLY_USER = "the user is read-only"
    NO_GRANT = "no grant on this table"
    RESTRICTED = "the grant is not everything"
    FOREIGN_PAGE = "a page of another site asks"


def writing_barred(
    principal: Principal, grant: Grant | None, *, read_only: bool, foreign_page: bool = False
) -> Bar | None:
    """What keeps the principal from writing to a table, None when nothing does.

    `grant` is what the policy grants on the table, None where the table is closed or there is none;
    `read_only` is the configuration's `readOnly`. `foreign_page` says that a browser sent the request for a
    page of an origin that no rule allows: where nobody is asked who they are, it would be anybody's.
    """
    if read_only:
        return Bar.READ_ONLY_PROXY
    if principal.read_only:
        return Bar.READ_ONLY_USER
    if grant is None:
        return Bar.NO_GRANT
    if not grant.is_everything:
        return Bar.RESTRICTED
    return Bar.FOREIGN_PAGE if foreign_page and principal.auth is AuthKind.ANONYMOUS else None
