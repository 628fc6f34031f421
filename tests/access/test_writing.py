"""Who may write: each rule by itself."""

from __future__ import annotations

import attrs
import pytest

from delta_proxy.access.identity import ANONYMOUS, AuthKind, Principal
from delta_proxy.access.policy import EVERYTHING, NOTHING, Grant, parse_filters
from delta_proxy.access.writing import Bar, writing_barred

ALICE = Principal("alice", frozenset(), AuthKind.SIGV4)


@pytest.mark.parametrize("principal", [ALICE, ANONYMOUS])
def test_a_grant_of_everything_lets_write(principal: Principal) -> None:
    assert writing_barred(principal, EVERYTHING, read_only=False) is None


def test_a_read_only_proxy_lets_nobody_write() -> None:
    assert writing_barred(ALICE, EVERYTHING, read_only=True) is Bar.READ_ONLY_PROXY


def test_a_read_only_user_does_not_write() -> None:
    reader = attrs.evolve(ALICE, read_only=True)
    assert writing_barred(reader, EVERYTHING, read_only=False) is Bar.READ_ONLY_USER


def test_a_closed_table_is_not_written_to() -> None:
    assert writing_barred(ALICE, None, read_only=False) is Bar.NO_GRANT


@pytest.mark.parametrize(
    "grant", [NOTHING, parse_filters([{"MIC": "XLON"}]), parse_filters([{"MIC": {"glob": "*"}}])]
)
def test_a_restricted_view_is_never_written_back(grant: Grant) -> None:
    assert writing_barred(ALICE, grant, read_only=False) is Bar.RESTRICTED


def test_a_page_of_another_site_does_not_write_unless_somebody_signed_for_it() -> None:
    assert writing_barred(ANONYMOUS, EVERYTHING, read_only=False, foreign_page=True) is Bar.FOREIGN_PAGE
    assert writing_barred(ALICE, EVERYTHING, read_only=False, foreign_page=True) is None
