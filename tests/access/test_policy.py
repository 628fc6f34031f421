"""What a grant allows, what it denies, and why."""

from __future__ import annotations

import fnmatch
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta_proxy.access.identity import ANONYMOUS, AuthKind, Principal
from delta_proxy.access.partitions import Column, ColumnType, PartitionTuple
from delta_proxy.access.policy import (
    ALLOWED,
    EVERYTHING,
    NOTHING,
    Decision,
    Denied,
    Grant,
    Policy,
    PolicyError,
    Reason,
    check,
    compile_grant,
    decide,
    parse_filters,
)

NOW = datetime(2026, 11, 22, 17, 30, tzinfo=UTC)


def columns(**types: str) -> tuple[Column, ...]:
    return tuple(Column(name, f"col-{name}", ColumnType.parse(each)) for name, each in types.items())


def partition(cols: tuple[Column, ...], **values: str | None) -> PartitionTuple:
    return PartitionTuple.of(cols, {f"col-{name}": value for name, value in values.items()})


TRADES = columns(MIC="string", date="date")


def trade(mic: str | None, day: str | None) -> PartitionTuple:
    return partition(TRADES, MIC=mic, date=day)


def decision(filters: object, of: PartitionTuple, now: datetime = NOW) -> Decision:
    return decide(parse_filters(filters), of, now)


def allows(filters: object, of: PartitionTuple, now: datetime = NOW) -> bool:
    return decision(filters, of, now) == ALLOWED


def holds(condition: object, delta_type: str, raw: str | None) -> bool:
    """Whether a condition on a column of the type allows the raw value."""
    cols = columns(c=delta_type)
    check(parse_filters([{"c": condition}]), cols)
    return allows([{"c": condition}], partition(cols, c=raw))


def problem(filters: object, cols: tuple[Column, ...] = TRADES) -> str:
    """What is wrong with the filters."""
    with pytest.raises(PolicyError) as caught:
        check(parse_filters(filters, "allowedPartitions.trades"), cols, "allowedPartitions.trades")
    return str(caught.value)


def test_a_scalar_allows_the_equal_value_only() -> None:
    assert allows([{"MIC": "XLON"}], trade("XLON", "2024-01-01"))
    assert decision([{"MIC": "XLON"}], trade("XETR", "2024-01-01")) == Denied(Reason.NOT_GRANTED)
    assert not allows([{"MIC": "XLON"}], trade("xlon", "2024-01-01"))
    assert not allows([{"MIC": "XLON"}], trade("XLON ", "2024-01-01"))


def test_a_list_allows_each_of_its_values() -> None:
    assert [
        allows([{"MIC": ["XLON", "XETR"]}], trade(mic, "2024-01-01")) for mic in ("XLON", "XETR", "XPAR")
    ] == [
        True,
        True,
        False,
    ]
    assert not allows([{"MIC": []}], trade("XLON", "2024-01-01"))


def test_all_conditions_of_one_map_must_hold() -> None:
    filters = [{"MIC": {"glob": "X*"}, "date": {"gte": "2024-01-01", "lt": "now-1d"}}]
    assert allows(filters, trade("XLON", "2024-01-01"))
    assert not allows(filters, trade("ALON", "2024-01-01"))
    assert not allows(filters, trade("XLON", "2023-12-31"))
    assert not allows(filters, trade("XLON", "2026-11-21"))


def test_one_of_the_maps_is_enough() -> None:
    filters = [{"MIC": "XLON"}, {"date": "2024-01-02"}]
    assert allows(filters, trade("XLON", "2024-01-01"))
    assert allows(filters, trade("XETR", "2024-01-02"))
    assert not allows(filters, trade("XETR", "2024-01-01"))


def test_an_empty_list_is_nothing_and_an_empty_map_everything() -> None:
    assert decision([], trade("XLON", "2024-01-01")) == Denied(Reason.NO_GRANT)
    assert parse_filters([]) == NOTHING
    assert NOTHING.is_nothing
    assert not NOTHING.is_everything
    assert allows([{}], trade("XLON", "2024-01-01"))
    assert parse_filters([{}]) == EVERYTHING
    assert EVERYTHING.is_everything
    assert not EVERYTHING.is_nothing
    assert parse_filters([{"MIC": "XLON"}, {}]).is_everything
    restricted = parse_filters([{"MIC": "XLON"}])
    assert not restricted.is_everything
    assert not restricted.is_nothing


def test_everything_allows_also_what_cannot_be_understood() -> None:
    strange = columns(a="map", b="date")
    for values in ({}, {"a": "x"}, {"a": "x", "b": "soon"}):
        assert allows([{}], partition(strange, **values))
        assert allows([{"nowhere": 1}, {}], partition(strange, **values))


def test_a_missing_value_is_denied_whether_the_grant_names_it_or_not() -> None:
    assert decision([{"MIC": "XLON"}], partition(TRADES, date="2024-01-01")) == Denied(Reason.MISSING_VALUE)
    assert decision([{"MIC": None}], partition(TRADES, date="2024-01-01")) == Denied(Reason.MISSING_VALUE)
    assert decision([{"MIC": "XLON"}], partition(TRADES, MIC="XLON")) == Denied(Reason.MISSING_VALUE)


def test_a_value_keyed_by_the_logical_name_of_a_mapped_column_is_missing() -> None:
    of = PartitionTuple.of(TRADES, {"MIC": "XLON", "date": "2024-01-01"})
    assert decision([{"MIC": "XLON"}], of) == Denied(Reason.MISSING_VALUE)


def test_an_unparsable_value_is_denied_whether_the_grant_names_it_or_not() -> None:
    assert decision([{"date": {"gte": "2024-01-01"}}], trade("XLON", "2024-1-1")) == Denied(
        Reason.UNPARSABLE_VALUE
    )
    assert decision([{"MIC": "XLON"}], trade("XLON", "2024-1-1")) == Denied(Reason.UNPARSABLE_VALUE)


@pytest.mark.parametrize(
    "filters", [[{"MIC": "XLON"}], [{"place": "x"}], [{"place": None}], [{"place": {"glob": "*"}}]]
)
def test_a_column_of_an_unknown_type_denies_every_restricted_grant(filters: object) -> None:
    cols = columns(MIC="string", place="geometry")
    assert decision(filters, partition(cols, MIC="XLON", place="x")) == Denied(Reason.UNKNOWN_TYPE)
    assert decision(filters, partition(cols, MIC="XLON", place=None)) == Denied(Reason.UNKNOWN_TYPE)


def test_a_map_that_names_no_partition_column_matches_nothing() -> None:
    of = trade("XLON", "2024-01-01")
    assert decision([{"MIC": "XLON", "desk": "x"}], of) == Denied(Reason.NOT_A_PARTITION_COLUMN)
    assert decision([{"mic": "XLON"}], of) == Denied(Reason.NOT_A_PARTITION_COLUMN)
    assert decision([{"desk": None}], of) == Denied(Reason.NOT_A_PARTITION_COLUMN)
    assert allows([{"desk": "x"}, {"MIC": "XLON"}], of)
    assert decision([{"desk": "x"}, {"MIC": "XETR"}], of) == Denied(Reason.NOT_GRANTED)


def test_a_map_that_does_not_fit_the_type_of_its_column_matches_nothing() -> None:
    of = trade("XLON", "2024-01-01")
    assert decision([{"date": "2024-1-1"}], of) == Denied(Reason.UNUSABLE_CONDITION)
    assert decision([{"date": ["2024-01-01", "2024-1-1"]}], of) == Denied(Reason.UNUSABLE_CONDITION)
    assert allows([{"date": "soon"}, {"MIC": "XLON"}], of)


def test_an_unpartitioned_table_is_closed_to_every_restricted_grant() -> None:
    assert decision([{"MIC": "XLON"}], PartitionTuple((), ())) == Denied(Reason.NOT_A_PARTITION_COLUMN)


def test_null_matches_only_null() -> None:
    for null in (None, ""):
        assert allows([{"MIC": None}], trade(null, "2024-01-01"))
        assert allows([{"MIC": ["XLON", None]}], trade(null, "2024-01-01"))
        for condition in ("XLON", ["XLON"], {"glob": "*"}, {"gte": "A"}, {"lt": "Z"}):
            assert decision([{"MIC": condition}], trade(null, "2024-01-01")) == Denied(Reason.NOT_GRANTED)
    assert not allows([{"MIC": None}], trade("null", "2024-01-01"))
    assert not allows([{"MIC": ["XLON", None]}], trade("XETR", "2024-01-01"))


def test_null_is_outside_every_range_of_every_type() -> None:
    for delta_type, bound in (("date", "now-1d"), ("long", 5), ("double", "1.0"), ("timestamp", "now")):
        for operator in ("gt", "gte", "lt", "lte"):
            assert not holds({operator: bound}, delta_type, None)


def test_ranges_include_their_bound_or_not() -> None:
    for raw, expected in (("1", "gte gt"), ("0", "gte lte"), ("-1", "lte lt")):
        found = " ".join(each for each in ("gte", "gt", "lte", "lt") if holds({each: 0}, "integer", raw))
        assert found == expected


def test_ranges_of_strings_follow_code_points() -> None:
    assert holds({"gte": "XA", "lt": "XM"}, "string", "XLON")
    assert not holds({"lt": "XM"}, "string", "a")
    assert holds({"gt": "\ufb01"}, "string", "\U0001f600")
    assert holds({"gt": "9"}, "string", "A")
    assert holds({"lt": "9"}, "string", "10")


def test_numbers_compare_by_value_not_by_spelling() -> None:
    assert holds("1.50", "decimal(10,2)", "1.5")
    assert holds(Decimal("1.5"), "decimal(10,2)", "1.50")
    assert holds({"lt": 10}, "integer", "9")
    assert not holds({"lt": 10}, "integer", "100")
    assert holds({"lte": "9.9"}, "decimal(4,1)", "9.9")
    assert holds(Decimal("1.0"), "long", "1")
    assert holds(0, "double", "-0.0")
    assert holds(0.1, "float", "0.10000000149011612")
    assert holds("5", "byte", "5")


def test_nan_is_in_no_range_and_equals_itself() -> None:
    for operator in ("gt", "gte", "lt", "lte"):
        assert not holds({operator: 0}, "double", "NaN")
        assert "NaN" in problem([{"c": {operator: "NaN"}}], columns(c="double"))
    assert holds("NaN", "double", "NaN")
    assert not holds("NaN", "double", "1.0")
    assert holds({"gt": 0}, "double", "Infinity")


def test_booleans_are_told_by_word_or_by_json() -> None:
    assert holds(True, "boolean", "true")
    assert holds("true", "boolean", "true")
    assert holds([False, None], "boolean", "false")
    assert not holds(True, "boolean", "false")


def test_timestamps_are_compared_as_moments() -> None:
    for raw in ("2024-01-01 10:00:00", "2024-01-01T10:00:00.000000Z", "2024-01-01T12:00:00+02:00"):
        assert holds("2024-01-01T10:00:00Z", "timestamp", raw)
        assert not holds({"gt": "2024-01-01 10:00:00"}, "timestamp", raw)
    assert holds({"lt": "now"}, "timestamp_ntz", "2026-11-22 17:29:59")
    assert not holds({"lt": "now"}, "timestamp_ntz", "2026-11-22 17:30:00")


def test_binary_values_are_compared_as_they_are_spelled() -> None:
    assert holds("\\u0001", "binary", "\\u0001")
    assert not holds("\\u0001", "binary", "\u0001")


def test_relative_dates_follow_the_clock() -> None:
    filters, of = [{"date": {"lt": "now-1d"}}], trade("XLON", "2026-11-21")
    assert not allows(filters, of, NOW)
    assert allows(filters, of, NOW + timedelta(days=1))
    compiled = compile_grant(parse_filters(filters), TRADES)
    assert [compiled(of, NOW + timedelta(days=days)) == ALLOWED for days in (0, 1, 0)] == [False, True, False]
    assert allows([{"date": ["now-1d", "2020-01-01"]}], of)
    assert not allows([{"date": ["now-1d"]}], of, NOW + timedelta(days=1))


def test_a_relative_date_is_a_plain_word_in_a_string_column() -> None:
    assert holds("now", "string", "now")
    assert "relative date" in problem([{"MIC": {"lt": "now-1d"}}])


def test_whether_a_grant_depends_on_the_clock_is_known() -> None:
    assert parse_filters([{"MIC": "XLON"}, {"date": {"lt": "now-1d"}}]).is_relative
    assert parse_filters([{"date": ["today"]}]).is_relative
    assert not parse_filters([{"date": {"lt": "2024-01-01"}, "n": 3}]).is_relative
    assert not parse_filters([{"MIC": {"glob": "now"}}]).is_relative
    assert not parse_filters([{"MIC": "now-999999999d"}]).is_relative


def test_globs_match_whole_values_with_case() -> None:
    for pattern, raw, expected in (
        ("X*", "XLON", True),
        ("X*", "X", True),
        ("X?", "X", False),
        ("X?N*", "XLN", True),
        ("x*", "XLON", False),
        ("*LON", "XLON\n", False),
        ("[XY]LON", "YLON", True),
        ("[!X]LON", "XLON", False),
        ("[!X]LON", "ZLON", True),
        ("[X", "[X", True),
        ("[*]", "*", True),
        ("[*]", "a", False),
        ("a.c", "abc", False),
        ("*", "a/b\nc", True),
    ):
        assert holds({"glob": pattern}, "string", raw) is expected, (pattern, raw)


@given(st.text("ab*?[]!-^&~|\\.", max_size=12), st.text("ab*?[]!-^&~|\\.", min_size=1, max_size=12))
def test_globs_agree_with_fnmatchcase(pattern: str, raw: str) -> None:
    if pattern:
        assert holds({"glob": pattern}, "string", raw) == fnmatch.fnmatchcase(raw, pattern)


def test_a_hostile_glob_ends() -> None:
    # Where a run backtracks into the ones before it, this takes longer than the universe has existed.
    assert not holds({"glob": "*a" * 40 + "*b"}, "string", "a" * 2000)
    assert holds({"glob": "*" * 5000}, "string", "a" * 2000)


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({}, "allowedPartitions.trades: expected a list of partition maps"),
        (None, "allowedPartitions.trades: expected a list of partition maps"),
        ([[]], "allowedPartitions.trades[0]: expected a map of partition columns to conditions"),
        ([{}, "x"], "allowedPartitions.trades[1]: expected a map of partition columns to conditions"),
        ([{"": "x"}], "allowedPartitions.trades[0]: expected the name of a partition column"),
        (
            [{"date": {"from": "2024-01-01"}}],
            'allowedPartitions.trades[0].date: unknown operator "from"; expected one of '
            "glob, gte, gt, lte, lt",
        ),
        ([{"date": {}}], "allowedPartitions.trades[0].date: expected at least one of glob, gte, gt, lte, lt"),
        (
            [{"date": {"gte": None}}],
            "allowedPartitions.trades[0].date.gte: expected a string, a number, true or false",
        ),
        (
            [{"date": {"gte": ["x"]}}],
            "allowedPartitions.trades[0].date.gte: expected a string, a number, true or false",
        ),
        ([{"MIC": [["x"]]}], "allowedPartitions.trades[0].MIC: expected a string, a number, true or false"),
        (
            [{"MIC": ""}],
            "allowedPartitions.trades[0].MIC: the empty string is null in a Delta table; write null",
        ),
        ([{"MIC": {"glob": 3}}], "allowedPartitions.trades[0].MIC.glob: expected a pattern in quotes"),
        (
            [{"MIC": float("nan")}],
            "allowedPartitions.trades[0].MIC: expected a string, a number, true or false",
        ),
        (
            [{"mic": "x"}],
            "allowedPartitions.trades[0].mic: no partition column; the table is partitioned by MIC, date",
        ),
        (
            [{}, {"date": "2024-1-1"}],
            'allowedPartitions.trades[1].date: "2024-1-1" is not a date; expected YYYY-MM-DD',
        ),
        (
            [{"MIC": 3}],
            "allowedPartitions.trades[0].MIC: 3 is a number, but the column is string; write it in quotes",
        ),
        ([{"MIC": True}], "allowedPartitions.trades[0].MIC: true is a boolean, but the column is string"),
        (
            [{"date": {"glob": "2024-*"}}],
            'allowedPartitions.trades[0].date: "glob" needs a string column, but the column is date',
        ),
    ],
)
def test_a_mistake_is_told_with_its_place(filters: object, message: str) -> None:
    assert problem(filters) == message


@pytest.mark.parametrize(
    ("delta_type", "condition"),
    [
        ("boolean", {"gt": False}),
        ("boolean", 1),
        ("boolean", "yes"),
        ("binary", {"lt": "x"}),
        ("binary", {"glob": "x"}),
        ("binary", 1),
        ("byte", 128),
        ("integer", "1.0"),
        ("integer", Decimal("1.5")),
        ("integer", True),
        ("long", Decimal("1e300000")),
        ("long", 10**400),
        ("double", 2**53 + 1),
        ("float", 2**24 + 1),
        ("double", Decimal("1e999")),
        ("decimal(4,2)", Decimal("1.555")),
        ("decimal(4,2)", 100),
        ("timestamp", "2024-01-01"),
        ("timestamp", 1704067200),
        ("timestamp_ntz", "2024-01-01T00:00:00Z"),
        ("date", "now-99999999d"),
        ("geometry", "x"),
        ("geometry", None),
    ],
)
def test_a_condition_that_does_not_fit_the_type_of_its_column_is_a_mistake(
    delta_type: str, condition: object
) -> None:
    cols = columns(c=delta_type)
    assert problem([{"c": condition}], cols).startswith("allowedPartitions.trades[0].c: ")
    assert not allows([{"c": condition}], partition(cols, c="1"))


def test_an_unpartitioned_table_takes_no_conditions() -> None:
    assert problem([{"MIC": "x"}], ()).endswith("partitioned by nothing")


def test_a_usable_grant_passes_the_check() -> None:
    check(parse_filters([{}, {"MIC": ["XLON", None], "date": {"gte": "2024-01-01", "lt": "now-1d"}}]), TRADES)


def test_a_tuple_with_other_columns_is_judged_by_its_own() -> None:
    compiled = compile_grant(parse_filters([{"MIC": "XLON"}]), TRADES)
    other = columns(MIC="long")
    assert compiled(partition(other, MIC="5"), NOW) == Denied(Reason.UNUSABLE_CONDITION)
    assert compiled(partition(columns(MIC="string"), MIC="XLON"), NOW) == ALLOWED
    assert compiled(partition(columns(desk="string"), desk="XLON"), NOW) == Denied(
        Reason.NOT_A_PARTITION_COLUMN
    )


def test_the_columns_of_a_grant_are_those_its_conditions_name() -> None:
    assert parse_filters([{"MIC": "x"}, {}, {"date": None, "MIC": "y"}]).columns == {"MIC", "date"}


def test_the_fingerprint_is_the_same_in_every_process() -> None:
    filters = "[{'MIC': ['a', 'b', None]}, {}]"
    code = f"from delta_proxy.access.policy import parse_filters; print(parse_filters({filters}).fingerprint)"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout.strip()
        for _ in range(2)
    }
    assert outputs == {parse_filters([{}, {"MIC": [None, "b", "a"]}]).fingerprint}


def test_different_grants_have_different_fingerprints() -> None:
    grants: list[object] = [
        [],
        [{}],
        [{"a": None}],
        [{"a": []}],
        [{"a": "x"}],
        [{"b": "x"}],
        [{"a": ["x", None]}],
        [{"a": ["x", "y"]}],
        [{"a": "x"}, {"a": None}],
        [{"a": "1"}],
        [{"a": 1}],
        [{"a": True}],
        [{"a": "true"}],
        [{"a": {"glob": "x"}}],
        [{"a": {"gt": "x"}}],
        [{"a": {"gte": "x"}}],
        [{"a": {"gt": "x", "lt": "y"}}],
        [{"a": "x", "b": "x"}],
        [{"a": "x"}, {"b": "x"}],
    ]
    assert len({parse_filters(each).fingerprint for each in grants}) == len(grants)


# What a grant means, evaluated naively on the JSON itself.

TYPES = {
    "s": "string",
    "n": "integer",
    "p": "decimal(6,2)",
    "f": "double",
    "b": "boolean",
    "d": "date",
    "t": "timestamp",
}
ALL = columns(**TYPES)
PARSERS: dict[str, Any] = {
    "s": str,
    "n": int,
    "p": Decimal,
    "f": float,
    "b": {"true": True, "false": False}.__getitem__,
    "d": date.fromisoformat,
    "t": lambda raw: datetime.fromisoformat(raw).replace(tzinfo=UTC),
}
VALUES = {
    "s": ["a", "ab", "b", "Z"],
    "n": ["-1", "0", "7", "10"],
    "p": ["1.50", "1.5", "-0.25", "10.00"],
    "f": ["0.0", "-0.0", "1e3", "Infinity"],
    "b": ["true", "false"],
    "d": ["2024-01-01", "2026-11-21", "2026-11-22"],
    "t": ["2024-01-01 00:00:00", "2026-11-22 17:30:00.000001"],
}
GARBAGE = {"n": "x", "p": "1.555", "f": "0x1", "b": "TRUE", "d": "2024-1-1", "t": "2024-01-01"}


def reference(filters: list[dict[str, Any]], raws: Mapping[str, str | None]) -> bool:
    if {} in filters:
        return True
    values: dict[str, Any] = {}
    for name in TYPES:
        if name not in raws or raws[name] == GARBAGE.get(name):
            return False
        values[name] = PARSERS[name](raws[name]) if raws[name] else None
    return any(all(reference_holds(c, name, values[name]) for name, c in each.items()) for each in filters)


def reference_holds(condition: Any, name: str, value: Any) -> bool:
    if isinstance(condition, dict):
        return value is not None and all(reference_test(*test, name, value) for test in condition.items())
    if isinstance(condition, list):
        return any(reference_holds(each, name, value) for each in condition)
    if condition is None or value is None:
        return condition is None and value is None
    return bool(value == PARSERS[name](condition))


def reference_test(operator: str, operand: str, name: str, value: Any) -> bool:
    if operator == "glob":
        return fnmatch.fnmatchcase(value, operand)
    bound = PARSERS[name](operand)
    order = (value > bound) - (value < bound)
    return order in {"gt": {1}, "gte": {0, 1}, "lt": {-1}, "lte": {-1, 0}}[operator]


def conditions(name: str) -> st.SearchStrategy[Any]:
    scalar = st.sampled_from(VALUES[name])
    choices: list[st.SearchStrategy[Any]] = [
        scalar,
        st.none(),
        st.lists(st.one_of(scalar, st.none()), max_size=3),
    ]
    if name != "b":
        choices.append(
            st.dictionaries(st.sampled_from(["gt", "gte", "lt", "lte"]), scalar, min_size=1, max_size=2)
        )
    if name == "s":
        choices.append(st.fixed_dictionaries({"glob": st.sampled_from(["*", "a*", "?", "[!a]*"])}))
    return st.one_of(choices)


FILTERS = st.lists(
    st.sets(st.sampled_from(sorted(TYPES)), max_size=2).flatmap(
        lambda names: st.fixed_dictionaries({name: conditions(name) for name in sorted(names)})
    ),
    max_size=3,
)


def raw_values(name: str) -> st.SearchStrategy[str | None]:
    rare = [GARBAGE[name]] if name in GARBAGE else []
    return st.sampled_from([*VALUES[name] * 3, "", None, *rare])


RAWS = st.fixed_dictionaries({name: raw_values(name) for name in TYPES})
MAYBE_RAWS = st.one_of(RAWS, st.fixed_dictionaries({}, optional={name: raw_values(name) for name in TYPES}))


def decided(grant: Grant, raws: Mapping[str, str | None]) -> bool:
    return decide(grant, partition(ALL, **raws), NOW) == ALLOWED


@given(FILTERS, MAYBE_RAWS)
def test_decisions_agree_with_the_naive_reading_of_the_grammar(
    filters: list[dict[str, Any]], raws: dict[str, str | None]
) -> None:
    grant = parse_filters(filters)
    check(grant, ALL)
    assert decided(grant, raws) == reference(filters, raws)
    assert (compile_grant(grant, ALL)(partition(ALL, **raws), NOW) == ALLOWED) == reference(filters, raws)


@given(FILTERS, FILTERS, MAYBE_RAWS)
def test_the_union_allows_what_either_allows(
    one: list[dict[str, Any]], other: list[dict[str, Any]], raws: dict[str, str | None]
) -> None:
    first, second = parse_filters(one), parse_filters(other)
    assert decided(first.union(second), raws) == (decided(first, raws) or decided(second, raws))
    assert first.union(second).fingerprint == second.union(first).fingerprint


@given(FILTERS.flatmap(lambda filters: st.tuples(st.just(filters), st.permutations(filters))), MAYBE_RAWS)
def test_the_order_of_the_alternatives_changes_nothing(
    orders: tuple[list[dict[str, Any]], list[dict[str, Any]]], raws: dict[str, str | None]
) -> None:
    one, other = map(parse_filters, orders)
    assert one.fingerprint == other.fingerprint
    assert decided(one, raws) == decided(other, raws)


@given(FILTERS, RAWS, st.sets(st.sampled_from(sorted(TYPES)), min_size=1))
def test_no_restricted_grant_allows_a_tuple_with_a_missing_value(
    filters: list[dict[str, Any]], raws: dict[str, str | None], missing: set[str]
) -> None:
    grant = parse_filters(filters)
    left = {name: raw for name, raw in raws.items() if name not in missing}
    assert decided(grant, left) == grant.is_everything


# The policy: whose grants count.

XLON, XETR = parse_filters([{"MIC": "XLON"}]), parse_filters([{"MIC": "XETR"}])


def user(**grants: Grant) -> Principal:
    return Principal("ada", frozenset({"desk"}), AuthKind.ANONYMOUS, grants)


def policy(everyone: Mapping[str, Grant] | None = None, *, closed: bool = False, named: str = "") -> Policy:
    return Policy(everyone or {}, closed, frozenset({"trades", "quotes"}), frozenset(named.split()))


def test_a_table_that_no_grant_names_is_open_unless_denied_by_default() -> None:
    assert policy().grant(ANONYMOUS, "trades") == EVERYTHING
    assert policy(closed=True).grant(ANONYMOUS, "trades") == NOTHING


def test_a_table_that_only_others_are_granted_is_closed() -> None:
    assert policy(named="trades").grant(user(), "trades") == NOTHING
    assert policy(named="trades").grant(ANONYMOUS, "trades") == NOTHING
    assert policy(named="trades").grant(user(), "quotes") == EVERYTHING


def test_an_unknown_table_is_nothing() -> None:
    assert policy().grant(ANONYMOUS, "secrets") == NOTHING
    assert policy({"secrets": EVERYTHING}).grant(user(secrets=EVERYTHING), "secrets") == NOTHING


def test_what_everyone_may_read_and_what_the_user_may_read_add_up() -> None:
    granted = policy({"trades": XLON}).grant(user(trades=XETR), "trades")
    assert decide(granted, trade("XLON", "2024-01-01"), NOW) == ALLOWED
    assert decide(granted, trade("XETR", "2024-01-01"), NOW) == ALLOWED
    assert decide(granted, trade("XPAR", "2024-01-01"), NOW) == Denied(Reason.NOT_GRANTED)


def test_a_user_without_a_grant_of_its_own_has_everyones() -> None:
    assert policy({"trades": XLON}).grant(user(quotes=XETR), "trades") == XLON


def test_a_user_with_a_grant_on_a_table_that_is_not_everyones_has_just_that() -> None:
    assert policy(named="trades").grant(user(trades=XETR), "trades") == XETR
    assert policy(closed=True).grant(user(trades=XETR), "trades") == XETR
    assert policy().grant(user(trades=XETR), "trades") == XETR


def test_nothing_for_everyone_closes_the_table_and_leaves_the_users_own_grant() -> None:
    assert policy({"trades": NOTHING}).grant(ANONYMOUS, "trades").is_nothing
    assert policy({"trades": NOTHING}).grant(user(trades=XETR), "trades") == XETR
    assert policy({"trades": XLON}).grant(user(trades=NOTHING), "trades") == XLON
    assert policy().grant(user(trades=NOTHING), "trades").is_nothing


def test_the_anonymous_principal_has_no_groups_and_no_grants() -> None:
    assert ANONYMOUS.id == "anonymous"
    assert not ANONYMOUS.groups
    assert not ANONYMOUS.grants
    assert ANONYMOUS.auth is AuthKind.ANONYMOUS


def test_the_grants_of_a_principal_cannot_be_changed_from_outside() -> None:
    grants = {"trades": XLON}
    principal = user(**grants)
    grants["trades"] = EVERYTHING
    frozen = Principal("ada", frozenset(), AuthKind.ANONYMOUS, grants)
    grants["quotes"] = EVERYTHING
    assert principal.grants == {"trades": XLON}
    assert frozen.grants == {"trades": EVERYTHING}
    assert hash(frozen) == hash(principal) or frozen != principal
