"""Signatures for tools that make none: reads of the named endpoints, with the AWS chain's credentials."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from delta_proxy.local_helper.targets import Fields, Origin, Target, first, parse_endpoint
from delta_proxy.s3 import sigv4
from delta_proxy.s3.request import parse_query
from delta_proxy.upstream.credentials import CredentialSource
from delta_proxy.upstream.origin import DEFAULT_REGION

_READS = frozenset({b"GET", b"HEAD"})
_OWN = frozenset({b"x-amz-date", b"x-amz-content-sha256", b"x-amz-security-token"})
_SIGNED_QUERY = frozenset({"X-Amz-Algorithm", "X-Amz-Signature", "AWSAccessKeyId", "Signature"})
_OWN_SITE = frozenset({b"none", b"same-origin"})


class Signer:
    """Signs reads for `endpoints` alone: a signature carries a session token, which is nobody else's.

    What the client signed itself is left as it is. What a page of another site makes a browser ask for is
    never signed.
    """

    def __init__(
        self,
        endpoints: frozenset[Origin],
        source: CredentialSource,
        now: Callable[[], datetime],
        region: str | None = None,
    ) -> None:
        self._endpoints = endpoints
        self._source = source
        self._now = now
        self._region = region
        self._keys = sigv4.SigningKeys()

    async def sign(self, method: bytes, target: Target, host: bytes, fields: Fields) -> Fields:
        """The fields with a signature where one is due. Raises ServiceUnavailable without credentials."""
        query = parse_query(target.raw_query)
        if not self._is_due(method, target, query, fields):
            return fields
        kept = tuple((name, value) for name, value in fields if name.lower() not in _OWN)
        credentials = await self._source.get()
        region = self._region or await self._source.region() or DEFAULT_REGION
        signed = sigv4.sign(
            method.decode("ascii"),
            host.decode("ascii"),
            target.raw_path.decode("ascii"),
            query,
            [
                (name.decode("ascii"), value.decode("latin-1"))
                for name, value in kept
                if name.lower().startswith(b"x-amz-")
            ],
            sigv4.EMPTY_SHA256,
            credentials,
            region,
            self._now(),
            self._keys,
        )
        return (*kept, *((name.encode("ascii"), value.encode("latin-1")) for name, value in signed))

    def _is_due(
        self, method: bytes, target: Target, query: tuple[tuple[str, str], ...], fields: Fields
    ) -> bool:
        if method not in _READS or target.origin not in self._endpoints:
            return False
        if first(fields, b"authorization") is not None or any(name in _SIGNED_QUERY for name, _ in query):
            return False
        return _of_own_site(target.origin, fields)


def _of_own_site(endpoint: Origin, fields: Fields) -> bool:
    """Whether no other site's page asks: browsers say so by Origin and Sec-Fetch-Site."""
    site, origin = first(fields, b"sec-fetch-site"), first(fields, b"origin")
    if site is not None and site.lower() not in _OWN_SITE:
        return False
    if origin is None:
        return True
    try:
        return parse_endpoint(origin.decode("latin-1")) == endpoint
    except ValueError:
        return False
