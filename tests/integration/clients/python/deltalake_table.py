"""deltalake: a table, by the Delta log."""

from __future__ import annotations

from deltalake import DeltaTable

from .steps import At, Operations, main, object_store_extras, rows


def connect(at: At) -> Operations:
    """Reading tables with deltalake."""
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
        found = DeltaTable(f"s3://{bucket}/{name}", storage_options=storage_options)
        selected = found.to_pyarrow_table(filters=[("zone", "=", zone)])
        # paste to here
        return rows(selected["id"].to_pylist())

    return {"table": table}


if __name__ == "__main__":
    main(connect)
