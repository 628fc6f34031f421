"""duckdb's connection for its two programs; its extensions come from Python packages, not the network."""

from __future__ import annotations

import os

import duckdb

from delta_proxy.demo import extension

from .steps import At


def connection(at: At) -> duckdb.DuckDBPyConnection:
    """A connection with httpfs, delta, and a secret for the endpoint."""
    endpoint, region, access_key, secret_key, token, _, style = at
    # paste from here
    con = duckdb.connect()
    # paste to here
    con.execute("SET autoinstall_known_extensions = false")
    for name in ("httpfs", "delta"):
        con.execute(f"LOAD '{extension(name)}'")
    # paste from here
    host = endpoint.removeprefix("http://")
    secret = (
        f"TYPE s3, KEY_ID '{access_key}', SECRET '{secret_key}', REGION '{region}', "
        f"ENDPOINT '{host}', URL_STYLE 'path', USE_SSL false"
    )
    # paste to here
    if token is not None:
        secret += f", SESSION_TOKEN '{token}'"
    if style == "virtual":
        secret = secret.replace("URL_STYLE 'path'", "URL_STYLE 'vhost'")
    # paste from here
    con.execute(f"CREATE SECRET ({secret})")
    # paste to here
    if "http_proxy" in os.environ:
        con.execute(f"SET http_proxy = '{os.environ['http_proxy']}'")
    return con
