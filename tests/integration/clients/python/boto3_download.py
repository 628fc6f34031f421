"""boto3: download_file, which reads large objects in parallel ranges."""

from __future__ import annotations

import pathlib
import tempfile

import boto3
from botocore.config import Config

from .steps import At, Operations, body, main


def connect(at: At) -> Operations:
    """The operations of boto3's transfer manager."""
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
        with tempfile.TemporaryDirectory() as folder:
            filename = f"{folder}/file"
            # paste from here
            s3.download_file(bucket, key, filename)
            # paste to here
            return body(pathlib.Path(filename).read_bytes())

    return {"read": read, "parallel": read}


if __name__ == "__main__":
    main(connect)
