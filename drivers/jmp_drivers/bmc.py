"""Servers whose management controller (BMC) switches them: by Redfish, or by IPMI."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import field
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

import trio

from jmp.driver import ConfigError, DeviceError, Service, Suggestion, export
from jmp.driver.interfaces import Power, PowerState
from jmp_drivers import _http
from jmp_drivers._command import run_command
from jmp_drivers._readings import Metered

_LOOK = 0.5  # seconds between two looks whether an order has been followed; Redfish tells of no change


class RedfishPower(Metered, Power):
    """A server that speaks Redfish: iDRAC, iLO, OpenBMC and others.

    An order succeeds when the server says that it has been followed. Opening it asks for the state, so a BMC that is not there
    degrades the driver.
    """

    url: str = field(metadata={"doc": "of the BMC, as in `https://bmc.lab`"})
    username: str | None = None
    password: str | None = field(default=None, metadata={"secret": True})
    system: str | None = field(default=None, metadata={"doc": "its id among several, below /redfish/v1/Systems"})
    off_type: Literal["ForceOff", "GracefulShutdown"] = field(
        default="ForceOff", metadata={"key": "off", "doc": "how it is switched off"}
    )
    verify: bool = field(default=True, metadata={"doc": "with https, ask for a valid certificate"})
    timeout: float = field(default=60.0, metadata={"doc": "seconds that an order may take"})

    services: ClassVar[tuple[str, ...]] = ("_redfish._tcp",)

    @classmethod
    def recognise(cls, service: Service) -> Iterator[Suggestion]:
        config: dict[str, object] = {"url": f"https://{service.at(443)}"}
        note = "say username and password; verify: false if its certificate is its own"
        yield Suggestion("power", config, service.about("BMC"), service.at(443), note=note)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise ConfigError("url must be http://HOST or https://HOST, with username and password beside it")
        if (self.username is None) != (self.password is None):
            raise ConfigError("username and password belong together: give both or none")
        if not 0 < self.timeout < math.inf:
            raise ConfigError(f"timeout must be more than 0 seconds, not {self.timeout:g}")

    async def open(self) -> None:
        self._place = await self._find()
        await self.state()

    @export
    async def on(self) -> None:
        await self._switch("On", "on")

    @export
    async def off(self) -> None:
        await self._switch(self.off_type, "off")

    @export
    async def state(self) -> PowerState:
        match (await self._ask("GET", self._place)).get("PowerState"):
            case "On":
                return "on"
            case "Off":
                return "off"
        return "unknown"

    @export
    async def reading(self) -> dict[str, float]:
        """What the server's chassis measures: `power` (W)."""
        links = (await self._ask("GET", self._place)).get("Links", {}).get("Chassis", [])
        for link in links:
            chassis = await self._ask("GET", link["@odata.id"])
            if power := chassis.get("Power", {}).get("@odata.id"):
                controls = (await self._ask("GET", power)).get("PowerControl", [])
                watts = [each["PowerConsumedWatts"] for each in controls if each.get("PowerConsumedWatts") is not None]
                if watts:
                    return {"power": float(sum(watts))}
        raise DeviceError(f"the server at {self.url} measures no power")

    async def _find(self) -> str:
        base = "/redfish/v1/Systems"
        if self.system is not None:
            return f"{base}/{self.system}"
        members = [member["@odata.id"] for member in (await self._ask("GET", base)).get("Members", [])]
        if len(members) != 1:
            there = ", ".join(member.rpartition("/")[2] for member in members) or "none"
            raise DeviceError(
                f"{self.url} has more or less than one system ({there}): name one in the configuration (system)"
            )
        return str(members[0])

    async def _switch(self, kind: str, wanted: PowerState) -> None:
        if await self.state() == wanted:  # some refuse an order that changes nothing
            return
        await self._ask("POST", f"{self._place}/Actions/ComputerSystem.Reset", {"ResetType": kind})
        with trio.move_on_after(self.timeout):
            while await self.state() != wanted:  # noqa: ASYNC110  # there is nothing that would tell
                await trio.sleep(_LOOK)
            return
        raise DeviceError(f"the server at {self.url} is not {wanted} {self.timeout:g} s after it took the order {kind}")

    async def _ask(self, method: str, path: str, body: dict[str, str] | None = None) -> dict[str, Any]:
        headers = {"Accept": "application/json"} | ({"Content-Type": "application/json"} if body is not None else {})
        if self.username is not None:
            headers["Authorization"] = _http.basic(self.username, self.password)
        what = f"{method} {path} at {self.url}"
        try:
            with trio.fail_after(self.timeout):
                answer = await _http.request(
                    method,
                    f"{self.url.rstrip('/')}{path}",
                    headers=headers,
                    body=json.dumps(body).encode() if body is not None else b"",
                    verify=self.verify,
                )
        except trio.TooSlowError:
            raise DeviceError(f"{what}: no answer within {self.timeout:g} s") from None
        except _http.HttpError as error:
            raise DeviceError(f"{what}: {error}") from error
        try:
            said = json.loads(answer.body) if answer.body.strip() else {}
        except ValueError:
            said = None
        if answer.status in (401, 403):
            raise DeviceError(f"{what}: it does not take this username and password")
        if not 200 <= answer.status < 300:
            reason = said.get("error", {}).get("message", "") if isinstance(said, dict) else ""
            raise DeviceError(f"{what}: {reason or f'{answer.status} {answer.reason}'}")
        if not isinstance(said, dict):
            raise DeviceError(f"{what}: the answer is not Redfish's")
        return said


class IpmiPower(Metered, Power):
    """A server whose BMC speaks IPMI over the network, by the program ``ipmitool``.

    Opening it asks for the state, so a BMC that does not answer degrades the driver.
    """

    host: str = field(metadata={"doc": "name or address of the BMC"})
    port: int = 623
    username: str = ""
    password: str = field(default="", metadata={"secret": True})
    interface_: Literal["lanplus", "lan"] = field(
        default="lanplus", metadata={"key": "interface", "doc": "IPMI 2.0, or 1.5 for an old one"}
    )
    off_type: Literal["off", "soft"] = field(
        default="off", metadata={"key": "off", "doc": "at once, or by asking the operating system (ACPI)"}
    )
    timeout: float = field(default=20.0, metadata={"doc": "seconds that an answer may take"})

    def __post_init__(self) -> None:
        if not self.host or self.host.startswith("-"):
            raise ConfigError("host must be a name or address")
        if not 1 <= self.timeout < math.inf:
            raise ConfigError(f"timeout must be 1 second or more, not {self.timeout:g}")

    async def open(self) -> None:
        await self.state()

    @export
    async def on(self) -> None:
        await self._run("chassis", "power", "on")

    @export
    async def off(self) -> None:
        await self._run("chassis", "power", self.off_type)

    @export
    async def state(self) -> PowerState:
        found = re.search(r"Chassis Power is (on|off)", await self._run("chassis", "power", "status"))
        return "unknown" if found is None else "on" if found[1] == "on" else "off"

    @export
    async def reading(self) -> dict[str, float]:
        """What the server measures: `power` (W), if its BMC has DCMI."""
        found = re.search(r"Instantaneous power reading: +([0-9.]+) Watts", await self._run("dcmi", "power", "reading"))
        if found is None:
            raise DeviceError(f"the BMC {self.host} measures no power")
        return {"power": float(found[1])}

    async def _run(self, *command: str) -> str:
        # Asked twice, so that one lost packet does no harm.
        patience = ["-R", "1", "-N", str(max(1, int(self.timeout / 4)))]
        argv = [
            "ipmitool",
            "-I",
            self.interface_,
            "-H",
            self.host,
            "-p",
            str(self.port),
            "-U",
            self.username,
            "-E",
            *patience,
        ]
        env = os.environ | {"IPMI_PASSWORD": self.password}
        ran = await run_command(
            f"ipmitool {' '.join(command)} at {self.host}", [*argv, *command], self.timeout, env=env
        )
        if ran.status != 0:
            said = [line.strip() for line in ran.errors.splitlines() if line.strip() and "Cipher Suites" not in line]
            if "establish" in ran.errors:
                said = ["it does not answer, or does not take this username and password"]
            raise DeviceError(
                f"BMC {self.host}: {' | '.join(said) or f'ipmitool failed with exit status {ran.status}'}"
            )
        return ran.output
