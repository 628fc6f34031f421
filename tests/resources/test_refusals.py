"""What a refused client reads: it helps, and tells nothing of what is hidden."""

from __future__ import annotations

import errno
import pathlib
from typing import Any
from xml.etree import ElementTree

import orjson
import pytest
from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.logger import capturedLogs

from delta_proxy.access.policy import NOTHING, Grant, Reason, parse_filters
from delta_proxy.access.writing import Bar
from delta_proxy.resources.auditing import audit_record
from delta_proxy.resources.refusals import barred, denied
from tests.delta.tables import PROTOCOL, add, metadata
from tests.fakes.writing import WritableStore
from tests.memory import BUCKET, NOW, Answer, MemoryProxy


def test_what_is_wrong_with_the_partition_values_of_a_denied_file_is_not_told() -> None:
    assert len({denied(reason, alone=True).message for reason in set(Reason) - {Reason.NO_GRANT}}) == 1


def test_every_refusal_begins_as_that_of_s3_and_says_what_to_do() -> None:
    refusals = {denied(reason, alone=alone).message for reason in Reason for alone in (True, False)}
    assert all(text.startswith("Access Denied") for text in refusals | {barred(bar).message for bar in Bar})
    assert len(refusals) == 3


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


def test_a_denied_file_of_an_older_partitioning_reads_as_any_other(tmp_path: pathlib.Path) -> None:
    proxy = MemoryProxy(tmp_path / "cache", {"t": parse_filters([{"p": "green"}])})
    lines = ([PROTOCOL, metadata("q"), add("old", q="x")], [metadata("p"), add("new", p="red")])
    for version, commit in enumerate(lines):
        proxy.store.put(f"t/_delta_log/{version:020d}.json", b"\n".join(map(orjson.dumps, commit)))
    old, new = proxy.get("t/old"), proxy.get("t/new")
    assert (old.status, old.decision, new.decision) == (403, "not_a_partition_column", "not_granted")
    assert told(old) == told(new)


def test_a_table_that_the_grant_does_not_fit_is_blamed_itself(tmp_path: pathlib.Path) -> None:
    proxy = MemoryProxy(tmp_path / "cache", {"t": parse_filters([{"p": "green"}])})
    lines = [PROTOCOL, metadata("q"), add("a", q="x")]
    proxy.store.put(f"t/_delta_log/{0:020d}.json", b"\n".join(map(orjson.dumps, lines)))
    assert "cannot tell which part" in (told(proxy.get("t/a")) or "")


def told(answer: Answer) -> str | None:
    """The message of an error."""
    return ElementTree.fromstring(answer.body).findtext("Message")


def test_a_full_disk_of_the_cache_is_a_line_in_the_log_and_the_client_may_come_back(
    tmp_path: pathlib.Path,
) -> None:
    full = [True]

    def pool(function: Any, *arguments: Any, **named: Any) -> Deferred[Any]:
        if full:
            return fail(OSError(errno.ENOSPC, "no room"))
        return maybeDeferred(function, *arguments, **named)

    proxy = MemoryProxy(tmp_path / "cache", {"t": parse_filters([{"p": "a"}])}, pool=pool)
    commit = "t/_delta_log/00000000000000000000.json"
    proxy.store.put(commit, b"\n".join(map(orjson.dumps, [PROTOCOL, metadata("p"), add("x", p="a")])))
    with capturedLogs() as said:
        answer = proxy.get(commit)
    assert (answer.status, b"<Code>ServiceUnavailable</Code>" in answer.body) == (503, True)
    assert not any("log_failure" in event for event in said)
    assert any("no room" in str(event.get("error")) for event in said)
    full.clear()
    proxy.clock.advance(60)
    assert proxy.get(commit).status == 200
