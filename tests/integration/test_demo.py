"""The demo as a person runs it."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.waiting import PATIENCE

from . import servers
from .servers import ROOT

COMMAND = [sys.executable, "-m", "delta_proxy.demo", "--config", str(ROOT / "etc" / "config.json")]


def test_the_demo_reads_what_is_granted_and_says_that_every_number_is_right() -> None:
    done = servers.run([*COMMAND, "--once"], env=servers.clean_environment(), cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every number is right" in done.stdout


@pytest.mark.slow
def test_the_demo_ends_cleanly_at_ctrl_c() -> None:
    with subprocess.Popen(
        COMMAND,
        env=servers.clean_environment(PYTHONUNBUFFERED="1"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if line.startswith("serving until"):
                break
        demo.send_signal(signal.SIGINT)
        rest = demo.stdout.read()
        assert demo.wait(PATIENCE) == 0
    assert "Traceback" not in rest
