"""The reading side of S3 as it is on the wire, held to the store's own answers and to S3's documents."""

from __future__ import annotations

import contextlib
import email.utils
import random
import re
import socket
import unicodedata
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ET
from datetime import timedelta
from typing import Any

import pytest

from delta_proxy.demo import PROXY_BUCKET

from .conftest import GRANTED, TRADES, ProxyFor, trades_settings
from .raw import Answer, exchange, get, head, quoted, request
from .servers import BUCKET, Endpoint, Proxy, Store

S3_NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"
BODY = bytes(range(256)) * 8
WHOLE = "whole-bucket"

ODD_KEYS = [
    "with space.bin",
    "per%cent.bin",
    "per%20cent.bin",
    "a+b.bin",
    "a=b/c=d e.bin",
    "hash#1.bin",
    "what?.bin",
    "quote\"'.bin",
    "amp&lt<gt>.bin",
    unicodedata.normalize("NFC", "é.bin"),
    unicodedata.normalize("NFD", "é.bin"),
    "日本語/ключ.bin",
    "tilde~!*'().bin",
    "semi;colon:at@,$.bin",
]
PATH_LIKE_KEYS = [
    "double//slash.bin",
    "..dots/.hidden",
    "/leading.bin",
    "dot/./here.bin",
    "up/../down.bin",
    "trailing/dot/.",
]
ESCAPES = ["../down.bin", "up/../../down.bin", "up//../../down.bin", "./../down.bin"]


def code_of(answer: Answer) -> str:
    """The code of S3's error document."""
    return ET.fromstring(answer.body).findtext("Code") or ""


@pytest.fixture(scope="module")
def odd(moto_store: Store, proxy_for: ProxyFor) -> Proxy:
    """An open table of keys with every kind of character, in the store that holds any key."""
    client = moto_store.boto3()
    for key in ODD_KEYS + PATH_LIKE_KEYS + ESCAPES:
        client.put_object(Bucket=BUCKET, Key=f"odd/{key}", Body=key.encode() + BODY)
    return proxy_for(moto_store, tableMapping={"odd": f"s3://{BUCKET}/odd"}, getMode="proxy")


@pytest.fixture(scope="module")
def plain(gateway_store: Store, proxy_for: ProxyFor) -> Proxy:
    """An open table with one object of known bytes, streamed from a store that does ranges and conditions."""
    gateway_store.boto3().put_object(Bucket=BUCKET, Key="plain/object", Body=BODY, ContentType="text/x-test")
    gateway_store.boto3().put_object(Bucket=BUCKET, Key="plain/empty", Body=b"")
    return proxy_for(gateway_store, tableMapping={"plain": f"s3://{BUCKET}/plain"}, getMode="proxy")


@pytest.fixture
def granted(moto_store: Store, proxy_for: ProxyFor) -> Proxy:
    """The demo's table with two MICs granted, in redirecting mode."""
    return proxy_for(moto_store, **trades_settings("presignedUrl"))


@pytest.mark.parametrize("key", ODD_KEYS + PATH_LIKE_KEYS)
def test_a_key_with_any_character_reaches_its_own_object(odd: Proxy, key: str) -> None:
    answer = get(odd, f"odd/{key}")
    assert (answer.status, answer.body) == (200, key.encode() + BODY)


def test_boto3_lists_and_gets_keys_with_any_character(odd: Proxy) -> None:
    client = odd.boto3()
    pages = client.get_paginator("list_objects_v2").paginate(
        Bucket=PROXY_BUCKET, Prefix="odd/", PaginationConfig={"PageSize": 4}
    )
    listed = [item["Key"] for page in pages for item in page["Contents"]]
    assert listed == sorted((f"odd/{key}" for key in ODD_KEYS + PATH_LIKE_KEYS), key=str.encode)
    for key in ODD_KEYS:
        assert client.get_object(Bucket=PROXY_BUCKET, Key=f"odd/{key}")["Body"].read() == key.encode() + BODY


@pytest.mark.parametrize("key", ESCAPES)
def test_a_key_that_stores_may_walk_out_of_the_table_is_neither_served_nor_listed(
    odd: Proxy, key: str
) -> None:
    assert get(odd, f"odd/{key}").status == 404
    for query in ("", "&delimiter=%2F", "&delimiter=."):
        target = f"/{PROXY_BUCKET}?list-type=2&prefix={urllib.parse.quote('odd/' + key[:-1], safe='')}{query}"
        assert b"<Contents>" not in request(odd, "GET", target).body


@pytest.fixture
def beside(store: Store, proxy_for: ProxyFor, get_mode: str) -> Proxy:
    """An open table beside a closed one, and one that is a whole bucket."""
    client = store.boto3()
    client.put_object(Bucket=BUCKET, Key="open/object", Body=BODY)
    client.put_object(Bucket=BUCKET, Key="closed/object", Body=b"secret")
    with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
        client.create_bucket(Bucket=WHOLE)
    tables = {name: f"s3://{BUCKET}/{name}" for name in ("open", "closed")} | {"whole": f"s3://{WHOLE}"}
    return proxy_for(store, tableMapping=tables, allowedPartitions={"closed": []}, getMode=get_mode)


def test_a_dot_segment_does_not_lead_from_an_open_table_into_another(beside: Proxy) -> None:
    proxy = beside
    for method in ("GET", "HEAD"):
        assert request(proxy, method, f"/{PROXY_BUCKET}/closed/object").status in {403, 404}
        for up in ("..", "%2e%2e", ".%2E", "x/../..", "./..", "..%2F../warehouse"):
            assert request(proxy, method, f"/{PROXY_BUCKET}/open/{up}/closed/object").status == 404
    listing = request(proxy, "GET", f"/{PROXY_BUCKET}?list-type=2&prefix=open%2F..%2Fclosed%2F")
    assert (listing.status, listing.body.count(b"<Key>")) == (200, 0)


def test_the_root_of_a_table_that_is_a_whole_bucket_is_no_object(beside: Proxy) -> None:
    for method in ("GET", "HEAD"):
        answer = request(beside, method, f"/{PROXY_BUCKET}/whole/")
        assert answer.status == 404
        assert WHOLE.encode() not in answer.body


@pytest.mark.parametrize(
    ("header", "first", "last"),
    [
        ("bytes=0-9", 0, 9),
        ("bytes=4-", 4, len(BODY) - 1),
        ("bytes=-8", len(BODY) - 8, len(BODY) - 1),
        ("bytes=-99999", 0, len(BODY) - 1),
        ("bytes=100-99999", 100, len(BODY) - 1),
    ],
)
def test_a_range_gives_its_bytes_and_says_which(plain: Proxy, header: str, first: int, last: int) -> None:
    answer = get(plain, "plain/object", {"Range": header})
    assert answer.status == 206
    assert answer.body == BODY[first : last + 1]
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(BODY)}"


@pytest.mark.parametrize("header", ["bytes=abc", "items=0-1", "bytes=9-2"])
def test_a_range_that_is_none_gives_the_whole_object(plain: Proxy, header: str) -> None:
    answer = get(plain, "plain/object", {"Range": header})
    assert (answer.status, answer.body) == (200, BODY)


def test_a_range_beyond_the_end_is_416(plain: Proxy) -> None:
    answer = get(plain, "plain/object", {"Range": f"bytes={len(BODY)}-"})
    assert (answer.status, code_of(answer)) == (416, "InvalidRange")


def test_an_empty_object_is_served(plain: Proxy) -> None:
    answer = get(plain, "plain/empty")
    assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", "0")


def test_conditions_are_judged_as_the_store_judges_them(plain: Proxy) -> None:
    etag = head(plain, "plain/object").headers["etag"]
    for condition, status in [
        ({"If-Match": etag}, 200),
        ({"If-Match": etag.strip('"')}, 200),
        ({"If-Match": '"other"'}, 412),
        ({"If-None-Match": etag}, 304),
        ({"If-None-Match": '"other"'}, 200),
    ]:
        assert get(plain, "plain/object", condition).status == status, condition
        assert head(plain, "plain/object", condition).status == status, condition


def test_conditions_on_dates_are_judged(plain: Proxy) -> None:
    modified = email.utils.parsedate_to_datetime(head(plain, "plain/object").headers["last-modified"])
    earlier = email.utils.format_datetime(modified - timedelta(hours=1), usegmt=True)
    later = email.utils.format_datetime(modified + timedelta(hours=1), usegmt=True)
    assert get(plain, "plain/object", {"If-Modified-Since": earlier}).status == 200
    assert get(plain, "plain/object", {"If-Modified-Since": later}).status in (200, 304)
    assert get(plain, "plain/object", {"If-Unmodified-Since": later}).status == 200
    assert get(plain, "plain/object", {"If-Unmodified-Since": earlier}).status == 412


def test_a_304_has_no_body_and_keeps_the_connection(plain: Proxy) -> None:
    etag = head(plain, "plain/object").headers["etag"]
    answer = get(plain, "plain/object", {"If-None-Match": etag})
    assert (answer.status, answer.body) == (304, b"")


def test_head_says_what_get_says_without_a_body(plain: Proxy) -> None:
    got, headed = get(plain, "plain/object"), head(plain, "plain/object")
    assert (headed.status, headed.body) == (200, b"")
    for name in ("content-length", "etag", "last-modified", "content-type"):
        assert headed.headers[name] == got.headers[name]
    assert head(plain, "plain/object", {"Range": "bytes=0-9"}).headers["content-length"] == "10"


def test_part_number_one_is_the_whole_object(plain: Proxy) -> None:
    answer = get(plain, "plain/object", query="?partNumber=1")
    assert answer.status in (200, 206)
    assert answer.body == BODY


def test_what_was_uploaded_in_parts_is_read_part_by_part(
    gateway_store: Store, proxy_for: ProxyFor, get_mode: str
) -> None:
    parts = [b"a" * (5 << 20), b"b" * 10]
    store = gateway_store.boto3()
    upload = {"Bucket": BUCKET, "Key": "plain/parts"}
    upload["UploadId"] = store.create_multipart_upload(**upload)["UploadId"]
    tags = [
        store.upload_part(**upload, PartNumber=number, Body=body)["ETag"]
        for number, body in enumerate(parts, start=1)
    ]
    listed = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, start=1)]
    store.complete_multipart_upload(**upload, MultipartUpload={"Parts": listed})
    proxy = proxy_for(gateway_store, tableMapping={"plain": f"s3://{BUCKET}/plain"}, getMode=get_mode)
    client, named = Endpoint(proxy.url).boto3(), {"Bucket": PROXY_BUCKET, "Key": "plain/parts"}
    for number, body in enumerate(parts, start=1):
        assert client.get_object(**named, PartNumber=number)["Body"].read() == body
        assert client.head_object(**named, PartNumber=number)["ContentLength"] == len(body)
        url = f"{proxy.url}/{PROXY_BUCKET}/plain/parts?partNumber={number}"
        with urllib.request.urlopen(url) as followed:
            assert (followed.status, followed.read()) == (206, body)
            assert followed.url.startswith(gateway_store.url if get_mode == "presignedUrl" else proxy.url)
    beyond = get(proxy, "plain/parts", {"User-Agent": "Boto3/1.40"}, query="?partNumber=3")
    assert (beyond.status, code_of(beyond)) == (416, "InvalidPartNumber")


@pytest.mark.parametrize("value", ["a%0D%0ASet-Cookie:%20x", "a%0A", "a%7F", "%E2%82%AC"])
def test_a_response_override_that_is_no_header_value_does_not_reach_the_store(
    gateway_store: Store, proxy_for: ProxyFor, plain: Proxy, value: str
) -> None:
    redirecting = proxy_for(gateway_store, tableMapping={"plain": f"s3://{BUCKET}/plain"})
    for proxy in (plain, redirecting):
        answer = get(proxy, "plain/object", query=f"?response-content-disposition={value}")
        assert (answer.status, code_of(answer)) == (400, "InvalidArgument")


def test_response_overrides_are_the_stores(gateway_store: Store, plain: Proxy) -> None:
    client = Endpoint(plain.url).boto3()
    answer = client.get_object(
        Bucket=PROXY_BUCKET,
        Key="plain/object",
        ResponseContentType="text/other",
        ResponseContentDisposition='attachment; filename="x"',
        ResponseCacheControl="no-cache",
    )
    assert answer["ContentType"] == "text/other"
    assert answer["ContentDisposition"] == 'attachment; filename="x"'
    assert answer["CacheControl"] == "no-cache"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_does_not_exist_is_404(plain: Proxy, method: str) -> None:
    for key in ("plain/none", "plain/none/below", "noalias/x"):
        answer = request(plain, method, quoted(key))
        assert answer.status in (403, 404) if key.startswith("noalias") else answer.status == 404
        assert (answer.body == b"") == (method == "HEAD")
    assert code_of(get(plain, "plain/none")) == "NoSuchKey"


def test_another_bucket_does_not_exist(granted: Proxy) -> None:
    answer = request(granted, "GET", "/elsewhere/trades_plus/x")
    assert (answer.status, code_of(answer)) == (404, "NoSuchBucket")


def test_the_only_bucket_is_listed(granted: Proxy) -> None:
    assert [each["Name"] for each in granted.boto3().list_buckets()["Buckets"]] == [PROXY_BUCKET]


def test_the_bucket_answers_head_and_its_location(granted: Proxy) -> None:
    client = granted.boto3()
    assert client.head_bucket(Bucket=PROXY_BUCKET)["ResponseMetadata"]["HTTPStatusCode"] == 200
    assert client.get_bucket_location(Bucket=PROXY_BUCKET)["ResponseMetadata"]["HTTPStatusCode"] == 200


@pytest.mark.parametrize("target", [f"/{PROXY_BUCKET}", f"/{PROXY_BUCKET}/"])
def test_the_bucket_is_reached_with_and_without_a_slash(granted: Proxy, target: str) -> None:
    for query in ("", "?", "?list-type=2", "?list-type=2&max-keys=1"):
        answer = request(granted, "GET", target + query)
        assert answer.status == 200
        assert ET.fromstring(answer.body).tag == f"{S3_NAMESPACE}ListBucketResult"


def test_at_the_root_the_aliases_are_the_common_prefixes(granted: Proxy) -> None:
    answer = request(granted, "GET", f"/{PROXY_BUCKET}?list-type=2&delimiter=%2F")
    root = ET.fromstring(answer.body)
    assert [each.text for each in root.iter(f"{S3_NAMESPACE}Prefix") if each.text] == [f"{TRADES}/"]
    assert root.findtext(f"{S3_NAMESPACE}KeyCount") == "1"


def test_a_listing_starts_after_the_key_it_is_told(granted: Proxy) -> None:
    client = granted.boto3()
    everything = [
        item["Key"] for item in client.list_objects_v2(Bucket=PROXY_BUCKET, Prefix=f"{TRADES}/")["Contents"]
    ]
    for start in (everything[0], everything[len(everything) // 2], f"{TRADES}/MIC=XLON/", "a", "z"):
        answer = client.list_objects_v2(Bucket=PROXY_BUCKET, Prefix=f"{TRADES}/", StartAfter=start)
        assert [item["Key"] for item in answer.get("Contents", ())] == [k for k in everything if k > start]


def test_a_listing_names_the_owner_only_when_asked(granted: Proxy) -> None:
    client = granted.boto3()
    arguments: dict[str, Any] = {"Bucket": PROXY_BUCKET, "Prefix": f"{TRADES}/", "MaxKeys": 1}
    assert "Owner" not in client.list_objects_v2(**arguments)["Contents"][0]
    assert "Owner" in client.list_objects_v2(**arguments, FetchOwner=True)["Contents"][0]


def test_a_listing_with_max_keys_zero_is_empty(granted: Proxy) -> None:
    answer = granted.boto3().list_objects_v2(Bucket=PROXY_BUCKET, Prefix=f"{TRADES}/", MaxKeys=0)
    assert (answer["KeyCount"], answer["IsTruncated"]) == (0, False)


def test_a_directory_key_is_404_and_its_listing_is_not_empty(granted: Proxy) -> None:
    for key in (TRADES, f"{TRADES}/MIC=XLON", f"{TRADES}/_delta_log"):
        assert head(granted, key).status == 404
        query = f"?list-type=2&delimiter=%2F&max-keys=2&prefix={urllib.parse.quote(key + '/', safe='')}"
        answer = request(granted, "GET", f"/{PROXY_BUCKET}{query}&fetch-owner=false")
        count = ET.fromstring(answer.body).findtext(f"{S3_NAMESPACE}KeyCount")
        assert count is not None
        assert 0 < int(count) <= 2


@pytest.mark.parametrize("domain_host", ["datalake.s3.test", "datalake.s3.test:18080"])
def test_the_bucket_may_stand_in_the_host(granted: Proxy, domain_host: str) -> None:
    proxy = granted
    listing = request(proxy, "GET", "/?list-type=2", {"Host": domain_host})
    keys = [each.text or "" for each in ET.fromstring(listing.body).iter(f"{S3_NAMESPACE}Key")]
    data = next(key for key in keys if f"MIC={GRANTED[0]}" in key)
    fields = {"Host": domain_host, "User-Agent": "Boto3/1.40 Botocore/1.40"}
    answer = request(proxy, "GET", "/" + urllib.parse.quote(data), fields)
    assert answer.status == 200
    assert answer.body[:4] == b"PAR1"


@pytest.mark.parametrize(
    "query",
    ["acl", "versions", "select&select-type=2", "tagging", "torrent", "versionId=null", "policy", "uploads",
     "attributes", "retention", "legal-hold", "cors", "no-such-thing"],
)  # fmt: skip
def test_what_the_proxy_does_not_do_is_501_and_never_a_plain_get(granted: Proxy, query: str) -> None:
    for target in (f"/{PROXY_BUCKET}?{query}", quoted(f"{TRADES}/_delta_log/_last_checkpoint") + f"?{query}"):
        if target.startswith(f"/{PROXY_BUCKET}?uploads"):
            continue
        answer = request(granted, "GET", target)
        assert (answer.status, code_of(answer)) == (501, "NotImplemented"), target


@pytest.mark.parametrize("method", ["PUT", "DELETE", "POST"])
def test_a_write_is_405_in_read_only_mode(granted: Proxy, moto_store: Store, method: str) -> None:
    query = "?uploads" if method == "POST" else ""
    answer = request(granted, method, quoted(f"{TRADES}/new") + query, {"Content-Length": "0"})
    assert (answer.status, code_of(answer)) == (405, "MethodNotAllowed")
    listed = moto_store.boto3().list_objects_v2(Bucket=BUCKET, Prefix=f"{TRADES}/new")
    assert listed["KeyCount"] == 0


def test_boto3_writes_are_refused(granted: Proxy) -> None:
    client = granted.boto3()
    with pytest.raises(client.exceptions.ClientError, match="MethodNotAllowed"):
        client.put_object(Bucket=PROXY_BUCKET, Key=f"{TRADES}/new", Body=b"x" * 100_000)
    with pytest.raises(client.exceptions.ClientError, match="MethodNotAllowed"):
        client.delete_objects(Bucket=PROXY_BUCKET, Delete={"Objects": [{"Key": f"{TRADES}/x"}]})


def test_every_answer_has_its_own_request_id(granted: Proxy) -> None:
    answers = [
        get(granted, f"{TRADES}/_delta_log/_last_checkpoint"),
        get(granted, f"{TRADES}/none"),
        request(granted, "GET", f"/{PROXY_BUCKET}?acl"),
        request(granted, "GET", f"/{PROXY_BUCKET}?list-type=2"),
    ]
    ids = [answer.headers["x-amz-request-id"] for answer in answers]
    assert len(set(ids)) == len(ids)
    assert ET.fromstring(answers[1].body).findtext("RequestId") == ids[1]


def test_an_error_tells_nothing_of_the_store(granted: Proxy, moto_store: Store) -> None:
    for answer in (get(granted, f"{TRADES}/none"), get(granted, f"{TRADES}/MIC=XPAR/none")):
        text = answer.body.decode() + str(answer.headers)
        assert BUCKET not in text
        assert moto_store.netloc not in text


BAD_TARGETS = [
    b"/datalake/%zz",
    b"/datalake/%",
    b"/datalake/%f",
    b"/datalake/trades_plus/%00",
    b"/datalake/trades_plus/%ff%fe",
    b"/datalake/trades_plus/" + b"a" * 2000,
    b"/datalake?prefix=%zz&list-type=2",
    b"/datalake?list-type=2&max-keys=minus",
    b"/datalake?list-type=2&max-keys=-1",
    b"/datalake?list-type=2&continuation-token=%00%01nonsense",
    b"/datalake?list-type=7",
    b"*",
    b"nonsense",
]


@pytest.mark.parametrize("target", BAD_TARGETS, ids=lambda target: target[:40].decode())
def test_a_bad_target_is_a_client_error(granted: Proxy, target: bytes) -> None:
    wire = b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert status_of(exchange(granted, wire)) in range(400, 500)
    assert_unharmed(granted)


def test_a_query_of_ten_megabytes_is_a_client_error(granted: Proxy) -> None:
    wire = b"GET /datalake?prefix=" + b"a" * 10_000_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert status_of(exchange(granted, wire), closed=400) in range(400, 500)
    assert_unharmed(granted)


@pytest.mark.parametrize(
    "fields",
    [
        b"X-Big: " + b"a" * 1_000_000,
        b"\r\n".join(b"X-%d: value" % number for number in range(20_000)),
        b"No colon here",
        b"Range: bytes=" + b"0-1," * 3000,
        b"Content-Length: twelve",
        b"Content-Length: -1",
        b"Content-Length: 99999999999999999999999",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5",
        b"Authorization: AWS4-HMAC-SHA256 nonsense",
        b"Authorization: \xff\xfe\x00",
    ],
    ids=lambda fields: fields[:30].decode("latin-1"),
)
def test_strange_header_fields_do_no_harm(granted: Proxy, fields: bytes) -> None:
    wire = b"GET /datalake/trades_plus/none HTTP/1.1\r\nHost: localhost\r\n" + fields
    assert status_of(exchange(granted, wire + b"\r\nConnection: close\r\n\r\n"), closed=400) in range(
        400, 500
    )
    assert_unharmed(granted)


def test_random_bytes_do_no_harm(granted: Proxy) -> None:
    source = random.Random(20261122)
    for _ in range(60):
        data = source.randbytes(source.choice((20, 300, 5000)))
        assert status_of(exchange(granted, data), closed=400) in range(400, 500)
        start = (
            b"GET /" + data.replace(b"\n", b"") + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        assert status_of(exchange(granted, start), closed=400) in range(400, 502)
    assert_unharmed(granted)


def test_a_client_that_says_nothing_or_leaves_in_mid_request_does_no_harm(granted: Proxy) -> None:
    for data in (b"", b"GET", b"GET /datalake HTTP/1.1\r\nHost: loc"):
        with socket.create_connection(("127.0.0.1", granted.port)) as connection:
            connection.sendall(data)
    assert_unharmed(granted)


def status_of(answer: bytes, *, closed: int = 0) -> int:
    """The status of an answer on the wire; `closed` stands for a connection that was closed without one."""
    found = re.match(rb"HTTP/1\.[01] (\d{3}) ", answer)
    return int(found[1]) if found else closed


def assert_unharmed(proxy: Proxy) -> None:
    """The process lives, serves, and has logged nothing that looks like a traceback."""
    assert proxy.is_alive()
    assert head(proxy, f"{TRADES}/_delta_log/_last_checkpoint").status == 200
    log = proxy.log.read_text(errors="replace")
    assert "Traceback" not in log
    assert "Unhandled" not in log
