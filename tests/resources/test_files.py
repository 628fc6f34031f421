"""Files and bytes served as S3 objects."""
# The names are those of Twisted's interfaces.
# ruff: noqa: N802

from __future__ import annotations

import re
from collections.abc import Callable
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_twisted import ensureDeferred
from twisted.internet.defer import CancelledError, Deferred, execute
from twisted.internet.interfaces import IConsumer, IProducer, IPushProducer
from twisted.internet.threads import deferToThread
from zope.interface import implementer

from delta_proxy.delta.disk_cache import OpenFile, open_file
from delta_proxy.resources.files import Plan, plan, send_bytes, send_file
from delta_proxy.s3.errors import (
    InvalidArgument,
    InvalidPartNumber,
    InvalidRange,
    InvalidRequest,
    NotModified,
    PreconditionFailed,
)
from delta_proxy.s3.headers import Headers
from delta_proxy.upstream.relay import BodyCut, ConsumerGone
from tests.fakes.store import MODIFIED
from tests.helpers import result_of, start

ETAG = '"0123abcd"'
DATE = format_datetime(MODIFIED, usegmt=True)
EARLIER = "Thu, 01 Jan 2026 03:04:05 GMT"
BODY = bytes(range(256)) * 4100


def planned(*pairs: tuple[str, str], size: int = 1000, **options: Any) -> Plan:
    """The plan for an object of `size` bytes."""
    return plan(Headers.of(pairs), size=size, etag=ETAG, last_modified=DATE, **options)


def field(answer: Plan, name: str) -> str | None:
    """A header field of an answer."""
    return Headers(answer.headers).get(name)


def test_a_read_without_conditions_gets_the_whole_object() -> None:
    answer = planned()
    assert (answer.status, answer.first, answer.length) == (200, 0, 1000)
    assert dict(answer.headers) == {
        "accept-ranges": "bytes",
        "content-length": "1000",
        "content-type": "binary/octet-stream",
        "etag": ETAG,
        "last-modified": DATE,
    }


@pytest.mark.parametrize(
    ("asked", "first", "length", "told"),
    [
        ("bytes=0-0", 0, 1, "bytes 0-0/1000"),
        ("bytes=10-", 10, 990, "bytes 10-999/1000"),
        ("bytes=-8", 992, 8, "bytes 992-999/1000"),
        ("bytes=-5000", 0, 1000, "bytes 0-999/1000"),
        ("bytes=990-2000", 990, 10, "bytes 990-999/1000"),
    ],
)
def test_a_range_gets_206(asked: str, first: int, length: int, told: str) -> None:
    answer = planned(("Range", asked))
    assert (answer.status, answer.first, answer.length) == (206, first, length)
    assert (field(answer, "content-range"), field(answer, "content-length")) == (told, str(length))
    assert field(answer, "etag") == ETAG


@pytest.mark.parametrize("asked", ["bytes=0-1,5-6", "bytes=9-3", "lines=0-1", "bytes=-"])
def test_a_range_s3_does_not_understand_gets_the_whole_object(asked: str) -> None:
    assert planned(("Range", asked)).status == 200


@pytest.mark.parametrize(("asked", "size"), [("bytes=1000-", 1000), ("bytes=-0", 1000), ("bytes=0-", 0)])
def test_a_range_beyond_the_object_is_invalid(asked: str, size: int) -> None:
    with pytest.raises(InvalidRange) as caught:
        planned(("Range", asked), size=size)
    assert dict(caught.value.headers)["content-range"] == f"bytes */{size}"


@pytest.mark.parametrize("condition", [("If-Match", '"other"'), ("If-Unmodified-Since", EARLIER)])
def test_a_condition_that_fails_is_412_before_the_range_is_looked_at(condition: tuple[str, str]) -> None:
    with pytest.raises(PreconditionFailed):
        planned(condition, ("Range", "bytes=5000-"))


@pytest.mark.parametrize("condition", [("If-None-Match", ETAG), ("If-Modified-Since", DATE)])
def test_an_object_the_client_has_is_304_before_the_range_is_looked_at(condition: tuple[str, str]) -> None:
    with pytest.raises(NotModified) as caught:
        planned(condition, ("Range", "bytes=5000-"))
    assert dict(caught.value.headers) == {"etag": ETAG, "last-modified": DATE}


@pytest.mark.parametrize("condition", [("If-Match", "0123abcd"), ("If-None-Match", '"x"')])
def test_a_condition_that_holds_changes_nothing(condition: tuple[str, str]) -> None:
    assert planned(condition) == planned()


@pytest.mark.parametrize("validator", [ETAG, "0123abcd", DATE])
def test_a_range_is_served_if_it_is_of_the_version_the_client_has(validator: str) -> None:
    assert planned(("If-Range", validator), ("Range", "bytes=1-2")).status == 206


@pytest.mark.parametrize("validator", ['"other"', f"W/{ETAG}", EARLIER, "", f"{ETAG}, {ETAG}"])
@pytest.mark.parametrize("asked", ["bytes=1-2", "bytes=5000-"])
def test_a_range_of_another_version_gets_the_whole_object(validator: str, asked: str) -> None:
    assert planned(("If-Range", validator), ("Range", asked)) == planned()


def test_the_only_part_is_the_whole_object_as_a_range() -> None:
    answer = planned(part_number=1)
    assert (answer.status, answer.first, answer.length) == (206, 0, 1000)
    assert field(answer, "content-range") == "bytes 0-999/1000"
    assert field(answer, "x-amz-mp-parts-count") is None


def test_the_only_part_of_an_empty_object_has_no_range() -> None:
    answer = planned(part_number=1, size=0)
    assert (answer.status, answer.length, field(answer, "content-range")) == (200, 0, None)


@pytest.mark.parametrize("size", [0, 1000])
def test_a_part_beyond_the_only_one_is_416(size: int) -> None:
    with pytest.raises(InvalidPartNumber) as refused:
        planned(part_number=2, size=size)
    assert refused.value.status == 416
    assert dict(refused.value.fields) == {"ActualPartCount": "1", "PartNumberRequested": "2"}


def test_a_range_of_a_part_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="both Range header and partNumber"):
        planned(("Range", "bytes=0-1"), part_number=1)


def test_the_query_overrides_what_the_answer_says_of_the_content() -> None:
    overrides = (
        ("response-content-type", "text/plain"),
        ("response-cache-control", "no-cache"),
        ("response-content-disposition", 'attachment; filename="é.json"'),
        ("response-expires", "0"),
        ("response-content-language", "en"),
        ("response-content-encoding", "x"),
        ("response-etag", '"forged"'),
        ("partNumber", "1"),
    )
    told = dict(planned(overrides=overrides).headers)
    assert told.pop("content-length") == "1000"
    assert told == {
        "accept-ranges": "bytes",
        "cache-control": "no-cache",
        "content-disposition": 'attachment; filename="é.json"',
        "content-encoding": "x",
        "content-language": "en",
        "content-type": "text/plain",
        "etag": ETAG,
        "expires": "0",
        "last-modified": DATE,
    }


@pytest.mark.parametrize("value", ["a\r\nx-evil: 1", "a\nb", "\x00", "\x7f", "日本"])
def test_an_override_cannot_break_out_of_its_field(value: str) -> None:
    with pytest.raises(InvalidArgument):
        planned(overrides=(("response-content-type", value),))


@implementer(IConsumer)
class Client:
    """A consumer that takes what comes; it pauses its producer after so many bytes at a time, if told."""

    def __init__(self, *, window: int | None = None) -> None:
        self.writes: list[bytes] = []
        self.producer: IPushProducer | None = None
        self.streaming: bool | None = None
        self.registered = 0
        self._window = window
        self._room = window or 0

    @property
    def body(self) -> bytes:
        """What came."""
        return b"".join(self.writes)

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """Take a producer."""
        self.producer, self.streaming = IPushProducer(producer), streaming
        self.registered += 1

    def unregisterProducer(self) -> None:
        """Let it go."""
        self.producer = None

    def write(self, data: bytes) -> None:
        """Take bytes; when the window is full, ask for a pause."""
        assert type(data) is bytes
        self.writes.append(data)
        self._room -= len(data)
        if self._window is not None and self._room <= 0 and self.producer is not None:
            self.producer.pauseProducing()

    def drain(self) -> None:
        """The window is free again."""
        assert self.producer is not None
        self._room = self._window or 0
        self.producer.resumeProducing()


class Pool:
    """A thread pool whose work is done when the test says so."""

    def __init__(self) -> None:
        self.work: list[tuple[Deferred[Any], Callable[..., Any], tuple[Any, ...]]] = []

    def __call__(self, work: Callable[..., Any], /, *args: Any) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        self.work.append((done, work, args))
        return done

    def turn(self) -> None:
        """Do the oldest piece of work."""
        done, work, args = self.work.pop(0)
        execute(work, *args).chainDeferred(done)


class MemoryFile:
    """An open file in memory that must not be read once it is closed."""

    def __init__(self, body: bytes, error: OSError | None = None) -> None:
        self._body = body
        self._error = error
        self.closed = 0

    def read_at(self, first: int, length: int) -> bytes:
        """Bytes."""
        assert not self.closed
        if self._error is not None:
            raise self._error
        return self._body[first : first + length]

    def close(self) -> None:
        """Closed."""
        self.closed += 1


def test_a_file_is_sent_in_blocks_by_a_push_producer_and_closed() -> None:
    client, file = Client(), MemoryFile(BODY)
    assert result_of(send_file(client, file, 10, 600_000, execute)) == 600_000
    assert client.body == BODY[10:600_010]
    assert [len(data) for data in client.writes] == [262_144, 262_144, 75_712]
    assert (client.streaming, client.registered, client.producer, file.closed) == (True, 1, None, 1)


def test_nothing_is_read_while_the_client_takes_nothing() -> None:
    client, file, pool = Client(window=300_000), MemoryFile(BODY), Pool()
    sending = start(send_file(client, file, 0, len(BODY), pool))
    pool.turn()
    pool.turn()
    assert len(client.body) == 2 * 262_144
    assert pool.work == []
    client.drain()
    assert len(pool.work) == 1
    while not sending.called:
        if pool.work:
            pool.turn()
        else:
            client.drain()
    assert (result_of(sending), client.body) == (len(BODY), BODY)


def test_a_client_paused_before_the_first_byte_is_waited_for() -> None:
    client, pool = Client(), Pool()

    class Full(Client):
        def registerProducer(self, producer: IProducer, streaming: bool) -> None:
            super().registerProducer(producer, streaming)
            IPushProducer(producer).pauseProducing()

    client = Full()
    sending = start(send_file(client, MemoryFile(b"abc"), 0, 3, pool))
    assert pool.work == []
    client.drain()
    pool.turn()
    assert (result_of(sending), client.body) == (3, b"abc")


def test_a_file_shorter_than_promised_cuts_the_body() -> None:
    client, file = Client(), MemoryFile(b"abc")
    with pytest.raises(BodyCut):
        result_of(send_file(client, file, 1, 10, execute))
    assert (client.body, client.producer, file.closed) == (b"bc", None, 1)


def test_a_file_that_cannot_be_read_cuts_the_body() -> None:
    client, file = Client(), MemoryFile(b"abc", OSError(5, "Input/output error"))
    with pytest.raises(BodyCut, match="Input/output error"):
        result_of(send_file(client, file, 0, 3, execute))
    assert (client.producer, file.closed) == (None, 1)


def test_a_cancelled_sending_closes_the_file_after_the_read_that_is_under_way() -> None:
    client, file, pool = Client(), MemoryFile(BODY), Pool()
    sending = start(send_file(client, file, 0, len(BODY), pool))
    sending.cancel()
    with pytest.raises(CancelledError):
        result_of(sending)
    assert len(pool.work) == 1
    pool.turn()
    pool.turn()
    assert (client.writes, file.closed, pool.work) == ([], 1, [])


def test_a_sending_cancelled_while_it_waits_for_the_client_closes_the_file() -> None:
    client, file, pool = Client(window=1), MemoryFile(BODY), Pool()
    sending = start(send_file(client, file, 0, len(BODY), pool))
    pool.turn()
    sending.cancel()
    with pytest.raises(CancelledError):
        result_of(sending)
    client.drain()
    pool.turn()
    assert (len(client.writes), file.closed, pool.work) == (1, 1, [])


@pytest.mark.parametrize("window", [1, None], ids=["paused", "reading"])
def test_a_client_that_stops_its_producer_ends_the_sending(window: int | None) -> None:
    client, file, pool = Client(window=window), MemoryFile(BODY), Pool()
    sending = start(send_file(client, file, 0, len(BODY), pool))
    pool.turn()
    assert client.producer is not None
    client.producer.stopProducing()
    if pool.work and not sending.called:
        pool.turn()
    with pytest.raises(ConsumerGone):
        result_of(sending)
    pool.turn()
    assert (len(client.writes), file.closed) == (1, 1)


def test_an_empty_file_is_sent_as_nothing() -> None:
    client, file = Client(), MemoryFile(b"")
    assert result_of(send_file(client, file, 0, 0, execute)) == 0
    assert (client.writes, file.closed) == ([], 1)


def test_few_bytes_are_written_at_once_without_a_producer() -> None:
    client = Client()
    assert result_of(send_bytes(client, BODY, 5, 65_536)) == 65_536
    assert (client.writes, client.registered) == ([BODY[5:65_541]], 0)


def test_no_bytes_are_not_written() -> None:
    client = Client()
    assert (result_of(send_bytes(client, b"", 0, 0)), client.writes) == (0, [])


def test_many_bytes_wait_for_the_client() -> None:
    client = Client(window=1)
    sending = start(send_bytes(client, BODY, 1, 600_000))
    assert client.writes == [BODY[1:262_145]]
    client.drain()
    client.drain()
    assert (result_of(sending), client.body, client.producer) == (600_000, BODY[1:600_001], None)


@pytest.mark.parametrize("length", [10, 100_000])
def test_bytes_fewer_than_promised_cut_the_body(length: int) -> None:
    with pytest.raises(BodyCut):
        result_of(send_bytes(Client(), b"abc", 0, length))


def sliced(body: bytes, header: str) -> bytes | None:
    """What a range names, said in Python's slices; None when it names nothing of the body."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header)
    if match is None or match.groups() == ("", "") or (all(match.groups()) and int(match[2]) < int(match[1])):
        return body
    if not match[1]:
        return body[-int(match[2]) :] or None if int(match[2]) else None
    return body[int(match[1]) : int(match[2]) + 1 if match[2] else None] or None


@given(
    size=st.one_of(st.integers(0, 40), st.sampled_from([65_536, 65_537, 262_144, 262_145, 700_000])),
    header=st.one_of(
        st.from_regex(r"bytes=[0-9]{0,2}-[0-9]{0,2}", fullmatch=True),
        st.from_regex(r"bytes=[0-9]{0,6}-[0-9]{0,6}", fullmatch=True),
        st.text("bytes=-0123456789, ", max_size=12),
    ),
)
def test_any_range_gives_the_bytes_a_slice_gives(size: int, header: str) -> None:
    body = BODY[:size]
    try:
        answer = planned(("Range", header), size=size)
    except InvalidRange:
        assert sliced(body, header.strip(" ")) is None
        return
    from_file, from_memory = Client(), Client()
    result_of(send_file(from_file, MemoryFile(body), answer.first, answer.length, execute))
    result_of(send_bytes(from_memory, body, answer.first, answer.length))
    assert from_file.body == from_memory.body == sliced(body, header.strip(" "))
    assert field(answer, "content-length") == str(len(from_file.body))


@ensureDeferred
async def test_a_file_on_disk_is_sent_through_threads(tmp_path: Path) -> None:
    path, client = tmp_path / "file", Client()
    path.write_bytes(BODY)
    file: OpenFile = await open_file(path, deferToThread)
    assert await send_file(client, file, 7, len(BODY) - 9, deferToThread) == len(BODY) - 9
    assert client.body == BODY[7:-2]
    await deferToThread(file.close)
