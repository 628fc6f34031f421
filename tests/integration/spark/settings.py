"""What Spark must be told of a proxy: the settings that the tests run with and that docs/spark.md shows."""

from __future__ import annotations

SESSIONS = "org.apache.hadoop.fs.s3a.TemporaryAWSCredentialsProvider"
USERS = "org.apache.hadoop.fs.s3a.SimpleAWSCredentialsProvider"


def common(region: str) -> dict[str, str]:
    """What holds for every bucket over plain HTTP."""
    return {
        "fs.s3a.path.style.access": "true",
        "fs.s3a.connection.ssl.enabled": "false",
        "fs.s3a.endpoint.region": region,
    }


def of_bucket(
    bucket: str,
    endpoint: str,
    *,
    access_key: str,
    secret_key: str,
    session_token: str | None = None,
    helper_port: int | None = None,
) -> dict[str, str]:
    """A bucket, with a user's or a session's credentials, and the local helper where one is used."""
    settings = {
        "endpoint": endpoint,
        "aws.credentials.provider": SESSIONS if session_token else USERS,
        "access.key": access_key,
        "secret.key": secret_key,
    }
    if session_token:
        settings["session.token"] = session_token
    if helper_port:
        settings |= {"proxy.host": "127.0.0.1", "proxy.port": str(helper_port)}
    return {f"fs.s3a.bucket.{bucket}.{name}": value for name, value in settings.items()}
