"""Which two links belong together. Pure: whoever comes first waits, and who comes second takes them along."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from jmp.errors import Busy, Refused

End = Literal["client", "exporter"]
T = TypeVar("T")


@dataclass
class _Place(Generic[T]):
    end: End
    who: T


class Pairing(Generic[T]):
    """Those who wait for their other end, by the session that their tokens name."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: dict[str, _Place[T]] = {}
        self._met: set[str] = set()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def pairs(self) -> int:
        """How many sessions have met."""
        return len(self._met)

    def arrive(self, session: str, end: End, who: T) -> T | None:
        """``who`` has come: the other end, if that waits already.

        Raises ``Busy`` if there is no room, ``Refused`` if its place is taken.
        """
        if session in self._met:
            raise Refused("both ends of this session have met already")
        place = self._waiting.get(session)
        if place is not None and place.end == end:
            raise Refused(f"the {end}'s end of this session is taken")
        if place is not None:
            del self._waiting[session]
            self._met.add(session)
            return place.who
        if len(self._waiting) + len(self._met) >= self._most:
            raise Busy(f"this router joins {self._most} sessions already")
        self._waiting[session] = _Place(end, who)
        return None

    def leave(self, session: str, who: T) -> None:
        """``who`` is gone, whether it has met somebody or not."""
        self._met.discard(session)
        place = self._waiting.get(session)
        if place is not None and place.who is who:
            del self._waiting[session]
