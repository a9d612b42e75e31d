"""Several switches as one, each worked by commands that keep a journal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from jmp.driver import DeviceError, Driver, schema, serve
from jmp_drivers.network import Echo
from jmp_drivers.outlets import Outlets
from jmp_drivers.power import CommandPower
from tests.fakes.bundled import problems_in


def switches(folder: Path, *names: str, broken: str = "", delay: float = 0) -> Outlets:
    driver = Outlets(delay=delay)
    for name in names:
        fails = "; false" if name == broken else ""
        driver.children[name] = CommandPower(
            on_command=f"echo {name} on >> journal{fails}", off_command=f"echo {name} off >> journal{fails}", cwd=folder
        )
    return driver


async def test_on_in_order_and_off_the_other_way_round(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with serve(switches(tmp_path, "board", "disk", "fan")) as power:
            await power.on()
            assert await power.state() == "on"
            await power.disk.off()
            assert await power.state() == "unknown"
            await power.off()
            assert await power.state() == "off"
    expected = ["board on", "disk on", "fan on", "disk off", "fan off", "disk off", "board off"]
    assert (tmp_path / "journal").read_text().splitlines() == expected


async def test_delay_lies_between_one_and_the_next(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with serve(switches(tmp_path, "board", "disk", "fan", delay=0.1)) as power:
            start = trio.current_time()
            await power.on()
            assert trio.current_time() - start >= 0.2


async def test_failing_one_ends_on_but_not_off(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with serve(switches(tmp_path, "board", "disk", "fan", broken="disk")) as power:
            with pytest.raises(DeviceError, match=r"^disk: the command for 'on' failed with exit status 1$"):
                await power.on()
            with pytest.raises(DeviceError, match=r"^disk: the command for 'off' failed with exit status 1$"):
                await power.off()
    expected = ["board on", "disk on", "fan off", "disk off", "board off"]
    assert (tmp_path / "journal").read_text().splitlines() == expected


@pytest.mark.parametrize(
    ("children", "message"), [({}, "it has no switches"), ({"echo": Echo()}, "its child 'echo' is no power switch")]
)
async def test_what_is_no_switch_degrades_it(children: dict[str, Driver], message: str) -> None:
    driver = Outlets()
    driver.children |= children
    with trio.fail_after(60):
        async with serve(driver) as power:
            with pytest.raises(DeviceError, match=f"degraded: {message}"):
                await power.on()


@pytest.mark.parametrize("config", [{"delay": -1}, {"delay": "soon"}])
def test_configuration_is_checked(config: dict[str, Any]) -> None:
    assert schema.load(Outlets, config)[0] is None


def test_documented_configuration_is_valid() -> None:
    assert problems_in("docs/drivers/power.md") == []
