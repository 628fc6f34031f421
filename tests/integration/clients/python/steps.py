"""Runs a script of steps with one client, and prints what came of each.

A program reads {"jobs": [{"name", "endpoint", "region", "accessKey", "secretKey", "token", "bucket", "style",
"steps": [{"op", ...}]}]} from its standard input and prints {"jobs": {name: [outcome of each step]}}. An
outcome is what the operation returned, or {"error": text} with the client's own exception. The programs in
other languages keep to the same form.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class At(NamedTuple):
    """An endpoint, as the lines to paste name its parts. `style` is "path" or "virtual"."""

    endpoint: str
    region: str
    access_key: str
    secret_key: str
    token: str | None
    bucket: str
    style: str


Operation = Callable[..., Mapping[str, Any]]
Operations = Mapping[str, Operation]


def body(data: bytes) -> dict[str, Any]:
    """What is told of the bytes that were read."""
    return {"length": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def rows(identifiers: list[int]) -> dict[str, Any]:
    """What is told of the rows that were read."""
    return {"rows": len(identifiers), "total": sum(identifiers)}


def keys(found: list[str]) -> dict[str, Any]:
    """What is told of a listing."""
    return {"keys": sorted(found)}


def object_store_extras(at: At) -> dict[str, str]:
    """What a session and virtual-host style add to the options that readers by object_store take."""
    token = {} if at.token is None else {"aws_session_token": at.token}
    if at.style == "path":
        return token
    host = at.endpoint.replace("://", f"://{at.bucket}.", 1)
    return token | {"aws_virtual_hosted_style_request": "true", "aws_endpoint_url": host}


def main(connect: Callable[[At], Operations]) -> None:
    """Run the jobs of the standard input; `connect` gives the operations of a client at an endpoint."""
    jobs = json.load(sys.stdin)["jobs"]
    print(json.dumps({"jobs": {job["name"]: run(connect, job) for job in jobs}}), flush=True)
    # Threads of a client's native library can abort an interpreter that ends in order.
    os._exit(0)


def run(connect: Callable[[At], Operations], job: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The outcomes of one job's steps."""
    at = At(
        job["endpoint"],
        job["region"],
        job["accessKey"],
        job["secretKey"],
        job.get("token"),
        job["bucket"],
        job["style"],
    )
    try:
        operations = connect(at)
    except Exception as error:  # noqa: BLE001 - what a client raises is what is looked for
        return [failure(error)] * len(job["steps"])
    return [outcome(operations, step) for step in job["steps"]]


def outcome(operations: Operations, step: Mapping[str, Any]) -> Mapping[str, Any]:
    """What came of one step."""
    try:
        return operations[step["op"]](**{name: value for name, value in step.items() if name != "op"})
    except BaseException as error:  # noqa: BLE001 - polars panics with a BaseException
        return failure(error)


def failure(error: BaseException) -> dict[str, str]:
    """An error as its client tells it."""
    return {"error": f"{type(error).__name__}: {error}"}
