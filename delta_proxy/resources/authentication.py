"""Who sent a request: Signature Version 4 in the header or the query, with long-lived or session keys.

Nothing is looked up for a request before this has passed, so one that proves nobody learns nothing: neither
an alias nor whether a key exists.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime

from attrs import field, frozen

from delta_proxy.access.identity import AuthKind, Principal
from delta_proxy.access.permission_feed import Unavailable
from delta_proxy.access.principals import Known, Principals
from delta_proxy.access.sts import SessionTokens, is_session_key
from delta_proxy.resources.refusals import NO_SIGNATURE
from delta_proxy.resources.server import EdgeRequest
from delta_proxy.s3.chunked import ChunkSigning
from delta_proxy.s3.errors import AccessDenied, InvalidAccessKeyId, InvalidToken, ServiceUnavailable
from delta_proxy.s3.request import S3Request
from delta_proxy.s3.sigv4 import EMPTY_SHA256, SigningKeys
from delta_proxy.s3.verify import Presented, presented, verify

_HEX_DIGITS = 64
# To ask a member of an Enum for its value is slow.
_NAMES = {kind: kind.value for kind in AuthKind}


@frozen
class SigV4Authenticator:
    """Verifies every request against the principals there are.

    `regions` are those that a signature's scope may name. `sessions` opens session tokens, None where none
    are issued. `now` must be aware.
    """

    principals: Principals
    regions: Collection[str]
    now: Callable[[], datetime]
    sessions: SessionTokens | None = None
    keys: SigningKeys = field(factory=SigningKeys)

    async def authenticate(self, s3: S3Request, request: EdgeRequest) -> Principal:
        """The principal whose secret signed the request. Raises S3Error as S3 does."""
        found = self._presented(s3, request)
        # A read has no body: whatever hash is announced must be that of nothing.
        bodiless = s3.method in {"GET", "HEAD"} and len(found.payload_hash or "") == _HEX_DIGITS
        return self._verified(s3, found, self.regions, "s3", EMPTY_SHA256 if bodiless else None)

    def body_signing(self, s3: S3Request) -> ChunkSigning | None:
        """What the signed chunks of an authenticated request's body are verified with. Raises S3Error."""
        found = presented(s3)
        if found is None:
            raise AccessDenied(NO_SIGNATURE)
        return ChunkSigning.of(found, self._find(found, self.now()).secret.value, self.keys)

    def caller(self, s3: S3Request, request: EdgeRequest, body_sha256: str) -> Principal:
        """The principal of a request to STS, whose clients sign the body and send no hash of it."""
        return self._verified(s3, self._presented(s3, request), None, "sts", body_sha256)

    def _presented(self, s3: S3Request, request: EdgeRequest) -> Presented:
        found = presented(s3)
        if found is None:
            raise AccessDenied(NO_SIGNATURE)
        request.note.auth, request.note.access_key = _NAMES[_kind(found)], found.access_key
        return found

    def _verified(
        self,
        s3: S3Request,
        found: Presented,
        regions: Collection[str] | None,
        service: str,
        payload_hash: str | None,
    ) -> Principal:
        now = self.now()
        known = self._find(found, now)
        verify(
            s3,
            found,
            known.secret.value,
            now=now,
            keys=self.keys,
            regions=regions,
            service=service,
            payload_hash=payload_hash,
        )
        return known.principal

    def _find(self, found: Presented, now: datetime) -> Known:
        try:
            if self.sessions is not None and is_session_key(found.access_key):
                return self._session(self.sessions, found, now)
            known = self.principals.find(found.access_key, now, _kind(found))
        except Unavailable:
            raise ServiceUnavailable from None
        if known is None:
            raise InvalidAccessKeyId(fields={"AWSAccessKeyId": found.access_key})
        if found.session_token is not None:
            raise InvalidToken
        return known

    def _session(self, sessions: SessionTokens, found: Presented, now: datetime) -> Known:
        if found.session_token is None:
            raise InvalidAccessKeyId(fields={"AWSAccessKeyId": found.access_key})
        session = sessions.open_token(found.session_token, found.access_key, now)
        return Known(session.secret_key, self.principals.session(session, now))


def _kind(found: Presented) -> AuthKind:
    if found.session_token is not None:
        return AuthKind.SESSION
    return AuthKind.PRESIGNED if found.presigned else AuthKind.SIGV4
