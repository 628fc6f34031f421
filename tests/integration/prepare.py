"""Builds every tool that tests need from registries: bin/test --all runs this beside its other steps."""

from __future__ import annotations

import signal
import sys

from .browser.tools import BUNDLE
from .clients.toolchains import TOOLS
from .spark.lines import LINES
from .tools import Unavailable


def main() -> None:
    """Build every tool, saying of each what came of it."""
    # The step that runs when this process is told to end goes with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    for tool in (LINES[0].tool, BUNDLE, *TOOLS.values(), LINES[1].tool):
        try:
            tool.ready()
            print(f"{tool.name}: ready", flush=True)
        except Unavailable as unavailable:
            print(f"{tool.name}: {unavailable}", flush=True)


if __name__ == "__main__":
    main()
