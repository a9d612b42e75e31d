"""Relays and plugs that are switched over MQTT: those with Tasmota, and any other."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from jmp.driver import ConfigError, DeviceError, export
from jmp.driver.interfaces import Power, PowerState
from jmp_drivers._mqtt import MqttDevice
from jmp_drivers._readings import Metered
from jmp_drivers.power import StatePatterns


@dataclass(frozen=True)
class Measure:
    """Something that a message tells."""

    topic: str
    path: str = field(
        default="", metadata={"doc": "where in the message's JSON, as in `ENERGY.Power`; all of it if empty"}
    )
    scale: float = field(default=1.0, metadata={"doc": "what the number is multiplied with"})


@dataclass(frozen=True)
class _Relay:
    """How a relay is spoken to."""

    name: str
    command: str
    on: str
    off: str
    state: str | None
    patterns: StatePatterns
    ask: tuple[str, str] | None = None
    confirms: bool = False
    """It tells its state after each order, whether or not that has changed anything: there is no need to ask."""
    available: str | None = None
    offline: str = "offline"
    measures: dict[str, Measure] = field(default_factory=dict)
    measure: tuple[str, str] | None = None
    """What makes it tell them."""
    channel: int = 0
    """Which of several numbers is its own, where there is one for each relay of a device."""

    def topics(self) -> list[str]:
        more = [measure.topic for measure in self.measures.values()]
        return [topic for topic in (self.state, self.available, *more) if topic]


class _MqttSwitch(MqttDevice, Metered, Power):
    """What both have in common: orders that the relay confirms by telling its state."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._ordered: PowerState = "unknown"
        self._relay = self._described()
        for topic in (self._relay.command, *self._relay.topics()):
            if not topic or any(character in topic for character in "+#\0"):
                raise ConfigError(f"{topic!r} is no topic of one device: it must not be empty nor hold + or #")

    def _described(self) -> _Relay:
        raise NotImplementedError

    async def open(self) -> None:
        await self._connect(self._relay.topics())
        try:
            if self._relay.ask is not None:
                await self._ask_state()
        except BaseException:
            await self._disconnect()
            raise

    async def close(self) -> None:
        await self._disconnect()

    def _heard(self, topic: str) -> None:
        if topic == self._relay.available and self._latest[topic].strip() == self._relay.offline:
            self._fail(f"{self._relay.name} is offline, as MQTT broker {self.broker} says")

    @export
    async def on(self) -> None:
        await self._switch(self._relay.on, "on")

    @export
    async def off(self) -> None:
        await self._switch(self._relay.off, "off")

    @export
    async def state(self) -> PowerState:
        if self._relay.ask is not None:
            await self._ask_state()
        elif self._relay.state is None:
            return self._ordered
        return self._read()

    @export
    async def reading(self) -> dict[str, float]:
        """What it measures: `voltage` (V), `current` (A), `power` (W) and the like, as far as it does."""
        relay = self._relay
        if not relay.measures:
            raise DeviceError(f"nothing is known that {relay.name} measures: name it in the configuration (measures)")
        topics = {measure.topic for measure in relay.measures.values()}
        before = dict(self._arrived) if relay.measure is not None else {}
        if relay.measure is not None:
            await self._publish(*relay.measure)
        await self._until(
            lambda: all(self._arrived[topic] > before.get(topic, 0) for topic in topics),
            f"{relay.name} does not tell what it measures",
        )
        measured = {name: self._number(measure) for name, measure in relay.measures.items()}
        known = {name: value for name, value in measured.items() if value is not None}
        if not known:
            raise DeviceError(f"{relay.name} measures nothing of {', '.join(relay.measures)}")
        return known

    async def _switch(self, payload: str, wanted: PowerState) -> None:
        relay = self._relay
        self._ordered = "unknown"  # until it has succeeded
        before = self._arrived[relay.state or ""]
        await self._publish(relay.command, payload)
        if relay.state is not None:
            if relay.ask is not None and not relay.confirms:
                await self._publish(*relay.ask)
            await self._until(
                lambda: self._arrived[relay.state or ""] > before and self._read() == wanted,
                f"{relay.name} does not say that it is {wanted}",
            )
        self._ordered = wanted

    async def _ask_state(self) -> None:
        relay = self._relay
        assert relay.ask is not None
        before = self._arrived[relay.state or ""]
        await self._publish(*relay.ask)
        await self._until(lambda: self._arrived[relay.state or ""] > before, f"{relay.name} does not answer")

    def _read(self) -> PowerState:
        return self._relay.patterns.of(self._latest.get(self._relay.state or "", ""))

    def _number(self, measure: Measure) -> float | None:
        text = self._latest[measure.topic]
        try:
            value: Any = json.loads(text)
            for step in filter(None, measure.path.split(".")):
                value = value[int(step)] if isinstance(value, list) else value[step]
            if isinstance(value, list):
                value = value[self._relay.channel]
            return round(float(value) * measure.scale, 6)
        except (ValueError, TypeError, LookupError):
            return None


class MqttPower(_MqttSwitch):
    """A relay that is switched by messages of MQTT, such as those of Zigbee2MQTT, ESPHome and Shelly.

    An order succeeds when the relay tells on ``state`` that it has been followed; without ``state``, when the broker has it.
    """

    command: str = field(metadata={"doc": "topic of the orders"})
    on_payload: str = field(default="ON", metadata={"key": "on", "doc": "message that switches on"})
    off_payload: str = field(default="OFF", metadata={"key": "off", "doc": "message that switches off"})
    state_topic: str | None = field(default=None, metadata={"key": "state", "doc": "topic on which it tells its state"})
    on_pattern: str = field(default=r"(?i)\bon\b", metadata={"doc": "regular expression in what it tells"})
    off_pattern: str = field(default=r"(?i)\boff\b", metadata={"doc": "regular expression in what it tells"})
    ask: str | None = field(default=None, metadata={"doc": "topic of a message that makes it tell its state"})
    ask_payload: str = field(default="", metadata={"doc": "that message"})
    available: str | None = field(default=None, metadata={"doc": "topic that tells whether it is there"})
    offline: str = field(default="offline", metadata={"doc": "what that topic says when it is not"})
    measures: dict[str, Measure] = field(default_factory=dict, metadata={"doc": "what it measures, by name"})

    def _described(self) -> _Relay:
        if self.ask is not None and self.state_topic is None:
            raise ConfigError("ask needs state: the topic on which the answer comes")
        return _Relay(
            self.command,
            self.command,
            self.on_payload,
            self.off_payload,
            self.state_topic,
            StatePatterns(self.on_pattern, self.off_pattern),
            ask=None if self.ask is None else (self.ask, self.ask_payload),
            available=self.available,
            offline=self.offline,
            measures=self.measures,
        )


class Tasmota(_MqttSwitch):
    """A relay or plug with Tasmota, and what it measures.

    Opening it asks for the state, so a relay that does not answer degrades the driver; the driver is lost when the broker says
    that the relay has gone.
    """

    topic: str = field(metadata={"doc": "the relay's topic, as in its MQTT settings"})
    relay: int | None = field(default=None, metadata={"doc": "number of the relay, from 1, if it has several"})
    full_topic: str = field(default="%prefix%/%topic%/", metadata={"doc": "as in the relay's MQTT settings"})

    def _described(self) -> _Relay:
        if "%prefix%" not in self.full_topic or "%topic%" not in self.full_topic:
            raise ConfigError("full_topic must hold %prefix% and %topic%, as Tasmota's own does")
        if self.relay is not None and self.relay < 1:
            raise ConfigError(f"relay must be 1 or more, not {self.relay}")

        def place(prefix: str, what: str) -> str:
            start = self.full_topic.replace("%prefix%", prefix).replace("%topic%", self.topic)
            return f"{start.rstrip('/')}/{what}"

        power = f"POWER{self.relay or ''}"
        energy = {"voltage": "Voltage", "current": "Current", "power": "Power", "energy": "Total"}
        return _Relay(
            self.topic,
            place("cmnd", power),
            "ON",
            "OFF",
            place("stat", power),
            StatePatterns("^ON$", "^OFF$"),
            ask=(place("cmnd", power), ""),
            confirms=True,
            available=place("tele", "LWT"),
            offline="Offline",
            measures={
                name: Measure(place("stat", "STATUS10"), f"StatusSNS.ENERGY.{key}") for name, key in energy.items()
            },
            measure=(place("cmnd", "Status"), "10"),
            channel=(self.relay or 1) - 1,
        )

    @export
    async def reading(self) -> dict[str, float]:
        """What it measures: `voltage` (V), `current` (A), `power` (W) and `energy` (kWh), as far as this model does."""
        return await super().reading()
