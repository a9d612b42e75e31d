"""Which two links belong together. Pure: whoever comes first waits, and who comes second takes them along."""

from __future__ import annotations

from typing import Generic, Literal, NamedTuple, TypeVar

from jmp.errors import Busy

End = Literal["client", "exporter"]
T = TypeVar("T")


class Arrival(NamedTuple, Generic[T]):
    """What follows from an end's coming."""

    other: T | None
    """The other end, if that waits already."""
    gone: tuple[T, ...]
    """Who is no longer here: the same end's earlier link, which is lost for it, and whom that had met."""


class Pairing(Generic[T]):
    """Those who have met, and those who wait for their other end, by the session that their tokens name."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._here: dict[str, dict[End, T]] = {}
        self._pairs = 0

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._here) - self._pairs

    @property
    def pairs(self) -> int:
        """How many sessions have met."""
        return self._pairs

    def arrive(self, session: str, end: End, who: T) -> Arrival[T]:
        """``who`` has come, in place of whoever came as this end before. Raises ``Busy`` if there is no room."""
        here = self._here.get(session)
        if here is None:
            if len(self._here) >= self._most:
                raise Busy(f"this router joins {self._most} sessions already")
            here = self._here[session] = {}
        gone: tuple[T, ...] = ()
        if end in here:  # the two are in the middle of what they say, and with a third a link begins anew: both go
            gone = tuple(here.values())
            self._pairs -= len(here) == 2
            here.clear()
        other = next(iter(here.values()), None)
        here[end] = who
        self._pairs += other is not None
        return Arrival(other, gone)

    def leave(self, session: str, who: T) -> None:
        """``who`` is gone, and with it its pair; nothing if another link has taken its place."""
        here = self._here.get(session, {})
        if any(one is who for one in here.values()):
            self._pairs -= len(here) == 2
            del self._here[session]
