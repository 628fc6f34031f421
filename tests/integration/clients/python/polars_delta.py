"""polars: scan_delta."""

from __future__ import annotations

import polars as pl

from .steps import At, Operations, main, object_store_extras, rows


def connect(at: At) -> Operations:
    """Reading tables with polars."""
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

    def table(name: str, zone: str) -> dict[str, object]:
        # paste from here
        frame = pl.scan_delta(f"s3://{bucket}/{name}", storage_options=storage_options)
        selected = frame.filter(pl.col("zone") == zone).collect()
        # paste to here
        return rows(selected["id"].to_list())

    return {"table": table}


if __name__ == "__main__":
    main(connect)
