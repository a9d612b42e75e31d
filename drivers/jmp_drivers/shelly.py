"""Shelly relays and plugs of the second generation and later, over HTTP."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import field
from typing import Any, ClassVar
from urllib.parse import urlencode

import trio

from jmp.driver import ConfigError, DeviceError, Service, Suggestion, export
from jmp.driver.interfaces import Power, PowerState
from jmp_drivers import _http
from jmp_drivers._digest import authorization
from jmp_drivers._host import host_and_port
from jmp_drivers._readings import Metered

_MEASURED = {"voltage": "voltage", "current": "current", "apower": "power"}


class Shelly(Metered, Power):
    """A Shelly of the second generation or later: one of its switches, and what it measures.

    Opening it asks for the switch, so a relay that is not there, or lacks the switch, degrades the driver.
    """

    host: str = field(metadata={"doc": "name or address; with `:PORT` unless it is 80"})
    switch: int = field(default=0, metadata={"doc": "number of the switch, from 0"})
    password: str | None = field(
        default=None, metadata={"secret": True, "doc": "of the relay's user, which is `admin`"}
    )
    timeout: float = field(default=10.0, metadata={"doc": "seconds that an answer may take"})

    services: ClassVar[tuple[str, ...]] = ("_shelly._tcp",)

    @classmethod
    def recognise(cls, service: Service) -> Iterator[Suggestion]:
        if service.properties.get("gen", "1") != "1":  # the first generation has another interface: http-power
            about = service.about(f"Shelly {service.properties.get('app', '')}".rstrip())
            yield Suggestion(
                "power", {"host": service.at(80)}, about, service.at(80), note="one with a password needs it"
            )

    def __post_init__(self) -> None:
        host_and_port(self.host, "host")
        if self.switch < 0:
            raise ConfigError(f"switch must be 0 or more, not {self.switch}")

    async def open(self) -> None:
        await self.state()

    @export
    async def on(self) -> None:
        await self._call("Switch.Set", on="true")

    @export
    async def off(self) -> None:
        await self._call("Switch.Set", on="false")

    @export
    async def state(self) -> PowerState:
        output = (await self._call("Switch.GetStatus")).get("output")
        return "unknown" if output is None else "on" if output else "off"

    @export
    async def reading(self) -> dict[str, float]:
        """What it measures: `voltage` (V), `current` (A), `power` (W) and `energy` (kWh), as far as this model does."""
        status = await self._call("Switch.GetStatus")
        measured = {
            name: float(status[key]) for key, name in _MEASURED.items() if isinstance(status.get(key), int | float)
        }
        if isinstance(energy := status.get("aenergy"), dict) and isinstance(energy.get("total"), int | float):  # Wh
            measured["energy"] = round(energy["total"] / 1000, 6)
        if not measured:
            raise DeviceError(f"the Shelly at {self.host} measures nothing: this model has no meter")
        return measured

    async def _call(self, method: str, **parameters: str) -> dict[str, Any]:
        what = f"{method} at {self.host}"
        uri = f"/rpc/{method}?{urlencode({'id': self.switch, **parameters})}"
        try:
            with trio.fail_after(self.timeout):
                answer = await self._get(uri)
        except trio.TooSlowError:
            raise DeviceError(f"{what}: no answer within {self.timeout:g} s") from None
        except _http.HttpError as error:
            raise DeviceError(f"{what}: {error}") from error
        if answer.status == 401:
            wrong = "it wants a password: give one" if self.password is None else "it does not take this password"
            raise DeviceError(f"{what}: {wrong}")
        try:
            result = json.loads(answer.body)
        except ValueError:
            result = None
        if not isinstance(result, dict):
            raise DeviceError(f"{what}: the answer is not a Shelly's; one of the first generation needs http-power")
        if answer.status != 200:
            raise DeviceError(f"{what}: {result.get('message') or f'{answer.status} {answer.reason}'}")
        return result

    async def _get(self, uri: str) -> _http.Response:
        url = f"http://{self.host}{uri}"
        answer = await _http.request("GET", url, headers={})
        if answer.status != 401 or self.password is None:
            return answer
        try:
            proof = authorization(
                answer.headers.get("www-authenticate", ""),
                method="GET",
                uri=uri,
                username="admin",
                password=self.password,
                cnonce=secrets.token_hex(16),
            )
        except ValueError as error:
            raise _http.HttpError(str(error)) from error
        return await _http.request("GET", url, headers={"Authorization": proof})
