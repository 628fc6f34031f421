"""Records requests that the clients of the matrix sign, for the tests of verification.

`python -m tests.integration.clients.record` runs every client that can be had here against a server that
keeps what comes, with fixed credentials, and writes tests/s3/recorded_requests.json. A client that cannot be
had keeps the requests it has there.
"""

from __future__ import annotations

import json
from typing import Any

from delta_proxy.demo import PROXY_BUCKET
from tests.integration.servers import ROOT, Endpoint
from tests.integration.tools import Unavailable

from . import shelf as shelves
from .programs import PROGRAMS, Program
from .recorder import Head, Recorder, recorder
from .runs import READER, READER_SECRET, TOKEN, Step, job, run, script

FIXTURE = ROOT / "tests" / "s3" / "recorded_requests.json"


def main() -> None:
    """Write the fixture."""
    shelf = shelves.make()
    known = json.loads(FIXTURE.read_text())["clients"] if FIXTURE.exists() else {}
    found: dict[str, Any] = {}
    with recorder(PROXY_BUCKET, shelf.bodies) as server:
        for program in PROGRAMS:
            steps = wanted(script(program, shelf, restricted=True))
            try:
                found[program.name] = requests(program, steps, server)
            except Unavailable as unavailable:
                print(f"{program.name}: {unavailable}")
                found[program.name] = known.get(program.name, [])
    document = {"bucket": PROXY_BUCKET, "accessKey": READER, "secretKey": READER_SECRET, "clients": found}
    FIXTURE.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def wanted(steps: list[Step]) -> list[Step]:
    """One step of each kind that signs something of its own: a listing, a range, hard names."""
    return [
        step
        for step in {(step.column, step.label): step for step in steps}.values()
        if step.column in {"open", "list", "ranges", "rows"}
        or step.label in {"a b+c", "ümlaut-日本", "special"}
    ]


def requests(program: Program, steps: list[Step], server: Recorder) -> list[dict[str, Any]]:
    """The heads of a program's requests, one of each method and target. Raises Unavailable."""
    server.clear()
    at = Endpoint(server.url, READER, READER_SECRET)
    run(program, [job("recorded", at, PROXY_BUCKET, "path", steps, token=TOKEN)])
    heads = {(head.method, head.target.partition("?")[0]): head for head in server.asked}
    return [_wire(head) for head in list(heads.values())[:5]]


def _wire(head: Head) -> dict[str, Any]:
    return {
        "method": head.method,
        "target": head.target,
        "fields": [f"{name}: {value}" for name, value in head.fields],
    }


if __name__ == "__main__":
    main()
