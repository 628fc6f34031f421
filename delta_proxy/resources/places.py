"""A bound on what one principal has under way, so that nobody keeps the proxy from everybody else.

Without it whoever reads slowly over enough connections holds every stream to the store that there may be.
"""

from __future__ import annotations

from typing import Final

from twisted.internet.interfaces import IReactorTime

from delta_proxy.upstream.slots import Slot, Slots

WAIT_SECONDS: Final = 10.0
"""How long a request waits for one of its principal's places."""

_REMEMBERED: Final = 1_024


class PrincipalPlaces:
    """At most `limit` requests of a principal are answered at a time, and as many more wait.

    Uploads and streamed bodies count until their last byte.
    """

    def __init__(self, clock: IReactorTime, *, limit: int, seconds: float = WAIT_SECONDS) -> None:
        self._clock = clock
        self._limit = limit
        self._seconds = seconds
        self._slots: dict[str, Slots] = {}

    def __len__(self) -> int:
        return len(self._slots)

    async def acquire(self, principal: str) -> Slot:
        """A place of the principal's. Raises SlowDown when too many wait, or when none came free in time."""
        slots = self._slots.get(principal)
        if slots is None:
            if len(self._slots) >= _REMEMBERED:
                self._slots = {who: held for who, held in self._slots.items() if held.in_flight}
            slots = self._slots[principal] = Slots(
                self._clock, limit=self._limit, queue=self._limit, seconds=self._seconds
            )
        return await slots.acquire()
