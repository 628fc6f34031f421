"""One worker, started by its parent: `python -m delta_proxy.workers NUMBER [options of twistd]`."""

# mypy: allow-untyped-calls
from __future__ import annotations

import sys

from prometheus_client import values
from twisted.scripts.twistd import run

from delta_proxy.workers.counts import counting
from delta_proxy.workers.parent import LINK


def main() -> None:
    """The proxy as twistd runs it, with what the parent gave it on the link."""
    number, *options = sys.argv[1:]
    # Before any figure is made: a worker goes on with the files of the one it replaces.
    values.ValueClass = counting(number)
    sys.argv = ["twistd", "-n", "--pidfile=", *options, "delta-s3-proxy", "--worker", str(LINK)]
    run()


if __name__ == "__main__":
    main()
