"""Which operation a request is, and that everything outside the set is refused."""

from __future__ import annotations

import urllib.parse

import pytest

from delta_proxy.s3.errors import InvalidArgument, MethodNotAllowed, NotImplementedByProxy
from delta_proxy.s3.headers import Headers
from delta_proxy.s3.operation import Operation, classify
from delta_proxy.s3.request import parse_query

LEVELS = {"/": ("", ""), "/b": ("b", ""), "/b/k": ("b", "k")}
COPY = Headers.of([("x-amz-copy-source", "/b/other")])


def operation(method: str, target: str, headers: Headers | None = None) -> Operation:
    path, _, query = target.partition("?")
    bucket, key = LEVELS[path]
    return classify(method, bucket, key, parse_query(query.encode()), headers or Headers())


@pytest.mark.parametrize(
    ("method", "target", "expected"),
    [
        ("GET", "/", Operation.LIST_BUCKETS),
        ("GET", "/?x-id=ListBuckets&max-buckets=1000", Operation.LIST_BUCKETS),
        ("POST", "/", Operation.STS),
        ("HEAD", "/b", Operation.HEAD_BUCKET),
        ("GET", "/b?location", Operation.GET_BUCKET_LOCATION),
        ("GET", "/b?location=", Operation.GET_BUCKET_LOCATION),
        ("GET", "/b", Operation.LIST_OBJECTS),
        ("GET", "/b?prefix=&delimiter=/&max-keys=2&marker=a&encoding-type=url", Operation.LIST_OBJECTS),
        ("GET", "/b?list-type=2&fetch-owner=false&start-after=a", Operation.LIST_OBJECTS_V2),
        ("GET", "/b?list-type=2&continuation-token=a&metadata=true", Operation.LIST_OBJECTS_V2),
        ("GET", "/b/k", Operation.GET_OBJECT),
        ("GET", "/b/k?x-id=GetObject&partNumber=1", Operation.GET_OBJECT),
        ("GET", "/b/k?response-content-type=a&response-expires=b", Operation.GET_OBJECT),
        ("GET", "/b/k?X-Amz-Signature=a&X-Amz-Date=b&x-amz-checksum-mode=c", Operation.GET_OBJECT),
        ("HEAD", "/b/k?partNumber=1", Operation.HEAD_OBJECT),
        ("GET", "/b/k?partNumber=2", Operation.GET_OBJECT),
        ("HEAD", "/b/k?partNumber=10000", Operation.HEAD_OBJECT),
        ("PUT", "/b/k?x-id=PutObject", Operation.PUT_OBJECT),
        ("PUT", "/b/k?partNumber=2&uploadId=a", Operation.UPLOAD_PART),
        ("POST", "/b/k?uploads", Operation.CREATE_MULTIPART_UPLOAD),
        ("POST", "/b/k?uploadId=a", Operation.COMPLETE_MULTIPART_UPLOAD),
        ("DELETE", "/b/k", Operation.DELETE_OBJECT),
        ("DELETE", "/b/k?uploadId=a", Operation.ABORT_MULTIPART_UPLOAD),
        ("POST", "/b?delete", Operation.DELETE_OBJECTS),
        ("POST", "/b?delete=", Operation.DELETE_OBJECTS),
        ("GET", "/b/k?uploadId=a&max-parts=5", Operation.LIST_PARTS),
        ("GET", "/b?uploads&prefix=a", Operation.LIST_MULTIPART_UPLOADS),
    ],
)
def test_the_operations_are_told_apart(method: str, target: str, expected: Operation) -> None:
    assert operation(method, target) is expected


def test_a_copy_source_makes_a_put_a_copy_and_nothing_else() -> None:
    assert operation("PUT", "/b/k", COPY) is Operation.COPY_OBJECT
    assert operation("PUT", "/b/k?partNumber=1&uploadId=a", COPY) is Operation.UPLOAD_PART_COPY
    assert operation("GET", "/b/k", COPY) is Operation.GET_OBJECT


SUB_RESOURCES = [
    "accelerate",
    "acl",
    "analytics",
    "attributes",
    "cors",
    "encryption",
    "intelligent-tiering",
    "inventory",
    "legal-hold",
    "lifecycle",
    "logging",
    "metrics",
    "notification",
    "object-lock",
    "ownershipControls",
    "policy",
    "policyStatus",
    "publicAccessBlock",
    "replication",
    "requestPayment",
    "restore",
    "retention",
    "select",
    "session",
    "tagging",
    "torrent",
    "versioning",
    "versions",
    "website",
    "append",
    "renameObject",
    "metadataTable",
]


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "POST", "DELETE"])
@pytest.mark.parametrize("name", [*SUB_RESOURCES, "versionId", "uploadid", "PREFIX", "x-amz-copy-source"])
def test_an_unknown_sub_resource_is_never_answered_as_another_operation(method: str, name: str) -> None:
    for path in LEVELS:
        for query in (name, f"{name}=1", f"x-id=a&{name}"):
            with pytest.raises(NotImplementedByProxy):
                operation(method, f"{path}?{query}")


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("HEAD", "/"),
        ("PUT", "/"),
        ("DELETE", "/"),
        ("PUT", "/b"),
        ("DELETE", "/b"),
        ("POST", "/b"),
        ("POST", "/b/k"),
        ("PUT", "/b/k?partNumber=1"),
        ("GET", "/b/k?prefix=a"),
        ("GET", "/b?location&acl"),
        ("GET", "/b?marker=a&list-type=2"),
        ("PUT", "/b/k?response-content-type=a"),
        ("GET", "/b/k?x-amz-signature=a"),
        ("OPTIONS", "/b/k"),
    ],
)
def test_everything_outside_the_set_is_not_implemented(method: str, target: str) -> None:
    with pytest.raises(NotImplementedByProxy):
        operation(method, target)


def test_the_refused_parameter_is_named() -> None:
    with pytest.raises(NotImplementedByProxy) as caught:
        operation("GET", "/b/k?acl")
    assert caught.value.fields == {"Parameter": "acl"}


@pytest.mark.parametrize("list_type", ["", "1", "3", "two"])
def test_there_is_one_list_type(list_type: str) -> None:
    with pytest.raises(InvalidArgument):
        operation("GET", f"/b?list-type={list_type}")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("number", ["", "0", "01", "+1", "-1", "1.0", "10001", "1 ", "\uff11", "a"])
def test_a_part_that_is_read_has_a_number_of_one_spelling(method: str, number: str) -> None:
    with pytest.raises(InvalidArgument, match="between 1 and 10000"):
        operation(method, f"/b/k?partNumber={urllib.parse.quote(number)}")


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize("query", ["uploadId=", "uploadId"])
def test_an_upload_has_a_name(method: str, query: str) -> None:
    with pytest.raises(InvalidArgument):
        operation(method, f"/b/k?{query}")


@pytest.mark.parametrize("method", ["PATCH", "TRACE", "CONNECT"])
def test_other_methods_are_not_allowed(method: str) -> None:
    with pytest.raises(MethodNotAllowed):
        operation(method, "/b/k")


def test_reads_and_sts_are_no_writes_and_all_else_is() -> None:
    assert {operation for operation in Operation if not operation.is_write} == {
        Operation.LIST_BUCKETS,
        Operation.HEAD_BUCKET,
        Operation.GET_BUCKET_LOCATION,
        Operation.LIST_OBJECTS,
        Operation.LIST_OBJECTS_V2,
        Operation.GET_OBJECT,
        Operation.HEAD_OBJECT,
        Operation.STS,
    }
