"""daft: Parquet files, by the AWS SDK for Rust."""

from __future__ import annotations

import daft
from daft.io import IOConfig, S3Config

from .steps import At, Operations, keys, main, rows


def connect(at: At) -> Operations:
    """Reading with daft."""
    endpoint, region, access_key, secret_key, token, bucket, style = at
    # paste from here
    io_config = IOConfig(
        s3=S3Config(
            endpoint_url=endpoint,
            region_name=region,
            key_id=access_key,
            access_key=secret_key,
            session_token=token,
            force_virtual_addressing=style == "virtual",
        )
    )
    # paste to here

    def file(key: str) -> dict[str, object]:
        # paste from here
        frame = daft.read_parquet(f"s3://{bucket}/{key}", io_config=io_config)
        found = frame.to_pydict()
        # paste to here
        return rows(found["id"])

    def listing(prefix: str, page: int) -> dict[str, object]:
        del page
        found = daft.from_glob_path(f"s3://{bucket}/{prefix}**", io_config=io_config).to_pydict()["path"]
        return keys([each.removeprefix(f"s3://{bucket}/") for each in found])

    return {"file": file, "files": file, "list": listing, "special": file}


if __name__ == "__main__":
    main(connect)
