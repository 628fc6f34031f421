"""What a refused client reads: it helps, and tells nothing of what is hidden."""

from __future__ import annotations

import pathlib

import pytest

from delta_proxy.access.policy import NOTHING, Grant, Reason, parse_filters
from delta_proxy.access.writing import Bar
from delta_proxy.resources.auditing import audit_record
from delta_proxy.resources.refusals import barred, denied
from tests.fakes.writing import WritableStore
from tests.memory import BUCKET, NOW, MemoryProxy

OF_A_FILE = {Reason.NOT_GRANTED, Reason.MISSING_VALUE, Reason.UNPARSABLE_VALUE}


def test_what_is_wrong_with_the_partition_values_of_a_denied_file_is_not_told() -> None:
    assert len({denied(reason).message for reason in OF_A_FILE}) == 1


def test_every_refusal_begins_as_that_of_s3_and_says_what_to_do() -> None:
    told = {denied(reason).message for reason in Reason} | {barred(bar).message for bar in Bar}
    assert all(message.startswith("Access Denied") for message in told)
    assert len({denied(reason).message for reason in Reason}) == 3


@pytest.mark.parametrize(
    ("grant", "method", "says"),
    [
        (NOTHING, "GET", "you have no grant on this table"),
        (NOTHING, "PUT", "writing needs a grant of the whole table"),
        (parse_filters([{"p": "a"}]), "PUT", "writing needs a grant of the whole table"),
    ],
)
def test_the_refused_are_told_what_they_lack(
    tmp_path: pathlib.Path, grant: Grant, method: str, says: str
) -> None:
    proxy = MemoryProxy(
        tmp_path / "cache", {"t": grant}, store=WritableStore(BUCKET), read_only=False, filtered=False
    )
    answer = proxy.request(
        method, "/datalake/t/_delta_log/00000000000000000000.json", {"Content-Length": "0"}
    )
    assert (answer.status, says in answer.body.decode()) == (403, True)


def test_the_audit_log_has_the_reason_in_words(tmp_path: pathlib.Path) -> None:
    proxy = MemoryProxy(tmp_path / "cache", {"t": NOTHING}, filtered=False)
    proxy.get("t/_delta_log/00000000000000000000.json")
    assert audit_record(proxy.records[-1], NOW).reason == Reason.NO_GRANT.value
