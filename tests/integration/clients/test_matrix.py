"""Every client, unmodified: the right bytes, its own AccessDenied after a few requests, never silence."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import pytest

from delta_proxy.demo import PROXY_BUCKET
from delta_proxy.s3.user_agents import CLIENTS, known_client
from tests.integration.conftest import ProxyFor
from tests.integration.servers import BUCKET, REGION, Endpoint, Proxy, Store

from . import shelf as shelves
from .programs import BUCKET_DOMAIN, PROGRAMS, Program, environment
from .recorder import Head, Recorder, recorder
from .report import RESULTS, Cell, wire
from .resolver import resolver
from .shelf import (
    ALIASES,
    CLOSED,
    HARD_TABLE,
    OPEN,
    PLAIN,
    PLAIN_TABLE,
    REFUSED,
    SHELF,
    SPECIAL,
    WHOLE,
    Shelf,
)
from .toolchains import Unavailable

READER, READER_SECRET = "MATRIXREADER", "matrix/reader+secret"
TOKEN = "a/session+token=="
MODES = ("proxy", "presignedUrl")
REFUSAL = re.compile(r"AccessDenied|ACCESS_DENIED|Access Denied|403|Forbidden|PermissionError")

pytestmark = pytest.mark.xdist_group("clients")


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


@attrs.frozen
class Matrix:
    """The store, the proxy in both modes, and what they hold."""

    store: Store
    proxies: Mapping[str, Proxy]
    shelf: Shelf


@pytest.fixture(scope="session")
def matrix(gateway_store: Store, proxy_for: ProxyFor) -> Matrix:
    """A proxy in each mode that asks who is there and grants one of two zones. It shows the log as it is, so
    that a reader of whole tables meets a file that it is refused."""
    shelf = shelves.make()
    shelves.write(gateway_store, shelf)
    proxies = {
        mode: proxy_for(
            gateway_store,
            tableMapping={alias: f"s3://{BUCKET}/{alias}" for alias in ALIASES},
            users={
                "reader": {
                    "accessKey": READER,
                    "secretKey": READER_SECRET,
                    "allowedPartitions": {alias: [{"zone": OPEN}] for alias in ALIASES},
                }
            },
            domains=[BUCKET_DOMAIN],
            interface="127.0.0.1",
            getMode=mode,
        )
        for mode in MODES
    }
    readers = {
        mode: attrs.evolve(proxy, access_key=READER, secret_key=READER_SECRET)
        for mode, proxy in proxies.items()
    }
    return Matrix(gateway_store, readers, shelf)


@pytest.fixture(scope="session")
def through() -> Iterator[str]:
    """The HTTP proxy by which hosts below the bucket's domain are reached."""
    with resolver() as url:
        yield url


@pytest.fixture(scope="session")
def recording() -> Iterator[Recorder]:
    """A server that redirects and keeps what came."""
    with recorder(PROXY_BUCKET, shelves.make().bodies) as found:
        yield found


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
        prefix = f"{SHELF}/zone={OPEN}/"
        listed = {"op": "list", "prefix": prefix, "page": 5}
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
    """Run a program with a script; skips when it cannot be had."""
    try:
        command = program.command()
    except Unavailable as unavailable:
        pytest.skip(f"{program.name}: {unavailable}")
    done = subprocess.run(
        command,
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


def denied_lines(proxy: Proxy) -> int:
    """How many requests the proxy has refused with 403, by its access log."""
    return len(re.findall(r" 403 \d+B ", proxy.log.read_text()))


def redirects(proxy: Proxy) -> float:
    """How many redirects the proxy has sent."""
    with urllib.request.urlopen(f"http://127.0.0.1:{proxy.metrics_port}/metrics") as answer:
        found = re.search(r"^delta_s3_proxy_redirects_total (\S+)$", answer.read().decode(), re.MULTILINE)
    assert found is not None
    return float(found[1])


def selected() -> list[Any]:
    """The programs as parameters, those that are not for every run marked."""
    return [
        pytest.param(each, id=each.slug, marks=[pytest.mark.slow] if each.slow else []) for each in PROGRAMS
    ]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("program", selected())
def test_a_client_reads_what_it_is_granted_and_is_told_what_it_is_not(
    program: Program, matrix: Matrix, record_property: Any
) -> None:
    cells = attempt(program, matrix, "path", None)
    record_property(RESULTS, [program.name, wire(cells)])
    problems = [f"{name}: {cell.problem}" for name, cell in cells.items() if cell.problem]
    assert not problems, "\n".join(problems)


def attempt(program: Program, matrix: Matrix, style: str, http_proxy: str | None) -> dict[str, Cell]:
    """Run a program's script against the store and against the proxy in both modes; what came, by column."""
    through = script(program, matrix.shelf, restricted=True)
    direct = script(program, matrix.shelf, restricted=False)
    refusals = [step for step in through if step.column == "denied"] if "denied" in program.faults else []
    jobs = [job("store", matrix.store, BUCKET, style, direct)]
    jobs += [job(mode, proxy, PROXY_BUCKET, style, through) for mode, proxy in matrix.proxies.items()]
    denied = {mode: denied_lines(proxy) for mode, proxy in matrix.proxies.items()}
    sent = {mode: redirects(proxy) for mode, proxy in matrix.proxies.items()}
    if "denied" in program.faults:
        stranger = attrs.evolve(matrix.store, secret_key="wrong")
        jobs.append(job("refused", stranger, BUCKET, style, refusals))
    outcomes = run(program, jobs, http_proxy)
    cells: dict[str, Cell] = {}
    at_store = _unmet(direct, outcomes["store"]) | _unmet(refusals, outcomes.get("refused", ()))
    for mode, proxy in matrix.proxies.items():
        unmet = _unmet(through, outcomes[mode])
        for column in dict.fromkeys(step.column for step in through):
            labels = {step.label for step in through if step.column == column}
            cells[f"{column} {mode}"] = _cell(program, labels, unmet, at_store)
        silent = [step for step, found in zip(through, outcomes[mode], strict=True) if "error" not in found]
        if any(step.expected is None for step in silent):
            cells[f"denied {mode}"] = Cell("bad", "what is denied was read without an error")
        requests = denied_lines(proxy) - denied[mode]
        if not 1 <= requests <= program.most_denied:
            cells[f"denied {mode}"] = Cell("bad", f"{requests} requests for what is denied")
        redirected = redirects(proxy) - sent[mode] > 0
        cells[f"GET {mode}"] = _answered(program, mode, redirected=redirected)
    return cells


def _unmet(steps: Sequence[Step], outcomes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What went wrong, by label."""
    assert len(steps) == len(outcomes)
    return {
        step.label: f"{json.dumps(dict(step.request))} gave {json.dumps(outcome)[:400]}"
        for step, outcome in zip(steps, outcomes, strict=True)
        if not step.met(outcome)
    }


def _cell(program: Program, labels: set[str], unmet: Mapping[str, str], at_store: Mapping[str, str]) -> Cell:
    """What came of a column, held against what is said of the client and against the store itself."""
    faults = {label: reason for label, reason in program.faults.items() if label in labels}
    found = {label for label in labels if label in unmet}
    if missing := set(faults) - found:
        return Cell("bad", f"{', '.join(missing)} works, although the client is said to fail")
    for label in sorted(found):
        if label not in faults:
            return Cell("bad", unmet[label])
        if label not in at_store:
            return Cell("bad", f"the store itself gives it; through the proxy {unmet[label]}")
    return Cell("fault", note="; ".join(dict.fromkeys(faults.values()))) if faults else Cell("ok")


def _answered(program: Program, mode: str, *, redirected: bool) -> Cell:
    rule = next(each for each in CLIENTS if each.name == program.rule)
    if redirected != (rule.follows and mode == "presignedUrl"):
        return Cell("bad", f"{'sent' if redirected else 'not sent'} to the store")
    return Cell("redirected" if redirected else "streamed")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("program", selected())
def test_the_table_of_clients_says_what_a_client_does_with_a_redirect(
    program: Program, recording: Recorder, matrix: Matrix
) -> None:
    """Its row is found by its User-Agent, and says whether it follows as a store needs it."""
    steps = [
        step for step in script(program, matrix.shelf, restricted=True) if step.label in {"whole", "rows"}
    ]
    at = Endpoint(recording.url, READER, READER_SECRET)
    recording.clear()
    outcomes = run(program, [job("recorder", at, PROXY_BUCKET, "path", steps[:1], token=TOKEN)])["recorder"]
    agents = {head.get("user-agent") or "" for head in recording.asked}
    rules = {rule.name if (rule := known_client(agent)) else "" for agent in agents}
    assert program.rule in rules, agents
    rule = next(each for each in CLIENTS if each.name == program.rule)
    followed = [head for head in recording.followed if head.method == "GET"]
    well = (
        bool(followed)
        and steps[0].met(outcomes[0])
        and all(_as_a_store_needs(head, recording) for head in followed)
    )
    assert well == rule.follows, followed
    if rule.follows:
        resent = {head.get("x-amz-security-token") for head in followed}
        assert resent == ({TOKEN} if rule.resends_token else {None})


def _as_a_store_needs(head: Head, recording: Recorder) -> bool:
    """Whether a request that followed a redirect can be verified by its presigned URL."""
    first = next(
        each for each in recording.asked if each.method == "GET" and each.target.endswith(".parquet")
    )
    missing = first.amazon - head.amazon - {"x-amz-security-token"}
    return head.get("host") == recording.target and head.get("authorization") is None and not missing
