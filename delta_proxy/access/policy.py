"""What a principal may read of a table: grants, and the decision about one set of partition values.

A grant is an OR of alternatives, an alternative an AND of conditions on partition columns. Everything here is
a value or a pure function, and whatever cannot be understood is denied.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from enum import Enum
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import attrs

from delta_proxy.access.partitions import (
    Column,
    ColumnType,
    Kind,
    PartitionTuple,
    RelativeDate,
    Value,
    parse_value,
)

if TYPE_CHECKING:
    from delta_proxy.access.identity import Principal


class PolicyError(ValueError):
    """A grant that cannot be used. `spot` names the place in the configuration, `problem` what is wrong."""

    def __init__(self, spot: str, problem: str) -> None:
        super().__init__(f"{spot}: {problem}" if spot else problem)
        self.spot = spot
        self.problem = problem


class LiteralKind(Enum):
    """The JSON type of a value in a condition."""

    STRING = "string"
    NUMBER = "number"
    BOOLEAN = "boolean"


@attrs.frozen
class Literal:
    """A value as the configuration spells it; what it means depends on the type of the column."""

    kind: LiteralKind
    text: str

    def __str__(self) -> str:
        return f'"{self.text}"' if self.kind is LiteralKind.STRING else self.text


class Operator(Enum):
    """The operators of a condition written as an object."""

    GLOB = "glob"
    GTE = "gte"
    GT = "gt"
    LTE = "lte"
    LT = "lt"


@attrs.frozen
class OneOf:
    """Holds for the listed values, and for null if `null` is set."""

    values: tuple[Literal, ...]
    null: bool = False


@attrs.frozen
class Within:
    """Holds for a value that passes all the tests; never for null."""

    tests: tuple[tuple[Operator, Literal], ...]


Condition: TypeAlias = OneOf | Within


@attrs.frozen
class Conditions:
    """One alternative of a grant: column names with their conditions, all of which must hold."""

    items: tuple[tuple[str, Condition], ...] = ()


@attrs.frozen(cache_hash=True)
class Grant:
    """What may be read of one table: any tuple that one of the alternatives describes.

    No alternative at all is nothing; an alternative without conditions is everything.
    """

    alternatives: tuple[Conditions, ...]

    @cached_property
    def is_everything(self) -> bool:
        """Whether every file may be read, also one whose partition values cannot be understood."""
        return any(not conditions.items for conditions in self.alternatives)

    @property
    def is_nothing(self) -> bool:
        """Whether no file may be read, whatever its partition values."""
        return not self.alternatives

    @property
    def columns(self) -> frozenset[str]:
        """The names of the columns that the conditions are about."""
        return frozenset(name for conditions in self.alternatives for name, _ in conditions.items)

    @cached_property
    def is_relative(self) -> bool:
        """Whether a decision may change with the clock alone. Errs towards true: types are not known here."""
        return any(
            _looks_relative(literal)
            for conditions in self.alternatives
            for _, condition in conditions.items
            for literal in _literals(condition)
        )

    @cached_property
    def fingerprint(self) -> str:
        """64 hex digits, the same in every process for the same alternatives in whatever order."""
        alternatives = sorted({_canonical(conditions) for conditions in self.alternatives})
        return hashlib.sha256("\n".join(alternatives).encode("ascii")).hexdigest()

    def union(self, other: Grant) -> Grant:
        """The grant that allows what either of the two allows."""
        return Grant(tuple(dict.fromkeys((*self.alternatives, *other.alternatives))))


EVERYTHING: Final = Grant((Conditions(),))
NOTHING: Final = Grant(())


class Reason(Enum):
    """Why a file is denied; the text is for the audit log."""

    NO_GRANT = "no grant on this table"
    NOT_GRANTED = "no alternative of the grant holds for these partition values"
    MISSING_VALUE = "a partition value is missing"
    UNPARSABLE_VALUE = "a partition value is not of its column's type"
    UNKNOWN_TYPE = "a partition column has a type that cannot be compared"
    NOT_A_PARTITION_COLUMN = "the grant names a column that is no partition column"
    UNUSABLE_CONDITION = "a value of the grant is not of its column's type"
    UNREADABLE_LOG = "the log of the table cannot be understood"
    UNKNOWN_FEATURE = "the table needs a reader feature that is not known"


@attrs.frozen
class Allowed:
    """The file may be read."""


@attrs.frozen
class Denied:
    """The file may not be read."""

    reason: Reason


Decision: TypeAlias = Allowed | Denied
ALLOWED: Final = Allowed()


@attrs.frozen
class Policy:
    """The grants that hold for everyone, and what becomes of a table that nobody is granted.

    `tables` are the configured aliases. `named` are the aliases that a grant of any user or group names: such
    a table is closed to a principal that has no grant on it, where an unnamed one is open unless
    `deny_by_default`.
    """

    everyone: Mapping[str, Grant]
    deny_by_default: bool
    tables: frozenset[str]
    named: frozenset[str] = frozenset()

    def grant(self, principal: Principal, alias: str) -> Grant:
        """The union of everyone's grants on the table with the principal's own and its groups'."""
        if alias not in self.tables:
            return NOTHING
        everyones, own = self.everyone.get(alias), principal.grants.get(alias)
        if everyones is not None and own is not None:
            return everyones.union(own)
        if everyones is not None:
            return everyones
        if own is not None:
            return own
        return NOTHING if self._is_closed(alias) else EVERYTHING

    def admits(self, principal: Principal, alias: str) -> bool:
        """Whether the table exists for the principal: a grant that holds for it names the table, if only to
        give nothing of it, or nothing closes the table.
        """
        if alias not in self.tables:
            return False
        return alias in self.everyone or alias in principal.grants or not self._is_closed(alias)

    @property
    def unnamed(self) -> tuple[str, ...]:
        """The tables that are open to every principal because no grant names them, sorted."""
        return tuple(
            sorted(alias for alias in self.tables - self.everyone.keys() if not self._is_closed(alias))
        )

    def _is_closed(self, alias: str) -> bool:
        return self.deny_by_default or alias in self.named


def parse_filters(value: object, at: str = "") -> Grant:
    """The grant that a decoded JSON list of partition maps describes; `at` is where it stands, for messages.

    A condition is a scalar (equals), a list (one of, null among them), null, or an object of `glob`, `gte`,
    `gt`, `lte`, `lt`, all of which must hold. Numbers may be int, float or Decimal. Raises PolicyError.
    """
    if not isinstance(value, list):
        raise PolicyError(at, "expected a list of partition maps")
    return Grant(tuple(_conditions(item, f"{at}[{index}]") for index, item in enumerate(value)))


def _conditions(value: object, at: str) -> Conditions:
    if not isinstance(value, Mapping):
        raise PolicyError(at, "expected a map of partition columns to conditions")
    items = []
    for name, condition in value.items():
        if not isinstance(name, str) or not name:
            raise PolicyError(at, "expected the name of a partition column")
        items.append((name, _condition(condition, f"{at}.{name}")))
    return Conditions(tuple(items))


def _condition(value: object, at: str) -> Condition:
    if isinstance(value, Mapping):
        return _within(value, at)
    values = value if isinstance(value, list) else [value]
    literals = tuple(_literal(item, at) for item in values if item is not None)
    return OneOf(literals, null=len(literals) < len(values))


def _within(value: Mapping[Any, object], at: str) -> Within:
    names = [each.value for each in Operator]
    if not value:
        raise PolicyError(at, f"expected at least one of {', '.join(names)}")
    tests = []
    for name, operand in value.items():
        if name not in names:
            raise PolicyError(at, f'unknown operator "{name}"; expected one of {", ".join(names)}')
        literal = _literal(operand, f"{at}.{name}")
        if name == Operator.GLOB.value and literal.kind is not LiteralKind.STRING:
            raise PolicyError(f"{at}.{name}", "expected a pattern in quotes")
        tests.append((Operator(name), literal))
    return Within(tuple(tests))


def _literal(value: object, at: str) -> Literal:
    if isinstance(value, bool):
        return Literal(LiteralKind.BOOLEAN, "true" if value else "false")
    if isinstance(value, str):
        if not value:
            raise PolicyError(at, "the empty string is null in a Delta table; write null")
        return Literal(LiteralKind.STRING, value)
    if isinstance(value, int | float | Decimal) and Decimal(value).is_finite():
        return Literal(LiteralKind.NUMBER, str(value))
    raise PolicyError(at, "expected a string, a number, true or false")


def _literals(condition: Condition) -> tuple[Literal, ...]:
    if isinstance(condition, OneOf):
        return condition.values
    return tuple(literal for test, literal in condition.tests if test is not Operator.GLOB)


def _looks_relative(literal: Literal) -> bool:
    try:
        return literal.kind is LiteralKind.STRING and RelativeDate.parse(literal.text) is not None
    except ValueError:
        return False


def _canonical(conditions: Conditions) -> str:
    items = {}
    for name, condition in conditions.items:
        if isinstance(condition, OneOf):
            values = sorted({(each.kind.value, each.text) for each in condition.values})
            items[name] = ["one of", values, condition.null]
        else:
            tests = sorted((test.value, each.kind.value, each.text) for test, each in condition.tests)
            items[name] = ["within", tests]
    return json.dumps(items, sort_keys=True)


def check(grant: Grant, columns: Sequence[Column], at: str = "") -> None:
    """Raises PolicyError when the grant cannot be meant for a table partitioned by these columns.

    That is: a column that is no partition column, a value that is not of the column's type, an operator that
    means nothing for the type.
    """
    by_name = {column.name: column for column in columns}
    for index, conditions in enumerate(grant.alternatives):
        for name, condition in conditions.items:
            spot = f"{at}[{index}].{name}"
            if name not in by_name:
                partitioned = f"by {', '.join(by_name)}" if by_name else "by nothing"
                raise PolicyError(spot, f"no partition column; the table is partitioned {partitioned}")
            try:
                _compile_condition(condition, by_name[name].type)
            except ValueError as problem:
                raise PolicyError(spot, str(problem)) from None


def decide(grant: Grant, partition: PartitionTuple, now: datetime) -> Decision:
    """Whether the grant allows a file with these partition values at the moment `now`, which must be aware.

    A grant that is not everything allows only a tuple all of whose values, named by the grant or not, are
    present, parsable and of a known type: a log that breaks the Delta protocol is not to be reasoned about.
    """
    return _compiled(grant, partition.columns)(partition, now)


@lru_cache(maxsize=1024)
def misfit(grant: Grant, columns: tuple[Column, ...]) -> Reason | None:
    """Why the grant cannot be meant for a table partitioned by these columns: none of its alternatives means
    anything there. None when one does, and for grants of everything and of nothing.
    """
    if grant.is_everything or grant.is_nothing:
        return None
    if not all(column.type.is_known for column in columns):
        return Reason.UNKNOWN_TYPE
    alternatives, reason = _compile_alternatives(grant, columns)
    return None if alternatives else reason


Decider: TypeAlias = Callable[[PartitionTuple, datetime], Decision]
_Test: TypeAlias = Callable[[Value | None, datetime], bool]
_Alternative: TypeAlias = tuple[tuple[int, _Test], ...]
# Beyond any double: numbers this far from one need not be written out to be refused.
_MAX_MAGNITUDE: Final = 400


def compile_grant(grant: Grant, columns: Sequence[Column]) -> Decider:
    """`decide` for many tuples of one table: the grant's values are parsed once, for these columns.

    A tuple that has other columns is judged by its own.
    """
    if grant.is_everything:
        return _allow
    if grant.is_nothing:
        return partial(_deny, Denied(Reason.NO_GRANT))
    own = tuple(columns)
    rules = _rules(grant, own)

    def decide_compiled(partition: PartitionTuple, now: datetime) -> Decision:
        if partition.columns is not own and partition.columns != own:
            return decide(grant, partition, now)
        return rules(partition, now)

    return decide_compiled


_compiled = lru_cache(maxsize=1024)(compile_grant)


def _allow(partition: PartitionTuple, now: datetime) -> Decision:
    return ALLOWED


def _deny(denied: Denied, partition: PartitionTuple, now: datetime) -> Decision:
    return denied


def _rules(grant: Grant, columns: tuple[Column, ...]) -> Decider:
    if not all(column.type.is_known for column in columns):
        return partial(_deny, Denied(Reason.UNKNOWN_TYPE))
    alternatives, unusable = _compile_alternatives(grant, columns)
    if not alternatives:
        return partial(_deny, Denied(unusable))
    readers = tuple((column.physical, _reader(column.type)) for column in columns)
    missing, unparsable, not_granted = (
        Denied(Reason.MISSING_VALUE),
        Denied(Reason.UNPARSABLE_VALUE),
        Denied(Reason.NOT_GRANTED),
    )

    def decide_restricted(partition: PartitionTuple, now: datetime) -> Decision:
        raws = dict(partition.values)
        try:
            values = [read(raws[physical]) for physical, read in readers]
        except KeyError:
            return missing
        except ValueError:
            return unparsable
        for alternative in alternatives:
            for position, test in alternative:
                if not test(values[position], now):
                    break
            else:
                return ALLOWED
        return not_granted

    return decide_restricted


@lru_cache(maxsize=256)
def _reader(column_type: ColumnType) -> Callable[[str | None], Value | None]:
    """`parse_value` of one type, where both "" and null are null; remembers what it parsed."""
    if column_type.kind in {Kind.STRING, Kind.BINARY}:
        return lambda raw: raw or None
    return lru_cache(maxsize=8192)(lambda raw: parse_value(column_type, raw) if raw else None)


def _compile_alternatives(grant: Grant, columns: Sequence[Column]) -> tuple[tuple[_Alternative, ...], Reason]:
    """The alternatives that mean something for these columns, and why the last other one does not."""
    positions = {column.name: position for position, column in enumerate(columns)}
    alternatives, reason = [], Reason.NOT_GRANTED
    for conditions in grant.alternatives:
        if not all(name in positions for name, _ in conditions.items):
            reason = Reason.NOT_A_PARTITION_COLUMN
            continue
        try:
            alternatives.append(
                tuple(
                    (positions[name], test)
                    for name, condition in conditions.items
                    for test in _compile_condition(condition, columns[positions[name]].type)
                )
            )
        except ValueError:
            reason = Reason.UNUSABLE_CONDITION
    return tuple(alternatives), reason


def _compile_condition(condition: Condition, column_type: ColumnType) -> tuple[_Test, ...]:
    """The condition as tests that must all hold; raises ValueError when it means nothing for the type."""
    if not column_type.is_known:
        raise ValueError(f"the column's type, {column_type}, cannot be compared")
    if isinstance(condition, OneOf):
        return (_compile_one_of(condition, column_type),)
    return tuple(_compile_test(each, literal, column_type) for each, literal in condition.tests)


def _compile_one_of(condition: OneOf, column_type: ColumnType) -> _Test:
    typed = [_typed(literal, column_type) for literal in condition.values]
    relatives = tuple(each for each in typed if isinstance(each, RelativeDate))
    constants: frozenset[Value | None] = frozenset(
        each for each in typed if not isinstance(each, RelativeDate)
    )
    if condition.null:
        constants |= {None}
    if not relatives:
        return lambda value, now: value in constants
    return lambda value, now: (
        value in constants or any(value == relative.resolve(column_type, now) for relative in relatives)
    )


_COMPARISONS: Final[dict[Operator, Callable[[Any, Any], bool]]] = {
    Operator.GTE: operator.ge,
    Operator.GT: operator.gt,
    Operator.LTE: operator.le,
    Operator.LT: operator.lt,
}


def _compile_test(test: Operator, literal: Literal, column_type: ColumnType) -> _Test:
    if test is Operator.GLOB:
        return _compile_glob(literal, column_type)
    if not column_type.is_ordered:
        raise ValueError(f'"{test.value}" means nothing for a {column_type} column')
    if not column_type.is_temporal and _looks_relative(literal):
        raise ValueError(f"{literal} is a relative date, but the column is {column_type}")
    holds, bound = _COMPARISONS[test], _typed(literal, column_type)
    if isinstance(bound, RelativeDate):
        # Many tuples are judged at one moment.
        resolve = lru_cache(maxsize=1)(partial(bound.resolve, column_type))
        return lambda value, now: value is not None and holds(value, resolve(now))
    if bound != bound:  # noqa: PLR0124  NaN is the only value that differs from itself
        raise ValueError("NaN has no place in an order")
    return lambda value, now: value is not None and holds(value, bound)


def _compile_glob(literal: Literal, column_type: ColumnType) -> _Test:
    """`*` any run of characters, `?` any one, `[seq]` and `[!seq]` one in and not in seq; case matters.

    The whole value must match. A `[` that nothing closes stands for itself, as does a special character in
    brackets. These are the rules of fnmatchcase, whose translation matches runs atomically: no backtracking.
    """
    if column_type.kind is not Kind.STRING:
        raise ValueError(f'"glob" needs a string column, but the column is {column_type}')
    match = re.compile(fnmatch.translate(literal.text)).match
    return lambda value, now: isinstance(value, str) and match(value) is not None


def _typed(literal: Literal, column_type: ColumnType) -> Value | RelativeDate:
    """What the literal means for the type; raises ValueError when it means nothing."""
    if literal.kind is LiteralKind.NUMBER:
        return _number(literal, column_type)
    if literal.kind is LiteralKind.BOOLEAN and column_type.kind is not Kind.BOOLEAN:
        raise ValueError(f"{literal} is a boolean, but the column is {column_type}")
    if column_type.is_temporal and (relative := RelativeDate.parse(literal.text)) is not None:
        return relative
    return parse_value(column_type, literal.text)


def _number(literal: Literal, column_type: ColumnType) -> Value:
    if not column_type.is_numeric:
        raise ValueError(f"{literal} is a number, but the column is {column_type}; write it in quotes")
    number = Decimal(literal.text)
    if column_type.kind is Kind.DECIMAL:
        return parse_value(column_type, literal.text)
    if abs(number.adjusted()) > _MAX_MAGNITUDE:
        raise ValueError(f"{literal} is out of range of {column_type}")
    whole = number == number.to_integral_value()
    value = parse_value(column_type, str(int(number)) if whole else literal.text)
    # A fraction is rounded as every reader rounds it, but a whole number must be held exactly.
    if whole and value != number:
        raise ValueError(f"{literal} cannot be held exactly by {column_type}")
    return value
