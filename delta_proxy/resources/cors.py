"""What a browser needs to let a page of another origin read an answer, and the answer to its preflight."""

# isLeaf is twisted.web's name.
# ruff: noqa: N815
# mypy: allow-untyped-calls
from __future__ import annotations

from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from delta_proxy.resources.server import EdgeRequest
from delta_proxy.s3.cors import VARY, CorsRule, Fields, answer_fields, preflight_fields
from delta_proxy.s3.errors import S3Error

PREFLIGHT = "Preflight"
"""What the log and the metrics call the operation."""


def mark(request: EdgeRequest, rules: tuple[CorsRule, ...]) -> None:
    """Put into the answer, whatever it will be, what the rules say to the origin that asks."""
    if not rules:
        return
    _set(request, (VARY,))
    if request.method != b"OPTIONS":
        _set(request, answer_fields(rules, _field(request, b"origin"), request.method.decode("latin-1")))


class PreflightResource(Resource):
    """Answers OPTIONS by the rules alone: nobody is asked who they are, and nothing is looked up."""

    isLeaf = True

    def __init__(self, rules: tuple[CorsRule, ...]) -> None:
        super().__init__()
        self._rules = rules

    def render(self, request: EdgeRequest) -> int:
        """An empty answer with the fields of the rule, or S3's refusal."""
        request.note.operation = PREFLIGHT
        try:
            fields = preflight_fields(
                self._rules,
                _field(request, b"origin"),
                _field(request, b"access-control-request-method"),
                _field(request, b"access-control-request-headers"),
            )
        except S3Error as error:
            request.fail(error)
            return NOT_DONE_YET
        _set(request, fields)
        request.answer(b"")
        return NOT_DONE_YET


def _set(request: EdgeRequest, fields: Fields) -> None:
    for name, value in fields:
        request.responseHeaders.setRawHeaders(name.encode("ascii"), [value.encode("latin-1")])


def _field(request: EdgeRequest, name: bytes) -> str | None:
    """The field's value; None when it is absent, and when it is there twice, which no browser does."""
    found = [value for field, value in request.raw_headers if field.lower() == name]
    return found[0].strip(b" \t").decode("latin-1") if len(found) == 1 else None
