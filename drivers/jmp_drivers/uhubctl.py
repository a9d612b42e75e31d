"""Ports of USB hubs that can switch their ports' supply, by the program uhubctl."""

from __future__ import annotations

import re
from dataclasses import field
from typing import Literal

from jmp.driver import ConfigError, DeviceError, export
from jmp.driver.interfaces import Power, PowerState
from jmp_drivers._command import run_command


class UsbHubPower(Power):
    """A port of a USB hub that can switch its ports' supply, worked by ``uhubctl`` (Debian's package of that name).

    Opening it asks for the state, so a hub that is not there, or cannot switch, degrades the driver.
    """

    location: str = field(
        metadata={"doc": "where the hub is, as uhubctl prints it: `1-1`, or `1` for the machine's own"}
    )
    port: int = field(metadata={"doc": "number of the port, from 1"})
    program: str = field(default="uhubctl", metadata={"doc": "the program"})
    timeout: float = field(default=20.0, metadata={"doc": "seconds that it may take"})

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9]+(-[0-9]+(\.[0-9]+)*)?", self.location):
            raise ConfigError(f"location must be as in 1 or 1-1.4, not {self.location!r}")
        if self.port < 1:
            raise ConfigError(f"port must be 1 or more, not {self.port}")

    async def open(self) -> None:
        await self.state()

    @export
    async def on(self) -> None:
        await self._switch("on")

    @export
    async def off(self) -> None:
        await self._switch("off")

    @export
    async def state(self) -> PowerState:
        return self._read(await self._run())

    async def _switch(self, wanted: Literal["on", "off"]) -> None:
        said = await self._run("--action", wanted)
        if self._read(said.rpartition("New status")[2]) != wanted:
            raise DeviceError(
                f"port {self.port} of USB hub {self.location} is not {wanted} although the hub took the order"
            )

    def _read(self, text: str) -> PowerState:
        found = re.search(rf"^ +Port {self.port}: ([0-9a-f]{{4}})(.*)$", text, re.MULTILINE)
        if found is None:
            raise DeviceError(f"USB hub {self.location} has no port {self.port}")
        return "on" if " power" in found[2] else "off"

    async def _run(self, *arguments: str) -> str:
        argv = [self.program, "--exact", "--location", self.location, "--ports", str(self.port), *arguments]
        ran = await run_command(self.program, argv, self.timeout)
        if ran.status == 0:
            return ran.output
        if "No compatible" in ran.errors + ran.output:
            denied = " and that the exporter's user may open" if "permission" in ran.errors.lower() else ""
            raise DeviceError(
                f"there is no USB hub at {self.location} that can switch its ports{denied}; {self.program} prints those that can"
            )
        raise DeviceError(f"{self.program} failed with exit status {ran.status}{ran.complaint()}")
