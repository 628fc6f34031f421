"""boto3: get_object."""

from __future__ import annotations

import boto3
from botocore.config import Config

from .steps import At, Operations, body, keys, main


def connect(at: At) -> Operations:
    """The operations of a boto3 client."""
    endpoint, region, access_key, secret_key, token, bucket, style = at
    # paste from here
    s3 = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=region,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        aws_session_token=token,
        config=Config(s3={"addressing_style": style}),
    )
    # paste to here

    def read(key: str) -> dict[str, object]:
        # paste from here
        data = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        # paste to here
        return body(data)

    def part(key: str, first: int, last: int) -> dict[str, object]:
        return body(s3.get_object(Bucket=bucket, Key=key, Range=f"bytes={first}-{last}")["Body"].read())

    def listing(prefix: str, page: int) -> dict[str, object]:
        pages = s3.get_paginator("list_objects_v2").paginate(
            Bucket=bucket, Prefix=prefix, PaginationConfig={"PageSize": page}
        )
        return keys([each["Key"] for one in pages for each in one.get("Contents", ())])

    def head(key: str) -> dict[str, object]:
        return {"length": s3.head_object(Bucket=bucket, Key=key)["ContentLength"]}

    return {"read": read, "range": part, "list": listing, "open": head}


if __name__ == "__main__":
    main(connect)
