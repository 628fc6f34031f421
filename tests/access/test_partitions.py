"""Typed partition values: what is parsed, what is refused, and how values compare."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from delta_proxy.access.partitions import (
    Column,
    ColumnType,
    Kind,
    PartitionTuple,
    RelativeDate,
    parse_value,
)

NOW = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
EARLIEST = datetime(1, 1, 3)  # noqa: DTZ001
LATEST = datetime(9999, 12, 29)  # noqa: DTZ001


def value(delta_type: str, raw: str) -> object:
    return parse_value(ColumnType.parse(delta_type), raw)


def refuses(delta_type: str, raw: str) -> bool:
    try:
        value(delta_type, raw)
    except ValueError:
        return True
    return False


@pytest.mark.parametrize("kind", [each for each in Kind if each not in {Kind.DECIMAL, Kind.UNKNOWN}])
def test_every_primitive_type_of_the_protocol_is_known(kind: Kind) -> None:
    assert ColumnType.parse(kind.value).kind is kind


def test_a_decimal_has_precision_and_scale() -> None:
    assert ColumnType.parse("decimal(12,5)") == ColumnType(Kind.DECIMAL, 12, 5)
    assert ColumnType.parse("decimal( 12, 5 )") == ColumnType(Kind.DECIMAL, 12, 5)


@pytest.mark.parametrize(
    "delta_type",
    [
        "decimal",
        "decimal(39,2)",
        "decimal(2,3)",
        "decimal(0,0)",
        "varchar(3)",
        "variant",
        "void",
        "String",
        "",
        "unknown",
        None,
        3,
        {"type": "struct", "fields": []},
    ],
)
def test_any_other_type_is_unknown_and_has_no_values(delta_type: object) -> None:
    column_type = ColumnType.parse(delta_type)
    assert column_type.kind is Kind.UNKNOWN
    assert not column_type.is_known
    with pytest.raises(ValueError, match="cannot be compared"):
        parse_value(column_type, "1")


@pytest.mark.parametrize("kind", list(Kind))
def test_the_empty_string_is_null_and_so_no_value(kind: Kind) -> None:
    with pytest.raises(ValueError, match="null"):
        parse_value(ColumnType(kind, 10, 2), "")


@pytest.mark.parametrize(
    ("delta_type", "first", "last"),
    [
        ("byte", -128, 127),
        ("short", -(2**15), 2**15 - 1),
        ("integer", -(2**31), 2**31 - 1),
        ("long", -(2**63), 2**63 - 1),
    ],
)
def test_integers_fill_exactly_the_range_of_their_type(delta_type: str, first: int, last: int) -> None:
    assert value(delta_type, str(first)) == first
    assert value(delta_type, str(last)) == last
    assert refuses(delta_type, str(first - 1))
    assert refuses(delta_type, str(last + 1))


@pytest.mark.parametrize(
    "raw", ["01", "+1", "1.0", "1e3", " 1", "1 ", "1_0", "٣", "0x1", "--1", "-", "1\n", "9" * 5000]
)
def test_an_integer_has_one_spelling(raw: str) -> None:
    assert refuses("long", raw)


@given(st.integers())
def test_integers_agree_with_python(number: int) -> None:
    if -(2**63) <= number < 2**63:
        assert value("long", str(number)) == number
    else:
        assert refuses("long", str(number))


def test_decimals_compare_by_number() -> None:
    assert value("decimal(10,2)", "1.50") == value("decimal(10,2)", "1.5") == Decimal("1.5")
    assert value("decimal(10,2)", "-0") == value("decimal(10,2)", "0E-18") == 0
    assert value("decimal(10,7)", "1E-7") == Decimal("0.0000001")
    assert hash(value("decimal(10,2)", "100.00")) == hash(value("decimal(10,2)", "1E2"))


@pytest.mark.parametrize(
    "raw",
    ["1.505", "1000", "-1000", "1E3", "1E-3", "NaN", "Infinity", "1,5", "+1", ".5", "1.", "1_0", "1E9999"],
)
def test_a_decimal_that_does_not_fit_is_refused(raw: str) -> None:
    assert refuses("decimal(5,2)", raw)


@given(
    st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-200000, max_value=200000),
    st.integers(1, 9),
    st.integers(0, 9),
)
def test_decimals_agree_with_exact_arithmetic(number: Decimal, precision: int, scale: int) -> None:
    assume(scale <= precision)
    unscaled = number.scaleb(scale)
    fits = unscaled == int(unscaled) and abs(unscaled) < 10**precision
    if fits:
        assert value(f"decimal({precision},{scale})", format(number, "f")) == number
    else:
        assert refuses(f"decimal({precision},{scale})", format(number, "f"))


@given(st.floats(allow_nan=False))
def test_doubles_agree_with_python(number: float) -> None:
    assert value("double", repr(number)) == number


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_float_is_the_same_in_its_short_and_its_exact_spelling(number: float) -> None:
    assert value("float", f"{number:.9g}") == value("float", repr(number)) == number


def test_a_float_out_of_the_range_of_its_type_is_refused() -> None:
    assert refuses("float", "1e39")
    assert refuses("double", "1e999")
    assert not refuses("double", "1e39")


def test_minus_zero_is_zero() -> None:
    for delta_type in ("float", "double"):
        assert math.copysign(1, value(delta_type, "-0.0")) == 1  # type: ignore[arg-type]


def test_infinities_and_nan_are_values() -> None:
    assert value("double", "Infinity") == value("double", "inf") == math.inf
    assert value("float", "-Infinity") == value("float", "-inf") == -math.inf
    assert value("double", "NaN") is value("float", "NaN")


@pytest.mark.parametrize("raw", ["nan", "infinity", "1_0", "0x1p3", "1f", " 1.0", "1,0", "٣.0", "e5", "."])
def test_floats_have_no_other_spelling(raw: str) -> None:
    assert refuses("double", raw)
    assert refuses("float", raw)


@pytest.mark.parametrize("raw", ["True", "TRUE", "1", "yes", "f"])
def test_booleans_are_true_and_false(raw: str) -> None:
    assert value("boolean", "true") is True
    assert value("boolean", "false") is False
    assert refuses("boolean", raw)


@given(st.dates())
def test_dates_agree_with_python(day: date) -> None:
    assert value("date", day.isoformat()) == day


@pytest.mark.parametrize(
    "raw",
    [
        "2024-1-1",
        "20240101",
        "2024-W01-1",
        "2024-02-30",
        "2024-01-01 ",
        "0000-01-01",
        "24-01-01",
        "2024-01-01T00:00:00",
    ],
)
def test_a_date_has_one_spelling(raw: str) -> None:
    assert refuses("date", raw)


@given(
    st.datetimes(min_value=EARLIEST, max_value=LATEST),
    st.integers(-18 * 60, 18 * 60),
)
def test_the_three_spellings_of_a_timestamp_are_one_moment(moment: datetime, minutes: int) -> None:
    utc = moment.replace(tzinfo=UTC)
    shifted = utc.astimezone(timezone(timedelta(minutes=minutes)))
    spellings = [f"{moment:%H:%M:%S.%f}", shifted.isoformat()]
    day = moment.date().isoformat()
    assert value("timestamp", f"{day} {spellings[0]}") == utc
    assert value("timestamp", f"{day}T{spellings[0]}Z") == utc
    assert value("timestamp", spellings[1]) == utc


def test_the_fraction_of_a_second_may_be_short() -> None:
    assert value("timestamp", "2024-01-01 00:00:00.5") == datetime(2024, 1, 1, 0, 0, 0, 500000, tzinfo=UTC)


@pytest.mark.parametrize(
    "raw",
    [
        "2024-01-01",
        "2024-01-01 00:00",
        "2024-01-01 24:00:00",
        "2024-01-01 00:00:60",
        "2024-01-01 00:00:00.1234567",
        "2024-01-01 00:00:00+25:00",
        "2024-01-01 00:00:00+01:60",
        "2024-01-01 00:00:00 UTC",
        "0001-01-01T00:00:00+01:00",
        "2024-01-01 00:00:00+01",
        "2024-13-01 00:00:00",
    ],
)
def test_a_timestamp_that_is_none_is_refused(raw: str) -> None:
    assert refuses("timestamp", raw)


def test_a_timestamp_without_time_zone_has_none() -> None:
    assert value("timestamp_ntz", "2024-01-01 02:00:00") == datetime(2024, 1, 1, 2)  # noqa: DTZ001
    assert refuses("timestamp_ntz", "2024-01-01T02:00:00Z")
    assert refuses("timestamp_ntz", "2024-01-01T02:00:00+00:00")


@given(st.text(min_size=1), st.text(min_size=1))
def test_strings_order_as_their_utf8_bytes(one: str, other: str) -> None:
    smaller = value("string", one) < value("string", other)  # type: ignore[operator]
    assert smaller == (one.encode() < other.encode())


def test_strings_and_binary_are_taken_as_they_are() -> None:
    for raw in (" ", "null", "bar+%21", "é", "é", "\\u0001"):
        assert value("string", raw) == raw
        assert value("binary", raw) == raw


def test_a_tuple_keeps_its_values_sorted_by_physical_name() -> None:
    columns = [Column("b", "col-1", ColumnType(Kind.STRING)), Column("a", "col-0", ColumnType(Kind.STRING))]
    partition = PartitionTuple.of(columns, {"col-1": None, "col-0": "x"})
    assert partition.values == (("col-0", "x"), ("col-1", None))
    assert partition == PartitionTuple.of(columns, {"col-0": "x", "col-1": None})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", NOW),
        ("now-1d", NOW - timedelta(days=1)),
        ("now+2h", NOW + timedelta(hours=2)),
        ("now-3w", NOW - timedelta(days=21)),
        ("now+90s", NOW + timedelta(seconds=90)),
        ("now-5m", NOW - timedelta(minutes=5)),
        ("today", NOW.replace(hour=0, minute=0)),
        ("today-1h", datetime(2026, 3, 28, 23, tzinfo=UTC)),
    ],
)
def test_a_relative_date_moves_with_the_clock(text: str, expected: datetime) -> None:
    relative = RelativeDate.parse(text)
    assert relative is not None
    assert relative.resolve(ColumnType(Kind.TIMESTAMP), NOW) == expected
    assert relative.resolve(ColumnType(Kind.TIMESTAMP_NTZ), NOW) == expected.replace(tzinfo=None)
    assert relative.resolve(ColumnType(Kind.DATE), NOW) == expected.date()


def test_a_relative_date_is_told_in_utc_whatever_zone_the_clock_has() -> None:
    clock = datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=2)))
    relative = RelativeDate.parse("today")
    assert relative is not None
    assert relative.resolve(ColumnType(Kind.DATE), clock) == date(2025, 12, 31)


@pytest.mark.parametrize(
    "text", ["Now", "now -1d", "now-1", "now-1y", "now1d", "now-1.5d", "now--1d", "tomorrow", "now-1d\n"]
)
def test_other_words_are_no_relative_dates(text: str) -> None:
    assert RelativeDate.parse(text) is None


def test_a_relative_date_reaches_a_hundred_years_and_no_further() -> None:
    assert RelativeDate.parse("now-36525d") == RelativeDate(timedelta(days=-36525))
    for text in ("now-36526d", "now+999999999w"):
        with pytest.raises(ValueError, match="hundred years"):
            RelativeDate.parse(text)


def test_a_relative_date_needs_an_aware_clock_and_a_temporal_column() -> None:
    with pytest.raises(ValueError, match="time zone"):
        RelativeDate(timedelta(0)).resolve(ColumnType(Kind.DATE), datetime(2026, 1, 1))  # noqa: DTZ001
    with pytest.raises(ValueError, match="mean nothing"):
        RelativeDate(timedelta(0)).resolve(ColumnType(Kind.STRING), NOW)
