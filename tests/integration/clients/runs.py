"""What a program of the matrix is asked, and how it is run."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from tests.integration.servers import REGION, Endpoint

from .programs import BUCKET_DOMAIN, Program, environment
from .shelf import CLOSED, HARD_TABLE, MANY, OPEN, PLAIN, PLAIN_TABLE, REFUSED, SHELF, SPECIAL, WHOLE, Shelf

READER, READER_SECRET = "MATRIXREADER", "matrix/reader+secret"
TOKEN = "a/session+token=="
REFUSAL = re.compile(
    r"AccessDenied|ACCESS_DENIED|Access Denied|403|Forbidden|PermissionError|Insufficient permissions"
)


@attrs.frozen
class Step:
    """One step of a script: the column it belongs to, and what must come of it; None: the client's refusal.

    `label` tells steps of one column apart where a client may fail at one of them.
    """

    column: str
    request: Mapping[str, Any]
    expected: Mapping[str, Any] | None
    label: str = attrs.field(default=attrs.Factory(lambda step: step.column, takes_self=True))

    def met(self, outcome: Mapping[str, Any]) -> bool:
        """Whether that is what came."""
        if self.expected is None:
            return set(outcome) == {"error"} and REFUSAL.search(outcome["error"]) is not None
        return outcome == self.expected


def told(data: bytes) -> dict[str, Any]:
    """What a program tells of bytes."""
    return {"length": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def counted(found: tuple[int, int]) -> dict[str, Any]:
    """What a program tells of rows."""
    return {"rows": found[0], "total": found[1]}


def name_of(path: str) -> str:
    """A file's name without the directory and the ending."""
    return path.rpartition("/")[2].removesuffix(".parquet")


def script(program: Program, shelf: Shelf, *, restricted: bool) -> list[Step]:
    """The steps of a program: all that its operations allow. `restricted`: through the proxy."""
    steps = [
        *_whole_objects(program.operations, shelf),
        *_rows(program.operations, shelf, restricted=restricted),
    ]
    if "list" in program.operations:
        for prefix, page in ((f"{SHELF}/zone={OPEN}/", 5), (f"{MANY}/zone={OPEN}/", 1000)):
            listed = {"op": "list", "prefix": prefix, "page": page}
            steps.append(Step("list", listed, {"keys": shelf.granted(prefix)}))
    if restricted and "read" in program.operations:
        steps.append(Step("denied", {"op": "read", "key": f"{SHELF}/{REFUSED}"}, None))
    elif restricted and "file" in program.operations:
        steps.append(Step("denied", {"op": "file", "key": f"{SHELF}/{REFUSED}"}, None))
    return steps


def _whole_objects(operations: frozenset[str], shelf: Shelf) -> Iterator[Step]:
    large = f"{SHELF}/{WHOLE}"
    if "open" in operations:
        key = f"{SHELF}/{PLAIN[0]}"
        yield Step("open", {"op": "open", "key": key}, {"length": len(shelf.bodies[key])})
    if "read" in operations:
        for key in (f"{SHELF}/{PLAIN[1]}", large):
            yield Step("whole", {"op": "read", "key": key}, told(shelf.bodies[key]))
    if "folder" in operations:
        bodies = {name_of(path): shelf.bodies[f"{SHELF}/{path}"] for path in SPECIAL}
        expected = {f"{name}.parquet": told(body) for name, body in bodies.items()}
        prefix = f"{SHELF}/zone={OPEN}/hard/"
        yield Step("special", {"op": "folder", "prefix": prefix}, expected)
    elif "read" in operations:
        for path in SPECIAL:
            key = f"{SHELF}/{path}"
            yield Step("special", {"op": "read", "key": key}, told(shelf.bodies[key]), name_of(path))
    if "range" in operations:
        for first, last in (
            (0, 0),
            (1000, 70_000),
            (len(shelf.bodies[large]) - 5, len(shelf.bodies[large]) - 1),
        ):
            asked = {"op": "range", "key": large, "first": first, "last": last}
            yield Step("ranges", asked, told(shelf.bodies[large][first : last + 1]))
    if "parallel" in operations:
        yield Step("ranges", {"op": "parallel", "key": large}, told(shelf.bodies[large]))


def _rows(operations: frozenset[str], shelf: Shelf, *, restricted: bool) -> Iterator[Step]:
    if "file" in operations:
        key = f"{SHELF}/{PLAIN[2]}"
        yield Step("rows", {"op": "file", "key": key}, counted(shelf.rows[key]))
    if "file" in operations and "read" not in operations:
        op = "special" if "special" in operations else "file"
        for path in SPECIAL:
            key = f"{SHELF}/{path}"
            yield Step("special", {"op": op, "key": key}, counted(shelf.rows[key]), name_of(path))
    if "table" in operations:
        for column, name in (("rows", PLAIN_TABLE), ("special", HARD_TABLE)):
            asked = {"op": "table", "name": name, "zone": OPEN}
            yield Step(column, asked, counted(shelf.table(name, OPEN)))
        if restricted:
            yield Step("denied", {"op": "table", "name": PLAIN_TABLE, "zone": CLOSED}, None)


def job(
    name: str, at: Endpoint, bucket: str, style: str, steps: Sequence[Step], **more: Any
) -> dict[str, Any]:
    """A job of a program's script."""
    port = at.netloc.partition(":")[2]
    return {
        "name": name,
        "endpoint": at.url if style == "path" else f"http://{BUCKET_DOMAIN}:{port}",
        "region": REGION,
        "accessKey": at.access_key,
        "secretKey": at.secret_key,
        "bucket": bucket,
        "style": style,
        "steps": [dict(step.request) for step in steps],
        **more,
    }


def run(program: Program, jobs: list[dict[str, Any]], http_proxy: str | None = None) -> dict[str, Any]:
    """Run a program with a script; the outcomes by job. Raises Unavailable when it cannot be had."""
    done = subprocess.run(
        program.command(),
        input=json.dumps({"jobs": jobs, **program.options}),
        env=environment(program, http_proxy),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])["jobs"]
    return found
