"""Runs the steps with a command line tool; its lines are sections of a shell script, one an operation.

A section is run after the section `setup`, in a shell whose variables are those of the lines to paste. `url`
is the key's URL, presigned by boto3.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import boto3
from botocore.config import Config

from .steps import At, Operations, body, keys, main

_LISTED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d +\d+ (.*)")


def sections(text: str) -> dict[str, str]:
    """The lines of a script by the name of their section."""
    found: dict[str, list[str]] = {}
    inside: str | None = None
    for line in text.splitlines():
        if line.endswith(": paste from here"):
            inside = line.removeprefix("# ").partition(":")[0]
        elif line.endswith(": paste to here"):
            inside = None
        elif inside is not None:
            found.setdefault(inside, []).append(line)
    return {name: "\n".join(lines) for name, lines in found.items()}


def connect(script: pathlib.Path, at: At) -> Operations:
    """The operations of the tool whose script this is."""
    lines = sections(script.read_text())
    signer = boto3.client(
        "s3",
        endpoint_url=at.endpoint,
        region_name=at.region,
        aws_access_key_id=at.access_key,
        aws_secret_access_key=at.secret_key,
        aws_session_token=at.token,
        config=Config(s3={"addressing_style": at.style}, signature_version="s3v4"),
    )

    def shell(section: str, folder: str, **more: object) -> str:
        key = str(more.get("key", ""))
        url = (
            signer.generate_presigned_url("get_object", Params={"Bucket": at.bucket, "Key": key})
            if key
            else ""
        )
        values = {"folder": f"{folder}/files", "file": f"{folder}/file", "url": url, **at._asdict(), **more}
        program = "\n".join(("set -e", lines.get("setup", ""), lines[section]))
        session = (
            {"AWS_SESSION_TOKEN": at.token, "RCLONE_CONFIG_LAKE_SESSION_TOKEN": at.token} if at.token else {}
        )
        configuration = pathlib.Path(folder) / "configuration"
        configuration.write_text(f"[default]\ns3 =\n  addressing_style = {at.style}\n")
        done = subprocess.run(
            ["sh", "-c", program],
            env={
                **os.environ,
                **session,
                "HOME": folder,
                "AWS_CONFIG_FILE": str(configuration),
                "RCLONE_CONFIG_LAKE_FORCE_PATH_STYLE": str(at.style == "path").lower(),
                **{name: str(value) for name, value in values.items()},
            },
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            said = pathlib.Path(f"{folder}/file")
            answer = said.read_text(errors="replace")[:500] if said.exists() else ""
            raise RuntimeError(f"status {done.returncode}: {done.stderr.strip()[-800:]} {answer}")
        return done.stdout

    def read(key: str) -> dict[str, object]:
        with tempfile.TemporaryDirectory() as folder:
            shell("read", folder, key=key)
            return body((pathlib.Path(folder) / "file").read_bytes())

    def part(key: str, first: int, last: int) -> dict[str, object]:
        with tempfile.TemporaryDirectory() as folder:
            shell("range", folder, key=key, first=first, last=last, count=last - first + 1)
            return body((pathlib.Path(folder) / "file").read_bytes())

    def whole(prefix: str) -> dict[str, object]:
        with tempfile.TemporaryDirectory() as home:
            target = pathlib.Path(home) / "files"
            target.mkdir()
            shell("folder", home, prefix=prefix)
            return {each.name: body(each.read_bytes()) for each in target.iterdir()}

    def listing(prefix: str, page: int) -> dict[str, object]:
        with tempfile.TemporaryDirectory() as folder:
            text = shell("list", folder, prefix=prefix, page=page)
        return keys([_key(line, at.bucket, prefix) for line in text.splitlines()])

    return {"read": read, "range": part, "folder": whole, "list": listing}


def _key(line: str, bucket: str, prefix: str) -> str:
    """The key that a line of a listing names: in JSON, after its date and size, or by the whole line."""
    if line.startswith("{"):
        line = json.loads(line)["key"]
    elif found := _LISTED.fullmatch(line):
        line = found[1]
    for lead in (f"s3://{bucket}/", f"lake/{bucket}/"):
        line = line.removeprefix(lead)
    return line if line.startswith(prefix) else prefix + line


if __name__ == "__main__":
    main(functools.partial(connect, pathlib.Path(sys.argv[1])))
