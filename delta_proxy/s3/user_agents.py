"""What a client does with a 307, told by its User-Agent.

The default list holds the clients that were seen not to follow, or to fail when they do, and every SDK of AWS
that nobody has tried. Whatever the list does not name is redirected: plain HTTP clients (curl, Wget, urllib,
browsers) and a request without User-Agent follow a 307.

The order of the words in an SDK's `md/` list is random, and aiobotocore, which follows, also names `Botocore`
there: the patterns match how the string begins, save for the clients that let a user put words in front.
"""

from __future__ import annotations

import fnmatch
import re
from functools import lru_cache
from typing import Final

import attrs

NEVER_REDIRECT: Final[tuple[str, ...]] = (
    "object_store/*",
    "Boto3/*",
    "Botocore/*",
    "aws-cli/*",
    "MinIO*",
    "*Hadoop*",
    "*aws-sdk-java/*",
    "*CRTS3NativeClient*",
    # aws-sdk-cpp, aws-sdk-go and aws-sdk-go-v2 follow; js, java, rust, php, dotnet and the rest do not.
    "aws-sdk-[!cg]*",
)
"""Patterns of fnmatchcase, the default of the configuration key neverRedirect."""

HELPER_HEADER: Final = "x-delta-proxy-helper"
"""The request field by which the local helper says that it follows, whatever client it speaks for.

Not an `x-amz-*` name: those must be signed, and the helper passes on what the client signed.
"""

_DROPS_TOKEN: Final = ("aws-sdk-go-v2/", "rclone/")


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
    follows = not any(pattern.match(user_agent) for pattern in _compiled(never))
    return RedirectRule(follows, resends_token=not user_agent.startswith(_DROPS_TOKEN))


@lru_cache(maxsize=16)
def _compiled(never: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(fnmatch.translate(pattern)) for pattern in never)
