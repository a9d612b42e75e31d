"""A broker, which is mosquitto, and a plug with Tasmota that hangs on it."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
import trio
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion


@asynccontextmanager
async def mosquitto(folder: Path, port: int, *lines: str) -> AsyncIterator[trio.Process]:
    """The broker at work on a port of the loopback interface; ``lines`` are its configuration besides."""
    settings = folder / "mosquitto.conf"
    settings.write_text("\n".join((f"listener {port} 127.0.0.1", "user root", "log_type all", *lines, "")))
    argv = ["/usr/sbin/mosquitto", "-c", str(settings)]
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(partial(trio.run_process, argv, stderr=PIPE, check=False))
        assert process.stderr is not None
        said = b""
        while b" running" not in said:
            said += await process.stderr.receive_some() or pytest.fail(f"mosquitto ended: {said.decode()}")
        yield process
        process.kill()
        nursery.cancel_scope.cancel()


class Plug:
    """A Tasmota plug with a meter: the commands of its documentation that concern power.

    ``second``: it has another relay, which is off, and this is its second; what each relay takes stands in lists then.
    """

    def __init__(self, port: int, topic: str = "plug1", *, meter: bool = True, second: bool = False) -> None:
        self.on = False
        self._power = "POWER2" if second else "POWER"
        self._topic = topic
        self._meter = meter
        self._client = Client(CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
        self._client.will_set(f"tele/{topic}/LWT", "Offline", retain=True)
        self._client.on_message = self._told
        self._client.connect("127.0.0.1", port)
        self._client.subscribe(f"cmnd/{topic}/#", qos=1)
        self._client.publish(f"tele/{topic}/LWT", "Online", retain=True)
        self._client.loop_start()

    def unplug(self) -> None:
        """Gone without a word: the broker tells it."""
        sock = self._client.socket()
        assert isinstance(sock, socket.socket)
        sock.shutdown(socket.SHUT_RDWR)
        self._client.loop_stop()

    def press(self) -> None:
        """The button on the plug."""
        self._set(not self.on)

    def _told(self, _: Client, __: Any, message: MQTTMessage) -> None:
        order, given = message.topic.rpartition("/")[2].upper(), message.payload.decode().upper()
        if order == self._power:
            self._set({"ON": True, "1": True, "OFF": False, "0": False, "TOGGLE": not self.on}.get(given, self.on))
        elif (order, given) == ("STATUS", "10"):
            energy: dict[str, Any] = {
                "Total": 1.5,
                "Power": 46 if self.on else 0,
                "Voltage": 230,
                "Current": 0.2 if self.on else 0,
            }
            if self._power == "POWER2":
                energy |= {name: [0, energy[name]] for name in ("Power", "Current")}
            sensors = {"Time": "2026-01-01T00:00:00"} | ({"ENERGY": energy} if self._meter else {})
            self._say("STATUS10", json.dumps({"StatusSNS": sensors}))

    def _set(self, on: bool) -> None:
        self.on = on
        state = "ON" if on else "OFF"
        self._say("RESULT", json.dumps({self._power: state}))
        self._say(self._power, state)

    def _say(self, what: str, payload: str) -> None:
        self._client.publish(f"stat/{self._topic}/{what}", payload)
