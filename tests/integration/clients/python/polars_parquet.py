"""polars: scan_parquet."""

from __future__ import annotations

import polars as pl

from .steps import At, Operations, main, object_store_extras, rows


def connect(at: At) -> Operations:
    """Reading Parquet files with polars."""
    endpoint, region, access_key, secret_key, _, bucket, _ = at
    # paste from here
    storage_options = {
        "aws_endpoint_url": endpoint,
        "aws_region": region,
        "aws_access_key_id": access_key,
        "aws_secret_access_key": secret_key,
        "aws_allow_http": "true",
    }
    # paste to here
    storage_options |= object_store_extras(at)

    def file(key: str) -> dict[str, object]:
        # paste from here
        frame = pl.scan_parquet(f"s3://{bucket}/{key}", storage_options=storage_options).collect()
        # paste to here
        return rows(frame["id"].to_list())

    def special(key: str) -> dict[str, object]:
        uri = f"s3://{bucket}/{key}"
        return rows(
            pl.scan_parquet(uri, storage_options=storage_options, glob=False).collect()["id"].to_list()
        )

    return {"file": file, "files": file, "special": special}


if __name__ == "__main__":
    main(connect)
