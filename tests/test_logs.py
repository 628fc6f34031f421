# mypy: allow-untyped-calls
from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.application.service import Application
from twisted.logger import ILogObserver, Logger, LogPublisher
from twisted.python.logfile import LogFile
from twisted.python.reflect import namedAny

from delta_proxy.logs import (
    _SCRUBBED,
    HIDDEN,
    READY,
    LogFormat,
    install,
    observer,
    redact_target,
    rotate,
    scrub,
)

SECRET = "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"


def test_the_values_of_presigned_secrets_are_blanked_and_the_rest_of_the_query_stays() -> None:
    target = (
        b"/datalake/t/a.parquet?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKID%2F20260101"
        b"&X-Amz-Security-Token=tok&X-Amz-Expires=300&X-Amz-Signature=abc"
    )
    assert redact_target(target) == (
        "/datalake/t/a.parquet?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=***"
        "&X-Amz-Security-Token=***&X-Amz-Expires=300&X-Amz-Signature=***"
    )


@pytest.mark.parametrize(
    "name",
    [
        "x-amz-signature",
        "X-AMZ-SIGNATURE",
        "X%2DAmz%2dSignature",
        "Signature",
        "AWSAccessKeyId",
        "WebIdentityToken",
    ],
)
def test_a_secret_parameter_is_known_however_it_is_spelled(name: str) -> None:
    assert redact_target(f"/?{name}=hush&a=b".encode()) == f"/?{name}=***&a=b"


def test_control_characters_spaces_and_raw_bytes_of_a_target_are_percent_encoded() -> None:
    assert redact_target(b"/a\r\nb\x00 \xc3\xa9?x=\x1b[31m") == "/a%0D%0Ab%00%20%C3%A9?x=%1B[31m"


def test_a_very_long_target_is_cut() -> None:
    assert len(redact_target(b"/" + b"a" * 100_000)) < 2100


def test_a_password_in_an_absolute_target_is_blanked() -> None:
    assert redact_target(b"http://ann:pw@host/b/k") == "http://***@host/b/k"


@given(st.binary(max_size=200))
def test_a_described_target_is_one_line_of_printable_ascii(target: bytes) -> None:
    assert all(" " < character <= "~" for character in redact_target(target))


@pytest.mark.parametrize(
    "text",
    [
        f"https://s3/b/k?X-Amz-Signature={SECRET}&x=1",
        f"Authorization: AWS4-HMAC-SHA256 Credential=AKID/2026/s3, SignedHeaders=host, Signature={SECRET}",
        f"Authorization: Bearer {SECRET}",
        f"{{'authorization': '{SECRET}'}}",
        f"(b'x-amz-security-token', b'{SECRET}')",
        f'{{"secretKey": "{SECRET}"}}',
        f"aws_secret_access_key = {SECRET}",
        f"AWS_SESSION_TOKEN={SECRET}",
    ],
)
def test_a_secret_is_blanked_wherever_it_stands(text: str) -> None:
    assert SECRET not in scrub(text)
    assert "***" in scrub(text)


_WORDS = (
    "X-Amz-Signature=",
    "\u017fecret: ",
    "Credential=",
    "awsaccesskeyid=",
    "session_token=",
    "TO\u212aEN",
    "a ",
)


@given(st.lists(st.one_of(st.sampled_from(_WORDS), st.text(max_size=8))))
def test_text_that_is_spared_the_search_for_secrets_holds_none(parts: list[str]) -> None:
    text = "".join(parts)
    searched = text
    for pattern in _SCRUBBED:
        searched = pattern.sub(rf"\1{HIDDEN}", searched)
    assert scrub(text) == searched


@given(st.text(max_size=100))
def test_ordinary_text_without_a_secret_keeps_its_length_in_lines(text: str) -> None:
    assert scrub(text).count("\n") == text.count("\n")


@pytest.mark.parametrize("style", list(LogFormat))
def test_a_finished_log_line_never_holds_a_secret_not_even_in_a_traceback(style: LogFormat) -> None:
    out = io.StringIO()
    log = Logger(observer=LogPublisher(observer(style, out)))
    log.info("asked {url}", url=f"/k?X-Amz-Signature={SECRET}")
    try:
        raise ValueError(f"cannot sign with Signature={SECRET}")
    except ValueError:
        log.failure("it failed")
    assert SECRET not in out.getvalue()
    assert "it failed" in out.getvalue()


def test_a_json_line_stays_json() -> None:
    out = io.StringIO()
    log = Logger(observer=LogPublisher(observer(LogFormat.JSON, out)))
    log.info("got {headers}", headers=f"Authorization: Bearer {SECRET}", status=200)
    event = json.loads(out.getvalue())
    assert event["status"] == 200
    assert event["level"] == "info"
    assert event["message"] == "got Authorization: ***"
    assert event["time"].endswith("+00:00")
    assert SECRET not in out.getvalue()


@pytest.mark.parametrize(
    ("table", "target"),
    [("authorization=\u00e9", "/"), ("t", "/datalake/t/authorization"), ("secret_key:\n", '/"secret_key"')],
)
def test_no_text_of_a_client_takes_a_json_line_apart(table: str, target: str) -> None:
    out = io.StringIO()
    log = Logger(observer=LogPublisher(observer(LogFormat.JSON, out)))
    log.info(READY, line=f"GET {target}", table=table, target=target, status=403, request_id="R")
    event = json.loads(out.getvalue())
    assert (event["status"], event["request_id"], event["target"]) == (403, "R", target)


def test_what_a_store_says_moves_no_cursor_and_begins_no_line() -> None:
    out = io.StringIO()
    log = Logger(observer=LogPublisher(observer(LogFormat.TEXT, out)))
    log.warn("the store answered {told}", told="no\r2026-11-22 [fake] all is well\x1b[2J\x85\u2028\nb\u00e9")
    assert out.getvalue().endswith(" no\\r2026-11-22 [fake] all is well\\x1b[2J\\x85\\u2028\n\tb\u00e9\n")


@pytest.mark.parametrize("value", [SECRET, f"Bearer {SECRET}", [SECRET], {"x": (1, SECRET)}, SECRET.encode()])
def test_a_field_that_is_named_as_a_secret_is_blanked_whatever_it_holds(value: object) -> None:
    out = io.StringIO()
    log = Logger(observer=LogPublisher(observer(LogFormat.JSON, out)))
    log.info("asked", authorization=value, headers=[("authorization", SECRET)], count=3)
    event = json.loads(out.getvalue())
    assert SECRET not in out.getvalue()
    assert event["count"] == 3


@pytest.mark.parametrize(
    "target",
    [
        b"/t/authorization:",
        b"/t/authorization=Bearer",
        b"/t?secret_key,",
        b"/t?Signature=",
        b"/authorization=",
    ],
)
def test_the_status_behind_a_target_that_announces_a_secret_is_told(target: bytes) -> None:
    out = io.StringIO()
    log = Logger(observer=LogPublisher(observer(LogFormat.TEXT, out)))
    log.info(READY, line=f"GET {redact_target(target)} 403 12B")
    assert out.getvalue().endswith(" 403 12B\n")


@pytest.mark.parametrize("style", list(LogFormat))
def test_a_finished_line_is_written_as_it_is_but_for_secrets_and_line_breaks(style: LogFormat) -> None:
    out = io.StringIO()
    log = Logger(namespace="spot", observer=LogPublisher(observer(style, out)))
    log.info(READY, line=f"GET /{{a}}?Signature={SECRET}\nb", status=200)
    written = out.getvalue()
    assert SECRET not in written
    assert "GET /{a}?Signature=***" in written
    assert written.count("\n") == 1 + (style is LogFormat.TEXT)
    assert style is LogFormat.JSON or re.fullmatch(r"[-0-9T:+]{24} \[spot#info\] GET .*\n\tb\n", written)


def test_twistd_takes_the_installed_observer_and_its_log_file(tmp_path: Path) -> None:
    application = Application("delta-s3-proxy")
    logfile = tmp_path / "proxy.log"
    file = install(application, LogFormat.JSON, str(logfile))
    installed = application.getComponent(ILogObserver)
    Logger(observer=LogPublisher(installed)).info("served {count}", count=3)
    assert json.loads(logfile.read_text())["count"] == 3
    assert file is not None
    file.rotate()
    Logger(observer=LogPublisher(installed)).info("served {count}", count=4)
    file.close()
    assert json.loads(logfile.read_text())["count"] == 4


def test_a_log_file_is_not_renamed_at_each_megabyte_as_twistds_own(tmp_path: Path) -> None:
    file = install(Application("delta-s3-proxy"), LogFormat.TEXT, str(tmp_path / "proxy.log"))
    assert file is not None
    file.write("x" * 2_000_000)
    file.write("more")
    file.close()
    assert [path.name for path in tmp_path.iterdir()] == ["proxy.log"]


def test_the_log_goes_on_under_its_name_whoever_moved_the_old_file_away(tmp_path: Path) -> None:
    file = LogFile.fromFullPath(str(tmp_path / "proxy.log"))
    file.write("first\n")
    (tmp_path / "proxy.log").rename(tmp_path / "proxy.log.old")
    rotate(file)
    file.write("second\n")
    rotate(file)
    file.write("third\n")
    file.close()
    texts = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert texts == {"proxy.log.old": "first\n", "proxy.log.1": "second\n", "proxy.log": "third\n"}


def test_twistd_can_be_told_to_log_json(capsys: pytest.CaptureFixture[str]) -> None:
    made = namedAny("delta_proxy.logs.json_lines")()
    Logger(observer=LogPublisher(made)).info("asked with {how}", how=f"Signature={SECRET}", count=3)
    written = capsys.readouterr().out
    assert json.loads(written)["count"] == 3
    assert SECRET not in written
