"""Typed partition values: what the strings of `partitionValues` mean, and how they compare.

The spellings are those of the Delta protocol, "Partition Value Serialization". Parsing is strict: a spelling
that no writer produces raises ValueError, and the policy denies what it cannot read.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import TypeAlias

import attrs

Value: TypeAlias = str | int | float | Decimal | bool | date | datetime


class Kind(Enum):
    """The primitive types a partition column may have; UNKNOWN is every other."""

    STRING = "string"
    BYTE = "byte"
    SHORT = "short"
    INTEGER = "integer"
    LONG = "long"
    FLOAT = "float"
    DOUBLE = "double"
    DECIMAL = "decimal"
    BOOLEAN = "boolean"
    DATE = "date"
    TIMESTAMP = "timestamp"
    TIMESTAMP_NTZ = "timestamp_ntz"
    BINARY = "binary"
    UNKNOWN = "unknown"


_INTEGER_BITS = {Kind.BYTE: 8, Kind.SHORT: 16, Kind.INTEGER: 32, Kind.LONG: 64}
_PLAIN = {kind.value: kind for kind in Kind if kind not in {Kind.DECIMAL, Kind.UNKNOWN}}
_DECIMAL_TYPE = re.compile(r"decimal\(\s*([0-9]{1,2})\s*,\s*([0-9]{1,2})\s*\)")
_MAX_PRECISION = 38


@attrs.frozen
class ColumnType:
    """A column's Delta type. `precision` and `scale` are a decimal's, else 0; `text` is the schema's own."""

    kind: Kind
    precision: int = 0
    scale: int = 0
    text: str = attrs.field(default="", eq=False)

    @classmethod
    def parse(cls, delta_type: object) -> ColumnType:
        """The `type` of a field of `schemaString`, decoded from JSON; UNKNOWN if it is no known primitive."""
        if not isinstance(delta_type, str):
            return cls(Kind.UNKNOWN, text="a nested type")
        if delta_type in _PLAIN:
            return cls(_PLAIN[delta_type], text=delta_type)
        if match := _DECIMAL_TYPE.fullmatch(delta_type):
            precision, scale = int(match[1]), int(match[2])
            if 1 <= precision <= _MAX_PRECISION and scale <= precision:
                return cls(Kind.DECIMAL, precision, scale, text=delta_type)
        return cls(Kind.UNKNOWN, text=delta_type)

    @property
    def is_known(self) -> bool:
        """Whether values of this type can be compared at all."""
        return self.kind is not Kind.UNKNOWN

    @property
    def is_numeric(self) -> bool:
        """Whether numbers of a policy may be written as JSON numbers."""
        return self.kind in _INTEGER_BITS or self.kind in {Kind.DECIMAL, Kind.FLOAT, Kind.DOUBLE}

    @property
    def is_temporal(self) -> bool:
        """Whether relative dates such as `now-1d` are understood."""
        return self.kind in {Kind.DATE, Kind.TIMESTAMP, Kind.TIMESTAMP_NTZ}

    @property
    def is_ordered(self) -> bool:
        """Whether ranges are understood. Booleans and binary know equality only."""
        return self.kind not in {Kind.BOOLEAN, Kind.BINARY, Kind.UNKNOWN}

    def __str__(self) -> str:
        return self.text or self.kind.value


@attrs.frozen
class Column:
    """A partition column: the name users see, the physical name that keys `partitionValues`, and the type."""

    name: str
    physical: str
    type: ColumnType


@attrs.frozen
class PartitionTuple:
    """One combination of partition values that files of a table have.

    `values` pairs physical names with raw strings as in the log, sorted by name; "" and None are null, and an
    absent name is a missing value, which the policy denies.
    """

    columns: tuple[Column, ...]
    values: tuple[tuple[str, str | None], ...]

    @classmethod
    def of(cls, columns: Sequence[Column], values: Mapping[str, str | None]) -> PartitionTuple:
        """The tuple of a `partitionValues` map."""
        return cls(tuple(columns), tuple(sorted(values.items(), key=lambda item: item[0])))


_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_DECIMAL = re.compile(r"-?[0-9]{1,80}(\.[0-9]{1,80})?([eE][+-]?[0-9]{1,3})?")
_FLOAT = re.compile(r"-?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_TIMESTAMP = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[ T]([0-9]{2}:[0-9]{2}:[0-9]{2})"
    r"(?:\.([0-9]{1,6}))?(Z|[+-][0-9]{2}:[0-9]{2})?"
)
_SPECIAL_FLOATS = {
    "NaN": math.nan,
    "Infinity": math.inf,
    "inf": math.inf,
    "-Infinity": -math.inf,
    "-inf": -math.inf,
}
_BOOLEANS = {"true": True, "false": False}
_MAX_INTEGER_DIGITS = 20


def parse_value(column_type: ColumnType, raw: str) -> Value:
    """The value that a raw partition string stands for, comparable with every other value of the same type.

    Strings order by code point, which is the order of their UTF-8 bytes. Timestamps become aware datetimes
    in UTC and timestamp_ntz naive ones. NaN is always the one object `math.nan`, so that it equals itself in
    a set and is never inside a range. Binary values stay the escaped text of the log. Raises ValueError for
    null (the empty string), a spelling that is not of the type, a number out of its range, and any value of
    an UNKNOWN type.
    """
    if raw == "":
        raise ValueError("the empty string is null, not a value")
    kind = column_type.kind
    if kind in {Kind.STRING, Kind.BINARY}:
        return raw
    if kind in _INTEGER_BITS:
        return _integer(raw, _INTEGER_BITS[kind])
    if kind is Kind.DECIMAL:
        return _decimal(raw, column_type)
    return _OTHERS[kind](raw)


def _unknown(raw: str) -> Value:
    raise ValueError(f'"{raw}" is of a type that cannot be compared')


def _integer(raw: str, bits: int) -> int:
    if not _INTEGER.fullmatch(raw) or len(raw) > _MAX_INTEGER_DIGITS:
        raise ValueError(f'"{raw}" is not an integer of {bits} bits')
    value = int(raw)
    if not -(1 << (bits - 1)) <= value < 1 << (bits - 1):
        raise ValueError(f'"{raw}" is not an integer of {bits} bits')
    return value


def _decimal(raw: str, column_type: ColumnType) -> Decimal:
    # Java writes small decimals as 1E-7, so exponents are part of the accepted spelling.
    if not _DECIMAL.fullmatch(raw):
        raise ValueError(f'"{raw}" is not a decimal number')
    value = Decimal(raw)
    sign, digits, exponent = value.as_tuple()
    if not any(digits):
        return Decimal(0)
    text = "".join(map(str, digits)).rstrip("0")
    exponent = int(exponent) + len(digits) - len(text)
    whole_digits = len(text.lstrip("0")) + exponent
    if -exponent > column_type.scale or whole_digits > column_type.precision - column_type.scale:
        raise ValueError(f'"{raw}" does not fit {column_type}')
    return Decimal((sign, tuple(map(int, text)), exponent))


def _double(raw: str) -> float:
    if raw in _SPECIAL_FLOATS:
        return _SPECIAL_FLOATS[raw]
    if not _FLOAT.fullmatch(raw) or math.isinf(float(raw)):
        raise ValueError(f'"{raw}" is not a floating-point number')
    # Adding zero turns -0.0 into 0.0.
    return float(raw) + 0.0


def _single(raw: str) -> float:
    value = _double(raw)
    if not math.isfinite(value):
        return value
    try:
        # Some writers print the shortest text of a float, others its value as a double: both are one float.
        rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        raise ValueError(f'"{raw}" is out of range of a float') from None
    return rounded + 0.0


def _boolean(raw: str) -> bool:
    if raw not in _BOOLEANS:
        raise ValueError(f'"{raw}" is not true or false')
    return _BOOLEANS[raw]


def _date(raw: str) -> date:
    if not _DATE.fullmatch(raw):
        raise ValueError(f'"{raw}" is not a date; expected YYYY-MM-DD')
    try:
        return date.fromisoformat(raw)
    except ValueError:
        raise ValueError(f'"{raw}" is not a day of the calendar') from None


def _timestamp(raw: str) -> datetime:
    naive, zone = _timestamp_parts(raw)
    if zone is None or zone == "Z":
        return naive.replace(tzinfo=UTC)
    hours, minutes = int(zone[1:3]), int(zone[4:6])
    if hours > 18 or minutes > 59:
        raise ValueError(f'"{raw}" has an impossible UTC offset')
    offset = timedelta(hours=hours, minutes=minutes) * (-1 if zone[0] == "-" else 1)
    try:
        return naive.replace(tzinfo=timezone(offset)).astimezone(UTC)
    except OverflowError:
        raise ValueError(f'"{raw}" is out of range') from None


def _timestamp_ntz(raw: str) -> datetime:
    naive, zone = _timestamp_parts(raw)
    if zone is not None:
        raise ValueError(f'"{raw}" has a time zone; expected none')
    return naive


def _timestamp_parts(raw: str) -> tuple[datetime, str | None]:
    match = _TIMESTAMP.fullmatch(raw)
    if match is None:
        raise ValueError(f'"{raw}" is not a timestamp; expected YYYY-MM-DD HH:MM:SS[.ffffff]')
    day, time, fraction, zone = match.groups()
    try:
        return datetime.fromisoformat(f"{day}T{time}.{(fraction or '0').ljust(6, '0')}"), zone
    except ValueError:
        raise ValueError(f'"{raw}" is not a time of the calendar') from None


_OTHERS: dict[Kind, Callable[[str], Value]] = {
    Kind.FLOAT: _single,
    Kind.DOUBLE: _double,
    Kind.BOOLEAN: _boolean,
    Kind.DATE: _date,
    Kind.TIMESTAMP: _timestamp,
    Kind.TIMESTAMP_NTZ: _timestamp_ntz,
    Kind.UNKNOWN: _unknown,
}

_RELATIVE = re.compile(r"(now|today)(?:([+-])([0-9]{1,9})([smhdw]))?")
_UNITS = {
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
}
_FARTHEST = timedelta(days=36525)


@attrs.frozen
class RelativeDate:
    """A moment told by the clock: `now` or midnight UTC of `today`, moved by an offset."""

    offset: timedelta
    from_midnight: bool = False

    @classmethod
    def parse(cls, text: str) -> RelativeDate | None:
        """`now`, `today`, `now-1d`, `today+2h` (units s, m, h, d, w), or None for any other text.

        Raises ValueError for an offset of more than a hundred years.
        """
        match = _RELATIVE.fullmatch(text)
        if match is None:
            return None
        offset = timedelta(0)
        if match[2]:
            # Compared before the multiplication, which could overflow.
            if int(match[3]) > _FARTHEST / _UNITS[match[4]]:
                raise ValueError(f'"{text}" is more than a hundred years away')
            offset = int(match[3]) * _UNITS[match[4]] * (-1 if match[2] == "-" else 1)
        return cls(offset, match[1] == "today")

    def resolve(self, column_type: ColumnType, now: datetime) -> date | datetime:
        """The value it stands for at `now`, which must be aware; a date is the day in UTC.

        Raises ValueError for a naive `now` and for a type that is not temporal.
        """
        if now.tzinfo is None:
            raise ValueError("the present moment must have a time zone")
        moment = now.astimezone(UTC)
        if self.from_midnight:
            moment = moment.replace(hour=0, minute=0, second=0, microsecond=0)
        moment += self.offset
        if column_type.kind is Kind.DATE:
            return moment.date()
        if column_type.kind is Kind.TIMESTAMP:
            return moment
        if column_type.kind is Kind.TIMESTAMP_NTZ:
            return moment.replace(tzinfo=None)
        raise ValueError(f"relative dates mean nothing for {column_type}")
