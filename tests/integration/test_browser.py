"""A page of another origin reads through the proxy in headless Chromium, with the AWS SDK for JavaScript.

The page is bundled from npm's packages (`browser/tools.py`). It tells what it saw to the server that it
came from.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib
import queue
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import attrs
import pyarrow.parquet as pq
import pytest

from delta_proxy.demo import PROXY_BUCKET
from tests.waiting import PATIENCE, wait_until

from . import servers
from .browser.tools import BUNDLE
from .conftest import GRANTED, TRADES, trades_settings, write_trades
from .raw import request
from .servers import BUCKET, REGION, Proxy, Store
from .test_clients import keys_of
from .tools import Unavailable

READER, READER_SECRET = "READERKEY", "reader-secret"
HTML = b'<!doctype html><meta charset="utf-8"><script type="module" src="/page.js"></script>'
STORE_RULES = {
    "CORSRules": [
        {
            "AllowedOrigins": ["*"],
            "AllowedMethods": ["GET"],
            "AllowedHeaders": ["*"],
            "ExposeHeaders": ["ETag", "Content-Range"],
        }
    ]
}
CHROMIUM_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not on the PATH"),
]


@pytest.fixture(scope="module")
def bundle() -> bytes:
    """The page's script with the SDK in it."""
    try:
        return (BUNDLE.ready() / "out.js").read_bytes()
    except Unavailable as unavailable:
        pytest.skip(f"the page: {unavailable}")


@attrs.frozen
class Page:
    """A server of the page, the plan it gives, and where what the page saw arrives."""

    origin: str
    plan: dict[str, Any]
    results: queue.SimpleQueue[dict[str, Any]]


@contextlib.contextmanager
def serving(bundle: bytes) -> Iterator[Page]:
    """A server of the page."""
    plan: dict[str, Any] = {}
    results: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    files = {"/": ("text/html", HTML), "/page.js": ("text/javascript", bundle)}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told = ("application/json", json.dumps(plan).encode())
            kind, content = told if self.path == "/plan" else files.get(self.path, ("", b""))
            self.send_response(200 if kind else 404)
            self.send_header("Content-Type", kind or "text/plain")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self) -> None:
            results.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Nothing: what matters is in the result."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield Page(f"http://127.0.0.1:{server.server_address[1]}", plan, results)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def looked_at(page: Page, folder: pathlib.Path) -> dict[str, Any]:
    """What the page saw when Chromium opened it."""
    command = [shutil.which("chromium") or "", *CHROMIUM_OPTIONS, f"--user-data-dir={folder / 'profile'}"]
    log = folder / "chromium.log"
    env = servers.clean_environment(HOME=str(folder), XDG_RUNTIME_DIR=str(folder))
    with log.open("wb") as output:
        browser = subprocess.Popen(
            [*command, f"{page.origin}/"], stdout=output, stderr=output, env=env, start_new_session=True
        )
        try:
            return page.results.get(timeout=PATIENCE)
        except queue.Empty:
            pytest.fail(f"the page told nothing: {log.read_text(errors='replace')[-2000:]}")
        finally:
            # Its children are in its group, which the test made.
            os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()


@pytest.fixture(scope="module")
def browsed_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store of its own, since its rules for browsers are the bucket's."""
    binary = servers.versitygw_path()
    if binary is None:
        pytest.skip("versitygw is not built: bin/test builds it where Go is installed")
    with servers.versitygw(tmp_path_factory.mktemp("browsed"), binary) as store:
        write_trades(store)
        store.boto3().put_bucket_cors(Bucket=BUCKET, CORSConfiguration=STORE_RULES)
        yield store


def rules(origin: str) -> list[dict[str, Any]]:
    """Rules that let pages of the origin read."""
    return [
        {
            "allowedOrigins": [origin],
            "allowedMethods": ["GET", "HEAD"],
            "allowedHeaders": ["*"],
            "exposeHeaders": ["ETag", "x-amz-request-id"],
            "maxAgeSeconds": 60,
        }
    ]


@contextlib.contextmanager
def started(store: Store, folder: pathlib.Path, get_mode: str, cors: list[dict[str, Any]]) -> Iterator[Proxy]:
    """A proxy with one user, who is granted two of the MICs."""
    users = {"reader": {"accessKey": READER, "secretKey": READER_SECRET}}
    settings = {**trades_settings(get_mode), "users": users, "logView": "filtered", "cors": cors}
    with servers.proxy(store, servers.configuration(store, **settings), folder) as proxy:
        yield proxy


def plan_for(proxy: Proxy, store: Store) -> dict[str, Any]:
    """What the page is to read."""
    return {
        "endpoint": proxy.url,
        "bucket": PROXY_BUCKET,
        "region": REGION,
        "accessKey": READER,
        "secretKey": READER_SECRET,
        "prefix": f"{TRADES}/MIC=",
        "granted": f"{TRADES}/{keys_of(store, 'XLON')[0]}",
        "denied": f"{TRADES}/{keys_of(store, 'XPAR')[0]}",
        "absent": f"{TRADES}/absent.parquet",
    }


def expected_rows(store: Store, plan: dict[str, Any]) -> dict[str, int]:
    """Rows and their sum in the granted file, by the store's own word."""
    key = plan["granted"]
    data = store.boto3().get_object(Bucket=BUCKET, Key=key)["Body"].read()
    quantities = pq.read_table(io.BytesIO(data), columns=["quantity"])["quantity"].to_pylist()
    return {"rows": len(quantities), "quantity": sum(quantities)}


@pytest.mark.parametrize("get_mode", ["presignedUrl", "proxy"])
def test_a_page_reads_what_it_was_granted(
    browsed_store: Store, bundle: bytes, get_mode: str, tmp_path: pathlib.Path
) -> None:
    before = len(browsed_store.requests())
    with (
        serving(bundle) as page,
        started(browsed_store, tmp_path, get_mode, rules(page.origin)) as proxy,
    ):
        page.plan.update(plan_for(proxy, browsed_store))
        seen = looked_at(page, tmp_path)
    assert seen["granted"] == {"value": expected_rows(browsed_store, page.plan)}
    assert seen["magic"] == {"value": "PAR1"}
    assert seen["denied"] == {"error": "AccessDenied", "status": 403}
    assert seen["absent"] == {"error": "NoSuchKey", "status": 404}
    listed = seen["listed"]["value"]
    assert {key.split("/")[1] for key in listed} == {f"MIC={mic}" for mic in GRANTED}
    presigned = [
        line
        for line in browsed_store.requests()[before:]
        if "s3_GetObject" in line and "X-Amz-Signature=" in line and "Mozilla" in line
    ]
    assert bool(presigned) is (get_mode == "presignedUrl")


def test_a_page_that_no_rule_names_reads_nothing_until_a_reload_names_it(
    browsed_store: Store, bundle: bytes, tmp_path: pathlib.Path
) -> None:
    with (
        serving(bundle) as page,
        started(browsed_store, tmp_path, "proxy", rules("https://other.example")) as proxy,
    ):
        page.plan.update(plan_for(proxy, browsed_store))
        seen = looked_at(page, tmp_path)
        assert all("error" in each and each["status"] is None for each in seen.values())
        config = tmp_path / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "cors": rules(page.origin)}))
        os.kill(proxy.pid, signal.SIGHUP)
        asking = {"Origin": page.origin, "Access-Control-Request-Method": "GET"}
        wait_until(lambda: request(proxy, "OPTIONS", "/", asking).status == 200)
        seen = looked_at(page, tmp_path)
    assert seen["magic"] == {"value": "PAR1"}
