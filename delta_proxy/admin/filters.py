"""Partition filters as text: from the command line, and from a grant back to the JSON that gives it."""

from __future__ import annotations

from decimal import Decimal

from delta_proxy.access.policy import (
    Condition,
    Grant,
    Literal,
    LiteralKind,
    OneOf,
    PolicyError,
    parse_filters,
)
from delta_proxy.structuring import Invalid, parse_json


def read_filters(text: str) -> tuple[Grant, object]:
    """The grant that JSON text describes, and the text's value as the database keeps it. Raises PolicyError.

    A single map may stand for a list of one.
    """
    try:
        value = parse_json(text)
    except Invalid as error:
        raise PolicyError("filters", error.problem) from None
    filters = [value] if isinstance(value, dict) else value
    grant = parse_filters(filters, "filters")
    return grant, _storable(filters)


def _storable(value: object) -> object:
    """Numbers as JSON can hold them; one that would change must be written as text."""
    match value:
        case Decimal():
            number = float(value)
            if Decimal(repr(number)) != value:
                raise PolicyError("filters", f"{value} has too many digits for a number; write it in quotes")
            return number
        case list():
            return [_storable(each) for each in value]
        case dict():
            return {name: _storable(each) for name, each in value.items()}
        case _:
            return value


def filters_of(grant: Grant) -> list[dict[str, object]]:
    """The partition maps that give this grant."""
    return [{name: _condition(each) for name, each in one.items} for one in grant.alternatives]


def _condition(condition: Condition) -> object:
    if not isinstance(condition, OneOf):
        return {test.value: _value(literal) for test, literal in condition.tests}
    values = [_value(literal) for literal in condition.values] + [None] * condition.null
    return values[0] if len(values) == 1 else values


def _value(literal: Literal) -> object:
    if literal.kind is LiteralKind.STRING:
        return literal.text
    if literal.kind is LiteralKind.BOOLEAN:
        return literal.text == "true"
    number = Decimal(literal.text)
    return int(number) if number == number.to_integral_value() else float(number)
