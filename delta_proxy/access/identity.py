"""Who is asking: the principal as a value."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType

import attrs

from delta_proxy.access.policy import Grant


class AuthKind(Enum):
    """How a principal showed who it is."""

    # Enum hashes its name anew each time; members are equal only to themselves.
    __hash__ = object.__hash__

    ANONYMOUS = "anonymous"
    SIGV4 = "sigv4"
    PRESIGNED = "presigned"
    SESSION = "session"
    FORWARD = "forward"


def _frozen(grants: Mapping[str, Grant]) -> Mapping[str, Grant]:
    return MappingProxyType(dict(grants))


@attrs.frozen
class Principal:
    """Who is asking. `grants` maps aliases to the union of the principal's own grants and its groups'.

    An alias absent from `grants` is one the principal has no grant of its own for; everyone's grants are not
    in here, `Policy.grant` adds them.
    """

    id: str
    groups: frozenset[str]
    auth: AuthKind
    grants: Mapping[str, Grant] = attrs.field(factory=dict, converter=_frozen, hash=False)
    read_only: bool = False


ANONYMOUS = Principal("anonymous", frozenset(), AuthKind.ANONYMOUS)
