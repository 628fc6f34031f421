"""The documents of S3, written and read."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta_proxy.s3.errors import InvalidArgument, NoSuchKey, NotImplementedByProxy, SignatureDoesNotMatch
from delta_proxy.s3.list_rows import decoded_names, quoted_paths
from delta_proxy.s3.listing import ListQuery, encode_token
from delta_proxy.s3.sigv4 import quote_path
from delta_proxy.s3.xml import (
    NAMESPACE,
    ListedKey,
    ListResult,
    MalformedDocument,
    UpstreamError,
    UpstreamPage,
    bucket_location,
    error_document,
    list_buckets,
    list_objects_v1,
    list_objects_v2,
    parse_error,
    parse_list_result,
)

NS = {"s3": NAMESPACE}
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
sizes = st.integers(0, 10**12)


def key(name: str, size: int = 1) -> ListedKey:
    return ListedKey(name, size, '"etag"', "2026-03-01T12:00:00.000Z")


def texts(document: bytes, path: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(document).findall(path, NS)]


def test_an_error_has_code_message_fields_resource_and_request_id() -> None:
    error = NoSuchKey(fields={"Key": "a&<b"})
    assert error_document(error, resource="/b/a&b", request_id="R1") == (
        b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>NoSuchKey</Code>'
        b"<Message>The specified key does not exist.</Message><Key>a&amp;&lt;b</Key>"
        b"<Resource>/b/a&amp;b</Resource><RequestId>R1</RequestId></Error>"
    )
    assert b"<Code>NotImplemented</Code>" in error_document(
        NotImplementedByProxy(), resource="/", request_id=""
    )


@given(st.text(max_size=40))
def test_an_error_is_well_formed_whatever_the_client_sent(text: str) -> None:
    document = error_document(SignatureDoesNotMatch(text, fields={"X": text}), resource=text, request_id="R")
    assert texts(document, "Code") == ["SignatureDoesNotMatch"]


def test_buckets_and_location() -> None:
    document = list_buckets(["datalake"], created="2026-01-01T00:00:00.000Z")
    assert texts(document, "s3:Buckets/s3:Bucket/s3:Name") == ["datalake"]
    assert texts(document, "s3:Owner/s3:ID") == ["delta-s3-proxy"]
    assert ElementTree.fromstring(bucket_location("us-east-1")).text is None
    assert ElementTree.fromstring(bucket_location("eu-west-1")).text == "eu-west-1"


def test_version_1_gives_next_marker_only_with_a_delimiter() -> None:
    result = ListResult((key("a"),), ("b/",), truncated=True, last="b/")
    with_delimiter = list_objects_v1(result, ListQuery(1, delimiter="/", marker="0"), bucket="datalake")
    assert texts(with_delimiter, "s3:NextMarker") == ["b/"]
    assert texts(with_delimiter, "s3:Marker") == ["0"]
    assert texts(with_delimiter, "s3:Delimiter") == ["/"]
    assert texts(with_delimiter, "s3:CommonPrefixes/s3:Prefix") == ["b/"]
    assert texts(with_delimiter, "s3:Contents/s3:Owner/s3:ID") == ["delta-s3-proxy"]
    without = list_objects_v1(result, ListQuery(1), bucket="datalake")
    assert texts(without, "s3:NextMarker") == []
    assert texts(without, "s3:IsTruncated") == ["true"]


def test_version_2_counts_keys_and_prefixes_and_gives_tokens() -> None:
    result = ListResult((key("a", 7),), ("b/",), truncated=True, last="b/")
    query = ListQuery(2, prefix="p", start_after="s", continuation_token="t", max_keys=2)
    document = list_objects_v2(result, query, bucket="datalake")
    for path, expected in {
        "s3:Name": "datalake",
        "s3:Prefix": "p",
        "s3:KeyCount": "2",
        "s3:MaxKeys": "2",
        "s3:ContinuationToken": "t",
        "s3:NextContinuationToken": encode_token("b/"),
        "s3:StartAfter": "s",
        "s3:IsTruncated": "true",
        "s3:Contents/s3:Key": "a",
        "s3:Contents/s3:Size": "7",
        "s3:Contents/s3:ETag": '"etag"',
        "s3:Contents/s3:StorageClass": "STANDARD",
        "s3:Contents/s3:LastModified": "2026-03-01T12:00:00.000Z",
    }.items():
        assert texts(document, path) == [expected]
    assert texts(document, "s3:Contents/s3:Owner") == []
    owned = list_objects_v2(result, ListQuery(2, fetch_owner=True), bucket="datalake")
    assert len(texts(owned, "s3:Contents/s3:Owner")) == 1


def test_a_page_that_ends_the_listing_has_no_token() -> None:
    document = list_objects_v2(ListResult((key("a"),)), ListQuery(2), bucket="datalake")
    assert texts(document, "s3:IsTruncated") == ["false"]
    assert texts(document, "s3:NextContinuationToken") == []


def test_url_encoding_covers_every_name() -> None:
    result = ListResult((key("a b+\x01"),), ("c d/",), truncated=True, last="c d/")
    query = ListQuery(1, prefix="ü", delimiter=" ", marker="m n", encoding_url=True)
    document = list_objects_v1(result, query, bucket="datalake")
    assert texts(document, "s3:EncodingType") == ["url"]
    assert texts(document, "s3:Contents/s3:Key") == ["a%20b%2B%01"]
    assert texts(document, "s3:CommonPrefixes/s3:Prefix") == ["c%20d/"]
    assert texts(document, "s3:Prefix") == ["%C3%BC"]
    assert texts(document, "s3:Delimiter") == ["%20"]
    assert texts(document, "s3:Marker") == ["m%20n"]
    assert texts(document, "s3:NextMarker") == ["c%20d/"]
    after = list_objects_v2(result, ListQuery(2, start_after="s t", encoding_url=True), bucket="datalake")
    assert texts(after, "s3:StartAfter") == ["s%20t"]


def test_white_space_in_a_name_survives_a_parser() -> None:
    document = list_objects_v2(ListResult((key("a\r\n\tb"),)), ListQuery(2), bucket="datalake")
    assert texts(document, "s3:Contents/s3:Key") == ["a\r\n\tb"]


@pytest.mark.parametrize("name", ["a\x01", "a\x0b", "a\ufffe", "a\uffff"])
def test_a_name_that_xml_cannot_carry_needs_url_encoding(name: str) -> None:
    result = ListResult((key(name),))
    with pytest.raises(InvalidArgument, match="encoding-type=url"):
        list_objects_v2(result, ListQuery(2), bucket="datalake")
    page = parse_list_result(list_objects_v2(result, ListQuery(2, encoding_url=True), bucket="datalake"))
    assert page.objects[0].key == name


@given(st.lists(st.tuples(names, sizes), max_size=5), st.lists(names, max_size=3), st.booleans())
def test_a_written_listing_reads_back(
    keys: list[tuple[str, int]], prefixes: list[str], truncated: bool
) -> None:
    listed = tuple(key(name, size) for name, size in keys)
    result = ListResult(listed, tuple(prefixes), truncated, last="z")
    page = parse_list_result(list_objects_v2(result, ListQuery(2, encoding_url=True), bucket="b"))
    assert (page.objects, page.prefixes, page.truncated) == (listed, tuple(prefixes), truncated)
    assert page.next_token == (encode_token("z") if truncated else None)


def by_the_parser(body: bytes) -> UpstreamPage:
    """What a document says with a comment in it, which only a parser reads."""
    return parse_list_result(body.replace(b"</ListBucketResult>", b"<!-- --></ListBucketResult>"))


@given(st.lists(st.tuples(names, sizes), min_size=1, max_size=5), st.booleans())
def test_entries_read_by_a_pattern_say_what_a_parser_says(keys: list[tuple[str, int]], encoded: bool) -> None:
    result = ListResult(tuple(key(name, size) for name, size in keys))
    try:
        body = list_objects_v2(result, ListQuery(2, encoding_url=encoded), bucket="b")
    except InvalidArgument:
        return
    assert parse_list_result(body) == by_the_parser(body)


CHECKSUM = "<ChecksumAlgorithm>CRC32</ChecksumAlgorithm><ChecksumType>FULL_OBJECT</ChecksumType>"
ENTRIES = {
    "S3's order": "<Contents><Key>{k}</Key><LastModified>t</LastModified><ETag>&quot;e&quot;</ETag>{c}"
    "<Size>1</Size><StorageClass>GLACIER</StorageClass></Contents>",
    "another order": "<Contents><LastModified>t</LastModified>{c}<ETag>&#34;e&#34;</ETag><Key>{k}</Key>"
    "<Size>1</Size></Contents>\n",
    "an owner": "<Contents><Key>{k}</Key><LastModified>t</LastModified>{c}<Size>1</Size>"
    "<Owner><ID>o</ID></Owner></Contents>",
}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
@pytest.mark.parametrize(
    "second", ["b", "a&amp;&#x62;", "&apos;&lt;", "x\r\ny", "<![CDATA[b]]>", "a]b!c", "\u00fc"]
)
def test_entries_of_every_store_are_read_like_a_parser_does(entry: str, second: str) -> None:
    entries = entry.format(k="a", c="") + entry.format(k=second, c=CHECKSUM) + entry.format(k="c", c="")
    text = f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
    page = parse_list_result(text.encode())
    assert page == by_the_parser(text.encode())
    assert [found.key for found in page.objects][::2] == ["a", "c"]


def test_text_between_entries_is_not_passed_over_when_it_has_more_of_them() -> None:
    entry = "<Contents><Key>{}</Key><LastModified>t</LastModified><Size>1</Size></Contents>"
    other = "<Contents><Size>1</Size><Key>b</Key><LastModified>t</LastModified></Contents>"
    text = f"<ListBucketResult>{entry.format('a')}{other}{entry.format('c')}</ListBucketResult>"
    assert [found.key for found in parse_list_result(text.encode()).objects] == ["a", "b", "c"]


@given(st.lists(st.text(max_size=5), max_size=4))
def test_names_are_quoted_all_at_once_as_one_by_one(texts: list[str]) -> None:
    plain = [text for text in texts if text.isprintable() or "\n" in text]
    assert list(quoted_paths(plain)) == [quote_path(text) for text in plain]
    assert decoded_names([quote_path(text) for text in plain]) == plain


def test_a_store_writes_a_space_as_plus_and_only_when_it_says_so() -> None:
    body = (
        "<ListBucketResult>{}<IsTruncated>false</IsTruncated><Contents><Key>a+b%2Bc</Key><Size>1</Size>"
        "<LastModified>t</LastModified></Contents></ListBucketResult>"
    )
    encoded = parse_list_result(body.format("<EncodingType>url</EncodingType>").encode())
    assert encoded.objects[0].key == "a b+c"
    assert parse_list_result(body.format("").encode()).objects[0].key == "a+b%2Bc"


BOMB = b'<!DOCTYPE l [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><ListBucketResult>&b;</ListBucketResult>'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"not xml",
        b"<Error><Code>x</Code></Error>",
        BOMB,
        b'<?xml version="1.0" encoding="UTF-16"?>' + BOMB,
        BOMB.decode().encode("utf-16"),
        BOMB.decode().encode("utf-16-le"),
        BOMB.decode().encode("utf-16-be"),
        b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
        b"<ListBucketResult><Other><Contents><Key>a</Key><Size>1</Size><LastModified>t</LastModified></Contents>"
        b"</Other></ListBucketResult>",
        b"<ListBucketResult><Contents><Key>a</Key></Contents></ListBucketResult>",
        b"<ListBucketResult><Contents><Key>a</Key><Size>x</Size><LastModified>t</LastModified></Contents></ListBucketResult>",
        b"<ListBucketResult><EncodingType>url</EncodingType><CommonPrefixes><Prefix>%ff</Prefix></CommonPrefixes></ListBucketResult>",
    ],
)
def test_a_document_that_is_no_listing_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedDocument):
        parse_list_result(body)


def test_an_error_of_the_store_is_read() -> None:
    assert parse_error(b"<Error><Code>NoSuchKey</Code><Message>m</Message></Error>") == UpstreamError(
        "NoSuchKey", "m"
    )
    with pytest.raises(MalformedDocument):
        parse_error(b"<html/>")
