"""Writes on the wire: what is sent once, what is sent again, and what is given up before its last byte."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from delta_proxy.s3.chunked import ChunkSigning
from delta_proxy.s3.errors import (
    AccessDenied,
    BadDigest,
    ConditionalRequestConflict,
    InternalError,
    InvalidPart,
    NoSuchKey,
    NoSuchUpload,
    PreconditionFailed,
    S3Error,
    ServiceUnavailable,
)
from delta_proxy.s3.headers import Headers
from delta_proxy.s3.request import Addressing, S3Request, parse_request
from delta_proxy.s3.sigv4 import SigningKeys
from delta_proxy.s3.verify import presented, verify
from delta_proxy.s3.write_xml import parse_delete_result
from delta_proxy.upstream.retry import Timeouts
from delta_proxy.upstream.upload import Outgoing
from delta_proxy.upstream.writer import Streamed, TableWriter, Write, Written

from .conftest import MakeRig, MakeStore
from .parts import (
    BUCKET,
    CREDENTIALS,
    PREFIX,
    Call,
    Rig,
    answer,
    cuts,
    in_reactor,
    sends,
    silent,
    soon,
    until,
)

BLOCK = b"x" * 65536
BLOCKS = 64


def put(body: bytes | Streamed, path: str = "a b", **more: Any) -> Write:
    return Write("PutObject", "PUT", path, body=body, **more)


def streamed(feed: Any, blocks: int = BLOCKS) -> Streamed:
    return Streamed(blocks * len(BLOCK), "UNSIGNED-PAYLOAD", feed)


async def all_of_it(signing: ChunkSigning, outgoing: Outgoing) -> None:
    for _ in range(BLOCKS):
        await outgoing.write(BLOCK)


def received(call: Call) -> bytes:
    """What has come behind the head."""
    return call.line._received


def error(status: str, code: str) -> bytes:
    document = f"<Error><Code>{code}</Code><Message>secret</Message></Error>"
    return answer(document.encode(), status=status, etag=None)


@in_reactor
async def test_a_body_is_sent_with_its_length_under_its_hash(rig: Rig, make_store: MakeStore) -> None:
    store = make_store(sends(answer()))
    fields = (("if-none-match", "*"), ("x-amz-meta-a", "1"))
    written = await TableWriter(rig.table(store.endpoint)).send(put(b"body", headers=fields))
    (call,) = store.calls
    assert call.head.startswith(f"PUT /{BUCKET}/{PREFIX}/a%20b HTTP/1.1".encode())
    assert (call.header("content-length"), received(call)) == ("4", b"body")
    assert call.header("x-amz-content-sha256") == hashlib.sha256(b"body").hexdigest()
    assert (call.header("if-none-match"), written.status) == ("*", 200)
    assert "if-none-match" not in (call.header("authorization") or "")
    assert "x-amz-meta-a" in (call.header("authorization") or "")


@in_reactor
async def test_a_streamed_body_arrives_whole(rig: Rig, make_store: MakeStore) -> None:
    def when_whole(call: Call) -> None:
        def look() -> None:
            if len(received(call)) < BLOCKS * len(BLOCK):
                soon(0.01).addCallback(lambda _: look())
            else:
                call.send(answer())

        look()

    store = make_store(when_whole)
    await TableWriter(rig.table(store.endpoint)).send(put(streamed(all_of_it)))
    assert store.calls[0].header("content-length") == str(BLOCKS * len(BLOCK))
    assert received(store.calls[0]) == BLOCK * BLOCKS


@in_reactor
async def test_a_store_that_does_not_read_stops_the_source(make_rig: MakeRig, make_store: MakeStore) -> None:
    clock = Clock()
    rig = make_rig(clock=clock)
    store = make_store(lambda call: call.line.wire.pauseProducing())
    sent: list[int] = []

    async def endless(signing: ChunkSigning, outgoing: Outgoing) -> None:
        for _ in range(1_000_000):
            await outgoing.write(BLOCK)
            sent.append(len(BLOCK))

    writer = TableWriter(rig.table(store.endpoint))
    work = Deferred.fromCoroutine(writer.send(put(streamed(endless, 1_000_000))))
    await store.call(1)
    before = -1
    while before != len(sent):
        before = len(sent)
        await soon(0.2)
    clock.advance(Timeouts().idle + 1)
    with pytest.raises(ServiceUnavailable):
        await work
    # What the kernel's buffers and the transport hold, no more.
    assert sum(sent) < 64 << 20
    store.lines[0].wire.resumeProducing()
    await store.lines[0].lost


@in_reactor
async def test_a_body_that_turns_out_wrong_is_given_up_before_its_end(
    rig: Rig, make_store: MakeStore
) -> None:
    store = make_store(silent)

    async def lying(signing: ChunkSigning, outgoing: Outgoing) -> None:
        await outgoing.write(BLOCK * (BLOCKS - 1))
        await store.call(1)
        raise BadDigest

    with pytest.raises(BadDigest):
        await TableWriter(rig.table(store.endpoint)).send(put(streamed(lying)))
    await store.lines[0].lost
    assert len(store.calls) == 1
    assert len(received(store.calls[0])) < BLOCKS * len(BLOCK)


@in_reactor
async def test_nobody_waiting_resets_the_connection(rig: Rig, make_store: MakeStore) -> None:
    store = make_store(silent)

    async def stalled(signing: ChunkSigning, outgoing: Outgoing) -> None:
        await outgoing.write(BLOCK)
        await Deferred()

    writer = TableWriter(rig.table(store.endpoint))
    work = Deferred.fromCoroutine(writer.send(put(streamed(stalled))))
    await store.call(1)
    work.cancel()
    with pytest.raises(CancelledError):
        await work
    await store.lines[0].lost
    assert writer.client.slots.in_flight == 0


@in_reactor
async def test_an_answer_that_comes_before_the_end_is_the_answer(rig: Rig, make_store: MakeStore) -> None:
    store = make_store(sends(error("412 Precondition Failed", "PreconditionFailed")))

    async def waits(signing: ChunkSigning, outgoing: Outgoing) -> None:
        await outgoing.write(BLOCK)
        await Deferred()

    with pytest.raises(PreconditionFailed):
        await TableWriter(rig.table(store.endpoint)).send(put(streamed(waits)))
    await store.lines[0].lost


@in_reactor
async def test_an_answer_that_is_none_ends_a_body_under_way(make_rig: MakeRig, make_store: MakeStore) -> None:
    clock, gone = Clock(), list[bool]()
    store = make_store(sends(b"none of HTTP's\r\n\r\n"))
    writer = TableWriter(make_rig(clock=clock).table(store.endpoint))

    async def goes_on(signing: ChunkSigning, outgoing: Outgoing) -> None:
        await outgoing.write(BLOCK)
        await store.call(1)
        await store.lines[0].lost
        gone.append(True)
        await outgoing.write(BLOCK)

    work = Deferred.fromCoroutine(writer.send(put(streamed(goes_on))))
    await until(lambda: bool(gone))
    clock.advance(Timeouts().idle + 1)
    assert work.called
    with pytest.raises(ServiceUnavailable):
        await work
    assert (writer.client.slots.in_flight, clock.getDelayedCalls()) == (0, [])


@in_reactor
async def test_a_write_whose_answer_is_lost_is_not_repeated(rig: Rig, make_store: MakeStore) -> None:
    store = make_store(cuts(b""))
    with pytest.raises(ServiceUnavailable):
        await TableWriter(rig.table(store.endpoint)).send(put(b"body"))
    assert len(store.calls) == 1


@in_reactor
async def test_a_store_that_does_not_answer_is_given_up(make_rig: MakeRig, make_store: MakeStore) -> None:
    clock = Clock()
    rig, store = make_rig(clock=clock), make_store(silent)
    work = Deferred.fromCoroutine(TableWriter(rig.table(store.endpoint)).send(put(b"body")))
    await store.call(1)
    while not received(store.calls[0]):
        await soon(0.01)
    await soon(0.01)
    clock.advance(Timeouts().first_byte + 1)
    with pytest.raises(ServiceUnavailable):
        await work
    await store.lines[0].lost


@in_reactor
async def test_the_region_is_learned_and_the_write_sent_again(rig: Rig, make_store: MakeStore) -> None:
    wrong = b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region></Error>"
    store = make_store(sends(answer(wrong, status="400 Bad Request", etag=None)), sends(answer()))
    await TableWriter(rig.table(store.endpoint)).send(put(b"body"))
    assert [str(call.header("authorization")).split("/")[2] for call in store.calls] == [
        "us-east-1",
        "eu-west-1",
    ]


@pytest.mark.parametrize("large", [False, True])
@in_reactor
async def test_the_stores_clock_is_learned_from_the_refusal_of_a_write(
    make_rig: MakeRig, make_store: MakeStore, large: bool
) -> None:
    clock = Clock()
    clock.advance(datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp())
    theirs = {"Date": format_datetime(datetime(2026, 3, 1, 13, tzinfo=UTC), usegmt=True)}
    code = b"<Error><Code>RequestTimeTooSkewed</Code></Error>"
    skewed = answer(code, status="403 Forbidden", etag=None, headers=theirs)
    store = make_store(sends(skewed), sends(answer()))
    writer = TableWriter(make_rig(clock=clock).table(store.endpoint))
    if large:
        # A client tries again after this one.
        with pytest.raises(ServiceUnavailable):
            await writer.send(put(streamed(all_of_it)))
    await writer.send(put(b"body"))
    dates = [call.header("x-amz-date") for call in store.calls]
    assert dates == ["20260301T120000Z", "20260301T130000Z"]


@in_reactor
async def test_the_region_that_refuses_a_streamed_body_is_what_the_next_write_is_signed_for(
    rig: Rig, make_store: MakeStore
) -> None:
    moved = answer(status="301 Moved Permanently", etag=None, headers={"x-amz-bucket-region": "eu-west-1"})
    store = make_store(sends(moved), sends(answer()))
    writer = TableWriter(rig.table(store.endpoint))
    with pytest.raises(ServiceUnavailable):
        await writer.send(put(streamed(all_of_it)))
    await writer.send(put(b"body"))
    regions = [str(call.header("authorization")).split("/")[2] for call in store.calls]
    assert regions == ["us-east-1", "eu-west-1"]


@pytest.mark.parametrize("value", ["blå".encode(), b"a  \xff b", "日本".encode()])
@in_reactor
async def test_metadata_is_signed_as_the_bytes_that_are_sent(
    rig: Rig, make_store: MakeStore, value: bytes
) -> None:
    store = make_store(sends(answer()))
    fields = (("x-amz-meta-colour", value.decode("latin-1")),)
    await TableWriter(rig.table(store.endpoint)).send(put(b"body", headers=fields))
    request = _parsed(store.calls[0])
    found = presented(request)
    assert found is not None
    assert (request.headers.get("x-amz-meta-colour") or "").encode("latin-1") == value
    verify(request, found, CREDENTIALS.secret_key, now=found.moment, keys=SigningKeys())


def _parsed(call: Call) -> S3Request:
    line, *rows = call.head.rstrip(b"\r\n").split(b"\r\n")
    method, target, _ = line.split(b" ")
    return parse_request(
        method,
        target,
        [(name, value) for name, _, value in (row.partition(b":") for row in rows)],
        Addressing(BUCKET),
    )


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        ("412 Precondition Failed", "PreconditionFailed", PreconditionFailed),
        ("412 Precondition Failed", "", PreconditionFailed),
        ("409 Conflict", "ConditionalRequestConflict", ConditionalRequestConflict),
        ("409 Conflict", "", ConditionalRequestConflict),
        ("404 Not Found", "NoSuchUpload", NoSuchUpload),
        ("404 Not Found", "NoSuchKey", NoSuchKey),
        ("400 Bad Request", "InvalidPart", InvalidPart),
        ("400 Bad Request", "BadDigest", BadDigest),
        ("403 Forbidden", "AccessDenied", AccessDenied),
        ("403 Forbidden", "InvalidAccessKeyId", AccessDenied),
        ("500 Internal Server Error", "InternalError", ServiceUnavailable),
        ("503 Slow Down", "SlowDown", S3Error),
    ],
)
@in_reactor
async def test_the_client_is_told_the_stores_code_and_nothing_of_its_words(
    rig: Rig, make_store: MakeStore, status: str, code: str, told: type[S3Error]
) -> None:
    store = make_store(sends(error(status, code)))
    with pytest.raises(told) as caught:
        await TableWriter(rig.table(store.endpoint)).send(put(b"body"))
    assert "secret" not in caught.value.message
    assert len(store.calls) == 1


@pytest.mark.parametrize("operation", ["CompleteMultipartUpload", "CopyObject", "UploadPartCopy"])
@in_reactor
async def test_an_error_behind_status_200_is_an_error(
    rig: Rig, make_store: MakeStore, operation: str
) -> None:
    body = b'<?xml version="1.0"?>\n   <Error><Code>InvalidPart</Code></Error>'
    store = make_store(sends(answer(body)), sends(answer(b"   ")))
    writer = TableWriter(rig.table(store.endpoint))
    with pytest.raises(InvalidPart):
        await writer.send(Write(operation, "POST", "x"))
    with pytest.raises(S3Error):
        await writer.send(Write(operation, "POST", "x"))


@in_reactor
async def test_nothing_is_written_outside_the_table(rig: Rig, make_store: MakeStore) -> None:
    store = make_store(sends(answer()))
    for path in ("../x", "a/../../x", "a/.."):
        with pytest.raises(NoSuchKey):
            await TableWriter(rig.table(store.endpoint)).send(put(b"x", path))
    assert store.calls == []


@pytest.mark.parametrize("body", [b"<Other/>", b"<Other>" + b" " * 5000 + b"</Other>"])
@in_reactor
async def test_a_document_that_is_none_is_a_fault(rig: Rig, make_store: MakeStore, body: bytes) -> None:
    writer = TableWriter(rig.table(make_store(sends(answer())).endpoint))
    with pytest.raises(InternalError):
        await writer.told(Written(200, Headers(), body), parse_delete_result)
