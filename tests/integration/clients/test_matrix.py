"""Every client, unmodified: the right bytes, its own AccessDenied after a few requests, never silence."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import pytest

from delta_proxy.demo import PROXY_BUCKET
from delta_proxy.s3.user_agents import CLIENTS, known_client
from tests.integration.conftest import ProxyFor
from tests.integration.servers import BUCKET, Endpoint, Proxy, Store
from tests.integration.tools import Unavailable

from . import shelf as shelves
from .programs import BUCKET_DOMAIN, PROGRAMS, Program
from .recorder import Head, Recorder, recorder
from .report import RESULTS, Cell, wire
from .resolver import resolver
from .runs import READER, READER_SECRET, TOKEN, Step, job, run, script
from .shelf import (
    ALIASES,
    OPEN,
    Shelf,
)

MODES = ("proxy", "presignedUrl")


@attrs.frozen
class Matrix:
    """The store, the proxy in both modes, and what they hold."""

    store: Store
    proxies: Mapping[str, Proxy]
    shelf: Shelf


@pytest.fixture(scope="session")
def shelf() -> Shelf:
    """What the tables hold."""
    return shelves.make()


@pytest.fixture(scope="session")
def matrix(gateway_store: Store, proxy_for: ProxyFor, shelf: Shelf) -> Matrix:
    """A proxy in each mode that asks who is there and grants one of two zones. It shows the log as it is, so
    that a reader of whole tables meets a file that it is refused."""
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
def recording(shelf: Shelf) -> Iterator[Recorder]:
    """A server that redirects and keeps what came."""
    with recorder(PROXY_BUCKET, shelf.bodies) as found:
        yield found


def ran(program: Program, jobs: list[dict[str, Any]], http_proxy: str | None = None) -> dict[str, Any]:
    """The outcomes of a program; skips when it cannot be had."""
    try:
        return run(program, jobs, http_proxy)
    except Unavailable as unavailable:
        pytest.skip(f"{program.name}: {unavailable}")


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


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("program", [pytest.param(each, id=each.slug) for each in PROGRAMS])
def test_a_client_reads_what_it_is_granted_and_is_told_what_it_is_not(
    program: Program, matrix: Matrix, record_property: Any
) -> None:
    cells = attempt(program, matrix, "path")
    record_property(RESULTS, [program.name, wire(cells)])
    problems = [f"{name}: {cell.problem}" for name, cell in cells.items() if cell.problem]
    assert not problems, "\n".join(problems)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("program", [pytest.param(each, id=each.slug) for each in PROGRAMS])
def test_the_bucket_may_stand_in_the_host_name(
    program: Program, matrix: Matrix, through: str, record_property: Any
) -> None:
    name = "virtual host proxy"
    if program.virtual is not None:
        note = f"no virtual host here, {program.virtual}"
        record_property(RESULTS, [program.name, wire({name: Cell("none", note=note)})])
        return
    cells = attempt(program, matrix, "virtual", None if program.resolves else through)
    problems = [f"{column}: {cell.problem}" for column, cell in cells.items() if cell.problem]
    whole = Cell("bad", "; ".join(problems)) if problems else Cell("ok")
    record_property(RESULTS, [program.name, wire({name: whole})])
    assert not problems, "\n".join(problems)


def attempt(program: Program, matrix: Matrix, style: str, http_proxy: str | None = None) -> dict[str, Cell]:
    """Run a program's script against the store and against the proxy in both modes; what came, by column.

    In virtual-host style the first step of each column is enough.
    """
    through = script(program, matrix.shelf, restricted=True)
    direct = script(program, matrix.shelf, restricted=False)
    if style == "virtual":
        through, direct = (
            list({step.column: step for step in reversed(steps)}.values()) for steps in (through, direct)
        )
    refusals = [step for step in through if step.column == "denied"] if "denied" in program.faults else []
    jobs = [job("store", matrix.store, BUCKET, style, direct)]
    jobs += [job(mode, proxy, PROXY_BUCKET, style, through) for mode, proxy in matrix.proxies.items()]
    denied = {mode: denied_lines(proxy) for mode, proxy in matrix.proxies.items()}
    sent = {mode: redirects(proxy) for mode, proxy in matrix.proxies.items()}
    if "denied" in program.faults:
        stranger = attrs.evolve(matrix.store, secret_key="wrong")
        jobs.append(job("refused", stranger, BUCKET, style, refusals))
    outcomes = ran(program, jobs, http_proxy)
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
    if missing := (set(faults) & labels) - found:
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
    program: Program, recording: Recorder, shelf: Shelf
) -> None:
    """Its row is found by its User-Agent, and says whether it follows as a store needs it."""
    steps = [step for step in script(program, shelf, restricted=True) if step.label in {"whole", "rows"}]
    at = Endpoint(recording.url, READER, READER_SECRET)
    recording.clear()
    outcomes = ran(program, [job("recorder", at, PROXY_BUCKET, "path", steps[:1], token=TOKEN)])["recorder"]
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
    if rule.follows and any(head.get("x-amz-security-token") for head in recording.asked):
        resent = {head.get("x-amz-security-token") for head in followed}
        assert resent == ({TOKEN} if rule.resends_token else {None})


def _as_a_store_needs(head: Head, recording: Recorder) -> bool:
    """Whether a request that followed a redirect can be verified by its presigned URL."""
    first = next(each for each in recording.asked if each.method == "GET" and ".parquet" in each.target)
    missing = first.amazon - head.amazon - {"x-amz-security-token"}
    return head.get("host") == recording.target and head.get("authorization") is None and not missing
