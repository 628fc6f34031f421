"""A Parquet checkpoint as a grant sees it."""

from __future__ import annotations

import errno
import pathlib
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from delta_proxy.delta import checkpoints
from delta_proxy.delta.view_grant import StaleIndex, ViewError

from .support import (
    CHECKPOINT_SCHEMA,
    COLUMNS,
    PROTOCOL,
    add,
    adds_of,
    checkpoint_rows,
    grant,
    has,
    metadata,
    remove,
    rewritten,
    write_checkpoint,
)

GREEN = {"p": "green"}
RED = {"p": "red"}
HEAD: list[dict[str, Any]] = [{"protocol": PROTOCOL}, {"metaData": metadata()}]


def with_add_field(name: str, kind: pa.DataType) -> pa.Schema:
    fields = [*CHECKPOINT_SCHEMA.field("add").type, pa.field(name, kind)]
    place = CHECKPOINT_SCHEMA.get_field_index("add")
    return CHECKPOINT_SCHEMA.set(place, pa.field("add", pa.struct(fields)))


def test_granted_adds_stay_and_denied_ones_go(tmp_path: pathlib.Path) -> None:
    rows = [*HEAD, {"add": add("a", GREEN, tags={"k": "v"})}, {"add": add("b", RED)}, {"add": add("c", {})}]
    source = write_checkpoint(tmp_path / "c.parquet", rows)
    view = checkpoint_rows(rewritten(tmp_path, source, grant()))
    assert [next(iter(row)) for row in view] == ["protocol", "metaData", "add"]
    assert view[2] == checkpoint_rows(source)[2]


def test_tombstones_transactions_and_foreign_domains_go(tmp_path: pathlib.Path) -> None:
    rows = [
        *HEAD,
        {"remove": remove("r", GREEN)},
        {"txn": {"appId": "t", "version": 1}},
        {"domainMetadata": {"domain": "mine", "configuration": "{}", "removed": False}},
        {"domainMetadata": {"domain": "delta.clustering", "configuration": "{}", "removed": False}},
        {"domainMetadata": {"domain": "delta.rowTracking", "configuration": "{}", "removed": False}},
    ]
    view = checkpoint_rows(rewritten(tmp_path, write_checkpoint(tmp_path / "c.parquet", rows), grant()))
    assert [next(iter(row)) for row in view] == ["protocol", "metaData", "domainMetadata", "domainMetadata"]
    assert {row["domainMetadata"]["domain"] for row in view[2:]} == {"delta.clustering", "delta.rowTracking"}


def test_tags_of_the_checkpoint_and_its_sidecars_go(tmp_path: pathlib.Path) -> None:
    sidecar = {"path": "s.parquet", "sizeInBytes": 9, "modificationTime": 8}
    rows = [
        *HEAD,
        {"checkpointMetadata": {"version": 3, "tags": {"a": "b"}}},
        {"sidecar": {**sidecar, "tags": {"a": "b"}}},
    ]
    source = write_checkpoint(tmp_path / "c.parquet", rows)
    view = checkpoint_rows(rewritten(tmp_path, source, grant()))
    assert view[2:] == [
        {"checkpointMetadata": {"version": 3, "tags": None}},
        {"sidecar": {**sidecar, "tags": None}},
    ]
    assert checkpoints.read_manifest(source) == checkpoints.Manifest(COLUMNS, ("s.parquet",))


def test_an_action_that_is_not_known_goes(tmp_path: pathlib.Path) -> None:
    schema = CHECKPOINT_SCHEMA.append(pa.field("news", pa.struct({"text": pa.string()})))
    rows = [*HEAD, {"news": {"text": "x"}}, {"add": add("a", GREEN), "news": {"text": "y"}}]
    view = rewritten(tmp_path, write_checkpoint(tmp_path / "c.parquet", rows, schema), grant())
    assert "news" in pq.read_schema(view).names
    assert [next(iter(row)) for row in checkpoint_rows(view)] == ["protocol", "metaData", "add"]


def test_a_path_that_once_had_a_denied_value_stays_denied(tmp_path: pathlib.Path) -> None:
    rows = [*HEAD, {"add": add("a", GREEN)}, {"add": add("b", GREEN)}]
    source = write_checkpoint(tmp_path / "c.parquet", rows)
    assert adds_of(rewritten(tmp_path, source, grant(denied=["b"]))) == ["a"]


def test_a_granted_file_that_the_index_does_not_know_is_no_answer_yet(tmp_path: pathlib.Path) -> None:
    rows = [*HEAD, {"add": add("a", GREEN)}, {"add": add("b", RED)}]
    source = write_checkpoint(tmp_path / "c.parquet", rows)
    with pytest.raises(StaleIndex):
        rewritten(tmp_path, source, grant(unknown=["a"]))
    assert adds_of(rewritten(tmp_path, source, grant(unknown=["b"]))) == ["a"]


def test_a_checkpoint_is_judged_by_its_own_metadata(tmp_path: pathlib.Path) -> None:
    rows = [{"add": add("a", {"q": "green"})}, {"add": add("b", {"q": "red"})}, {"metaData": metadata(["q"])}]
    source = write_checkpoint(tmp_path / "c.parquet", rows)

    def by_q(values: Any) -> bool:
        return [column.name for column in values.columns] == ["q"] and dict(values.values)["q"] == "green"

    assert adds_of(rewritten(tmp_path, source, grant(by_q, columns=COLUMNS))) == ["a"]


def test_a_sidecar_is_judged_by_the_metadata_in_force(tmp_path: pathlib.Path) -> None:
    schema = pa.schema([CHECKPOINT_SCHEMA.field("add"), CHECKPOINT_SCHEMA.field("remove")])
    rows = [{"add": add("a", GREEN)}, {"add": add("b", RED)}, {"remove": remove("c")}]
    source = write_checkpoint(tmp_path / "c.parquet", rows, schema)
    assert adds_of(rewritten(tmp_path, source, grant(columns=COLUMNS))) == ["a"]
    with pytest.raises(ViewError, match="metaData"):
        rewritten(tmp_path, source, grant(columns=None))


def test_values_are_read_whatever_their_number_and_order(tmp_path: pathlib.Path) -> None:
    wanted = {"p": "green", "q": None}
    values: list[dict[str, str | None]] = [
        {"p": "green", "q": None},
        {"q": None, "p": "green"},
        {"p": "green"},
        {"q": "green", "p": None},
        {"p": "green", "q": ""},
        {"p": "green", "q": "green"},
        {"p": None, "q": "green"},
        {"p": "green", "q": None, "r": "x"},
        {},
    ]
    rows = [{"metaData": metadata(["p", "q"])}]
    rows += [{"add": add(f"f{number}", each)} for number, each in enumerate(values)]
    source = write_checkpoint(tmp_path / "c.parquet", rows)
    exactly = grant(lambda found: dict(found.values) == wanted)
    assert adds_of(rewritten(tmp_path, source, exactly)) == ["f0", "f1"]


def test_a_hundred_partition_columns_are_told_apart(tmp_path: pathlib.Path) -> None:
    names = [f"c{number}" for number in range(100)]
    rows: list[dict[str, Any]] = [{"metaData": metadata(names)}]
    for number in range(300):
        values = {name: f"{place}-{number % 7 if place % 2 else number}" for place, name in enumerate(names)}
        rows.append({"add": add(f"f{number}", values)})
    source = write_checkpoint(tmp_path / "c.parquet", rows)
    view = rewritten(tmp_path, source, grant(has(c99="99-3", c1="1-3")))
    assert adds_of(view) == [f"f{number}" for number in range(300) if number % 7 == 3]


def test_the_policy_is_asked_once_for_each_combination_of_values(tmp_path: pathlib.Path) -> None:
    asked: list[Any] = []

    def permits(values: Any) -> bool:
        asked.append(dict(values.values)["p"])
        return True

    rows = [*HEAD, *({"add": add(str(number), {"p": str(number % 3)})} for number in range(70_000))]
    rewritten(tmp_path, write_checkpoint(tmp_path / "c.parquet", rows), grant(permits))
    assert sorted(asked) == ["0", "1", "2"]


def test_a_key_twice_in_the_values_closes_the_file(tmp_path: pathlib.Path) -> None:
    rows: list[dict[str, Any]] = [
        *HEAD,
        {"add": {**add("a", {}), "partitionValues": [("p", "red"), ("p", "green")]}},
    ]
    with pytest.raises(ViewError, match="twice"):
        rewritten(tmp_path, write_checkpoint(tmp_path / "c.parquet", rows), grant())


def test_two_actions_in_a_row_close_the_file(tmp_path: pathlib.Path) -> None:
    rows = [*HEAD, {"add": add("a", GREEN), "remove": remove("b")}]
    with pytest.raises(ViewError, match="more than one action"):
        rewritten(tmp_path, write_checkpoint(tmp_path / "c.parquet", rows), grant())


def test_two_metadata_actions_close_the_file(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ViewError, match="two metaData"):
        rewritten(tmp_path, write_checkpoint(tmp_path / "c.parquet", [*HEAD, *HEAD]), grant())


def test_an_unknown_reader_feature_closes_the_file(tmp_path: pathlib.Path) -> None:
    protocol = {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": ["fromTheFuture"]}
    with pytest.raises(ViewError, match="feature"):
        rewritten(tmp_path, write_checkpoint(tmp_path / "c.parquet", [{"protocol": protocol}]), grant())


@pytest.mark.parametrize("content", [b"", b"PAR1", b"nonsense" * 100])
def test_what_is_no_parquet_closes_the_file(tmp_path: pathlib.Path, content: bytes) -> None:
    source = tmp_path / "c.parquet"
    source.write_bytes(content)
    with pytest.raises(ViewError):
        checkpoints.rewrite(source, tmp_path / "view.parquet", grant())
    with pytest.raises(ViewError):
        checkpoints.read_manifest(source)


def test_a_struct_that_is_there_but_empty_is_no_action(tmp_path: pathlib.Path) -> None:
    rows = [*HEAD, {"add": add("a", GREEN), "remove": {"path": None}}, {"add": {"path": None}}]
    view = rewritten(tmp_path, write_checkpoint(tmp_path / "c.parquet", rows), grant())
    assert [next(iter(row)) for row in checkpoint_rows(view)] == ["protocol", "metaData", "add"]


def test_a_checkpoint_of_which_nothing_is_left_keeps_its_schema(tmp_path: pathlib.Path) -> None:
    schema = pa.schema([CHECKPOINT_SCHEMA.field("add")])
    source = write_checkpoint(tmp_path / "c.parquet", [{"add": add("a", RED)}] * 50, schema)
    view = rewritten(tmp_path, source, grant(columns=COLUMNS))
    assert pq.read_table(view).num_rows == 0
    assert pq.read_schema(view).equals(schema)


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path: pathlib.Path) -> None:
    rows = [*HEAD, *({"add": add(str(number), GREEN)} for number in range(500))]
    source = write_checkpoint(tmp_path / "c.parquet", rows)
    once = rewritten(tmp_path, source, grant()).read_bytes()
    assert rewritten(tmp_path, source, grant()).read_bytes() == once


def test_the_schema_of_structured_statistics_is_kept(tmp_path: pathlib.Path) -> None:
    parsed = pa.struct(
        {
            "numRecords": pa.int64(),
            "minValues": pa.struct(
                {"d": pa.decimal128(9, 2), "t": pa.timestamp("us", "UTC"), "n": pa.timestamp("us")}
            ),
            "nullCount": pa.struct({"d": pa.int64()}),
        }
    )
    schema = with_add_field("stats_parsed", parsed)
    rows = [*HEAD, {"add": {**add("a", GREEN), "stats_parsed": {"numRecords": 4, "minValues": {"d": None}}}}]
    source = write_checkpoint(tmp_path / "c.parquet", rows, schema)
    view = rewritten(tmp_path, source, grant())
    assert (
        str(pq.ParquetFile(view).schema).splitlines()[1:]
        == str(pq.ParquetFile(source).schema).splitlines()[1:]
    )
    assert checkpoint_rows(view) == checkpoint_rows(source)


def test_int96_timestamps_become_instants_in_utc_even_beyond_nanoseconds(tmp_path: pathlib.Path) -> None:
    schema = with_add_field("stats_parsed", pa.struct({"t": pa.timestamp("us")}))
    last = datetime(9999, 12, 31, 23, 59, 59)  # noqa: DTZ001
    rows = [*HEAD, {"add": {**add("a", GREEN), "stats_parsed": {"t": last}}}]
    source = write_checkpoint(tmp_path / "c.parquet", rows, schema, use_deprecated_int96_timestamps=True)
    assert "int96" in str(pq.ParquetFile(source).schema)
    view = rewritten(tmp_path, source, grant())
    kinds = pq.read_schema(view).field("add").type.field("stats_parsed").type
    assert kinds == pa.struct({"t": pa.timestamp("us", "UTC")})
    assert checkpoint_rows(view)[2]["add"]["stats_parsed"]["t"] == last.replace(tzinfo=UTC)


def test_dictionaries_are_made_anew(tmp_path: pathlib.Path) -> None:
    schema = with_add_field("kind", pa.dictionary(pa.int32(), pa.string()))
    rows = [*HEAD, {"add": add("a", GREEN, kind="seen")}, {"add": add("b", RED, kind="unseen")}]
    source = write_checkpoint(tmp_path / "c.parquet", rows, schema, store_schema=True, compression="none")
    view = pq.read_table(rewritten(tmp_path, source, grant()))
    assert view.schema.field("add").type.field("kind").type == pa.string()


def test_footer_keys_are_kept_only_when_readers_need_them(tmp_path: pathlib.Path) -> None:
    keys = {
        "org.apache.spark.version": "3.5.1",
        "org.apache.spark.legacyDateTime": "x" * 100,
        "org.apache.spark.sql.parquet.row.metadata": "{}",
        "mine": "secret",
    }
    source = write_checkpoint(
        tmp_path / "c.parquet", HEAD, CHECKPOINT_SCHEMA.with_metadata(keys), store_schema=True
    )
    view = rewritten(tmp_path, source, grant())
    assert pq.ParquetFile(view).metadata.metadata == {b"org.apache.spark.version": b"3.5.1"}


def test_a_rewritten_checkpoint_that_is_too_large_gives_up_statistics(tmp_path: pathlib.Path) -> None:
    rows = [*HEAD, *({"add": add(f"{number:x}", GREEN, stats="z" * number)} for number in range(300))]
    source = write_checkpoint(
        tmp_path / "c.parquet", rows, compression="zstd", compression_level=22, write_statistics=False
    )
    view = rewritten(tmp_path, source, grant())
    assert len(adds_of(view)) == 300


def test_a_checkpoint_that_cannot_fit_its_size_closes_the_file(tmp_path: pathlib.Path) -> None:
    schema = pa.schema(
        [
            CHECKPOINT_SCHEMA.field("add").with_type(
                pa.struct([("path", pa.string()), ("partitionValues", pa.map_(pa.string(), pa.string()))])
            )
        ]
    )
    source = write_checkpoint(
        tmp_path / "c.parquet",
        [{"add": {"path": "a", "partitionValues": GREEN}}],
        schema,
        compression="none",
        write_statistics=False,
        use_dictionary=False,
    )
    with pytest.raises(ViewError, match="fit"):
        rewritten(tmp_path, source, grant(columns=COLUMNS))


def test_the_footer_follows_the_padding(tmp_path: pathlib.Path) -> None:
    rows = [*HEAD, *({"add": add(str(number), RED, stats=str(number) * 50)} for number in range(5000))]
    source = write_checkpoint(tmp_path / "c.parquet", rows)
    target = tmp_path / "view.parquet"
    written = checkpoints.rewrite(source, target, grant())
    assert (written.rows, written.adds) == (2, 0)
    assert bytes(written.padding) in target.read_bytes()
    assert target.read_bytes().endswith(b"PAR1")


def test_many_batches_make_few_row_groups(tmp_path: pathlib.Path) -> None:
    rows = [
        *HEAD,
        *({"add": add(str(number), GREEN if number % 10 == 0 else RED)} for number in range(140_000)),
    ]
    source = write_checkpoint(tmp_path / "c.parquet", rows)
    view = rewritten(tmp_path, source, grant())
    assert pq.ParquetFile(view).metadata.num_row_groups == 1
    assert adds_of(view) == [str(number) for number in range(0, 140_000, 10)]


def test_how_many_rows_were_dropped_does_not_show_in_the_layout(tmp_path: pathlib.Path) -> None:
    adds = {
        color: [{"add": add(f"{color}{n}", {"p": color}, stats=f"{n * 7919:x}")} for n in range(1000)]
        for color in ("green", "red")
    }
    rows = [*HEAD, *adds["green"], *adds["red"]]
    table = pq.read_table(write_checkpoint(tmp_path / "rows.parquet", rows))
    head, green, red = table[:2], table[2:1002], table[1002:]

    def view(*between: pa.Table) -> bytes:
        source, target = tmp_path / "c.parquet", tmp_path / "view.parquet"
        pq.write_table(pa.concat_tables([head, *[green, *between] * 70]), source, store_schema=False)
        padding = checkpoints.rewrite(source, target, grant()).padding
        body = target.read_bytes()
        footer = len(body) - 8 - int.from_bytes(body[-8:-4], "little")
        return body[: footer - padding] + body[footer:]

    assert view() == view(red[:7]) == view(red[:300], red) == view(red, red, red)


def test_a_full_disk_is_no_fault_of_the_checkpoint(tmp_path: pathlib.Path) -> None:
    source = write_checkpoint(tmp_path / "c.parquet", [*HEAD, {"add": add("a", GREEN)}])
    with pytest.raises(OSError) as full:  # noqa: PT011 - the number tells
        checkpoints.rewrite(source, pathlib.Path("/dev/full"), grant())
    assert full.value.errno == errno.ENOSPC


def test_a_checkpoint_that_the_machine_cannot_open_is_not_called_unreadable(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError):
        checkpoints.read_manifest(tmp_path / "evicted.parquet")
