"""Power switches: a pretended one, one made of commands, one that is reached over HTTP."""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import trio

from jmp.driver import ConfigError, DeviceError, Service, Suggestion, check_seconds, export
from jmp.driver.interfaces import Power, PowerState
from jmp_drivers._command import run_command
from jmp_drivers._readings import MeteredByText

_ON = r"(?i)\bon\b"
_OFF = r"(?i)\boff\b"
_SHOWN = 200  # characters of a device's answer that an error quotes


class MockPower(Power):
    """A switch with nothing behind it, which remembers its state: for tests and demos."""

    initial: bool = False

    def __post_init__(self) -> None:
        self._on = self.initial
        self._cycles = 0

    @export
    async def on(self) -> None:
        self._cycles += not self._on
        self._on = True

    @export
    async def off(self) -> None:
        self._on = False

    @export
    async def state(self) -> PowerState:
        return "on" if self._on else "off"

    @export
    async def cycles(self) -> int:
        """How often it went from off to on."""
        return self._cycles


class CommandedPower(MeteredByText, Power):
    """The configuration of a switch that is worked by commands; a driver says how one is run."""

    on_command: str | list[str] = field(metadata={"key": "on"})
    off_command: str | list[str] = field(metadata={"key": "off"})
    state_command: str | list[str] | None = field(default=None, metadata={"key": "state"})
    cycle_command: str | list[str] | None = field(default=None, metadata={"key": "cycle"})
    reading_command: str | list[str] | None = field(
        default=None, metadata={"key": "reading", "doc": "prints what the device measures"}
    )
    on_pattern: str = field(default=_ON, metadata={"doc": "regular expression in the output of `state`"})
    off_pattern: str = field(default=_OFF, metadata={"doc": "regular expression in the output of `state`"})
    timeout: float = field(default=30.0, metadata={"doc": "seconds that a command may take"})

    def __post_init__(self) -> None:
        self._states = StatePatterns(self.on_pattern, self.off_pattern)
        self._ordered: PowerState = "unknown"
        for name in ("on", "off", "state", "cycle", "reading"):
            if getattr(self, f"{name}_command") in ("", []):
                raise ConfigError(f"{name}: the command is empty")
        self._check_readings()

    def _measures(self) -> bool:
        return self.reading_command is not None

    async def _measured(self) -> str:
        assert self.reading_command is not None
        return await self._run("reading", self.reading_command)

    @abstractmethod
    async def _run(self, name: str, command: str | list[str], allow: float = 0, **variables: str) -> str:
        """What a command printed, which may take ``allow`` seconds longer. Raises `DeviceError`."""

    @export
    async def on(self) -> None:
        self._ordered = "unknown"  # until it has succeeded
        await self._run("on", self.on_command)
        self._ordered = "on"

    @export
    async def off(self) -> None:
        self._ordered = "unknown"
        await self._run("off", self.off_command)
        self._ordered = "off"

    @export
    async def state(self) -> PowerState:
        if self.state_command is None:
            return self._ordered
        return self._states.of(await self._run("state", self.state_command))

    @export
    async def cycle(self, wait: float = 1.0) -> None:
        if self.cycle_command is None:
            await super().cycle(wait)
            return
        check_seconds("wait", wait)
        self._ordered = "unknown"
        await self._run("cycle", self.cycle_command, allow=wait, JMP_WAIT=f"{wait:g}")
        self._ordered = "on"


class CommandPower(CommandedPower):
    """A switch that is worked by commands of the exporter's machine, such as ``pinctrl`` or a vendor's tool.

    A command is a list of arguments, or a text for ``sh``. It must end with exit status 0. ``state`` must print something in
    which ``on_pattern`` or ``off_pattern`` is found; without a ``state`` command, the last order is what is told. ``cycle`` gets
    the time to stay off, in seconds, as ``$JMP_WAIT``; without it, the device is switched off and on.
    """

    cwd: Path | None = field(default=None, metadata={"doc": "folder in which the commands run"})

    async def _run(self, name: str, command: str | list[str], allow: float = 0, **variables: str) -> str:
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else command
        what = f"the command for {name!r}"
        ran = await run_command(what, argv, self.timeout + allow, env=os.environ | variables, cwd=self.cwd)
        if ran.status != 0:
            raise DeviceError(f"{what} failed with exit status {ran.status}{ran.complaint()}")
        return ran.output


@dataclass(frozen=True)
class Request:
    """One HTTP request to the switch. Its URL and headers may hold secrets, so none of it is in its repr."""

    url: str = field(repr=False, metadata={"secret": True})
    method: str = "GET"
    headers: dict[str, str] = field(default_factory=dict, repr=False, metadata={"secret": True})
    body: str = field(default="", repr=False, metadata={"secret": True})
    expect: str | None = field(default=None, metadata={"doc": "regular expression that must be found in the answer"})


class HttpPower(MeteredByText, Power):
    """A switch that is worked by HTTP requests: Tasmota and most other network relays.

    A request is a URL, or ``{url, method, headers, body, expect}``. The answer must have a 2xx status and, if given, hold
    ``expect``. ``state`` must answer something in which ``on_pattern`` or ``off_pattern`` is found; without a ``state`` request,
    the last order is what is told. ``username`` and ``password`` are sent as basic authentication.
    """

    on_request: str | Request = field(metadata={"key": "on", "secret": True})
    off_request: str | Request = field(metadata={"key": "off", "secret": True})
    state_request: str | Request | None = field(default=None, metadata={"key": "state", "secret": True})
    reading_request: str | Request | None = field(
        default=None, metadata={"key": "reading", "secret": True, "doc": "answers what the device measures"}
    )
    on_pattern: str = field(default=_ON, metadata={"doc": "regular expression in the answer to `state`"})
    off_pattern: str = field(default=_OFF, metadata={"doc": "regular expression in the answer to `state`"})
    username: str | None = None
    password: str | None = field(default=None, metadata={"secret": True})
    verify: bool = field(default=True, metadata={"doc": "with https, ask for a valid certificate"})
    timeout: float = field(default=10.0, metadata={"doc": "seconds that an answer may take"})

    services: ClassVar[tuple[str, ...]] = ("_http._tcp",)

    @classmethod
    def recognise(cls, service: Service) -> Iterator[Suggestion]:
        if service.name.lower().startswith("tasmota"):
            base = f"http://{service.at(80)}/cm?cmnd=Power"
            config: dict[str, object] = {"on": f"{base}%20On", "off": f"{base}%20Off", "state": base}
            note = "by its web interface; with an MQTT broker, tasmota tells what it measures, too"
            yield Suggestion("power", config, service.about("Tasmota"), service.at(80), note=note)

    def __post_init__(self) -> None:
        self._states = StatePatterns(self.on_pattern, self.off_pattern)
        self._ordered: PowerState = "unknown"
        self._requests: dict[str, Request] = {}
        for name in ("on", "off", "state", "reading"):
            request = getattr(self, f"{name}_request")
            if request is not None:
                self._requests[name] = _checked(name, Request(request) if isinstance(request, str) else request)
        if (self.username is None) != (self.password is None):
            raise ConfigError("username and password belong together: give both or none")
        self._check_readings()

    def _measures(self) -> bool:
        return self.reading_request is not None

    async def _measured(self) -> str:
        return await self._ask("reading")

    @export
    async def on(self) -> None:
        self._ordered = "unknown"  # until it has succeeded
        await self._ask("on")
        self._ordered = "on"

    @export
    async def off(self) -> None:
        self._ordered = "unknown"
        await self._ask("off")
        self._ordered = "off"

    @export
    async def state(self) -> PowerState:
        return self._states.of(await self._ask("state")) if "state" in self._requests else self._ordered

    async def _ask(self, name: str) -> str:
        from jmp_drivers import _http  # late: the other switches do without HTTP

        request = self._requests[name]
        headers: dict[str, str] = {}
        if self.username is not None:
            headers["Authorization"] = _http.basic(self.username, self.password)
        what = f"{request.method} {_public(request.url)}"
        try:
            with trio.fail_after(self.timeout):
                answer = await _http.request(
                    request.method,
                    request.url,
                    headers=headers | request.headers,
                    body=request.body.encode(),
                    verify=self.verify,
                )
        except trio.TooSlowError:
            raise DeviceError(f"{what}: no answer within {self.timeout:g} s") from None
        except _http.HttpError as error:
            raise DeviceError(f"{what}: {error}") from error
        text = answer.body.decode(errors="replace")
        if not 200 <= answer.status < 300:
            raise DeviceError(f"{what}: the answer is {answer.status} {answer.reason}{_quote(text)}")
        if request.expect is not None and not re.search(request.expect, text):
            raise DeviceError(f"{what}: the answer does not match {request.expect!r}{_quote(text)}")
        return text


class StatePatterns:
    """How a state is read from a text."""

    def __init__(self, on: str, off: str) -> None:
        self._on, self._off = regex("on_pattern", on), regex("off_pattern", off)

    def of(self, text: str) -> PowerState:
        """Unknown if both patterns are found or none."""
        match self._on.search(text) is not None, self._off.search(text) is not None:
            case True, False:
                return "on"
            case False, True:
                return "off"
            case _:
                return "unknown"


def regex(name: str, pattern: str) -> re.Pattern[str]:
    """A regular expression of the configuration's. Raises `ConfigError`, which names its key."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{name}: {pattern!r} is no regular expression: {error}") from error


def _checked(name: str, request: Request) -> Request:
    if request.expect is not None:
        regex(f"{name}.expect", request.expect)
    try:
        parts = urlsplit(request.url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        valid = False
    if not valid:
        raise ConfigError(f"{name}: the URL must be http://HOST… or https://HOST…")
    if parts.username is not None:
        raise ConfigError(f"{name}: give the name and password as username and password, not in the URL")
    return request


def _public(url: str) -> str:
    """The URL without its query, in which some relays want their password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


def _quote(text: str) -> str:
    line = " ".join(text.split())
    return f": {line[:_SHOWN]}" if line else ""
