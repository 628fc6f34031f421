"""Writing through the resources onto a store in memory: who may, what arrives, what is told."""

# mypy: allow-untyped-calls
from __future__ import annotations

import base64
import hashlib
import json
import os
import pathlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any
from xml.etree import ElementTree

import attrs
import pytest
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure

from delta_proxy.access.audit import AuditLog
from delta_proxy.access.identity import ANONYMOUS, Principal
from delta_proxy.access.policy import NOTHING, Grant, parse_filters
from delta_proxy.config import GetMode
from delta_proxy.resources.auditing import audit_record, record_decision
from delta_proxy.resources.server import EdgeRequest
from delta_proxy.resources.services import Anonymous
from delta_proxy.s3.operation import Operation
from delta_proxy.s3.request import S3Request
from delta_proxy.s3.write_xml import (
    OpenUpload,
    UploadPage,
    UploadQuery,
    complete_anew,
    list_uploads,
    parse_delete,
    parse_delete_result,
)
from delta_proxy.upstream.stores import CommitProbe
from tests.fakes.store import FakeStore
from tests.fakes.writing import WritableStore
from tests.memory import BUCKET, NOW, Answer, MemoryProxy

LARGE = 700_001
EVERYTHING: Mapping[str, Grant | None] = {"t": None, "u": None}


class Reader(Anonymous):
    """Everybody is a user who may only read."""

    async def authenticate(self, s3: S3Request, request: EdgeRequest) -> Principal:
        return attrs.evolve(ANONYMOUS, read_only=True)


def proxy_of(
    folder: pathlib.Path, grants: Mapping[str, Grant | None] = EVERYTHING, **more: Any
) -> MemoryProxy:
    options = {"read_only": False, "location": {"commit_probe": CommitProbe.OFF}, **more}
    return MemoryProxy(folder / "cache", grants, **{"store": WritableStore(BUCKET), **options})


@pytest.fixture
def proxy(tmp_path: pathlib.Path) -> MemoryProxy:
    return proxy_of(tmp_path)


def objects(proxy: MemoryProxy) -> dict[str, bytes]:
    return {key: found.body for key, found in proxy.store.objects.items()}


def store_of(proxy: MemoryProxy) -> WritableStore:
    assert isinstance(proxy.store, WritableStore)
    return proxy.store


def put(
    proxy: MemoryProxy, key: str, body: bytes, headers: Mapping[str, str] | None = None, query: str = ""
) -> Answer:
    fields = {"Content-Length": str(len(body)), **(headers or {})}
    return proxy.request("PUT", f"/datalake/{key}{query}", fields, body)


def post(proxy: MemoryProxy, target: str, body: bytes, headers: Mapping[str, str] | None = None) -> Answer:
    return proxy.request("POST", target, {"Content-Length": str(len(body)), **(headers or {})}, body)


def code(answer: Answer) -> str:
    return ElementTree.fromstring(answer.body).findtext("Code") or ""


def text(answer: Answer, name: str) -> str:
    root = ElementTree.fromstring(answer.body)
    return root.findtext(f"{{http://s3.amazonaws.com/doc/2006-03-01/}}{name}") or ""


def md5(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body).digest()).decode()


def deletion(*keys: str, quiet: bool = False) -> bytes:
    listed = "".join(f"<Object><Key>{key}</Key></Object>" for key in keys)
    return f"<Delete>{listed}<Quiet>{str(quiet).lower()}</Quiet></Delete>".encode()


@pytest.mark.parametrize("size", [0, 1, 5000, 256 * 1024, 256 * 1024 + 1, LARGE])
def test_a_body_arrives_whatever_its_size(proxy: MemoryProxy, size: int) -> None:
    body = os.urandom(size)
    answer = put(proxy, "t/part-0.parquet", body)
    assert (answer.status, answer.headers["etag"]) == (200, f'"{hashlib.md5(body).hexdigest()}"')
    assert objects(proxy) == {"t/part-0.parquet": body}


WRITES = [
    ("PUT", "/datalake/t/x"),
    ("DELETE", "/datalake/t/x"),
    ("POST", "/datalake/t/x?uploads"),
    ("PUT", "/datalake/t/x?partNumber=1&uploadId=1"),
    ("GET", "/datalake/t/x?uploadId=1"),
    ("POST", "/datalake/t/x?uploadId=1"),
    ("DELETE", "/datalake/t/x?uploadId=1"),
    ("POST", "/datalake?delete"),
]
CLOSED: list[tuple[dict[str, Any], int, str]] = [
    ({"read_only": True}, 405, "refused"),
    ({"grants": {"t": parse_filters([{"p": "a"}])}}, 403, "restricted"),
    ({"grants": {"t": NOTHING}}, 403, "restricted"),
    ({"authenticator": Reader()}, 403, "read_only_user"),
]


@pytest.mark.parametrize("closed", CLOSED)
@pytest.mark.parametrize(("method", "target"), WRITES)
def test_who_may_not_write_is_refused_before_a_byte_is_asked_for(
    tmp_path: pathlib.Path, method: str, target: str, closed: tuple[dict[str, Any], int, str]
) -> None:
    options, status, decision = closed
    proxy = proxy_of(tmp_path, **options)
    proxy.store.put("t/x", b"old")
    # The body never comes: an answer is there only if nobody waits for it.
    fields = {"Content-Length": "1000", "Expect": "100-continue", "Content-MD5": md5(b"")}
    if method == "GET":
        fields = {}
    answer = proxy.request(method, target, fields)
    assert answer.status == status
    if "?delete" not in target:
        assert answer.decision == decision
    assert objects(proxy) == {"t/x": b"old"}
    assert answer.record.bytes_received == 0


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://proxy.test"])
@pytest.mark.parametrize(("method", "target"), [each for each in WRITES if each[0] != "GET"])
def test_no_page_of_another_site_writes_where_nobody_is_asked_who_they_are(
    proxy: MemoryProxy, method: str, target: str, origin: str
) -> None:
    proxy.store.put("t/x", b"old")
    body = deletion("t/x") if "?delete" in target else b""
    hoisted = f"&x-amz-content-sha256={hashlib.sha256(body).hexdigest()}" if body else ""
    fields = {"Content-Length": str(len(body)), "Content-Type": "text/plain", "Origin": origin}
    answer = proxy.request(method, target + hoisted, fields, body)
    assert answer.status == (200 if body else 403)
    assert b"AccessDenied" in answer.body
    assert answer.decision == "foreign_page"
    assert objects(proxy) == {"t/x": b"old"}


def test_the_open_uploads_of_a_closed_table_are_not_listed(tmp_path: pathlib.Path) -> None:
    proxy = proxy_of(tmp_path, {"t": None, "u": parse_filters([{"p": "a"}])})
    for key in ("t/a", "t/b", "u/c", "elsewhere/d"):
        store_of(proxy).uploads[key] = attrs.evolve(_upload(key))
    answer = proxy.request("GET", "/datalake?uploads")
    keys = [found.text for found in ElementTree.fromstring(answer.body).iter() if found.tag.endswith("}Key")]
    assert keys == ["t/a", "t/b"]


def _upload(key: str) -> Any:
    from tests.fakes.writing import Upload

    return Upload(key)


def test_open_uploads_come_in_pages(proxy: MemoryProxy) -> None:
    for key in ("t/a", "t/b", "u/c", "u/d"):
        store_of(proxy).uploads[f"id-{key}"] = _upload(key)
    seen, marker = [], ""
    for _ in range(4):
        answer = proxy.request("GET", f"/datalake?uploads&max-uploads=1{marker}")
        root = ElementTree.fromstring(answer.body)
        seen += [found.text for found in root.iter() if found.tag.endswith("}Key")]
        key, upload_id = text(answer, "NextKeyMarker"), text(answer, "NextUploadIdMarker")
        marker = f"&key-marker={key}&upload-id-marker={upload_id}"
    assert seen == ["t/a", "t/b", "u/c", "u/d"]
    assert text(answer, "IsTruncated") == "false"


UPLOADS = ("t/a", "t/b/1", "t/b/2", "tt/c", "u/d")


def _grouped(proxy: MemoryProxy, query: str) -> tuple[list[str | None], list[str], bool]:
    """Keys, common prefixes, and whether there is more."""
    answer = proxy.request("GET", f"/datalake?uploads&{query}")
    root, space = ElementTree.fromstring(answer.body), "{http://s3.amazonaws.com/doc/2006-03-01/}"
    keys = [found.text for found in root.iter(f"{space}Key")]
    groups = [found.findtext(f"{space}Prefix", "") for found in root.iter(f"{space}CommonPrefixes")]
    return keys, groups, text(answer, "IsTruncated") == "true"


@pytest.mark.parametrize(
    ("query", "keys", "groups"),
    [
        ("", [*UPLOADS], []),
        ("delimiter=/", [], ["t/", "tt/", "u/"]),
        ("delimiter=/&prefix=t", [], ["t/", "tt/"]),
        ("delimiter=t", ["u/d"], ["t"]),
        ("delimiter=t&prefix=t", ["t/a", "t/b/1", "t/b/2"], ["tt"]),
        ("delimiter=/&prefix=u/", ["u/d"], []),
        ("delimiter=/&prefix=v", [], []),
        ("delimiter=/&key-marker=t/", [], ["tt/", "u/"]),
        ("delimiter=/&key-marker=t/b/1", [], ["t/", "tt/", "u/"]),
        ("delimiter=/&key-marker=u/e", [], []),
    ],
)
def test_open_uploads_are_grouped_at_a_delimiter_above_the_tables(
    tmp_path: pathlib.Path, query: str, keys: list[str], groups: list[str]
) -> None:
    proxy = proxy_of(tmp_path, {"empty": None, "t": None, "tt": None, "u": None})
    for key in UPLOADS:
        store_of(proxy).uploads[f"id-{key}"] = _upload(key)
    assert _grouped(proxy, query)[:2] == (keys, groups)


def test_groups_of_open_uploads_come_in_pages(tmp_path: pathlib.Path) -> None:
    proxy = proxy_of(tmp_path, {"t": None, "tt": None, "u": None})
    for key in UPLOADS:
        store_of(proxy).uploads[f"id-{key}"] = _upload(key)
    seen, marker, more = [], "", True
    while more:
        answer = proxy.request("GET", f"/datalake?uploads&delimiter=/&max-uploads=1{marker}")
        _, groups, more = _grouped(proxy, f"delimiter=/&max-uploads=1{marker}")
        seen += groups
        marker = f"&key-marker={text(answer, 'NextKeyMarker')}"
    assert seen == ["t/", "tt/", "u/"]


def test_uploads_beside_the_table_are_not_shown_whatever_the_store_lists(tmp_path: pathlib.Path) -> None:
    class Careless(WritableStore):
        def _list_uploads(self, asked: S3Request, request: Any) -> bytes:
            uploads = OpenUpload("other/d", "1"), OpenUpload("t/a", "2")
            page = UploadPage(uploads, ("other/e/", "t/b/"))
            return list_uploads(page, UploadQuery(), bucket=BUCKET)

    proxy = proxy_of(tmp_path, {"t": None}, store=Careless(BUCKET))
    assert _grouped(proxy, "prefix=t/&delimiter=/") == (["t/a"], ["t/b/"], False)


@pytest.mark.parametrize("prefix", ["t/../u/", "t/a/../../u/"])
def test_no_store_is_asked_for_uploads_outside_the_table(proxy: MemoryProxy, prefix: str) -> None:
    answer = proxy.request("GET", f"/datalake?uploads&prefix={prefix}")
    assert answer.status == 200
    assert b"<Upload>" not in answer.body
    assert proxy.store.requests == []


def test_a_page_of_no_uploads_is_empty(proxy: MemoryProxy) -> None:
    store_of(proxy).uploads["1"] = _upload("t/a")
    answer = proxy.request("GET", "/datalake?uploads&max-uploads=0")
    assert (answer.status, text(answer, "IsTruncated"), text(answer, "MaxUploads")) == (200, "false", "0")
    assert b"<Upload>" not in answer.body


@pytest.mark.parametrize("key", ["t", "elsewhere/x", "t/../u/x", "t/a/../../x"])
def test_nothing_is_written_outside_the_tables(proxy: MemoryProxy, key: str) -> None:
    answer = put(proxy, key, b"x")
    assert answer.status in {403, 404}
    assert objects(proxy) == {}
    if not key.startswith("t"):
        assert answer.decision == "no_grant"


@pytest.mark.parametrize("size", [100, LARGE])
@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"x-amz-content-sha256": "0" * 64}, "XAmzContentSHA256Mismatch"),
        ({"Content-MD5": md5(b"other")}, "BadDigest"),
        ({"Content-MD5": "short"}, "InvalidDigest"),
        ({"x-amz-checksum-crc32": "AAAAAA=="}, "BadDigest"),
        ({"x-amz-checksum-crc64nvme": "AAAAAAAAAAA="}, "BadDigest"),
        ({"x-amz-checksum-crc32c": "AAAA"}, "InvalidRequest"),
        ({"x-amz-checksum-crc32": "AAAAAA==", "x-amz-checksum-crc32c": "AAAAAA=="}, "InvalidRequest"),
        ({"x-amz-checksum-nonsense": "AAAA"}, "InvalidRequest"),
    ],
)
def test_a_body_that_is_not_what_was_announced_is_not_stored(
    proxy: MemoryProxy, size: int, headers: dict[str, str], expected: str
) -> None:
    answer = put(proxy, "t/x", os.urandom(size), headers)
    assert (answer.status, code(answer)) == (400, expected)
    assert objects(proxy) == {}


def test_a_body_without_a_length_is_refused(proxy: MemoryProxy) -> None:
    answer = proxy.request("PUT", "/datalake/t/x", {"Transfer-Encoding": "chunked"})
    assert (answer.status, code(answer)) == (411, "MissingContentLength")
    assert proxy.request("PUT", "/datalake/t/x").status == 411


def test_a_body_without_a_checksum_is_stored_under_the_hash_the_client_signed(proxy: MemoryProxy) -> None:
    body = os.urandom(LARGE)
    sha256 = hashlib.sha256(body).hexdigest()
    assert put(proxy, "t/x", body, {"x-amz-content-sha256": sha256}).status == 200
    assert proxy.store.requests[-1].headers.get("x-amz-content-sha256") == sha256


@pytest.mark.parametrize(
    ("fields", "query", "expected"),
    [
        ({}, "?X-Amz-Content-Sha256=STREAMING-UNSIGNED-PAYLOAD-TRAILER", "MissingContentLength"),
        ({"x-amz-content-sha256": "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD"}, "", "InvalidArgument"),
        ({"Content-Encoding": "aws-chunked"}, "", "InvalidRequest"),
    ],
)
def test_no_framing_is_stored_with_a_body(
    proxy: MemoryProxy, fields: dict[str, str], query: str, expected: str
) -> None:
    answer = put(proxy, "t/x", b"1\r\nx\r\n0\r\n\r\n", fields, query)
    assert (code(answer), objects(proxy)) == (expected, {})


def test_metadata_goes_with_the_object(proxy: MemoryProxy) -> None:
    body, checksum = b"1\r\nx\r\n0\r\nx-amz-checksum-crc32:jNwWgw==\r\n\r\n", "x-amz-checksum-crc32"
    framing = {
        "x-amz-content-sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        "x-amz-decoded-content-length": "1",
        "x-amz-trailer": checksum,
    }
    fields = {
        "Content-Type": "text/plain",
        "Cache-Control": "no-store",
        "Content-Encoding": "aws-chunked,gzip",
        "x-amz-meta-colour": "blue",
        "x-amz-tagging": "a=b",
        "x-amz-storage-class": "STANDARD_IA",
        "x-amz-server-side-encryption": "AES256",
    }
    assert put(proxy, "t/x", body, {**fields, **framing}).status == 200
    assert objects(proxy) == {"t/x": b"x"}
    stored = dict(store_of(proxy).fields["t/x"])
    wanted = {name.lower(): value for name, value in fields.items()}
    assert {name: stored.get(name) for name in wanted} == {**wanted, "content-encoding": "gzip"}


@pytest.mark.parametrize(
    "fields",
    [
        {"x-amz-acl": "public-read"},
        {"x-amz-grant-read": "everybody"},
        {"x-amz-object-lock-mode": "GOVERNANCE"},
        {"x-amz-write-offset-bytes": "0"},
        {"x-amz-website-redirect-location": "/"},
        {"cf-copy-destination-if-none-match": "*"},
        {"x-goog-if-generation-match": "0"},
    ],
)
def test_what_does_more_than_store_bytes_is_not_implemented(
    proxy: MemoryProxy, fields: dict[str, str]
) -> None:
    answer = put(proxy, "t/x", b"x", fields)
    assert (answer.status, code(answer)) == (501, "NotImplemented")
    assert objects(proxy) == {}


@pytest.mark.parametrize("query", ["", "?uploadId=upload-1"])
def test_a_deletion_passes_by_no_lock(proxy: MemoryProxy, query: str) -> None:
    proxy.store.put("t/x", b"x")
    fields = {"x-amz-bypass-governance-retention": "true"}
    assert proxy.request("DELETE", f"/datalake/t/x{query}", fields).status == 501
    assert objects(proxy) == {"t/x": b"x"}


def test_a_condition_is_the_stores_to_judge(proxy: MemoryProxy) -> None:
    assert put(proxy, "t/x", b"first", {"If-None-Match": "*"}).status == 200
    answer = put(proxy, "t/x", b"second", {"If-None-Match": "*"})
    assert (answer.status, code(answer)) == (412, "PreconditionFailed")
    assert objects(proxy) == {"t/x": b"first"}


@pytest.mark.parametrize("grants", [EVERYTHING])
def test_a_store_without_conditions_is_not_written_to(
    tmp_path: pathlib.Path, grants: Mapping[str, Grant | None]
) -> None:
    store = WritableStore(BUCKET, honours_conditions=False)
    proxy = proxy_of(tmp_path, grants, store=store, location={})
    answer = put(proxy, "t/x", b"x")
    assert (answer.status, code(answer)) == (501, "NotImplemented")
    assert b"does not honour If-None-Match" in answer.body
    assert objects(proxy) == {}


def test_a_store_is_tried_once_and_nothing_of_the_trial_is_left(tmp_path: pathlib.Path) -> None:
    proxy = proxy_of(tmp_path, location={})
    for name in ("x", "y"):
        assert put(proxy, f"t/{name}", b"x").status == 200
    assert put(proxy, "u/z", b"x").status == 200
    assert sorted(objects(proxy)) == ["t/x", "t/y", "u/z"]
    keys = [asked.key for asked in proxy.store.requests]
    probes = [key for key in keys if "probe" in key]
    assert len(probes) == 4
    assert all(key.startswith("t/_delta_log/.delta-s3-proxy-probe-") for key in probes)


@pytest.mark.parametrize("honoured", [True, False])
def test_a_copy_must_create_only_where_the_store_sees_to_it(tmp_path: pathlib.Path, honoured: bool) -> None:
    ignored = () if honoured else (Operation.COPY_OBJECT,)
    proxy = proxy_of(tmp_path, store=WritableStore(BUCKET, unconditional=ignored), location={})
    for name in ("staged", "commit"):
        proxy.store.put(f"t/{name}", name.encode())
    copy = {"x-amz-copy-source": "/datalake/t/staged"}
    if not honoured:
        assert put(proxy, "t/commit", b"", {**copy, "If-Match": '"another"'}).status == 501
    answer = put(proxy, "t/commit", b"", {**copy, "If-None-Match": "*"})
    assert (answer.status, code(answer)) == (
        (412, "PreconditionFailed") if honoured else (501, "NotImplemented")
    )
    assert objects(proxy) == {"t/staged": b"staged", "t/commit": b"commit"}
    assert put(proxy, "t/commit", b"", copy).status == 200


@pytest.mark.parametrize(("honoured", "ended"), [(True, False), (True, True), (False, False)])
def test_an_upload_must_create_only_where_the_store_sees_to_it(
    tmp_path: pathlib.Path, honoured: bool, ended: bool
) -> None:
    ignored = () if honoured else (Operation.COMPLETE_MULTIPART_UPLOAD,)
    store = WritableStore(BUCKET, unconditional=ignored, ends_refused_uploads=ended)
    proxy = proxy_of(tmp_path, store=store, location={})
    proxy.store.put("t/commit", b"commit")
    upload_id = text(proxy.request("POST", "/datalake/t/commit?uploads"), "UploadId")
    etag = put(proxy, "t/commit", b"part", query=f"?partNumber=1&uploadId={upload_id}").headers["etag"]
    part = f"<Part><PartNumber>1</PartNumber><ETag>{etag.strip(chr(34))}</ETag></Part>"
    body = f"<CompleteMultipartUpload>{part}</CompleteMultipartUpload>".encode()
    answer = post(proxy, f"/datalake/t/commit?uploadId={upload_id}", body, {"If-None-Match": "*"})
    assert (answer.status, code(answer)) == (
        (412, "PreconditionFailed") if honoured else (501, "NotImplemented")
    )
    assert objects(proxy) == {"t/commit": b"commit"}
    assert post(proxy, f"/datalake/t/commit?uploadId={upload_id}", body).status == (404 if ended else 200)


@pytest.mark.parametrize("verifies", [True, False])
def test_only_a_store_that_was_seen_to_verify_hashes_is_left_to_verify_that_of_a_large_body(
    tmp_path: pathlib.Path, verifies: bool
) -> None:
    store = WritableStore(BUCKET, verifies_hashes=verifies)
    proxy = proxy_of(tmp_path, store=store, location={})
    wrong = {"x-amz-content-sha256": "0" * 64}
    for size in (1000, LARGE):
        answer = put(proxy, "t/x", b"x" * size, wrong)
        assert (answer.status, code(answer)) == (400, "XAmzContentSHA256Mismatch")
    assert objects(proxy) == {}
    # Had the proxy computed it as well, it would refuse what this store now takes.
    store.verifies_hashes = False
    assert put(proxy, "t/x", b"x" * LARGE, wrong).status == (200 if verifies else 400)
    assert put(proxy, "t/y", b"x" * 1000, wrong).status == 400


def test_deleting_an_object_deletes_it(proxy: MemoryProxy) -> None:
    proxy.store.put("t/x", b"x")
    assert proxy.request("DELETE", "/datalake/t/x").status == 204
    assert objects(proxy) == {}


@pytest.mark.parametrize("key", ["t", "t/"])
def test_deleting_the_marker_of_a_tables_root_does_nothing(proxy: MemoryProxy, key: str) -> None:
    proxy.store.put("t/x", b"x")
    assert proxy.request("DELETE", f"/datalake/{key}").status == 204
    assert objects(proxy) == {"t/x": b"x"}


def test_objects_are_deleted_together_each_where_it_may_be(tmp_path: pathlib.Path) -> None:
    proxy = proxy_of(tmp_path, {"t": None, "u": parse_filters([{"p": "a"}])})
    for key in ("t/x", "t/kept", "u/y", "other/z"):
        proxy.store.put(key, b"x")
    body = deletion("t/x", "t/", "t/absent", "u/y", "other/z", "t/../u/y")
    answer = post(proxy, "/datalake?delete", body, {"Content-MD5": md5(body)})
    root = ElementTree.fromstring(answer.body)
    told = {
        child.tag.rpartition("}")[2] + " " + "".join(child.itertext()).replace("Access Denied:", "")
        for child in root
    }
    assert answer.status == 200
    assert {line for line in told if line.startswith("Deleted")} == {
        "Deleted t/x",
        "Deleted t/",
        "Deleted t/absent",
    }
    refused = {line.split()[1] for line in told if line.startswith("Error")}
    assert refused == {"u/yAccessDenied", "other/zAccessDenied", "t/../u/yAccessDeniedThe"}
    assert sorted(objects(proxy)) == ["other/z", "t/kept", "u/y"]


def test_a_deletion_in_several_tables_is_told_of_for_each(tmp_path: pathlib.Path) -> None:
    proxy = proxy_of(tmp_path, {"t": None, "u": parse_filters([{"p": "a"}]), "v": None})
    body = deletion("t/part-1", "u/y", "t/part-2", "other/a", "v/_delta_log/1", "another/b", "t")
    assert post(proxy, "/datalake?delete", body, {"Content-MD5": md5(body)}).status == 200
    last = proxy.records[-1].note
    assert [(note.table, note.path, note.decision) for note in (*last.before, last)] == [
        ("t", "", "allowed"),
        ("u", "y", "restricted"),
        ("", "", "no_grant"),
        ("v", "_delta_log/1", "allowed"),
    ]
    granted = [note.grant is not None for note in (*last.before, last)]
    assert granted == [True, True, False, True]


def test_each_table_of_a_deletion_has_its_line_in_the_audit_log(tmp_path: pathlib.Path) -> None:
    audit = AuditLog(str(tmp_path / "audit"), report=print)
    audit.start()
    proxy = proxy_of(tmp_path, {"t": None, "u": parse_filters([{"p": "a"}])})
    root: Any = proxy.site.resource
    root.replace(attrs.evolve(root.services, audit=audit))
    body = deletion("t/x", "u/y", "elsewhere")
    assert post(proxy, "/datalake?delete", body, {"Content-MD5": md5(body)}).status == 200
    record_decision(proxy.records[-1], NOW, audit)
    assert (audit.close(), audit.waiting) == (0, 0)
    lines = [json.loads(line) for line in (tmp_path / "audit").read_text().splitlines()]
    told = [(line["table"], line["path"], line["decision"]) for line in lines]
    assert told == [("t", "x", "allowed"), ("u", "y", "denied"), (None, "elsewhere", "denied")]
    assert {line["request_id"] for line in lines} == {proxy.records[-1].request_id}


def test_a_quiet_deletion_tells_only_what_failed(proxy: MemoryProxy) -> None:
    proxy.store.put("t/x", b"x")
    body = deletion("t/x", "nowhere/y", quiet=True)
    answer = post(proxy, "/datalake?delete", body, {"Content-MD5": md5(body)})
    assert b"Deleted" not in answer.body
    assert b"nowhere/y" in answer.body
    assert objects(proxy) == {}


@pytest.mark.parametrize("named", ["", "<Key/>", "<Key>elsewhere/x</Key>"])
def test_a_key_that_the_store_does_not_tell_of_is_not_said_to_be_deleted(
    tmp_path: pathlib.Path, named: str
) -> None:
    class Vague(WritableStore):
        def _delete_many(self, asked: S3Request, request: Any) -> bytes:
            error = f"<Error>{named}<Code>AccessDenied</Code></Error>"
            return f"<DeleteResult><Deleted><Key>t/x</Key></Deleted>{error}</DeleteResult>".encode()

    proxy, body = proxy_of(tmp_path, store=Vague(BUCKET)), deletion("t/x", "t/y")
    answer = post(proxy, "/datalake?delete", body, {"Content-MD5": md5(body)})
    told = {child.tag.rpartition("}")[2]: child[0].text for child in ElementTree.fromstring(answer.body)}
    assert told == {"Deleted": "t/x", "Error": "t/y"}
    assert b"<Code>InternalError</Code>" in answer.body


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, "InvalidRequest"),
        ({"Content-MD5": md5(b"other")}, "BadDigest"),
        ({"x-amz-checksum-crc32": "AAAAAA=="}, "BadDigest"),
    ],
)
def test_a_deletion_of_many_must_prove_what_it_says(
    proxy: MemoryProxy, headers: dict[str, str], expected: str
) -> None:
    proxy.store.put("t/x", b"x")
    answer = post(proxy, "/datalake?delete", deletion("t/x"), headers)
    assert (answer.status, code(answer)) == (400, expected)
    assert objects(proxy) == {"t/x": b"x"}


@pytest.mark.parametrize(
    "body",
    [
        b"<Delete></Delete>",
        b"<Delete><Object></Object></Delete>",
        b"<Remove/>",
        b"<Delete",
        b"<!DOCTYPE x [<!ENTITY k 't/x'>]><Delete><Object><Key>&k;</Key></Object></Delete>",
        b"<Delete><Object><Key>t/x</Key><VersionId>1</VersionId></Object></Delete>",
        deletion(*(f"t/{number}" for number in range(1001))),
    ],
)
def test_a_deletion_that_is_not_understood_deletes_nothing(proxy: MemoryProxy, body: bytes) -> None:
    proxy.store.put("t/x", b"x")
    answer = post(proxy, "/datalake?delete", body, {"Content-MD5": md5(body)})
    assert (answer.status, code(answer)) in {(400, "MalformedXML"), (501, "NotImplemented")}
    assert objects(proxy) == {"t/x": b"x"}


def test_a_copy_is_made_between_tables_that_are_open(proxy: MemoryProxy) -> None:
    proxy.store.put("t/a b", b"x")
    answer = put(proxy, "u/y", b"", {"x-amz-copy-source": "/datalake/t/a%20b"})
    assert answer.status == 200
    assert text(answer, "ETag") == proxy.store.objects["t/a b"].etag
    line = json.loads(audit_record(answer.record, NOW).line())
    assert (line["table"], line["copied_from"]) == ("u", "t/a b")
    assert objects(proxy) == {"t/a b": b"x", "u/y": b"x"}


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ("/datalake/u/y", 403),
        ("/datalake/other/z", 403),
        ("/warehouse/u/y", 404),
        ("/datalake/t/../u/y", 404),
        ("/datalake/t/%2e%2e/u/y", 404),
        ("/datalake/t", 404),
        ("/datalake/t/x?versionId=1", 501),
        ("nothing", 400),
    ],
)
@pytest.mark.parametrize("query", ["", "?partNumber=1&uploadId=upload-1"])
def test_nothing_is_copied_out_of_a_table_that_is_not_open(
    tmp_path: pathlib.Path, source: str, status: int, query: str
) -> None:
    proxy = proxy_of(tmp_path, {"t": None, "u": parse_filters([{"p": "a"}])})
    store_of(proxy).uploads["upload-1"] = _upload("t/stolen")
    for key in ("t/x", "u/y", "other/z"):
        proxy.store.put(key, b"x")
    answer = put(proxy, "t/stolen", b"", {"x-amz-copy-source": source}, query)
    assert answer.status == status
    assert "t/stolen" not in objects(proxy)
    assert store_of(proxy).uploads["upload-1"].parts == {}


@pytest.mark.parametrize("query", ["", "?partNumber=1&uploadId=upload-1"])
def test_no_store_is_asked_to_copy_what_lies_in_another(tmp_path: pathlib.Path, query: str) -> None:
    proxy = proxy_of(tmp_path, elsewhere={"u"})
    proxy.store.put("t/x", b"x")
    answer = put(proxy, "u/y", b"", {"x-amz-copy-source": "/datalake/t/x"}, query)
    assert (answer.status, code(answer)) == (501, "NotImplemented")
    assert proxy.store.requests == []


def test_a_multipart_upload_is_put_together(proxy: MemoryProxy) -> None:
    answer = proxy.request("POST", "/datalake/t/x?uploads")
    upload_id = text(answer, "UploadId")
    assert (text(answer, "Bucket"), text(answer, "Key")) == ("datalake", "t/x")
    bodies = [os.urandom(LARGE), b"the rest"]
    etags = [
        put(proxy, "t/x", body, query=f"?partNumber={number}&uploadId={upload_id}").headers["etag"]
        for number, body in enumerate(bodies, 1)
    ]
    parts = "".join(
        # S3A sends them without quotes.
        f"<Part><PartNumber>{number}</PartNumber><ETag>{etag.strip(chr(34))}</ETag></Part>"
        for number, etag in enumerate(etags, 1)
    )
    listed = proxy.request("GET", f"/datalake/t/x?uploadId={upload_id}")
    assert (text(listed, "Bucket"), text(listed, "Key")) == ("datalake", "t/x")
    assert b"Owner" not in listed.body
    body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
    answer = post(proxy, f"/datalake/t/x?uploadId={upload_id}", body)
    assert (answer.status, text(answer, "Location")) == (200, "http://proxy.test/datalake/t/x")
    assert (text(answer, "Bucket"), text(answer, "Key")) == ("datalake", "t/x")
    assert objects(proxy) == {"t/x": b"".join(bodies)}


def test_an_upload_that_is_aborted_is_gone(proxy: MemoryProxy) -> None:
    upload_id = text(proxy.request("POST", "/datalake/t/x?uploads"), "UploadId")
    assert proxy.request("DELETE", f"/datalake/t/x?uploadId={upload_id}").status == 204
    answer = proxy.request("DELETE", f"/datalake/t/x?uploadId={upload_id}")
    assert (answer.status, code(answer)) == (404, "NoSuchUpload")


def test_long_documents_of_clients_are_read_beside_the_reactor(tmp_path: pathlib.Path) -> None:
    beside = Counter[Callable[..., Any]]()

    def pool(function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        beside[function] += 1
        return maybeDeferred(function, *arguments)

    proxy = proxy_of(tmp_path, pool=pool)
    parts = "".join(f"<Part><PartNumber>{n}</PartNumber><ETag>x</ETag></Part>" for n in range(1, 201))
    body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
    assert code(post(proxy, "/datalake/t/x?uploadId=none", body)) == "NoSuchUpload"
    for keys in (["t/x"], [f"t/{'x' * 100}{number}" for number in range(100)]):
        body = deletion(*keys)
        assert post(proxy, "/datalake?delete", body, {"Content-MD5": md5(body)}).status == 200
    assert (beside[complete_anew], beside[parse_delete], beside[parse_delete_result]) == (1, 1, 1)


@pytest.mark.parametrize(
    "parts",
    [
        "",
        "<Part><PartNumber>1</PartNumber></Part>",
        "<Part><PartNumber>0</PartNumber><ETag>x</ETag></Part>",
        "<Part><PartNumber>x</PartNumber><ETag>x</ETag></Part>",
        "<Other/>",
    ],
)
def test_parts_that_are_not_understood_are_refused(proxy: MemoryProxy, parts: str) -> None:
    body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
    answer = post(proxy, "/datalake/t/x?uploadId=1", body)
    assert (answer.status, code(answer)) == (400, "MalformedXML")


def test_an_answer_that_turns_into_an_error_is_one(tmp_path: pathlib.Path) -> None:
    class Late(WritableStore):
        def _complete(self, asked: S3Request, request: Any) -> bytes:
            return (
                b"<?xml version='1.0'?>\n  <Error><Code>InvalidPart</Code><Message>secret</Message></Error>"
            )

        _copy = _complete

    proxy = proxy_of(tmp_path, store=Late(BUCKET))
    part = b"<Part><PartNumber>1</PartNumber><ETag>x</ETag></Part>"
    body = b"<CompleteMultipartUpload>%b</CompleteMultipartUpload>" % part
    for answer in (
        post(proxy, "/datalake/t/x?uploadId=1", body),
        put(proxy, "t/x", b"", {"x-amz-copy-source": "/datalake/t/y"}),
    ):
        assert (answer.status, code(answer)) == (400, "InvalidPart")
        assert b"secret" not in answer.body


def _unchunked(body: bytes) -> bytes:
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        whole, body = whole + body[: int(size, 16)], body[int(size, 16) + 2 :]
    return whole


@pytest.mark.parametrize(("source", "root"), [("t/x", "CopyObjectResult"), ("t/none", "Error")])
@pytest.mark.parametrize(("seconds", "spaces"), [(9.5, None), (15, 0), (25, 1)])
def test_a_client_is_kept_waiting_for_a_copy_that_takes_long(
    proxy: MemoryProxy, source: str, root: str, seconds: float, spaces: int | None
) -> None:
    proxy.store.put("t/x", b"x")

    def later() -> Deferred[None]:
        done: Deferred[None] = Deferred()
        proxy.clock.callLater(seconds, done.callback, None)
        return done

    proxy.agent.answering = later
    answer = put(proxy, "u/y", b"", {"x-amz-copy-source": f"/datalake/{source}"})
    if spaces is None:
        assert answer.status == (200 if root != "Error" else 404)
        assert "content-length" in answer.headers
        return
    assert (answer.status, answer.headers["content-type"]) == (200, "application/xml")
    document = _unchunked(answer.body)
    beginning, _, rest = document.partition(b"\n")
    assert beginning == b'<?xml version="1.0" encoding="UTF-8"?>'
    assert (len(rest) - len(rest.lstrip()), rest.count(b"<?xml")) == (spaces, 0)
    assert ElementTree.fromstring(document).tag.rpartition("}")[2] == root
    if root == "Error":
        assert ElementTree.fromstring(document).findtext("Code") == "NoSuchKey"
    line = json.loads(audit_record(answer.record, NOW).line())
    told = ("denied", "NoSuchKey") if root == "Error" else ("allowed", None)
    assert (line["decision"], line["reason"]) == told


def test_a_client_that_leaves_while_it_is_kept_waiting_leaves_nothing_behind(proxy: MemoryProxy) -> None:
    proxy.agent.answering = Deferred
    with pytest.raises(AssertionError, match="is not answered"):
        put(proxy, "u/y", b"", {"x-amz-copy-source": "/datalake/t/x"})
    for channel in list(proxy.site.channels):
        channel.connectionLost(Failure(ConnectionLost()))
    assert proxy.clock.getDelayedCalls() == []


KEY = {
    "x-amz-server-side-encryption-customer-algorithm": "AES256",
    "x-amz-server-side-encryption-customer-key": "AAAA",
    "x-amz-server-side-encryption-customer-key-MD5": "BBBB",
}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["x", "_delta_log/00000000000000000000.json"])
@pytest.mark.parametrize("mode", list(GetMode))
def test_the_key_of_a_read_goes_to_the_store_with_each_read(
    tmp_path: pathlib.Path, method: str, path: str, mode: GetMode
) -> None:
    proxy = proxy_of(tmp_path, get_mode=mode)
    proxy.store.put(f"t/{path}", b"{}")
    for _ in range(2):
        proxy.store.requests.clear()
        fields = {**KEY, "User-Agent": "polars/1"}
        assert proxy.request(method, f"/datalake/t/{path}", fields, peer="127.0.0.1").status == 200
        asked = [found for found in proxy.store.requests if found.key == f"t/{path}"]
        assert [found.method for found in asked] == [method]
        assert all(asked[0].headers.get(name) == value for name, value in KEY.items())


@pytest.mark.parametrize("name", KEY)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
def test_a_key_is_not_taken_in_the_clear_from_another_host(
    proxy: MemoryProxy, method: str, name: str
) -> None:
    proxy.store.put("t/x", b"x")
    fields = {name: KEY[name], "Content-Length": "1"} if method == "PUT" else {name: KEY[name]}
    answer = proxy.request(method, "/datalake/t/x", fields, b"y" if method == "PUT" else b"")
    assert (answer.status, proxy.store.requests) == (400, [])
    if method != "HEAD":
        assert code(answer) == "InvalidRequest"
    assert proxy.request(method, "/datalake/t/x", fields, b"y", peer="::1").status == 200


def test_a_key_opens_nothing_that_is_not_granted(tmp_path: pathlib.Path) -> None:
    proxy = proxy_of(tmp_path, {"t": parse_filters([{"p": "a"}])})
    proxy.store.put("t/p=b/x", b"x")
    for key in ("t/p=b/x", "t/_delta_log/00000000000000000000.json"):
        assert proxy.request("GET", f"/datalake/{key}", KEY, peer="127.0.0.1").status in {403, 404}


def test_a_log_file_that_is_replaced_through_the_proxy_is_read_anew(proxy: MemoryProxy) -> None:
    key = "t/_delta_log/00000000000000000000.json"
    for body in (b'{"commitInfo":{}}', b'{"commitInfo":{"operation":"other"}}'):
        assert put(proxy, key, body).status == 200
        assert proxy.get(key).body == body
    assert proxy.request("DELETE", f"/datalake/{key}").status == 204
    assert proxy.get(key).status == 404


def test_a_table_is_read_as_soon_as_it_is_made_though_there_was_none_a_moment_ago(
    tmp_path: pathlib.Path,
) -> None:
    store: FakeStore = WritableStore(BUCKET)
    writer = proxy_of(tmp_path, store=store)
    reader = proxy_of(tmp_path, {"t": parse_filters([{"p": "a"}])}, store=store)
    key = "t/_delta_log/00000000000000000000.json"
    assert reader.get(key).status == 404
    fields = [{"name": "p", "type": "string", "nullable": True, "metadata": {}}]
    metadata = {
        "id": "1",
        "format": {"provider": "parquet", "options": {}},
        "schemaString": json.dumps({"type": "struct", "fields": fields}),
        "partitionColumns": ["p"],
        "configuration": {},
    }
    protocol = {"minReaderVersion": 1, "minWriterVersion": 2}
    actions = [{"commitInfo": {"timestamp": 1}}, {"protocol": protocol}, {"metaData": metadata}]
    put(writer, key, "\n".join(map(json.dumps, actions)).encode())
    assert reader.get(key).status == 200


def test_another_process_sees_at_once_what_was_written(tmp_path: pathlib.Path) -> None:
    store: FakeStore = WritableStore(BUCKET)
    one, other = proxy_of(tmp_path, store=store), proxy_of(tmp_path, store=store)
    key = "t/_delta_log/00000000000000000000.json"
    put(one, key, b"{}")
    assert other.get(key).body == b"{}"
    put(one, key, b"{ }")
    assert other.get(key).body == b"{ }"


def test_what_was_received_is_in_the_record(proxy: MemoryProxy) -> None:
    answer = put(proxy, "t/x", b"x" * LARGE)
    assert (answer.record.bytes_received, answer.decision) == (LARGE, "allowed")
    assert (answer.record.note.operation, answer.record.note.table) == ("PutObject", "t")


@pytest.mark.parametrize("size", [1000, LARGE])
def test_an_upload_that_stalls_is_given_up_and_stores_nothing(proxy: MemoryProxy, size: int) -> None:
    with pytest.raises(AssertionError, match="is not answered"):
        put(proxy, "t/x", b"x" * (size - 1), {"Content-Length": str(size)})
    proxy.clock.advance(61)
    assert (proxy.records[-1].status, objects(proxy)) == (400, {})
    assert proxy.records[-1].bytes_received == size - 1
