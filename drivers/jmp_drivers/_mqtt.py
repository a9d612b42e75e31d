"""A connection to an MQTT broker: paho's thread does the talking, Trio waits for what it hears."""

from __future__ import annotations

import ssl
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import field
from pathlib import Path
from typing import Any

import trio
from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from jmp.driver import ConfigError, DeviceError, Driver
from jmp_drivers._host import host_and_port
from jmp_drivers._reason import reason

_KEEPALIVE = 20  # seconds of silence after which the broker is asked whether it is there


class MqttDevice(Driver):
    """The configuration of whatever is reached through an MQTT broker, and the connection to that."""

    broker: str = field(metadata={"doc": "name or address; with `:PORT` unless it is 1883, or 8883 with `tls`"})
    username: str | None = None
    password: str | None = field(default=None, metadata={"secret": True})
    tls: bool = field(default=False, metadata={"doc": "the broker wants TLS"})
    ca: Path | None = field(default=None, metadata={"doc": "certificates to trust instead of the system's"})
    timeout: float = field(default=10.0, metadata={"doc": "seconds that broker and device may take to answer"})

    def __post_init__(self) -> None:
        self._host, port = host_and_port(self.broker, "broker")
        if self.password is not None and self.username is None:
            raise ConfigError("password needs a username")
        if self.ca is not None and not self.tls:
            raise ConfigError("ca is for tls: say tls: true as well")
        self._port = port or (8883 if self.tls else 1883)

    # ---- the connection

    async def _connect(self, topics: Iterable[str]) -> None:
        """Connect and subscribe. Raises `DeviceError`, and then nothing is left behind."""
        self._token = trio.lowlevel.current_trio_token()
        self._news = trio.Event()
        self._latest: dict[str, str] = {}
        self._arrived: Counter[str] = Counter()
        self._answers: set[str] = set()
        self._failure = ""
        self._leaving = False
        self._client = self._made()
        try:
            await trio.to_thread.run_sync(self._dial)
            await self._until(lambda: "connect" in self._answers, "it does not answer")
            wanted = [(topic, 1) for topic in dict.fromkeys(topics)]
            if wanted:
                _, number = self._client.subscribe(wanted)
                await self._until(lambda: f"subscribe {number}" in self._answers, "it does not let one subscribe")
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._disconnect()
            raise

    async def _disconnect(self) -> None:
        self._leaving = True

        def leave() -> None:
            self._client.disconnect()
            self._client.loop_stop()

        await trio.to_thread.run_sync(leave)

    async def _publish(self, topic: str, payload: str) -> None:
        """Hand a message to the broker; returns when it has it."""
        number = self._client.publish(topic, payload, qos=1).mid
        await self._until(lambda: f"publish {number}" in self._answers, "it does not take a message")
        self._answers.discard(f"publish {number}")

    async def _until(self, condition: Callable[[], bool], otherwise: str) -> None:
        """Wait for news after which the condition holds; `DeviceError` if it does not within the time."""
        with trio.move_on_after(self.timeout):
            while not condition():
                if self._failure:
                    raise DeviceError(self._failure)
                await self._news.wait()
            return
        raise DeviceError(f"MQTT broker {self.broker}: {otherwise} within {self.timeout:g} s")

    def _heard(self, topic: str) -> None:
        """For subclasses: there is a message of ``topic``, the newest in ``_latest``."""

    # ---- in Trio, told by paho's thread

    def _note(self, answer: str) -> None:
        self._answers.add(answer)
        self._wake()

    def _fail(self, why: str) -> None:
        """Broker or device is gone: what waits fails, an open driver is lost."""
        if not self._leaving and not self._failure:
            self._failure = why
            self._wake()
            self.lost(why)

    def _take(self, topic: str, payload: bytes) -> None:
        self._latest[topic] = payload.decode(errors="replace")
        self._arrived[topic] += 1
        self._heard(topic)
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = trio.Event()

    # ---- paho

    def _made(self) -> Client:
        client = Client(CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
        client.connect_timeout = self.timeout
        if self.username is not None:
            client.username_pw_set(self.username, self.password)
        if self.tls:
            try:
                client.tls_set_context(ssl.create_default_context(cafile=self.ca))
            except (OSError, ssl.SSLError) as error:
                raise DeviceError(f"the certificates in {self.ca} cannot be read: {reason(error)}") from error

        def fail(why: str) -> None:
            self._fail(f"MQTT broker {self.broker}: {why}")

        def connected(_: Client, __: Any, ___: ConnectFlags, code: ReasonCode, ____: Properties | None) -> None:
            said = "it does not take this username and password" if code.value in (134, 135) else f"{code}"
            self._tell(*((fail, said) if code.is_failure else (self._note, "connect")))

        def subscribed(_: Client, __: Any, number: int, codes: list[ReasonCode], ___: Properties | None) -> None:
            if any(code.is_failure for code in codes):
                self._tell(fail, "it does not let this user subscribe")
            else:
                self._tell(self._note, f"subscribe {number}")

        def published(_: Client, __: Any, number: int, ___: ReasonCode, ____: Properties | None) -> None:
            self._tell(self._note, f"publish {number}")

        def came(_: Client, __: Any, message: MQTTMessage) -> None:
            self._tell(self._take, message.topic, message.payload)

        def gone(_: Client, __: Any, ___: DisconnectFlags, ____: ReasonCode, _____: Properties | None) -> None:
            self._tell(fail, "the connection is gone")

        client.on_connect, client.on_subscribe, client.on_publish = connected, subscribed, published
        client.on_message, client.on_disconnect = came, gone
        return client

    def _tell(self, function: Callable[..., None], *arguments: Any) -> None:
        self._token.run_sync_soon(function, *arguments)

    def _dial(self) -> None:
        try:
            self._client.connect(self._host, self._port, keepalive=_KEEPALIVE)
        except (OSError, ValueError) as error:
            said = f"no answer within {self.timeout:g} s" if isinstance(error, TimeoutError) else reason(error)
            raise DeviceError(f"MQTT broker {self.broker}: {said}") from error
        self._client.loop_start()
