"""The command line."""

from __future__ import annotations

import pathlib

import pytest

from delta_proxy.local_helper.main import UsageError, parse
from delta_proxy.local_helper.targets import Origin

NOTHING: dict[str, str] = {"HOME": "/home/somebody"}


def test_the_helper_serves_loopback_and_neither_signs_nor_reads_tls_unless_told() -> None:
    settings = parse([], NOTHING)
    assert (settings.port, settings.interface, settings.is_local) == (28080, "127.0.0.1", True)
    assert (settings.sign, settings.mitm, settings.endpoints) == (False, False, frozenset())


def test_an_interface_that_others_reach_is_told_apart() -> None:
    assert parse(["--interface", "::1"], NOTHING).is_local
    assert not parse(["--interface", "0.0.0.0"], NOTHING).is_local
    assert not parse(["--interface", ""], NOTHING).is_local


def test_endpoints_may_be_several() -> None:
    settings = parse(["--endpoint", "http://LocalHost:18080/", "--endpoint", "https://lake.example"], NOTHING)
    assert settings.endpoints == {Origin("http", "localhost", 18080), Origin("https", "lake.example", 443)}


@pytest.mark.parametrize(
    "url", ["localhost:18080", "ftp://h", "http://h/path", "http://h:0", "http://", "http://h?x"]
)
def test_an_endpoint_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="is no endpoint; expected"):
        parse(["--endpoint", url], NOTHING)


def test_signing_and_reading_tls_need_an_endpoint_they_are_for() -> None:
    with pytest.raises(UsageError, match="--sign needs --endpoint"):
        parse(["--sign"], NOTHING)
    with pytest.raises(UsageError, match="--mitm needs --endpoint https"):
        parse(["--mitm", "--endpoint", "http://localhost:18080"], NOTHING)


def test_the_authority_lies_where_data_of_programs_lies() -> None:
    settings = parse([], {"XDG_DATA_HOME": "/data"})
    assert settings.ca_directory == pathlib.Path("/data/delta-s3-proxy-local")
