"""What a client does with a 307, told by its User-Agent.

One table, CLIENTS, holds the clients that were tried. The default of neverRedirect and what is signed into a
presigned URL come from it, and the client matrix of the tests holds it to what the clients do. Whatever the
table does not name is redirected: plain HTTP clients and a request without User-Agent follow a 307.
"""

from __future__ import annotations

import fnmatch
import re
from functools import lru_cache
from typing import Final

import attrs


@attrs.frozen
class KnownClient:
    """A kind of client: `patterns` of fnmatchcase match its User-Agents whole.

    `follows`: it follows a 307 to another host as a store needs it: with the new Host, and without its
    Authorization. `resends_token`: it repeats its x-amz-security-token there too.
    """

    name: str
    patterns: tuple[str, ...]
    follows: bool
    resends_token: bool = True


# The order of the words in an SDK's `md/` list is random, and aiobotocore, which follows, also names Botocore
# there: the patterns match how the string begins, save for the clients that let a user put words in front.
CLIENTS: Final[tuple[KnownClient, ...]] = (
    KnownClient("polars", ("polars/*",), follows=True),
    KnownClient("duckdb", ("duckdb/*",), follows=True),
    KnownClient("AWS SDK for C++", ("aws-sdk-cpp/*",), follows=True),
    # With awscrt botocore signs by it, and the Host of the first request is sent to the second host.
    KnownClient("aiobotocore with awscrt", ("aiobotocore/*md/awscrt#*",), follows=False),
    KnownClient("aiobotocore", ("aiobotocore/*",), follows=True),
    KnownClient("AWS SDK for Go v1", ("aws-sdk-go/*",), follows=True),
    KnownClient("AWS SDK for Go v2", ("aws-sdk-go-v2/*",), follows=True, resends_token=False),
    KnownClient("rclone", ("rclone/*",), follows=True, resends_token=False),
    KnownClient("curl", ("curl/*",), follows=True),
    # Before 0.14 the Host of the first request is sent to the second host.
    KnownClient("object_store before 0.14", ("object_store/0.?.*", "object_store/0.1[0-3].*"), follows=False),
    KnownClient("object_store", ("object_store/*",), follows=True),
    KnownClient("boto3", ("Boto3/*", "Botocore/*"), follows=False),
    KnownClient("aws-cli", ("aws-cli/*",), follows=False),
    KnownClient("MinIO", ("MinIO*",), follows=False),
    KnownClient("Hadoop", ("*Hadoop*",), follows=False),
    KnownClient("AWS SDK for Java", ("*aws-sdk-java/*", "*CRTS3NativeClient*"), follows=False),
    # aws-sdk-cpp, aws-sdk-go and aws-sdk-go-v2 follow; js and rust do not; nobody tried the others.
    KnownClient("other AWS SDKs", ("aws-sdk-[!cg]*",), follows=False),
)

NEVER_REDIRECT: Final[tuple[str, ...]] = tuple(
    pattern for client in CLIENTS if not client.follows for pattern in client.patterns
)
"""Patterns of fnmatchcase, the default of the configuration key neverRedirect."""

HELPER_HEADER: Final = "x-delta-proxy-helper"
"""The request field by which the local helper says that it follows, whatever client it speaks for.

Not an `x-amz-*` name: those must be signed, and the helper passes on what the client signed.
"""

_DROP_TOKEN: Final = tuple(
    pattern for client in CLIENTS if not client.resends_token for pattern in client.patterns
)


@attrs.frozen
class RedirectRule:
    """How to answer a GET of a client.

    `follows`: a 307 may be sent. `resends_token`: the client repeats its x-amz-security-token to the new
    host, so that the header belongs in SignedHeaders; the others drop it, and no store could verify a
    signature over it. `resends_fields`: the same of all its x-amz-* fields.
    """

    follows: bool
    resends_token: bool
    resends_fields: bool = True


FOR_THE_HELPER: Final = RedirectRule(follows=True, resends_token=False, resends_fields=False)
"""The local helper follows with a range and conditions only, so that nothing but the host may be signed."""


@lru_cache(maxsize=1024)
def redirect_rule(user_agent: str, never: tuple[str, ...] = NEVER_REDIRECT) -> RedirectRule:
    """The rule for a User-Agent, "" if there is none; `never` are patterns that match it whole, with case."""
    return RedirectRule(not _matches(user_agent, never), resends_token=not _matches(user_agent, _DROP_TOKEN))


def known_client(user_agent: str) -> KnownClient | None:
    """The first client of the table whose User-Agent this is; None for one that the table does not name."""
    return next((client for client in CLIENTS if _matches(user_agent, client.patterns)), None)


def _matches(user_agent: str, patterns: tuple[str, ...]) -> bool:
    return any(pattern.match(user_agent) for pattern in _compiled(patterns))


@lru_cache(maxsize=64)
def _compiled(patterns: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(fnmatch.translate(pattern)) for pattern in patterns)
