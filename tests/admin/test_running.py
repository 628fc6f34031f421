"""The command as operators run it, in a process of its own, beside a running proxy."""

from __future__ import annotations

import json
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import pytest

from delta_proxy import demo
from delta_proxy.access.keys import VARIABLE, SecretKeys, generate_key
from delta_proxy.access.migrations import upgrade
from delta_proxy.access.permissions import PermissionStore, database_engine
from delta_proxy.access.snapshot import PrincipalKind
from tests.integration import servers
from tests.integration.conftest import TRADES, moto_store
from tests.integration.servers import BUCKET, Store
from tests.ports import free_port
from tests.waiting import PATIENCE

__all__ = ["moto_store"]

LONDON_AND_PARIS = [{"MIC": ["XLON", "XPAR"]}]


@attrs.frozen
class Operator:
    """An operator's shell: the configuration, the environment with keys and credentials."""

    config: pathlib.Path
    env: Mapping[str, str] = attrs.field(repr=False)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The finished command."""
        return servers.run(self.command(*arguments), env=self.env, cwd=servers.ROOT)

    def command(self, *arguments: str) -> list[str]:
        """The command, to be started."""
        python = [sys.executable, "-W", "error", "-m", "delta_proxy.admin"]
        return [*python, *arguments, "--config", str(self.config)]

    def json(self, *arguments: str) -> Any:
        """The document of a command that must succeed."""
        done = self.run(*arguments, "--json")
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def shell(moto_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """An operator beside a proxy whose database knows alice, to whom two MICs are granted."""
    folder = tmp_path_factory.mktemp("admin")
    config = servers.configuration(
        moto_store,
        logView="filtered",
        tableMapping={TRADES: f"s3://{BUCKET}/{TRADES}"},
        databaseEnabled=True,
        database={"uri": f"sqlite:{folder / 'permissions.db'}"},
        audit=str(folder / "audit.log"),
    )
    path, _, metrics_port = servers.write_configuration(config, folder)
    key = generate_key()
    engine = database_engine(f"sqlite:{folder / 'permissions.db'}")
    upgrade(engine)
    store = PermissionStore(engine, SecretKeys.parse(key).fernet())
    store.add_user("alice")
    store.grant(PrincipalKind.USER, "alice", TRADES, LONDON_AND_PARIS, granted_by="test")
    engine.dispose()
    env = servers.proxy_environment(moto_store) | {VARIABLE: key}
    with servers.proxy_process(path, metrics_port, folder, env):
        yield Operator(path, env)


def test_a_user_reads_through_the_proxy_just_what_is_granted(shell: Operator) -> None:
    told = shell.json("verify", "--user", "alice", "--table", TRADES)
    assert told["differences"] == []
    assert (told["same"], told["versions"]) == (True, demo.DAYS)
    assert told["partitions"] == 2 * demo.DAYS
    assert told["rows"] == demo.expected("XLON").rows + demo.expected("XPAR").rows


@pytest.mark.slow
def test_a_proxy_that_does_not_answer_is_a_difference_and_status_1(shell: Operator) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    done = shell.run("verify", "--user", "alice", "--table", TRADES, "--versions", "1", "--endpoint", nowhere)
    assert done.returncode == 1
    assert done.stdout.rstrip().endswith("DIFFERENT")


@pytest.mark.slow
def test_what_is_granted_is_explained(shell: Operator) -> None:
    told = shell.json("explain", "--user", "alice", "--table", TRADES)
    assert (told["files"], told["of_files"]) == (2 * demo.DAYS, 4 * demo.DAYS)


@pytest.mark.slow
def test_a_configuration_that_fits_passes_the_check(shell: Operator) -> None:
    assert shell.json("check")["good"] is True


def test_a_refused_grant_is_one_line_and_status_1(shell: Operator) -> None:
    done = shell.run("grant", "user:alice", "--table", TRADES, '[{"mic": "XLON"}]')
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "Error: filters[0].mic: no partition column; the table is partitioned by MIC, date\n"
    )


def test_the_audit_log_is_followed_until_ctrl_c(shell: Operator) -> None:
    shell.json("verify", "--user", "alice", "--table", TRADES, "--versions", "1")
    command = shell.command("audit", "tail", "-f", "--user", "alice", "--json")
    with subprocess.Popen(
        command,
        env=dict(shell.env, PYTHONUNBUFFERED="1"),
        cwd=servers.ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as tail:
        assert tail.stdout is not None
        record = json.loads(tail.stdout.readline())
        tail.send_signal(signal.SIGINT)
        tail.stdout.read()
        assert tail.wait(PATIENCE) == 0
    assert (record["principal"], record["decision"]) == ("alice", "allowed")
