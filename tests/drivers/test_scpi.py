"""Instruments: a bench supply that speaks SCPI over TCP, to the driver itself and to pyvisa-py; one of pyvisa-sim's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from jmp.driver import BadValue, ConfigError, DeviceError, serve
from jmp_drivers.scpi import Measure, Scpi, ScpiPower
from tests.fakes.patience import works

SCREEN = b"\x89PNG\n\n\x00" * 100
SIMULATED = """\
spec: "1.1"
devices:
  supply:
    eom:
      USB INSTR: {q: "\\n", r: "\\n"}
    dialogues:
      - {q: "*IDN?", r: "SIM,supply,1,0"}
      - {q: "OUTP?", r: "1"}
resources:
  USB::0x1111::0x2222::0x1::INSTR: {device: supply}
"""


class Supply:
    """A bench supply: one client at a time, one line a command."""

    def __init__(self) -> None:
        self.on = False
        self.volts = 0.0
        self.errors: list[str] = []

    async def serve(self, stream: trio.SocketStream) -> None:
        text = b""
        async for data in stream:
            text += data
            while b"\n" in text:
                line, _, text = text.partition(b"\n")
                if line.startswith(b"LATE?"):
                    await trio.sleep(0.1)
                answer = self.answer(line.decode().strip())
                if answer is not None:
                    await stream.send_all(answer + b"\n")

    def answer(self, command: str) -> bytes | None:
        match command.split():
            case ["*IDN?"]:
                return b"JMP,supply,7,1.0"
            case ["VOLT", volts]:
                self.volts = float(volts)
            case ["OUTP", order]:
                self.on = order == "ON"
            case ["OUTP?"]:
                return b"1" if self.on else b"0"
            case ["MEAS:VOLT?"]:
                return f"{self.volts if self.on else 0:+.5E}".encode()
            case ["MEAS:CURR?"]:
                return b"1.5E-01" if self.on else b"0"
            case ["HCOP:DATA?"]:
                return b"#3%d" % len(SCREEN) + SCREEN
            case ["LATE?"]:
                return b"late"
            case ["SLOW?"]:
                pass
            case ["SYST:ERR?"]:
                return self.errors.pop(0).encode() if self.errors else b'0,"No error"'
            case _:
                self.errors.append('-113,"Undefined header"')
        return None


@asynccontextmanager
async def supply() -> AsyncIterator[tuple[Supply, int, trio.CancelScope]]:
    made = Supply()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, made.serve, 0, host="127.0.0.1"))
            yield made, listeners[0].socket.getsockname()[1], nursery.cancel_scope
            nursery.cancel_scope.cancel()


async def test_a_conversation() -> None:
    async with supply() as (made, port, _), serve(Scpi(host="127.0.0.1", port=port, timeout=60)) as client:
        assert await client.identify() == "JMP,supply,7,1.0"
        await client.write("VOLT 3.3")
        await client.write("NONSENSE")
        assert await client.errors() == ['-113,"Undefined header"']
        assert await client.errors() == []
        assert made.volts == 3.3
        assert await client.query_block("HCOP:DATA?") == SCREEN
        assert await client.query("OUTP?") == "0", "nothing of the block is left"
        with pytest.raises(DeviceError, match=r"'\*IDN\?' is no block"):
            await client.query_block("*IDN?")
        for wrong in ("", "A\nB"):
            with pytest.raises(BadValue, match="one line"):
                await client.write(wrong)
        with pytest.raises(DeviceError, match="name it in the configuration"):
            await client.reading()


def reached(way: str, port: int) -> dict[str, Any]:
    there = {"host": "127.0.0.1", "port": port} if way == "tcp" else {"resource": f"TCPIP0::127.0.0.1::{port}::SOCKET"}
    return {**there, "timeout": 60}


@pytest.mark.parametrize("way", ["tcp", "pyvisa"])
async def test_who_does_not_wait_for_an_answer_leaves_it_to_nobody(way: str) -> None:
    async with supply() as (_, port, _), serve(Scpi(**reached(way, port))) as client:
        with trio.move_on_after(0.05) as scope:
            await client.query("LATE?")
        assert scope.cancelled_caught
        assert await client.identify() == "JMP,supply,7,1.0"


@pytest.mark.parametrize("way", ["tcp", "pyvisa"])
async def test_an_output(way: str) -> None:
    async with supply() as (made, port, _):
        how = reached(way, port)
        async with serve(ScpiPower(**how, setup=["VOLT 5"])) as power:
            assert await power.state() == "off"
            await power.on()
            assert made.on
            assert await power.reading() == {"voltage": 5.0, "current": 0.15}
            async with aclosing(power.readings(interval=0.01)) as readings:
                assert (await anext(readings))["voltage"] == 5.0
            await power.cycle(wait=0)
            await power.off()
            assert await power.state() == "off"
        async with serve(ScpiPower(**how, on_command="NOTHING")) as power:
            with pytest.raises(DeviceError, match="its output is off after 'NOTHING'"):
                await power.on()
        measures: dict[str, str | Measure] = {"idn": "*IDN?", "millivolts": Measure("MEAS:VOLT?", 1000)}
        async with serve(Scpi(**how, measures=measures)) as client:
            with pytest.raises(DeviceError, match=r"'\*IDN\?' is no number but 'JMP,supply"):
                await client.reading()


async def test_one_that_does_not_answer_is_asked_anew() -> None:
    async with supply() as (_, port, scope):
        driver = Scpi(host="127.0.0.1", port=port, timeout=60)
        async with serve(driver) as client:
            await client.identify()
            driver.timeout = 0.2
            with pytest.raises(DeviceError, match=r"'SLOW\?' was not answered|no answer to 'SLOW\?'"):
                await client.query("SLOW?")
            driver.timeout = 60
            assert await works(client.identify) == "JMP,supply,7,1.0"
        async with serve(Scpi(host="127.0.0.1", port=port, timeout=60)) as client:
            await client.identify()
            scope.cancel()
            with pytest.raises(DeviceError, match=r"is gone|was not answered"):
                await client.identify()
    async with serve(Scpi(host="127.0.0.1", port=port, timeout=60)) as client:
        with pytest.raises(DeviceError, match=rf"instrument 127\.0\.0\.1:{port}: Connection refused"):
            await client.identify()


async def test_a_simulated_one(tmp_path: Path) -> None:
    (tmp_path / "sim.yaml").write_text(SIMULATED)
    how: dict[str, Any] = {"library": f"{tmp_path}/sim.yaml@sim", "timeout": 60}
    with trio.fail_after(60):
        async with serve(Scpi(resource="USB::0x1111::0x2222::0x1::INSTR", **how)) as client:
            assert await client.identify() == "SIM,supply,1,0"
        async with serve(Scpi(resource="USB::nothing", **how)) as client:
            with pytest.raises(DeviceError, match="instrument USB::nothing: "):
                await client.identify()


def test_wrong_configuration() -> None:
    for config in ({}, {"host": "a", "resource": "b"}):
        given: dict[str, Any] = config
        with pytest.raises(ConfigError, match="either host or resource"):
            Scpi(**given)
    with pytest.raises(ConfigError, match="timeout must be"):
        Scpi(host="a", timeout=0)
