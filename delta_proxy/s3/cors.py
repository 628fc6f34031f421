"""Cross-origin requests of browsers: the rules of a bucket, and which of them a request meets.

The rules are S3's CORSRules ("Elements of a CORS configuration" in the S3 user guide), what is done with them
is that of the Fetch standard's "CORS protocol". A preflight comes without credentials, so its answer tells
nothing but what the rules say: neither what exists nor what is granted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum
from typing import Annotated, Final, TypeAlias

from attrs import frozen

from delta_proxy.s3.errors import AccessForbidden, BadRequest

Fields: TypeAlias = tuple[tuple[str, str], ...]

VARY: Final = ("Vary", "Origin, Access-Control-Request-Headers, Access-Control-Request-Method")
"""Stands in every answer of a bucket with rules: no cache may give one origin's answer to another."""

_ANY: Final = "*"
_LONGEST_AGE: Final = 2**31 - 1
_MOST_RULES: Final = 100
_VISIBLE = re.compile(r"[!-~]+")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class CorsMethod(Enum):
    """The methods that a rule can name."""

    GET = "GET"
    HEAD = "HEAD"
    PUT = "PUT"
    POST = "POST"
    DELETE = "DELETE"


def _check_origin(origin: str) -> None:
    if not _VISIBLE.fullmatch(origin) or origin.count("*") > 1:
        raise ValueError(
            f'expected an origin like "https://app.example", at most one * in it, found {origin!r}'
        )


def _check_header(name: str) -> None:
    if not _TOKEN.fullmatch(name) or name.count("*") > 1:
        raise ValueError(f"expected the name of a header field, at most one * in it, found {name!r}")


def _check_exposed(name: str) -> None:
    if not _TOKEN.fullmatch(name) or "*" in name:
        raise ValueError(f"expected the name of a header field, found {name!r}")


def _check_some(values: tuple[object, ...]) -> None:
    if not values:
        raise ValueError("expected at least one")


def _check_age(seconds: int) -> None:
    if not 0 <= seconds <= _LONGEST_AGE:
        raise ValueError(f"expected a number from 0 to {_LONGEST_AGE}, found {seconds}")


def check_count(rules: tuple[object, ...]) -> None:
    """Raises ValueError for more rules than S3 takes."""
    if len(rules) > _MOST_RULES:
        raise ValueError(f"expected at most {_MOST_RULES} rules, found {len(rules)}")


@frozen
class CorsRule:
    """Who may ask for what from a page of another origin.

    An origin, and a header name, may hold one `*` for any text. `max_age_seconds` is how long a browser may
    keep the answer to a preflight; without it the browser decides.
    """

    allowed_origins: Annotated[tuple[Annotated[str, _check_origin], ...], _check_some]
    allowed_methods: Annotated[tuple[CorsMethod, ...], _check_some]
    allowed_headers: tuple[Annotated[str, _check_header], ...] = ()
    expose_headers: tuple[Annotated[str, _check_exposed], ...] = ()
    max_age_seconds: Annotated[int, _check_age] | None = None

    def allows(self, origin: str, method: str, headers: tuple[str, ...]) -> bool:
        """Whether a page of the origin may send the method with these header names in lower case."""
        return (
            any(_matches(pattern, origin) for pattern in self.allowed_origins)
            and any(each.value == method for each in self.allowed_methods)
            and all(
                any(_matches(pattern.lower(), name) for pattern in self.allowed_headers) for name in headers
            )
        )

    def fields(self, origin: str) -> Fields:
        """What every answer to the origin says of the rule."""
        anybody = _ANY in self.allowed_origins
        pairs = [
            ("Access-Control-Allow-Origin", _ANY if anybody else origin),
            ("Access-Control-Allow-Methods", ", ".join(each.value for each in self.allowed_methods)),
        ]
        if not anybody:
            pairs.append(("Access-Control-Allow-Credentials", "true"))
        if self.expose_headers:
            pairs.append(("Access-Control-Expose-Headers", ", ".join(self.expose_headers)))
        if self.max_age_seconds is not None:
            pairs.append(("Access-Control-Max-Age", str(self.max_age_seconds)))
        return tuple(pairs)


def answer_fields(rules: tuple[CorsRule, ...], origin: str | None, method: str) -> Fields:
    """The fields of an answer to a request itself: the first rule's that it meets, none when it meets none.

    The request is answered in any case: it is the browser that keeps the answer from the page.
    """
    if origin is None:
        return ()
    return next((rule.fields(origin) for rule in rules if rule.allows(origin, method, ())), ())


def is_foreign(rules: tuple[CorsRule, ...], origins: Iterable[str], method: str) -> bool:
    """Whether a browser sends the request for a page that no rule allows to send it.

    Not every request waits for a preflight: a page may post a text to any server, and only the answer is kept
    from it. The proxy has no pages of its own, so an origin that is its own is a name that was rebound.
    """
    return any(not any(rule.allows(origin, method, ()) for rule in rules) for origin in origins)


def preflight_fields(
    rules: tuple[CorsRule, ...], origin: str | None, method: str | None, requested: str | None
) -> Fields:
    """The fields of the answer to a preflight.

    `method` and `requested` are Access-Control-Request-Method and -Headers. Raises BadRequest for a preflight
    that lacks what makes one, AccessForbidden when no rule allows it.
    """
    if not origin:
        raise BadRequest("Insufficient information. Origin request header needed.")
    if method not in {each.value for each in CorsMethod}:
        raise BadRequest(f"Invalid Access-Control-Request-Method: {_shown(method)}")
    if not rules:
        raise AccessForbidden("CORSResponse: CORS is not enabled for this bucket.", fields={"Method": method})
    names = tuple(name.strip(" \t").lower() for name in (requested or "").split(",") if name.strip(" \t"))
    for rule in rules:
        if rule.allows(origin, method, names):
            echoed = (("Access-Control-Allow-Headers", ", ".join(names)),) if names else ()
            return (*rule.fields(origin), *echoed)
    raise AccessForbidden(
        "CORSResponse: This CORS request is not allowed. This is usually because the evalution of Origin, "
        "request method / Access-Control-Request-Method or Access-Control-Request-Headers are not "
        "whitelisted by the resource's CORS spec.",
        fields={"Method": method},
    )


def _shown(method: str | None) -> str:
    return "null" if method is None else method[:100]


def _matches(pattern: str, text: str) -> bool:
    before, star, after = pattern.partition("*")
    if not star:
        return pattern == text
    return len(text) >= len(before) + len(after) and text.startswith(before) and text.endswith(after)
