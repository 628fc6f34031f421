"""What the fakes and the real stores do alike when they are written to."""

from __future__ import annotations

import base64
import hashlib
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet import reactor as _reactor

from delta_proxy.delta.commit_probe import CommitProbes
from delta_proxy.s3 import write_xml
from delta_proxy.s3.errors import NoSuchUpload, NotImplementedByProxy, PreconditionFailed, S3Error
from delta_proxy.s3.operation import Operation
from delta_proxy.s3.request import Addressing, parse_request
from delta_proxy.upstream.writer import TableWriter, Write
from tests.fakes.writing import WritableStore
from tests.integration import servers

from .parts import BUCKET, Rig, in_reactor, wait_for

reactor: Any = _reactor


@pytest.fixture(params=["fake", "moto", "versitygw"])
def writer(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[TableWriter]:
    """A writer to each kind of store, in a table of its own."""
    rig = Rig()
    if request.param == "fake":
        fake = WritableStore(BUCKET, verifies_hashes=True)
        port = reactor.listenTCP(0, fake.site(), interface="127.0.0.1")
        yield TableWriter(rig.table(f"http://127.0.0.1:{port.getHost().port}"))
        wait_for(rig.close())
        port.stopListening()
        return
    binary = servers.versitygw_path()
    if request.param == "versitygw" and binary is None:
        pytest.skip("versitygw is not built: bin/test builds it where Go is installed")
    running = servers.moto(tmp_path) if request.param == "moto" else servers.versitygw(tmp_path, binary or "")
    with running as store:
        yield TableWriter(rig.table(store.url, bucket=servers.BUCKET))
        wait_for(rig.close())


@in_reactor
async def test_objects_are_put_read_and_deleted(writer: TableWriter) -> None:
    written = await writer.send(Write("PutObject", "PUT", "d/x", body=b"body"))
    assert written.headers.get("etag") == f'"{hashlib.md5(b"body").hexdigest()}"'
    assert (await writer.client.read("d/x", limit=10)).body == b"body"
    copy = Write(
        "CopyObject",
        "PUT",
        "d/y",
        headers=(("x-amz-copy-source", f"{writer.location.bucket}/{writer.location.key('d/x')}"),),
    )
    assert write_xml.document_of((await writer.send(copy)).body.strip()).text("ETag")
    assert (await writer.client.read("d/y", limit=10)).body == b"body"
    keys = [writer.location.key(path) for path in ("d/x", "d/y")]
    document = write_xml.delete_document(keys)
    md5 = base64.b64encode(hashlib.md5(document).digest()).decode()
    fields = (("content-md5", md5), ("content-type", "application/xml"))
    deleted = await writer.send(Write("DeleteObjects", "POST", None, (("delete", ""),), fields, document))
    assert write_xml.parse_delete_result(deleted.body.strip()) == dict.fromkeys(keys, "")
    assert (await writer.client.list()).objects == ()


@in_reactor
async def test_a_put_that_must_create_does_not_replace(writer: TableWriter) -> None:
    put = Write("PutObject", "PUT", "x", headers=(("if-none-match", "*"),), body=b"first")
    await writer.send(put)
    with pytest.raises(PreconditionFailed):
        await writer.send(put)


@in_reactor
async def test_the_probe_finds_that_and_leaves_nothing(
    writer: TableWriter, request: pytest.FixtureRequest
) -> None:
    probes = CommitProbes()
    assert not probes.verifies_hashes(writer.location)
    await probes.check(writer)
    # moto takes any body for what it is signed as.
    assert probes.verifies_hashes(writer.location) == ("moto" not in request.node.name)
    assert (await writer.client.list()).objects == ()


COPY, COMPLETION = Operation.COPY_OBJECT, Operation.COMPLETE_MULTIPART_UPLOAD
WAYS = {
    COPY: (b"PUT", b"/b/k", [(b"x-amz-copy-source", b"/b/s")]),
    COMPLETION: (b"POST", b"/b/k?uploadId=1", []),
}
HONOURED = {"fake": {COPY, COMPLETION}, "versitygw": {COMPLETION}, "moto": {COMPLETION}}


@pytest.mark.parametrize("operation", WAYS)
@in_reactor
async def test_another_way_to_commit_is_tried_when_it_comes_with_a_condition(
    writer: TableWriter, request: pytest.FixtureRequest, operation: Operation
) -> None:
    probes, (method, target, fields) = CommitProbes(), WAYS[operation]
    await probes.check(writer, parse_request(method, target, fields, Addressing("b")))
    conditional = parse_request(method, target, [*fields, (b"if-none-match", b"*")], Addressing("b"))
    assert conditional.operation is operation
    if operation in HONOURED[request.node.callspec.params["writer"]]:
        await probes.check(writer, conditional)
    else:
        with pytest.raises(NotImplementedByProxy, match="is refused: its store does not honour"):
            await probes.check(writer, conditional)
    assert (await writer.client.list()).objects == ()
    left = await writer.send(Write("ListMultipartUploads", "GET", None, (("uploads", ""),)))
    assert write_xml.parse_uploads(left.body.strip()).uploads == ()


@in_reactor
async def test_an_upload_is_listed_completed_and_gone(writer: TableWriter) -> None:
    created = await writer.send(Write("CreateMultipartUpload", "POST", "x", (("uploads", ""),)))
    upload_id = write_xml.document_of(created.body.strip()).text("UploadId")
    query = (("partNumber", "1"), ("uploadId", upload_id))
    part = await writer.send(Write("UploadPart", "PUT", "x", query, body=b"body"))
    listed = await writer.send(
        Write("ListMultipartUploads", "GET", None, (("prefix", writer.location.key("")), ("uploads", "")))
    )
    page = write_xml.parse_uploads(listed.body.strip())
    assert [(each.key, each.upload_id) for each in page.uploads] == [(writer.location.key("x"), upload_id)]
    parts = write_xml.complete_document([write_xml.Part(1, part.headers.get("etag") or "")])
    this = (("uploadId", upload_id),)
    await writer.send(Write("CompleteMultipartUpload", "POST", "x", this, body=parts))
    assert (await writer.client.read("x", limit=10)).body == b"body"
    with pytest.raises(NoSuchUpload):
        await writer.send(Write("AbortMultipartUpload", "DELETE", "x", this))


@in_reactor
async def test_a_store_that_ignores_the_condition_is_found_out_once() -> None:
    rig, store = Rig(), WritableStore(BUCKET, honours_conditions=False)
    port = reactor.listenTCP(0, store.site(), interface="127.0.0.1")
    try:
        writer = TableWriter(rig.table(f"http://127.0.0.1:{port.getHost().port}"))
        probes = CommitProbes()
        for _ in range(2):
            with pytest.raises(NotImplementedByProxy, match="does not honour If-None-Match"):
                await probes.check(writer)
        assert (len(store.requests), store.objects) == (3, {})
    finally:
        await rig.close()
        await port.stopListening()


@in_reactor
async def test_a_store_that_cannot_be_tried_is_tried_again() -> None:
    rig, store = Rig(), WritableStore("another-bucket")
    port = reactor.listenTCP(0, store.site(), interface="127.0.0.1")
    try:
        writer, probes = TableWriter(rig.table(f"http://127.0.0.1:{port.getHost().port}")), CommitProbes()
        with pytest.raises(S3Error):
            await probes.check(writer)
        store.bucket = BUCKET
        await probes.check(writer)
    finally:
        await rig.close()
        await port.stopListening()
