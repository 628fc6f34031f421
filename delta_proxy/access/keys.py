"""The proxy's own secret keys: what seals users' secrets and session tokens.

`PROXY_SECRET_KEYS` holds one or more Fernet keys (32 random bytes in URL-safe base64), separated by commas.
The first one seals; every one opens, which is how keys are rotated: put the new key in front, re-seal, then
take the old one away.
"""

from __future__ import annotations

import base64
import binascii

import attrs
from cryptography.fernet import Fernet, MultiFernet

VARIABLE = "PROXY_SECRET_KEYS"


@attrs.frozen
class Secret:
    """A secret that does not show itself in a repr, a log or a traceback."""

    value: str = attrs.field(repr=False)

    def __str__(self) -> str:
        return "***"


@attrs.frozen
class SecretKeys:
    """The sealing keys, 32 bytes each; the first seals, all open."""

    keys: tuple[bytes, ...] = attrs.field(repr=False)

    @classmethod
    def parse(cls, text: str) -> SecretKeys:
        """The keys of a `PROXY_SECRET_KEYS` value; ValueError tells where a bad one is, never its text."""
        keys = tuple(
            _decode(part.strip(), position)
            for position, part in enumerate(text.split(","), 1)
            if part.strip()
        )
        if not keys:
            raise ValueError(f"{VARIABLE} holds no key")
        if len(set(keys)) != len(keys):
            raise ValueError(f"{VARIABLE} holds the same key twice")
        return cls(keys)

    def fernet(self) -> MultiFernet:
        """What seals the secrets at rest."""
        return MultiFernet([Fernet(base64.urlsafe_b64encode(key)) for key in self.keys])


def generate_key() -> str:
    """A new key, as it stands in `PROXY_SECRET_KEYS`."""
    return Fernet.generate_key().decode("ascii")


def _decode(text: str, position: int) -> bytes:
    try:
        key = base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error):
        key = b""
    if len(key) != 32:
        # The original error would carry the key's text along.
        raise ValueError(f"{VARIABLE}: key {position} is not 32 bytes in URL-safe base64") from None
    return key
