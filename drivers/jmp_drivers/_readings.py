"""What a device measures, once and again and again."""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import AsyncIterator
from dataclasses import field

import trio

from jmp.driver import BadValue, ConfigError, DeviceError, Driver, export
from jmp.driver.driver import Export

_NUMBER = r"([-+]?\d+(?:\.\d+)?)"
_USUAL = {name: rf"(?i)\b{name}\b[^\d\n+-]{{0,10}}{_NUMBER}" for name in ("voltage", "current", "power")}


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


class MeteredByText(Metered):
    """A device that measures if its configuration says how it is asked; what it answers is a text with numbers in it."""

    reading_patterns: dict[str, str] = field(
        default_factory=dict,
        metadata={
            "doc": "name → regular expression in what `reading` gives; default: a number behind voltage, current, power"
        },
    )

    def _check_readings(self) -> None:
        """Raises `ConfigError`."""
        self._patterns: dict[str, re.Pattern[str]] = {}
        for name, pattern in (self.reading_patterns or _USUAL).items():
            try:
                self._patterns[name] = re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"reading_patterns.{name}: {pattern!r} is no regular expression: {error}") from error
            if not self._patterns[name].groups:
                raise ConfigError(f"reading_patterns.{name}: put the number in a group, as in power=([0-9.]+)")

    @abstractmethod
    def _measures(self) -> bool:
        """Whether the configuration says how it is asked."""

    @abstractmethod
    async def _measured(self) -> str:
        """What it answers. Raises `DeviceError`."""

    def exports(self) -> dict[str, Export]:
        all_ = super().exports()
        return all_ if self._measures() else {name: all_[name] for name in all_ if name not in ("reading", "readings")}

    async def reading(self) -> dict[str, float]:
        """What it measures now: `voltage` (V), `current` (A), `power` (W) and the like."""
        text = await self._measured()
        found = {}
        for name, pattern in self._patterns.items():
            if match := pattern.search(text):
                try:
                    found[name] = float(match[1])
                except (TypeError, ValueError):  # the group took no part, or holds no number
                    raise DeviceError(f"the answer has {match[0]!r} for {name}, in which there is no number") from None
        if not found:
            raise DeviceError(f"the answer has no {' and no '.join(self._patterns)}: {' '.join(text.split())[:200]}")
        return found
