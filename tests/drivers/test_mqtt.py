"""Relays over MQTT, by a real broker: a plug with Tasmota, and one that is described."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from jmp.driver import BadValue, ConfigError, DeviceError, serve
from jmp_drivers.mqtt import Measure, MqttPower, Tasmota
from tests.fakes.mqtt import Plug, mosquitto
from tests.fakes.patience import fails, works
from tests.fakes.ports import free_port

OPEN = "allow_anonymous true"


@asynccontextmanager
async def broker(folder: Path) -> AsyncIterator[int]:
    with trio.fail_after(60):
        async with mosquitto(folder, port := free_port(), OPEN):
            yield port


def tasmota(port: int, **more: Any) -> Tasmota:
    return Tasmota(broker=f"127.0.0.1:{port}", topic="plug1", **{"timeout": 60, **more})


async def test_a_tasmota_plug_is_switched_and_measures(tmp_path: Path) -> None:
    async with broker(tmp_path) as port:
        plug = Plug(port)
        async with serve(tasmota(port)) as power:
            assert await power.state() == "off"
            await power.on()
            assert plug.on
            assert await power.state() == "on"
            assert await power.reading() == {"voltage": 230, "current": 0.2, "power": 46, "energy": 1.5}
            await power.on()  # once more, which it confirms as well
            await power.cycle(wait=0)
            plug.press()
            assert await power.state() == "off"
            async with aclosing(power.readings(interval=0.01)) as readings:
                assert (await anext(readings))["power"] == 0
                await power.on()
                while not (await anext(readings))["power"]:
                    pass
            async with aclosing(power.readings(interval=0)) as readings:
                with pytest.raises(BadValue, match="interval must be more than 0"):
                    await anext(readings)
        plug.unplug()


async def test_one_of_several_relays_measures_what_is_its_own(tmp_path: Path) -> None:
    async with broker(tmp_path) as port:
        plug = Plug(port, second=True)
        async with serve(tasmota(port, relay=2)) as power:
            await power.on()
            assert plug.on
            assert await power.reading() == {"voltage": 230, "current": 0.2, "power": 46, "energy": 1.5}
        plug.unplug()


async def test_a_plug_without_a_meter_says_so(tmp_path: Path) -> None:
    async with broker(tmp_path) as port:
        plug = Plug(port, meter=False)
        async with serve(tasmota(port)) as power:
            with pytest.raises(DeviceError, match="plug1 measures nothing of voltage"):
                await power.reading()
        plug.unplug()


async def test_a_plug_that_is_not_there_goes_and_comes_back(tmp_path: Path) -> None:
    async with broker(tmp_path) as port:
        async with serve(tasmota(port, timeout=2)) as power:
            with pytest.raises(DeviceError, match=r"MQTT broker .*: plug1 does not answer within 2 s"):
                await power.state()
        plug = Plug(port)
        async with serve(tasmota(port)) as power:
            await power.on()
            plug.unplug()
            await fails(power.state, "plug1 is offline, as MQTT broker 127.0.0.1")
            plug = Plug(port)
            assert await works(power.state) == "off"
        plug.unplug()
        async with serve(tasmota(port)) as power:
            with pytest.raises(DeviceError, match="plug1 is offline"):  # known at once: it is retained
                await power.state()


async def test_a_relay_as_it_is_described(tmp_path: Path) -> None:
    """Not Tasmota's driver but its words, one after the other."""
    words: dict[str, Any] = {
        "command": "cmnd/plug1/POWER",
        "state_topic": "stat/plug1/RESULT",
        "on_pattern": '"POWER": "ON"',
        "off_pattern": '"POWER": "OFF"',
        "ask": "cmnd/plug1/POWER",
        "measures": {"watts": Measure("stat/plug1/STATUS10", "StatusSNS.ENERGY.Power", 0.001)},
    }
    async with broker(tmp_path) as port:
        plug = Plug(port)
        async with serve(MqttPower(broker=f"127.0.0.1:{port}", timeout=60, **words)) as power:
            await power.on()
            assert (plug.on, await power.state()) == (True, "on")
            async with trio.open_nursery() as nursery:
                measured: list[dict[str, float]] = []

                async def read() -> None:
                    measured.append(await power.reading())

                nursery.start_soon(read)
                async with serve(tasmota(port)) as other:  # somebody else makes it tell
                    await other.reading()
            assert measured == [{"watts": 0.046}]
        async with serve(MqttPower(broker=f"127.0.0.1:{port}", command="cmnd/plug1/POWER", timeout=60)) as power:
            assert await power.state() == "unknown"
            await power.off()
            assert await power.state() == "off", "the last order, since nothing is told"
            with pytest.raises(DeviceError, match="name it in the configuration"):
                await power.reading()
        deaf = MqttPower(broker=f"127.0.0.1:{port}", command="x", state_topic="y", timeout=2)
        async with serve(deaf) as power:
            with pytest.raises(DeviceError, match=r"x does not say that it is on within 2 s"):
                await power.on()
            assert await power.state() == "unknown"
        plug.unplug()


async def test_broker_that_wants_a_password_and_one_that_goes(tmp_path: Path) -> None:
    passwords = tmp_path / "passwords"
    await trio.run_process(["mosquitto_passwd", "-b", "-c", passwords, "lab", "s3cret"], capture_stderr=True)
    passwords.chmod(0o600)
    lines = ("allow_anonymous false", f"password_file {passwords}")
    with trio.fail_after(60):
        port = free_port()
        relay: dict[str, Any] = {"broker": f"127.0.0.1:{port}", "command": "a", "username": "lab", "timeout": 60}
        async with serve(MqttPower(**relay)) as power:
            with pytest.raises(DeviceError, match=f"MQTT broker 127.0.0.1:{port}: Connection refused"):
                await power.on()
        async with mosquitto(tmp_path, port, *lines) as process, serve(MqttPower(**relay, password="s3cret")) as power:
            await power.on()
            process.kill()
            assert "s3cret" not in (await fails(power.on, "the connection is gone")).message
        async with mosquitto(tmp_path, port, *lines), serve(MqttPower(**relay, password="wrong")) as power:
            with pytest.raises(DeviceError, match="it does not take this username and password") as failure:
                await power.on()
            assert "wrong" not in failure.value.message


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"broker": "a:b"}, "broker must be"),
        ({"broker": "a:0"}, "broker must be"),
        ({"broker": "a", "password": "x"}, "needs a username"),
        ({"broker": "a", "ca": Path("x")}, "say tls: true"),
        ({"broker": "a", "topic": "a/#"}, "no topic of one device"),
        ({"broker": "a", "relay": 0}, "relay must be 1 or more"),
        ({"broker": "a", "full_topic": "x"}, "must hold %prefix%"),
    ],
)
def test_wrong_configuration(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Tasmota(**({"topic": "plug1"} | config))


def test_an_answer_needs_a_topic() -> None:
    with pytest.raises(ConfigError, match="ask needs state"):
        MqttPower(broker="a", command="b", ask="c")
