"""pandas with s3fs."""

from __future__ import annotations

import pandas as pd
import s3fs

from .steps import At, Operations, body, keys, main, rows


def connect(at: At) -> Operations:
    """Reading with pandas and with s3fs."""
    endpoint, region, access_key, secret_key, token, bucket, style = at
    # paste from here
    storage_options = {
        "key": access_key,
        "secret": secret_key,
        "token": token,
        "client_kwargs": {"endpoint_url": endpoint, "region_name": region},
        "config_kwargs": {"s3": {"addressing_style": style}},
    }
    # paste to here
    files = s3fs.S3FileSystem(**storage_options, skip_instance_cache=True)

    def read(key: str) -> dict[str, object]:
        return body(files.cat_file(f"{bucket}/{key}"))

    def part(key: str, first: int, last: int) -> dict[str, object]:
        return body(files.cat_file(f"{bucket}/{key}", start=first, end=last + 1))

    def listing(prefix: str, page: int) -> dict[str, object]:
        del page
        return keys([each.removeprefix(f"{bucket}/") for each in files.find(f"{bucket}/{prefix}")])

    def head(key: str) -> dict[str, object]:
        return {"length": files.info(f"{bucket}/{key}")["size"]}

    def file(key: str) -> dict[str, object]:
        # paste from here
        frame = pd.read_parquet(f"s3://{bucket}/{key}", storage_options=storage_options)
        # paste to here
        return rows(frame["id"].tolist())

    return {"read": read, "range": part, "list": listing, "open": head, "file": file}


if __name__ == "__main__":
    main(connect)
