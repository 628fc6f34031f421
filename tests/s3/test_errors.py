"""The errors of S3."""

from __future__ import annotations

import re

import pytest

from delta_proxy.s3 import errors
from delta_proxy.s3.errors import S3Error

FAMILY = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, S3Error)]


@pytest.mark.parametrize("error", FAMILY)
def test_every_error_has_a_code_a_status_and_words(error: type[S3Error]) -> None:
    assert re.fullmatch(r"[A-Za-z0-9]+", error.code)
    assert error.status == 304 or 400 <= error.status <= 503
    assert error().message == error.default_message
    assert str(error("words")) == f"{error.code}: words"


def test_codes_are_unique() -> None:
    codes = [error.code for error in FAMILY if error is not S3Error]
    assert len(set(codes)) == len(codes)


def test_the_fields_of_an_error_are_its_own() -> None:
    fields = {"Key": "a"}
    error = errors.NoSuchKey(fields=fields, headers=(("x-a", "b"),))
    fields["Key"] = "b"
    assert error.fields == {"Key": "a"}
    assert error.headers == (("x-a", "b"),)
