"""The rules for requests of browsers across origins: which of them a request meets, and what is answered."""

from __future__ import annotations

import pytest

from delta_proxy.s3.cors import CorsMethod, CorsRule, answer_fields, is_foreign, preflight_fields
from delta_proxy.s3.errors import AccessForbidden, BadRequest

PAGE = "https://app.example"
READ = (CorsMethod.GET, CorsMethod.HEAD)
RULE = CorsRule((PAGE,), READ, ("Authorization", "x-amz-*"), ("ETag", "x-amz-request-id"), 600)
ANYBODY = CorsRule(("*",), (CorsMethod.GET,))


def test_a_preflight_that_a_rule_allows_is_told_all_the_rule_says() -> None:
    fields = preflight_fields((RULE,), PAGE, "GET", "authorization, X-Amz-Date ,x-amz-content-sha256")
    assert dict(fields) == {
        "Access-Control-Allow-Origin": PAGE,
        "Access-Control-Allow-Methods": "GET, HEAD",
        "Access-Control-Allow-Headers": "authorization, x-amz-date, x-amz-content-sha256",
        "Access-Control-Allow-Credentials": "true",
        "Access-Control-Expose-Headers": "ETag, x-amz-request-id",
        "Access-Control-Max-Age": "600",
    }


def test_a_preflight_without_headers_is_told_of_none() -> None:
    fields = dict(preflight_fields((ANYBODY,), PAGE, "GET", None))
    assert fields == {"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Methods": "GET"}


@pytest.mark.parametrize(
    ("origin", "method", "headers"),
    [
        ("https://other.example", "GET", None),
        ("https://APP.example", "GET", None),
        ("null", "GET", None),
        (PAGE, "PUT", None),
        (PAGE, "GET", "authorization, x-evil"),
        (PAGE, "GET", "xx-amz-date"),
    ],
)
def test_a_preflight_that_no_rule_allows_is_refused(origin: str, method: str, headers: str | None) -> None:
    with pytest.raises(AccessForbidden, match="This CORS request is not allowed"):
        preflight_fields((RULE,), origin, method, headers)


def test_without_rules_every_preflight_is_refused() -> None:
    with pytest.raises(AccessForbidden, match="CORS is not enabled"):
        preflight_fields((), PAGE, "GET", None)


@pytest.mark.parametrize(
    ("origin", "method", "words"),
    [(None, "GET", "Origin request header"), (PAGE, None, "Method: null"), (PAGE, "PATCH", "Method: PATCH")],
)
def test_what_is_no_preflight_is_a_bad_request(origin: str | None, method: str | None, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        preflight_fields((RULE,), origin, method, None)


@pytest.mark.parametrize(
    ("pattern", "origin", "allowed"),
    [
        ("https://*.example", "https://a.b.example", True),
        ("https://*.example", "https://.example", True),
        ("https://*.example", "http://a.example", False),
        ("https://*.example", "https://a.example.evil", False),
        ("https://ab*ba", "https://aba", False),
        ("*", "null", True),
    ],
)
def test_a_star_stands_for_any_text_but_shares_none(pattern: str, origin: str, allowed: bool) -> None:
    assert CorsRule((pattern,), READ).allows(origin, "GET", ()) is allowed


def test_the_first_rule_that_allows_a_request_speaks() -> None:
    first, second = CorsRule((PAGE,), (CorsMethod.PUT,)), CorsRule(("*",), READ)
    assert dict(answer_fields((first, second), PAGE, "GET"))["Access-Control-Allow-Origin"] == "*"
    assert dict(answer_fields((first, second), PAGE, "PUT"))["Access-Control-Allow-Origin"] == PAGE


@pytest.mark.parametrize("origin", [None, "https://other.example"])
def test_an_answer_to_nobody_whom_a_rule_names_says_nothing(origin: str | None) -> None:
    assert answer_fields((RULE,), origin, "GET") == ()


@pytest.mark.parametrize(
    ("origins", "method", "foreign"),
    [
        ((), "PUT", False),
        ((PAGE,), "GET", False),
        ((PAGE,), "PUT", True),
        (("https://evil.example",), "GET", True),
        ((PAGE, "https://evil.example"), "GET", True),
        (("null",), "PUT", True),
    ],
)
def test_a_request_is_foreign_when_a_page_sends_it_that_no_rule_allows_to(
    origins: tuple[str, ...], method: str, foreign: bool
) -> None:
    assert is_foreign((RULE,), origins, method) is foreign
    assert is_foreign((), origins, method) is bool(origins)
