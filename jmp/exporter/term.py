"""How long a lease lasts at its exporter: pure, by a clock that only goes on, which no controller's clock can move.

The time of a device that is leased alone begins when it is ready here. That of one of several begins when all of them are,
which the controller tells: for how long that has been so, since clocks differ. What it tells then counts; what comes
later may be later, or by a clock that was set since. An exporter that is cut off before it was told still ends the lease: at the
latest moment at which it can end, were the last of its devices ready just in time.
"""

from __future__ import annotations

import math

from jmp.wire.duration import text
from jmp.wire.records import Grant


class Term:
    """The time of one lease at one exporter. ``now`` is always on the same monotonic clock, in seconds."""

    def __init__(self, grant: Grant, now: float) -> None:
        self._ready = math.inf
        """When the device got ready,"""
        self._began = math.inf
        """and when the lease's time began."""
        self.renew(grant, now)

    def renew(self, grant: Grant, now: float) -> None:
        """What the controller says of it now: that it has begun, or lasts longer."""
        self._grant = grant
        if not self._is_ready:
            self._ready_by = now + grant.remaining
        if grant.running is not None and self._began == math.inf:
            began = now - grant.running
            self._began = max(began, self._ready) if self._is_ready else began  # not before what it waited for

    def ready(self, now: float) -> None:
        """The device can be used from now on."""
        self._ready = now
        if self._grant.alone:
            self._began = now

    def due(self, used: float) -> tuple[float, str]:
        """When it ends by itself, and why, if the device was used last at ``used`` (``-inf``: never)."""
        if not self._is_ready:
            return self._ready_by, "its exporter did not get ready in time"
        if self._began == math.inf:
            return self._ready_by + self._grant.duration, "its time was over"
        ends = self._began + self._grant.duration
        limit = self._grant.idle_limit
        if limit is not None and (idle := max(used, self._began) + limit) < ends:
            return idle, f"nobody used it for {text(limit)}"
        return ends, "its time was over"

    @property
    def _is_ready(self) -> bool:
        return self._ready < math.inf
