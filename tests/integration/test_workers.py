"""Two workers on one port, as twistd runs them: one pid to signal, one set of figures, whole audit lines."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pathlib
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

from delta_proxy.access.keys import VARIABLE, SecretKeys, generate_key
from delta_proxy.access.migrations import upgrade
from delta_proxy.access.permissions import PermissionStore, database_engine
from delta_proxy.access.snapshot import PrincipalKind
from delta_proxy.demo import answers
from delta_proxy.s3.sigv4 import UNSIGNED_PAYLOAD, Credentials, SigningKeys, canonical_query, sign
from delta_proxy.workers.supervisor import ANSWER_SECONDS
from tests.waiting import PATIENCE, wait_until

from . import servers
from .conftest import GRANTED, TRADES
from .raw import Answer, get, quoted, request_on
from .servers import BUCKET, Proxy, Store

KEYS = SigningKeys()
Pairs = tuple[tuple[str, str], ...]

USERS: dict[str, dict[str, Any]] = {
    name: {"accessKey": f"AK{name.upper()}", "secretKey": f"secret-of-{name}", "allowedPartitions": grants}
    for name, grants in (("alice", {TRADES: [{"MIC": list(GRANTED)}]}), ("bob", {TRADES: [{}]}))
}


def settings(folder: pathlib.Path, **more: Any) -> dict[str, Any]:
    return {
        "workers": 2,
        "tableMapping": {TRADES: f"s3://{BUCKET}/{TRADES}"},
        "getMode": "proxy",
        "logView": "filtered",
        "audit": str(folder / "audit.log"),
        "interface": "127.0.0.1",
        **more,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("workers")


@pytest.fixture(scope="module")
def proxy(moto_store: Store, folder: pathlib.Path) -> Iterator[Proxy]:
    config = servers.configuration(moto_store, **settings(folder, users=USERS))
    with servers.proxy(moto_store, config, folder) as started:
        wait_until(lambda: checks(started).get("workers") is True)
        yield started


def read(proxy: Proxy, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{proxy.metrics_port}{path}", timeout=PATIENCE) as answer:
        return bytes(answer.read())


def figures(proxy: Proxy) -> dict[str, float]:
    """What /metrics tells of all workers: an answer that took as long as a worker may take leaves one out."""
    took = ANSWER_SECONDS
    while took >= ANSWER_SECONDS:
        asked = time.monotonic()
        text = read(proxy, "/metrics").decode()
        took = time.monotonic() - asked
    lines = text.splitlines()
    pairs = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


def checks(proxy: Proxy) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(read(proxy, "/health/ready"))["checks"]
    except OSError:
        return {}
    return found


def workers(pid: int) -> list[int]:
    """The processes that a process started and that live, in their order."""
    return [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def signed(proxy: Proxy, path: str, query: Pairs, access_key: str, secret_key: str) -> dict[str, str]:
    """The fields of a GET that is signed with these keys."""
    host, credentials, now = f"127.0.0.1:{proxy.port}", Credentials(access_key, secret_key), datetime.now(UTC)
    fields = sign("GET", host, path, query, (), UNSIGNED_PAYLOAD, credentials, "us-east-1", now, KEYS)
    return {"Host": host, **dict(fields)}


def listed(proxy: Proxy, user: str, connection: http.client.HTTPConnection) -> Answer:
    """The answer to a listing of a user."""
    keys, query = USERS[user], (("list-type", "2"), ("prefix", f"{TRADES}/"))
    fields = signed(proxy, "/datalake", query, keys["accessKey"], keys["secretKey"])
    return request_on(connection, "GET", f"/datalake?{canonical_query(query)}", fields)


def status_of(proxy: Proxy, user: str) -> int:
    """The status of a listing on a connection of its own, so that any worker may answer."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=PATIENCE)
    try:
        return listed(proxy, user, connection).status
    finally:
        connection.close()


@contextlib.contextmanager
def connected(proxy: Proxy) -> Iterator[Mapping[int, http.client.HTTPConnection]]:
    """A connection to each worker, by its process id."""
    found: dict[int, http.client.HTTPConnection] = {}
    with contextlib.ExitStack() as stack:

        def is_complete() -> bool:
            made = [http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=PATIENCE) for _ in range(8)]
            for connection in made:
                stack.callback(connection.close)
                connection.connect()
            for connection in made:
                found.setdefault(owner(proxy, connection), connection)
            return found.keys() == set(workers(proxy.pid))

        wait_until(is_complete)
        yield found


def owner(proxy: Proxy, connection: http.client.HTTPConnection) -> int:
    """The worker that takes a connection, once it does."""
    assert connection.sock is not None
    ends = f"{proxy.port:04X}", f"{connection.sock.getsockname()[1]:04X}"
    found: list[int] = []

    def is_taken() -> bool:
        rows = [line.split() for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]]
        sockets = {f"socket:[{row[9]}]" for row in rows if (row[1][-4:], row[2][-4:]) == ends}
        found.extend(worker for worker in workers(proxy.pid) if sockets & open_files(worker))
        return bool(found)

    wait_until(is_taken)
    return found[0]


def open_files(pid: int) -> set[str]:
    """What the descriptors of a process are."""
    names = set()
    for descriptor in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            names.add(os.readlink(descriptor))
    return names


def every_worker(proxy: Proxy, user: str) -> list[int]:
    """The status of a listing by each worker."""
    with connected(proxy) as connections:
        return [listed(proxy, user, connection).status for connection in connections.values()]


def audit_lines(folder: pathlib.Path) -> list[dict[str, Any]]:
    # The last piece may be the beginning of a line that is being written.
    return [json.loads(line) for line in (folder / "audit.log").read_text().split("\n")[:-1]]


def test_two_workers_under_load_count_each_request_once_and_write_whole_audit_lines(
    proxy: Proxy, folder: pathlib.Path
) -> None:
    before, lines_before = figures(proxy), len(audit_lines(folder))

    def load(number: int) -> list[int]:
        return [status_of(proxy, ("alice", "bob")[number % 2]) for _ in range(15)]

    with ThreadPoolExecutor(8) as pool:
        statuses = [status for part in pool.map(load, range(8)) for status in part]
    assert statuses == [200] * 120
    wait_until(lambda: len(audit_lines(folder)) >= lines_before + 120)
    records = audit_lines(folder)[lines_before:]
    assert len({record["request_id"] for record in records}) == 120
    after = figures(proxy)
    assert after["queries_served_total"] - before["queries_served_total"] == 120
    # Both of them were seen by both workers, very likely; they are two all the same.
    assert after["unique_users_last_minute"] <= 2


def test_health_and_status_speak_for_all_workers(proxy: Proxy) -> None:
    # A worker that takes two seconds to answer is left out.
    well = {"workers": True, "accepting": True, "credentials": True, "audit": True}
    wait_until(lambda: checks(proxy) == well)
    wait_until(lambda: b"<td>workers<td class=n>2" in read(proxy, "/"))
    assert answers(f"http://127.0.0.1:{proxy.metrics_port}/health/live", PATIENCE)


def test_a_rotated_audit_log_is_reopened_by_every_worker(proxy: Proxy, folder: pathlib.Path) -> None:
    (folder / "audit.log").rename(folder / "audit.old")
    os.kill(proxy.pid, signal.SIGUSR1)
    wait_until((folder / "audit.log").exists)

    def is_in_the_new_file(connection: http.client.HTTPConnection) -> bool:
        told = request_on(connection, "GET", quoted(f"{TRADES}/x")).headers["x-amz-request-id"]
        files = (folder / "audit.old", folder / "audit.log")
        wait_until(lambda: any(told in file.read_text() for file in files))
        return told in files[1].read_text()

    with connected(proxy) as connections:
        for connection in connections.values():
            wait_until(partial(is_in_the_new_file, connection))


def test_a_reload_reaches_every_worker_and_a_bad_file_none(proxy: Proxy, folder: pathlib.Path) -> None:
    path = folder / "config.json"
    good = path.read_text()
    taken_away = json.loads(good)
    taken_away["users"]["alice"]["accessKey"] = "AKOTHER"
    try:
        path.write_text('{"tableMapping": {}}')
        os.kill(proxy.pid, signal.SIGHUP)
        wait_until(lambda: "was not reloaded" in proxy.log.read_text())
        assert every_worker(proxy, "alice") == [200, 200]
        path.write_text(json.dumps(taken_away))
        os.kill(proxy.pid, signal.SIGHUP)
        wait_until(lambda: proxy.log.read_text().count("the configuration was reloaded") == 1)
        wait_until(lambda: every_worker(proxy, "alice") == [403, 403])
    finally:
        path.write_text(good)
        os.kill(proxy.pid, signal.SIGHUP)
        wait_until(lambda: proxy.log.read_text().count("the configuration was reloaded") == 2)
        wait_until(lambda: every_worker(proxy, "alice") == [200, 200])


def test_a_grant_revoked_in_the_database_is_out_of_force_on_every_worker(
    moto_store: Store, tmp_path: pathlib.Path
) -> None:
    key, uri = generate_key(), f"sqlite:{tmp_path / 'users.db'}"
    engine = database_engine(uri)
    upgrade(engine)
    store = PermissionStore(engine, SecretKeys.parse(key).fernet())
    dora = store.add_user("dora")
    number = store.grant(PrincipalKind.USER, "dora", TRADES, [{"MIC": "XLON"}], granted_by="test")
    config = servers.configuration(
        moto_store, **settings(tmp_path, databaseEnabled=True, database={"uri": uri})
    )
    path, port, metrics_port = servers.write_configuration(config, tmp_path)
    env = servers.proxy_environment(moto_store) | {VARIABLE: key}

    def statuses(proxy: Proxy) -> list[int]:
        """The status of a read by each worker."""
        log = f"/datalake/{TRADES}/_delta_log/{0:020}.json"
        fields = signed(proxy, log, (), dora.access_key, dora.secret.value)
        with connected(proxy) as connections:
            return [request_on(each, "GET", log, fields).status for each in connections.values()]

    with servers.proxy_process(path, metrics_port, tmp_path, env) as child:
        proxy = Proxy(f"http://127.0.0.1:{port}", port=port, metrics_port=metrics_port, pid=child.pid)
        wait_until(lambda: checks(proxy).get("workers") is True)
        wait_until(lambda: statuses(proxy) == [200, 200])
        store.revoke(number)
        wait_until(lambda: statuses(proxy) == [403, 403])
    engine.dispose()


def test_a_worker_that_is_killed_is_replaced_and_the_counts_go_on(proxy: Proxy) -> None:
    counted = figures(proxy)["queries_served_total"]
    first, second = workers(proxy.pid)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: len(workers(proxy.pid)) == 2 and first not in workers(proxy.pid))
    assert second in workers(proxy.pid)
    wait_until(lambda: checks(proxy).get("workers") is True)
    assert status_of(proxy, "bob") == 200
    assert figures(proxy)["queries_served_total"] > counted
    assert "ended by SIGKILL" in proxy.log.read_text()


def test_sigterm_to_the_parent_drains_the_workers_and_exits_with_0(
    gateway_store: Store, tmp_path: pathlib.Path
) -> None:
    size = 64 * 1024 * 1024
    gateway_store.boto3().put_object(Bucket=BUCKET, Key="drained/object", Body=bytes(size))
    config = servers.configuration(
        gateway_store, **settings(tmp_path, tableMapping={"drained": f"s3://{BUCKET}/drained"})
    )
    path, port, metrics_port = servers.write_configuration(config, tmp_path)
    env = servers.proxy_environment(gateway_store)
    with servers.proxy_process(path, metrics_port, tmp_path, env) as child:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        connection.request("GET", quoted("drained/object"))
        answer = connection.getresponse()
        received = len(answer.read(65536))
        pids = workers(child.pid)
        child.send_signal(signal.SIGTERM)
        child.send_signal(signal.SIGTERM)
        wait_until(lambda: not answers(f"http://127.0.0.1:{metrics_port}/health/live"))
        assert child.poll() is None
        while part := answer.read(1024 * 1024):
            received += len(part)
        connection.close()
        assert received == size
        assert child.wait(PATIENCE) == 0
        assert all(servers.ended(pid) for pid in pids)
    assert "Traceback" not in (tmp_path / "proxy.log").read_text()


@pytest.mark.slow
def test_workers_in_the_background_log_to_one_file_and_end_with_their_parent(
    moto_store: Store, tmp_path: pathlib.Path
) -> None:
    config = servers.configuration(moto_store, **settings(tmp_path))
    path, _, metrics_port = servers.write_configuration(config, tmp_path)
    pidfile, log = tmp_path / "proxy.pid", tmp_path / "proxy.log"
    command = servers.proxy_command(path, f"--pidfile={pidfile}", f"--logfile={log}")
    started = servers.run(command, env=servers.proxy_environment(moto_store), cwd=tmp_path)
    assert started.returncode == 0, started.stderr
    wait_until(pidfile.exists)
    pid = int(pidfile.read_text())
    pids: list[int] = []
    try:
        # Both have begun: what starts after its parent is gone finds nothing that it needs.
        proxy = Proxy("", metrics_port=metrics_port, pid=pid)
        wait_until(lambda: checks(proxy).get("workers") is True)
        pids = workers(pid)
        log.rename(tmp_path / "proxy.old")
        os.kill(pid, signal.SIGUSR1)
        wait_until(log.exists)
        # A parent that is killed cannot say so; the workers end all the same.
        os.kill(pid, signal.SIGKILL)
    finally:
        with contextlib.suppress(ProcessLookupError):
            servers.stop(pid)
    assert len(pids) == 2
    wait_until(lambda: all(servers.ended(each) for each in pids))
    assert "Traceback" not in (tmp_path / "proxy.old").read_text() + log.read_text()
    assert (tmp_path / "proxy.old").read_text().count("starting up") == 3


@pytest.mark.slow
def test_a_grant_that_cannot_be_meant_ends_the_start_of_all_workers(
    moto_store: Store, tmp_path: pathlib.Path
) -> None:
    more = settings(tmp_path, allowedPartitions={TRADES: [{"ISIN": "GB0005405286"}]})
    path, _, _ = servers.write_configuration(servers.configuration(moto_store, **more), tmp_path)
    done = servers.run(servers.proxy_command(path), env=servers.proxy_environment(moto_store), cwd=tmp_path)
    assert done.returncode != 0
    assert "ISIN" in done.stdout + done.stderr


@pytest.mark.slow
def test_audit_lines_on_standard_output_are_whole(moto_store: Store, tmp_path: pathlib.Path) -> None:
    config = servers.configuration(moto_store, **settings(tmp_path, audit="-"))
    with servers.proxy(moto_store, config, tmp_path) as proxy:
        start = threading.Barrier(4)

        def load(_: int) -> list[int]:
            start.wait()
            return [get(proxy, f"{TRADES}/none-{number}").status for number in range(20)]

        with ThreadPoolExecutor(4) as pool:
            assert {status for part in pool.map(load, range(4)) for status in part} == {404}

        def records() -> list[dict[str, Any]]:
            # The last piece may be the beginning of a line that is being written.
            lines = proxy.log.read_text().split("\n")[:-1]
            return [json.loads(line) for line in lines if line.startswith("{")]

        wait_until(lambda: len(records()) >= 80)
        assert len({record["request_id"] for record in records()}) == 80


@pytest.mark.slow
def test_a_worker_that_is_alive_and_hangs_is_replaced(moto_store: Store, tmp_path: pathlib.Path) -> None:
    config = servers.configuration(moto_store, **settings(tmp_path, users=USERS))
    with servers.proxy(moto_store, config, tmp_path) as started:
        wait_until(lambda: checks(started).get("workers") is True)
        hung, other = workers(started.pid)
        os.kill(hung, signal.SIGSTOP)
        try:
            wait_until(lambda: hung not in workers(started.pid) and len(workers(started.pid)) == 2, 300)
            assert other in workers(started.pid)
            wait_until(lambda: checks(started).get("workers") is True)
        finally:
            # A process that stands still would outlive its parent.
            with contextlib.suppress(ProcessLookupError):
                os.kill(hung, signal.SIGCONT)
