"""Where connections come from that come to nothing: what a listener remembers of that, on a clock that it is told.

A handshake costs a listener a good deal more than its peer, so a source whose connections fail again and again pays for it:
beyond :data:`BURST` of them, and :data:`RATE` a second for long, its connections wait for one another, as far apart as that.
Nobody else waits for them. Each one that succeeds makes up for one that failed: many who share an address are not shut out by
one of them who has an old token.

One number for each source says it all: the time at which all its failures are forgotten, each one adding ``1 / RATE`` to it.
"""

from __future__ import annotations

from typing import Final

RATE: Final = 10.0
"""Failures in a second that a source may go on with: a hundredth of a processor's time, at 1 ms for each."""
BURST: Final = 16
"""So many more, before it has to wait."""
LONGEST: Final = 60.0
"""Seconds after which the failures of a source are forgotten, however many they were."""
MOST: Final = 4096
"""Sources remembered at once; those are forgotten first of which nothing was heard for the longest time."""

_EACH: Final = 1 / RATE
_FREE: Final = (BURST + 0.5) / RATE
"""Half of one more, so that no rounding decides."""


class Sources:
    """What a listener remembers of those that it failed to let in."""

    def __init__(self) -> None:
        self._forgotten: dict[str, float] = {}
        """When the failures of a source are forgotten, in the order in which something became of its connections."""

    def wait(self, source: str, now: float) -> float:
        """Seconds that a connection of ``source`` has to wait until it is looked at. None of this is changed by asking."""
        return max(0.0, self._forgotten.get(source, now) - _FREE - now)

    def failed(self, source: str, now: float, times: int = 1) -> bool:
        """One came to nothing, or may: one that waits counts from then on. Whether it is this one for which others wait now."""
        waited = self.wait(source, now) > 0
        forgotten = max(self._forgotten.get(source, now), now) + times * _EACH
        self._set(source, min(forgotten, now + LONGEST))
        return not waited and self.wait(source, now) > 0

    def succeeded(self, source: str, now: float) -> None:
        """One that was let in, or one that was counted as failed and did not."""
        forgotten = self._forgotten.get(source, now) - _EACH
        if forgotten > now:
            self._set(source, forgotten)
        else:
            self._forgotten.pop(source, None)

    def _set(self, source: str, forgotten: float) -> None:
        self._forgotten.pop(source, None)
        self._forgotten[source] = forgotten
        if len(self._forgotten) > MOST:
            del self._forgotten[next(iter(self._forgotten))]

    def __len__(self) -> int:
        return len(self._forgotten)
