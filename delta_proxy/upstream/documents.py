"""Documents of XML, from the store or a client: what is long is parsed beside the reactor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from delta_proxy.upstream.spool import DeferToPool

_AT_ONCE: Final = 4096
"""Bytes that are parsed in less time than a thread takes to be woken; ten thousand parts take 0.3 s."""

Told = TypeVar("Told")


async def parsed(parse: Callable[[bytes], Told], body: bytes, defer_to_pool: DeferToPool) -> Told:
    """What a document says. Raises what `parse` raises."""
    if len(body) <= _AT_ONCE:
        return parse(body)
    told: Told = await defer_to_pool(parse, body)
    return told
