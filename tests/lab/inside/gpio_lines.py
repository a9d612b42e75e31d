"""GPIO lines of the kernel's simulator, which sees what is put out and pulls what is read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import gpiod
import pytest
import trio
from gpiod.line import Direction, Drive, Value

from jmp.driver import BadValue, DeviceError, Driver, serve
from jmp_drivers.gpio import Gpio, GpioPower, Line
from tests.fakes.patience import fails, works

CHIP = "/dev/gpiochip0"
LIVE = Path("/sys/kernel/config/gpio-sim/lab/live")


def sim() -> Path:
    """Where the simulator is: plugged in again, the chip may have another number."""
    (place,) = Path("/sys/bus/gpio/devices").glob("gpiochip*")
    return place


def driven(line: int) -> str:
    return (sim() / f"sim_gpio{line}/value").read_text().strip()


async def driven_on(line: int) -> None:
    if driven(line) != "1":
        raise DeviceError("not yet")


async def driven_off(line: int) -> None:
    if driven(line) != "0":
        raise DeviceError("not yet")


def pull(line: int, up: bool) -> None:
    (sim() / f"sim_gpio{line}/pull").write_text("pull-up" if up else "pull-down")


@asynccontextmanager
async def served(driver: Driver) -> AsyncIterator[Any]:
    with trio.fail_after(240):
        async with serve(driver) as client:
            yield client


async def test_a_relay_at_a_line() -> None:
    async with served(GpioPower(chip=CHIP, line="POWER")) as power:
        assert (await power.state(), driven(0)) == ("off", "0")
        await power.on()
        assert (await power.state(), driven(0)) == ("on", "1")
        await power.cycle(wait=0)
        assert driven(0) == "1"
        with pytest.raises(OSError, match="busy"):
            gpiod.request_lines(CHIP, config={"POWER": None})
        async with served(GpioPower(chip=CHIP, line=0)) as second:
            with pytest.raises(DeviceError, match=f"GPIO line 0 of {CHIP}: somebody else uses it"):
                await second.on()
    assert driven(0) == "0", "this chip lets a line go that nobody holds"


async def test_what_a_session_begins_with() -> None:
    async with served(GpioPower(chip=CHIP, line=3, initial="on")) as power:
        assert (await power.state(), driven(3)) == ("on", "1")
    async with served(GpioPower(chip="dut", line=3, active_low=True, initial="on")) as power:  # the chip by its label
        assert (await power.state(), driven(3)) == ("on", "0")


def drive_of(line: int) -> Drive:
    """What the kernel does; the simulator's value of a line that nothing drives stays what it was."""
    with gpiod.Chip(CHIP) as chip:
        return chip.get_line_info(line).drive


@pytest.mark.parametrize(("drive", "driving"), [("open-drain", "0"), ("open-source", "1")])
async def test_outputs_with_a_drive_of_their_own(drive: Any, driving: str) -> None:
    """Also if they were outputs before; as docs/drivers/gpio.md has it for a reset line."""
    for level in Value.INACTIVE, Value.ACTIVE:
        gpiod.request_lines(CHIP, config={3: gpiod.LineSettings(Direction.OUTPUT, output_value=level)}).release()
        async with served(GpioPower(chip=CHIP, line=3, active_low=drive == "open-drain", drive=drive)) as power:
            await power.on()
            for up in (True, False):
                pull(3, up)
                assert (await power.state(), driven(3)) == ("on", driving)
            await power.off()
            assert drive_of(3) is Drive[drive.upper().replace("-", "_")]
    lines = {
        "reset": Line(1, "out", active_low=True, drive="open-drain", initial=False),
        "strap": Line(3, "out", bias="up", initial=True),
        "button": Line(4, bias="up"),
    }
    async with served(Gpio(chip=CHIP, lines=lines)) as gpio:
        assert [line["direction"] for line in (await gpio.list()).values()] == ["out", "out", "in"]
        assert (await gpio.get("button"), driven(3)) == (True, "1")
        assert drive_of(1) is Drive.OPEN_DRAIN


async def test_what_a_line_cannot_do_is_said() -> None:
    async with served(GpioPower(chip=CHIP, line=4000)) as power:
        with pytest.raises(DeviceError, match=r"GPIO line 4000 of .*: there is no line of this name or number"):
            await power.on()


async def test_lines_by_their_names() -> None:
    async with served(Gpio(chip="dut")) as gpio:
        assert set(await gpio.list()) == {"POWER", "RESET", "LED"}
        pull(2, True)
        assert await gpio.get("LED")
        pull(2, False)
        assert not await gpio.get("LED")
        await gpio.set("RESET", True)
        assert driven(1) == "1"
        assert (await gpio.list())["RESET"] == {"line": 1, "direction": "out", "value": True}
        with pytest.raises(BadValue, match="did you mean 'LED'"):
            await gpio.get("LEDD")


async def test_inputs_are_watched_and_buttons_pressed() -> None:
    lines = {
        "led": Line("LED", "in"),
        "door": Line(4, "in", active_low=True),
        "reset": Line("RESET", "out", initial=False),
    }
    pull(2, False)
    pull(4, True)
    async with served(Gpio(chip=CHIP, lines=lines)) as gpio:
        seen: dict[str, list[Any]] = {"all": [], "door": []}

        async def read(name: str, *line: str) -> None:
            async with aclosing(gpio.watch(*line)) as changes:
                async for change in changes:
                    seen[name].append(change)

        async def both() -> None:
            if {"line": "led", "value": True} not in seen["all"] or [change["value"] for change in seen["door"]][
                -2:
            ] != [True, False]:
                pull(2, True)
                pull(2, False)
                pull(4, False)
                pull(4, True)
                raise DeviceError("nothing has come yet")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, "all")
            nursery.start_soon(read, "door", "door")
            await works(both)
            nursery.cancel_scope.cancel()
        assert {change["line"] for change in seen["door"]} == {"door"}
        assert not await gpio.get("door"), "high is off"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gpio.pulse, "reset", 1000)
            await works(lambda: driven_on(1))
            nursery.cancel_scope.cancel()
        await works(lambda: driven_off(1))
        await gpio.pulse("reset", 0.01)
        assert driven(1) == "0"
        with pytest.raises(BadValue, match="'led' is an input"):
            await gpio.set("led", True)
        with pytest.raises(BadValue, match="'reset' is an output"):
            async with aclosing(gpio.watch("reset")) as changes:
                await anext(changes)


async def test_absent_lost_and_back() -> None:
    async with served(GpioPower(chip="/dev/gpiochip7", line=1)) as power:
        with pytest.raises(DeviceError, match=rf"there is none; present: {CHIP} \(dut\)"):
            await power.on()
    async with served(GpioPower(chip="rack", line=1)) as power:
        with pytest.raises(DeviceError, match="no GPIO chip with the label 'rack'"):
            await power.on()
    for line in ("NONE", 8):
        async with served(GpioPower(chip=CHIP, line=line)) as power:
            with pytest.raises(DeviceError, match=f"GPIO line {line} of {CHIP}: there is no"):
                await power.on()
    async with (
        served(GpioPower(chip="dut", line=5)) as power,
        served(Gpio(chip="dut", lines={"x": Line(6, "in")})) as gpio,
    ):
        await power.on()
        LIVE.write_text("0")
        await fails(power.on, "GPIO line 5 of .*: there is none")
        await fails(lambda: gpio.get("x"), "GPIO")
        LIVE.write_text("1")
        await works(power.on)
        assert driven(5) == "1"
        assert await works(lambda: gpio.get("x")) is False
