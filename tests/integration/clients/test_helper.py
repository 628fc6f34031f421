"""Clients that cannot follow a redirect read through the local helper bytes that come from the store."""

from __future__ import annotations

import hashlib
import os
import pathlib

import pytest

from delta_proxy.demo import PROXY_BUCKET
from tests.integration.servers import BUCKET, Store
from tests.integration.test_local_helper import figures, helper, started
from tests.integration.tools import Unavailable

from .programs import PROGRAMS, Program
from .runs import Step, job, run

SIZE = 256 * 1024 * 1024
KEY = "big/quarter"
NAMES = ("boto3 get_object", "Java v2: apache", "JavaScript v3")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hole(gateway_store: Store) -> str:
    """An object of 256 MiB that is a hole in the store's directory; its digest."""
    assert gateway_store.folder is not None
    gateway_store.boto3().put_object(Bucket=BUCKET, Key=KEY, Body=b"")
    os.truncate(gateway_store.folder / BUCKET / KEY, SIZE)
    digest = hashlib.sha256()
    for _ in range(SIZE // 2**20):
        digest.update(bytes(2**20))
    return digest.hexdigest()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "program", [each for each in PROGRAMS if each.name in NAMES], ids=lambda each: each.slug
)
def test_a_client_reads_through_the_helper_bytes_that_do_not_come_through_the_proxy(
    program: Program, gateway_store: Store, hole: str, tmp_path: pathlib.Path
) -> None:
    step = Step("whole", {"op": "read", "key": KEY}, {"length": SIZE, "sha256": hole})
    with started(gateway_store, tmp_path) as proxy, helper(tmp_path) as one:
        try:
            outcomes = run(program, [job("helper", proxy, PROXY_BUCKET, "path", [step])], one.url)
        except Unavailable as unavailable:
            pytest.skip(f"{program.name}: {unavailable}")
        assert outcomes["helper"] == [step.expected]
        sent, redirects = figures(proxy)
        assert redirects == 1
        assert sent < 10_000
