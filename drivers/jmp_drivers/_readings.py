"""What a device measures, once and again and again."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import AsyncIterator

import trio

from jmp.driver import BadValue, Driver, export


class Metered(Driver):
    """A device that measures: a driver says what with ``reading``, and has ``readings`` from here."""

    @export
    @abstractmethod
    async def reading(self) -> dict[str, float]:
        """What it measures now: `voltage` (V), `current` (A), `power` (W) and the like."""

    @export
    async def readings(self, interval: float = 1.0) -> AsyncIterator[dict[str, float]]:
        """What it measures, again and again: one reading every so many seconds."""
        if not 0 < interval < math.inf:
            raise BadValue(f"interval must be more than 0 seconds, not {interval:g}")
        due = trio.current_time()
        while True:
            yield await self.reading()
            due = max(due + interval, trio.current_time())
            await trio.sleep_until(due)
