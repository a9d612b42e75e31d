"""U-Boot under QEMU, on every architecture, through the driver."""

from __future__ import annotations

import os
import signal
import struct
import sys
import zlib
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from jmp.driver import serve
from jmp.errors import BadValue, DeviceError, NotFound
from jmp_drivers.qemu import Qemu
from jmp_drivers.qemu.machines import Arch
from tests.fakes.dialogue import Dialogue

pytestmark = pytest.mark.real

UBOOT: dict[Arch, Path] = {
    "arm": Path("/usr/lib/u-boot/qemu_arm/u-boot.bin"),
    "arm64": Path("/usr/lib/u-boot/qemu_arm64/u-boot.bin"),
    "riscv64": Path("/usr/lib/u-boot/qemu-riscv64/u-boot.bin"),
    "x86_64": Path("/usr/lib/u-boot/qemu-x86_64/u-boot.rom"),
}
PROMPT = r"\n=> "


@asynccontextmanager
async def machine(**config: Any) -> AsyncIterator[Any]:
    """The client of an arm64 machine with U-Boot, unless told otherwise."""
    with trio.fail_after(600):
        async with serve(Qemu(**{"arch": "arm64", "bios": UBOOT["arm64"], **config})) as client:
            yield client


@asynccontextmanager
async def console(client: Any) -> AsyncIterator[Dialogue]:
    async with client.console.connect() as stream:
        yield Dialogue(stream)


async def stop_autoboot(dialogue: Dialogue) -> None:
    await dialogue.expect("Hit any key to stop autoboot")
    await dialogue.send(" ")
    await dialogue.expect(PROMPT)


@pytest.mark.parametrize("arch", UBOOT)
async def test_autoboot_is_interrupted_and_the_prompt_answers(arch: Arch) -> None:
    async with machine(arch=arch, bios=UBOOT[arch]) as client, console(client) as dialogue:
        await client.power.on()
        assert await client.power.state() == "on"
        first = await dialogue.expect(r"U-Boot \d+\.\d+")
        assert not first.split("U-Boot")[0].strip("\r\n\x1b[0123456789;HJch"), "something came before the banner"
        await stop_autoboot(dialogue)
        assert "U-Boot 20" in await dialogue.ask("version", PROMPT)
        await dialogue.send("reset\r")
        await stop_autoboot(dialogue)


@pytest.mark.parametrize("arch", UBOOT)
async def test_the_network_card_works_in_the_boot_loader(arch: Arch) -> None:
    async with machine(arch=arch, bios=UBOOT[arch], power_on_open=True) as client, console(client) as dialogue:
        await stop_autoboot(dialogue)
        await dialogue.ask("virtio scan", PROMPT)
        await dialogue.ask("setenv autoload no", PROMPT)
        assert "bound to address 10.0.2.15" in await dialogue.ask("dhcp", PROMPT)


@pytest.mark.parametrize("arch", UBOOT)
async def test_every_architecture_is_saved_and_restored_with_its_screen(arch: Arch) -> None:
    async with machine(arch=arch, bios=UBOOT[arch], vnc=True) as client, console(client) as dialogue:
        await client.power.on()
        await stop_autoboot(dialogue)
        await dialogue.ask("setenv when before", PROMPT)
        await client.save("here")
        await dialogue.ask("setenv when after", PROMPT)
        await client.restore("here")
        await dialogue.expect(r"\[back at the snapshot here\]")
        assert "when=before" in await dialogue.ask("printenv when", PROMPT)
        assert await client.vnc.size()


async def test_power_cycle_and_the_reset_button() -> None:
    async with machine() as client, console(client) as dialogue:
        await client.power.on()
        await stop_autoboot(dialogue)
        await client.power.cycle(wait=0)
        await stop_autoboot(dialogue)
        await client.monitor.reset()
        await stop_autoboot(dialogue)
        await client.power.off()
        assert await client.power.state() == "off"


async def test_who_attaches_late_sees_the_whole_boot() -> None:
    async with machine() as client:
        async with console(client) as early:
            await client.power.on()
            await stop_autoboot(early)
        async with console(client) as late:
            seen = await late.expect("Hit any key")
        assert "U-Boot 20" in seen
        assert b"U-Boot 20" in await client.console.history()


async def test_the_monitor() -> None:
    async with machine() as client, console(client) as dialogue:
        await client.power.on()
        await stop_autoboot(dialogue)
        assert await client.monitor.status() == "running"
        await client.monitor.execute("stop")
        assert await client.monitor.status() == "paused"
        await client.monitor.execute("cont")
        answer = await client.monitor.execute("human-monitor-command", {"command-line": "info version"})
        assert answer.startswith(str((await client.monitor.execute("query-version"))["qemu"]["major"]))
        with pytest.raises(NotFound, match="QEMU has no command make-coffee"):
            await client.monitor.execute("make-coffee")
        with pytest.raises(DeviceError, match=r"QEMU refused eject: .*cd0"):
            await client.monitor.execute("eject", {"id": "cd0"})
        with pytest.raises(BadValue, match="JSON"):
            await client.monitor.execute("eject", {"id": b"cd0"})
        await client.console.send_break()


async def test_events_arrive_over_a_power_cycle() -> None:
    seen = []
    async with machine() as client, trio.open_nursery() as nursery:
        first = trio.Event()

        async def listen() -> None:
            async with aclosing(client.monitor.events()) as events:
                async for event in events:
                    seen.append((event["event"], event["data"].get("reason")))
                    first.set()
                    if event["event"] == "SHUTDOWN":
                        return

        await client.power.on()
        nursery.start_soon(listen)
        while not first.is_set():  # the listener listens once it has heard something
            await client.monitor.reset()
        await client.power.off()
    assert seen[0] == ("RESET", "host-qmp-system-reset")
    assert seen[-1] == ("SHUTDOWN", "host-signal")


async def test_the_screen() -> None:
    async with machine(arch="x86_64", bios=UBOOT["x86_64"], vnc=True) as client, console(client) as dialogue:
        await client.power.on()
        await stop_autoboot(dialogue)
        picture = await client.monitor.screendump()
        assert picture.startswith(b"\x89PNG\r\n\x1a\n")
        width, height = struct.unpack_from(">II", picture, 16)
        pixels = zlib.decompress(picture[picture.index(b"IDAT") + 4 : -16])
        assert len(pixels) == (3 * width + 1) * height
        assert any(pixels), "U-Boot writes to the screen as well"


async def test_without_a_screen_there_is_nothing_to_dump() -> None:
    async with machine(power_on_open=True) as client:
        with pytest.raises(
            DeviceError, match=r"no console to take a screendump.*'vnc: true' gives the machine a screen"
        ):
            await client.monitor.screendump()


async def test_several_vnc_clients() -> None:
    async with machine(vnc=True, power_on_open=True) as client:
        async with client.vnc.connect() as first, client.vnc.connect() as second:
            for stream in (first, second):
                assert await exactly(stream, 12) == b"RFB 003.008\n"
                await stream.send_all(b"RFB 003.008\n")
                assert await exactly(stream, 2) == b"\x01\x01"  # one way to authenticate: none
        assert "VNC" in await client.vnc.address()


async def test_qemu_killed_from_outside_is_noticed(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    async with machine(args=["-pidfile", str(pid)]) as client, console(client) as dialogue:
        await client.power.on()
        await stop_autoboot(dialogue)
        os.kill(int(pid.read_text()), signal.SIGKILL)
        await dialogue.expect(r"\[QEMU ended by itself \(SIGKILL\)\]")
        assert await client.power.state() == "off"
        with pytest.raises(DeviceError, match=r"is off: QEMU ended by itself \(SIGKILL\); switch it on again"):
            await client.monitor.execute("query-status")
        await client.power.on()
        await stop_autoboot(dialogue)


async def test_qemu_says_why_it_does_not_start() -> None:
    async with machine(machine="virt,coffee=on") as client:
        with pytest.raises(DeviceError, match=r"QEMU did not start: .*coffee"):
            await client.power.on()
        assert await client.power.state() == "off"


async def test_closing_the_session_ends_qemu(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    async with machine(args=["-pidfile", str(pid)], power_on_open=True) as client:
        assert await client.power.state() == "on"
        process = int(pid.read_text())
        os.kill(process, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


HOST = """
import sys, trio
from jmp.driver import serve
from jmp_drivers.qemu import Qemu

async def main():
    async with serve(Qemu(arch="arm64", args=["-pidfile", sys.argv[1]], power_on_open=True)):
        print(open(sys.argv[1]).read(), flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


async def test_qemu_dies_with_us_even_when_we_are_killed(tmp_path: Path) -> None:
    with trio.fail_after(600):
        host = await trio.lowlevel.open_process([sys.executable, "-c", HOST, str(tmp_path / "pid")], stdout=-1)
        assert host.stdout is not None
        pid = b""
        while not pid.endswith(b"\n\n"):  # QEMU's newline and print's
            pid += await host.stdout.receive_some()
        qemu = os.pidfd_open(int(pid))
        host.kill()
        await trio.lowlevel.wait_readable(qemu)  # a pidfd is readable once its process has ended
        os.close(qemu)
        await host.stdout.aclose()
        await host.wait()


async def exactly(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = await stream.receive_some(size - len(data))
        assert piece, f"the stream ended after {data!r}"
        data += piece
    return data
