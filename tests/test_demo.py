"""The demo judges what it saw strictly, and its own numbers are those of the rows it writes."""

from __future__ import annotations

import json
import pathlib
import socket
import sys

import pyarrow.compute as pc
import pytest

from delta_proxy import demo

GRANTED = frozenset({"XLON", "XETR"})


def everything_right() -> dict[tuple[str, str], demo.Seen]:
    seen: dict[tuple[str, str], demo.Seen] = {("direct", mic): demo.expected(mic) for mic in demo.LISTINGS}
    for mic in demo.LISTINGS:
        seen["polars", mic] = demo.expected(mic) if mic in GRANTED else demo.REFUSED
    return seen


@pytest.mark.parametrize("mic", demo.LISTINGS)
def test_the_expected_numbers_are_those_of_the_rows_written(mic: str) -> None:
    rows = quantity = 0
    for day in range(demo.DAYS):
        table = demo.day_of_trades(day).filter(pc.field("MIC") == mic)
        rows += table.num_rows
        quantity += pc.sum(table["quantity"]).as_py()
    assert demo.Reading(rows, quantity) == demo.expected(mic)


def test_the_table_has_at_least_twelve_commits_and_some_after_its_checkpoint() -> None:
    assert demo.DAYS >= 12
    assert 0 < demo.CHECKPOINT_AT < demo.DAYS - 1


def test_nothing_is_wrong_when_the_rest_is_refused() -> None:
    assert demo.problems(GRANTED, everything_right()) == []


def test_nothing_is_wrong_when_the_rest_has_no_rows() -> None:
    assert demo.problems(GRANTED, everything_right() | {("polars", "XPAR"): demo.Reading(0, 0)}) == []


@pytest.mark.parametrize(
    ("where", "what"),
    [
        (("direct", "XPAR"), demo.REFUSED),
        (("polars", "XLON"), demo.REFUSED),
        (("polars", "XLON"), demo.Reading(1, 1)),
        (("polars", "XETR"), demo.Reading(demo.expected("XETR").rows, 1)),
        (("polars", "XMIL"), demo.Reading(1, 0)),
    ],
)
def test_a_wrong_number_is_named(where: tuple[str, str], what: demo.Seen) -> None:
    found = demo.problems(GRANTED, everything_right() | {where: what})
    assert len(found) == 1
    assert all(word in found[0] for word in where)


def test_the_table_shows_a_line_a_mic_and_a_column_a_client() -> None:
    lines = [line.split() for line in demo.render(everything_right()).splitlines()]
    assert lines == [
        ["MIC", "direct", "polars"],
        ["XLON", "931", "931"],
        ["XETR", "721", "721"],
        ["XPAR", "511", "denied"],
        ["XMIL", "301", "denied"],
    ]


@pytest.mark.parametrize(
    "message",
    [
        "HTTP 403 Forbidden",
        "<Code>AccessDenied</Code>",
        "AWS Error ACCESS_DENIED during HeadObject operation",
    ],
)
def test_a_403_is_a_refusal_in_every_clients_words(message: str) -> None:
    assert demo.is_refusal(message)


def test_a_failed_connection_is_no_refusal() -> None:
    assert not demo.is_refusal("Generic S3 error: error sending request: connection refused")


def test_an_error_that_is_no_refusal_is_not_taken_for_one() -> None:
    def broken(at: demo.Endpoint, mic: str) -> demo.Reading:
        raise RuntimeError(f"cannot reach {at.url} for {mic}")

    with pytest.raises(RuntimeError, match="cannot reach"):
        demo.look(broken, demo.Endpoint("http://localhost:1", "b", "r"), "XLON")


def test_a_port_that_is_taken_is_replaced_by_a_free_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert demo.free_port(port) not in (0, port)


def test_the_shipped_configuration_is_the_demos() -> None:
    path = pathlib.Path(__file__).parents[1] / "etc" / "config.json"
    setting = demo.Setting.of(path)
    assert setting.granted == GRANTED
    assert setting.store.uri.endswith(f"/{demo.ALIAS}")
    assert setting.environment["PROXY_STORAGE__ENDPOINT"] == setting.store.url


def test_the_environment_of_the_proxy_has_no_credentials_of_the_person_who_runs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "production")
    monkeypatch.setenv("PROXY_GET_MODE", "proxy")
    path = pathlib.Path(__file__).parents[1] / "etc" / "config.json"
    environment = demo.Setting.of(path).environment
    assert {"AWS_PROFILE", "PROXY_GET_MODE"}.isdisjoint(environment)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"storage": 1}'])
def test_a_configuration_that_is_not_the_demos_is_one_clear_line(tmp_path: pathlib.Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(demo.DemoError, match=r"config\.json is not a configuration for the demo"):
        demo.Setting.of(path)


def test_the_lines_to_paste_name_every_client() -> None:
    text = demo.paste_lines(demo.Endpoint("http://localhost:18080", "datalake", "eu-west-1"))
    assert all(name in text for name in ("polars", "deltalake", "duckdb", "boto3", "Spark"))
    assert json.dumps("s3://datalake/trades_plus") in text


def test_a_program_that_ends_before_it_is_ready_is_an_error_with_its_last_words(
    tmp_path: pathlib.Path,
) -> None:
    command = [sys.executable, "-c", "print('no luck'); raise SystemExit(3)"]
    with (
        pytest.raises(demo.DemoError, match=r"ended with status 3\nno luck"),
        demo.running(command, log=tmp_path / "log", env={}, ready=lambda: False),
    ):
        pass


def test_a_program_ends_with_the_block_that_runs_it(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    with demo.running(command, log=tmp_path / "log", env={}, ready=lambda: True) as child:
        assert child.poll() is None
    assert child.poll() is not None
