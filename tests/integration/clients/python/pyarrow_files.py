"""pyarrow: its own S3 filesystem."""

from __future__ import annotations

import os

import pyarrow.fs
import pyarrow.parquet as pq

from .steps import At, Operations, body, keys, main, rows


def connect(at: At) -> Operations:
    """Reading with pyarrow."""
    endpoint, region, access_key, secret_key, token, bucket, style = at
    # paste from here
    options = {
        "endpoint_override": endpoint.removeprefix("http://"),
        "scheme": "http",
        "region": region,
        "access_key": access_key,
        "secret_key": secret_key,
        "session_token": token,
        "force_virtual_addressing": style == "virtual",
    }
    # paste to here
    options["proxy_options"] = os.environ.get("http_proxy")
    # paste from here
    filesystem = pyarrow.fs.S3FileSystem(**options)
    # paste to here

    def read(key: str) -> dict[str, object]:
        with filesystem.open_input_stream(f"{bucket}/{key}") as stream:
            return body(stream.read())

    def part(key: str, first: int, last: int) -> dict[str, object]:
        with filesystem.open_input_file(f"{bucket}/{key}") as opened:
            return body(opened.read_at(last - first + 1, first))

    def listing(prefix: str, page: int) -> dict[str, object]:
        del page
        selector = pyarrow.fs.FileSelector(f"{bucket}/{prefix}".rstrip("/"), recursive=True)
        found = filesystem.get_file_info(selector)
        return keys([each.path.removeprefix(f"{bucket}/") for each in found if each.is_file])

    def head(key: str) -> dict[str, object]:
        return {"length": filesystem.get_file_info(f"{bucket}/{key}").size}

    def file(key: str) -> dict[str, object]:
        # paste from here
        table = pq.read_table(f"{bucket}/{key}", filesystem=filesystem, partitioning=None)
        # paste to here
        return rows(table["id"].to_pylist())

    return {"read": read, "range": part, "list": listing, "open": head, "file": file}


if __name__ == "__main__":
    main(connect)
