"""Over the wire nothing hidden can be fetched: keys, ranges, listings, fields, errors, before two stores."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from delta_proxy.demo import PROXY_BUCKET
from tests.leaky import VECTORS, findings, leaky_table, listings

from .conftest import ProxyFor
from .raw import Answer, get, request
from .servers import BUCKET, Proxy, Store


@pytest.fixture(scope="module", params=["moto-presignedUrl", "versitygw-proxy"])
def leaky(request: pytest.FixtureRequest, proxy_for: ProxyFor) -> Proxy:
    """A proxy that grants one partition of the table with markers, and before a second copy nothing."""
    kind, _, get_mode = request.param.partition("-")
    store: Store = request.getfixturevalue("moto_store" if kind == "moto" else "gateway_store")
    for alias in ("leaky", "closed"):
        for path, body in leaky_table().items():
            store.boto3().put_object(Bucket=BUCKET, Key=f"leaks/{alias}/{path}", Body=body)
    return proxy_for(
        store,
        tableMapping={alias: f"s3://{BUCKET}/leaks/{alias}" for alias in ("leaky", "closed")},
        allowedPartitions={"leaky": [{"p": "green"}], "closed": []},
        getMode=get_mode,
        logView="filtered",
    )


def test_nothing_hidden_can_be_fetched(leaky: Proxy) -> None:
    def ask(method: str, target: str, headers: Mapping[str, str]) -> Answer:
        return request(leaky, method, target, headers)

    assert PROXY_BUCKET == "datalake"
    with ThreadPoolExecutor(16) as pool:
        assert list(findings(ask, "leaky", thorough=False, each=pool.map)) == []
        assert list(listings(ask, "leaky", len(leaky_table()), pool.map)) == []


def test_a_deletion_vector_file_shows_the_granted_vector_and_zeros(leaky: Proxy) -> None:
    whole = leaky_table()[VECTORS]
    assert get(leaky, f"leaky/{VECTORS}").body == whole[:25] + bytes(len(whole) - 25)
    assert get(leaky, f"leaky/{VECTORS}", {"Range": "bytes=20-30"}).body == whole[20:25] + bytes(6)


def test_to_whom_nothing_is_granted_no_data_file_exists(leaky: Proxy) -> None:
    outside = [path for path in leaky_table() if not path.startswith("_delta_log/")]
    assert {get(leaky, f"closed/{path}").status for path in outside} <= {403, 404}
    assert b"green" not in get(leaky, f"closed/_delta_log/{0:020d}.json").body
