"""Requests as real clients signed them are accepted, and not when a byte of them differs.

tests/integration/clients/record.py wrote the fixture.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from delta_proxy.s3.errors import S3Error
from delta_proxy.s3.request import Addressing, S3Request, parse_request
from delta_proxy.s3.sigv4 import SigningKeys
from delta_proxy.s3.verify import verify
from tests.s3.wire import shown

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "recorded_requests.json").read_text())
KEYS = SigningKeys()


def parsed(recorded: dict[str, Any]) -> S3Request:
    pairs = (field.split(": ", 1) for field in recorded["fields"])
    fields = tuple((name.lower().encode(), value.encode("latin-1")) for name, value in pairs)
    target = recorded["target"].encode("latin-1")
    return parse_request(recorded["method"].encode(), target, fields, Addressing(RECORDED["bucket"]))


@pytest.mark.parametrize("client", RECORDED["clients"])
def test_what_a_client_signed_is_accepted(client: str) -> None:
    requests = RECORDED["clients"][client]
    assert requests
    for recorded in requests:
        request = parsed(recorded)
        found = shown(request)
        assert found.access_key == RECORDED["accessKey"]
        verify(request, found, RECORDED["secretKey"], now=found.moment, keys=KEYS)


@pytest.mark.parametrize("client", RECORDED["clients"])
def test_another_path_or_secret_is_refused(client: str) -> None:
    for recorded in RECORDED["clients"][client]:
        altered = recorded | {"target": recorded["target"].replace("/datalake", "/datalakes", 1)}
        for request, secret in ((parsed(altered), RECORDED["secretKey"]), (parsed(recorded), "wrong")):
            found = shown(request)
            with pytest.raises(S3Error, match="SignatureDoesNotMatch"):
                verify(request, found, secret, now=found.moment, keys=KEYS)
