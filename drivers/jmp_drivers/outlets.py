"""Several power switches as one, in an order."""

from __future__ import annotations

import math
from dataclasses import field

import trio

from jmp.driver import ConfigError, DeviceError, export
from jmp.driver.interfaces import Power, PowerState


class Outlets(Power):
    """Several switches as one: its children, on in the order of the configuration and off the other way round.

    The first switch that fails ends an ``on``, and those after it stay as they are; ``off`` goes on to the others and tells
    the failures at its end.
    """

    delay: float = field(default=0.0, metadata={"doc": "seconds between one switch and the next"})

    def __post_init__(self) -> None:
        if not 0 <= self.delay < math.inf:
            raise ConfigError(f"delay must be 0 seconds or more, not {self.delay:g}")

    async def open(self) -> None:
        if not self.children:
            raise DeviceError("it has no switches: give it children in the exporter's configuration")
        for name, child in self.children.items():
            if not isinstance(child, Power):
                raise DeviceError(f"its child {name!r} is no power switch")

    @export
    async def on(self) -> None:
        for number, (name, child) in enumerate(self.children.items()):
            if number:
                await trio.sleep(self.delay)
            try:
                await child.invoke("on")
            except DeviceError as error:
                raise DeviceError(f"{name}: {error.message}") from error

    @export
    async def off(self) -> None:
        failures = []
        for number, (name, child) in enumerate(reversed(self.children.items())):
            if number:
                await trio.sleep(self.delay)
            try:
                await child.invoke("off")
            except DeviceError as error:
                failures.append(f"{name}: {error.message}")
        if failures:
            raise DeviceError("; ".join(failures))

    @export
    async def state(self) -> PowerState:
        """Whether all are on or all off; unknown in between."""
        states: set[PowerState] = set()
        for child in self.children.values():
            states.add(await child.invoke("state"))
        return states.pop() if len(states) == 1 else "unknown"
