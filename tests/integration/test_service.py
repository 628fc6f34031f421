"""The program itself: how it starts, refuses to start, runs in the background, and ends."""

from __future__ import annotations

import http.client
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import urllib.request
from functools import partial

import pytest

from delta_proxy.demo import answers, script
from tests.ports import free_port
from tests.waiting import PATIENCE, wait_until

from . import servers
from .conftest import TRADES, ProxyFor, trades_settings
from .raw import get, quoted, request
from .servers import BUCKET, ROOT, Store

slow = partial(pytest.param, marks=pytest.mark.slow)
GOOD = {"tableMapping": {"t": "s3://warehouse/t"}, "storage": {"endpoint": "http://127.0.0.1:9"}}


def twistd(config: pathlib.Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the proxy in the foreground with a configuration that must not start."""
    env = servers.clean_environment(**environment)
    return servers.run(servers.proxy_command(config), env=env, cwd=config.parent)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"tableMapping": {"t": "s3://b/t"},\n  "port": 1,,\n}', r"line 2.*column"),
        slow("{}", r"tableMapping"),
        slow(json.dumps({**GOOD, "tabelMapping": {}}), r"tabelMapping"),
        slow(json.dumps({**GOOD, "port": "eighty"}), r"port"),
        slow(json.dumps({**GOOD, "tableMapping": {"t": "https://b/t"}}), r"tableMapping.*s3://"),
        slow(json.dumps({**GOOD, "port": 18080, "metricsPort": 18080}), r"metricsPort"),
    ],
)
def test_a_bad_configuration_is_one_clear_line_and_a_failure(
    tmp_path: pathlib.Path, text: str, says: str
) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    done = twistd(path)
    output = (done.stdout + done.stderr).strip()
    assert done.returncode != 0
    assert len(output.splitlines()) == 1, output
    assert re.search(says, output), output


@pytest.mark.slow
def test_a_configuration_that_is_not_there_is_one_clear_line_and_a_failure(tmp_path: pathlib.Path) -> None:
    done = twistd(tmp_path / "none.json")
    output = (done.stdout + done.stderr).strip()
    assert done.returncode != 0
    assert len(output.splitlines()) == 1, output
    assert "none.json" in output


@pytest.mark.parametrize(("name", "value"), [("PROXY_PORT", "x"), slow("PROXY_NO_SUCH_KEY", "1")])
def test_a_bad_override_in_the_environment_is_one_clear_line_and_a_failure(
    tmp_path: pathlib.Path, name: str, value: str
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(GOOD))
    done = twistd(path, **{name: value})
    output = (done.stdout + done.stderr).strip()
    assert done.returncode != 0
    assert len(output.splitlines()) == 1, output
    assert name in output


def test_a_port_that_is_taken_is_one_clear_line_and_a_failure(
    moto_store: Store, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "config.json"
    port = int(moto_store.netloc.partition(":")[2])
    path.write_text(json.dumps({**GOOD, "port": port, "cache": {"directory": str(tmp_path / "cache")}}))
    done = twistd(path)
    output = (done.stdout + done.stderr).strip()
    assert done.returncode != 0
    assert len(output.splitlines()) == 1, output
    assert f"port: cannot listen on port {port} of 127.0.0.1" in output


def test_a_policy_about_a_column_that_is_no_partition_column_is_an_error_at_start(
    moto_store: Store, tmp_path: pathlib.Path
) -> None:
    settings = {**trades_settings("proxy"), "allowedPartitions": {TRADES: [{"ISIN": "GB0005405286"}]}}
    path, _, _ = servers.write_configuration(servers.configuration(moto_store, **settings), tmp_path)
    done = servers.run(servers.proxy_command(path), env=servers.proxy_environment(moto_store), cwd=tmp_path)
    assert done.returncode != 0
    assert "ISIN" in done.stdout + done.stderr


def test_the_start_says_that_log_contents_are_not_filtered(moto_store: Store, proxy_for: ProxyFor) -> None:
    proxy = proxy_for(moto_store, **trades_settings("presignedUrl"))
    assert re.search(r"(?i)not( yet)? filtered|passthrough", proxy.log.read_text())


def test_the_ports_of_the_environment_win(moto_store: Store, tmp_path: pathlib.Path) -> None:
    config = servers.configuration(moto_store, **trades_settings("presignedUrl"))
    path, _, _ = servers.write_configuration(config, tmp_path)
    port, metrics_port = free_port(), free_port()
    env = {
        **servers.proxy_environment(moto_store),
        "PROXY_PORT": str(port),
        "PROXY_METRICSPORT": str(metrics_port),
    }
    with servers.proxy_process(path, metrics_port, tmp_path, env):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        connection.request("HEAD", "/datalake")
        assert connection.getresponse().status == 200
        connection.close()


def test_the_metrics_hold_the_five_figures_and_count_what_was_asked(
    moto_store: Store, proxy_for: ProxyFor
) -> None:
    proxy = proxy_for(moto_store, **trades_settings("presignedUrl"))

    def figures() -> dict[str, float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{proxy.metrics_port}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    before = figures()
    get(proxy, f"{TRADES}/_delta_log/_last_checkpoint")
    after = figures()
    assert after["queries_served_total"] > before["queries_served_total"]
    assert {
        "queries_proxied_total",
        "unique_users_last_minute",
        "backend_reply_latency_seconds_avg",
        "average_message_size_bytes",
    } <= set(after)


def test_it_runs_in_the_background_and_ends_at_sigterm(moto_store: Store, tmp_path: pathlib.Path) -> None:
    config = servers.configuration(moto_store, **trades_settings("presignedUrl"))
    path, _, metrics_port = servers.write_configuration(config, tmp_path)
    pidfile, log = tmp_path / "proxy.pid", tmp_path / "proxy.log"
    command = servers.proxy_command(path, f"--pidfile={pidfile}", f"--logfile={log}")
    started = servers.run(command, env=servers.proxy_environment(moto_store), cwd=tmp_path)
    assert started.returncode == 0, started.stderr
    wait_until(pidfile.exists)
    pid = int(pidfile.read_text())
    rotated = tmp_path / "proxy.log.1"
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{metrics_port}/health/ready"))
        os.kill(pid, signal.SIGUSR1)
        wait_until(rotated.exists)
    finally:
        servers.stop(pid)
    wait_until(lambda: servers.ended(pid))
    assert not pidfile.exists()
    assert "starting up" in rotated.read_text()
    assert "Traceback" not in rotated.read_text() + log.read_text()


def test_the_log_of_the_running_proxy_is_scrubbed(moto_store: Store, proxy_for: ProxyFor) -> None:
    proxy = proxy_for(moto_store, **trades_settings("presignedUrl"))
    request(proxy, "GET", "/datalake/Signature=hush-hush")
    wait_until(lambda: "GET /datalake/Signature=" in proxy.log.read_text())
    assert "Signature=***" in proxy.log.read_text()
    assert "hush-hush" not in proxy.log.read_text()


def test_sigterm_drains_what_is_in_flight_and_exits_with_0(
    gateway_store: Store, tmp_path: pathlib.Path
) -> None:
    size = 64 * 1024 * 1024
    gateway_store.boto3().put_object(Bucket=BUCKET, Key="drain/object", Body=bytes(size))
    config = servers.configuration(
        gateway_store, tableMapping={"drain": f"s3://{BUCKET}/drain"}, getMode="proxy"
    )
    path, port, metrics_port = servers.write_configuration(config, tmp_path)
    env = servers.proxy_environment(gateway_store)
    with servers.proxy_process(path, metrics_port, tmp_path, env) as child:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        connection.request("GET", quoted("drain/object"))
        answer = connection.getresponse()
        assert answer.status == 200
        received = len(answer.read(65536))
        child.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert child.poll() is None
        while part := answer.read(1024 * 1024):
            received += len(part)
        connection.close()
        assert received == size
        assert child.wait(PATIENCE) == 0


def test_sigterm_of_an_idle_proxy_exits_with_0(moto_store: Store, tmp_path: pathlib.Path) -> None:
    config = servers.configuration(moto_store, **trades_settings("presignedUrl"))
    path, _, metrics_port = servers.write_configuration(config, tmp_path)
    env = servers.proxy_environment(moto_store)
    with servers.proxy_process(path, metrics_port, tmp_path, env) as child:
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE) == 0
    assert "Traceback" not in (tmp_path / "proxy.log").read_text()


def test_twistd_lists_the_plugin_of_the_editable_install(tmp_path: pathlib.Path) -> None:
    done = servers.run([script("twistd"), "--help"], env=servers.clean_environment(), cwd=tmp_path)
    assert "delta-s3-proxy" in done.stdout


@pytest.mark.slow
def test_twistd_lists_the_plugin_of_an_ordinary_install(tmp_path: pathlib.Path) -> None:
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--target", str(target)]
    installed = servers.run([*pip, str(ROOT)], env=servers.clean_environment(), cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr
    assert (target / "twisted" / "plugins" / "delta_proxy_plugin.py").exists()
    # -P keeps the checkout off the path, so that what is found is what was installed.
    code = (
        "import delta_proxy, sys; print(delta_proxy.__file__); from twisted.scripts.twistd import run; run()"
    )
    done = servers.run(
        [sys.executable, "-P", "-c", code, "--help"],
        env=servers.clean_environment(PYTHONPATH=str(target)),
        cwd=tmp_path,
    )
    assert str(target) in done.stdout
    assert "delta-s3-proxy" in done.stdout
