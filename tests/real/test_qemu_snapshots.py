"""A Linux under QEMU that stands still, is saved, and becomes again what it was."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import trio

from jmp.driver import serve
from jmp.errors import BadValue, DeviceError
from jmp_drivers.qemu import Qemu
from jmp_drivers.qemu.driver import Image
from tests.fakes.dialogue import Dialogue
from tests.real.linux_image import LinuxImage
from tests.real.test_qemu_linux import PROMPT, log_in, machine

pytestmark = pytest.mark.real


async def on_disk(console: Dialogue, text: str) -> None:
    await console.ask(f"echo {text} | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null", PROMPT)


async def from_disk(console: Dialogue) -> str:
    await console.ask("echo 3 > /proc/sys/vm/drop_caches", PROMPT)
    return await console.ask("head -n 1 /dev/vda", PROMPT)


async def test_memory_and_disk_are_what_they_were(linux: LinuxImage, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    config = {"disk": Image(size="8M"), "power_on_open": True, "args": ["-pidfile", str(pid)]}
    async with machine(linux, **config) as (client, console):
        with pytest.raises(BadValue, match="there is no snapshot 'ready'; none has been saved yet"):
            await client.restore("ready")
        await log_in(console)
        await console.ask("echo before > /tmp/file; export KEPT=before; sleep 1000 &", PROMPT)
        await on_disk(console, "before")
        await client.save("ready")
        await console.ask("echo after > /tmp/file; export KEPT=after; kill %1", PROMPT)
        await on_disk(console, "after")
        await client.save("later")
        assert [each["name"] for each in await client.snapshots()] == ["ready", "later"]

        await client.restore("ready")
        await console.expect(r"\[back at the snapshot ready\]")
        assert "before\n" in await console.ask("", PROMPT) + await console.ask("cat /tmp/file", PROMPT)
        assert "before\n" in await console.ask("echo $KEPT", PROMPT)
        assert "sleep" in await console.ask("jobs", PROMPT)
        assert "before\n" in await from_disk(console)

        # Off, it is there as fast; QEMU's death changes nothing.
        await client.power.off()
        with pytest.raises(DeviceError, match="the virtual machine is off"):
            await client.save("off")
        await client.restore("later")
        assert await client.power.state() == "on"
        await console.expect(r"\[back at the snapshot later\]")
        assert "after\n" in await console.ask("cat /tmp/file", PROMPT)
        assert "after\n" in await from_disk(console)
        os.kill(int(pid.read_text()), signal.SIGKILL)
        await console.expect(r"\[QEMU ended by itself \(SIGKILL\)\]")
        await client.restore("ready")
        assert "before\n" in await console.ask("cat /tmp/file", PROMPT)

        await client.save("ready")  # in place of the other
        await client.forget("later")
        with pytest.raises(BadValue, match="there is no snapshot 'later'; there are: ready"):
            await client.restore("later")
        assert [each["name"] for each in await client.snapshots()] == ["ready"]


async def test_a_machine_stands_still(linux: LinuxImage) -> None:
    async with machine(linux, power_on_open=True) as (client, console):
        await log_in(console)
        await console.ask("(while :; do echo tick; sleep 0.1; done) &", "tick")
        await client.save("ticking")
        await client.pause()
        assert (await client.monitor.status(), await client.power.state()) == ("paused", "on")
        await client.console.send(b"echo typed meanwhile\r")
        await client.resume()
        assert await client.monitor.status() == "running"
        await console.expect("\ntyped meanwhile")
        await client.restore("ticking", paused=True)
        assert await client.monitor.status() == "paused"
        await console.expect(r"\[back at the snapshot ticking\]")
        await client.resume()
        await console.expect("tick")
        await client.power.off()
        for call in (client.pause, client.resume):
            with pytest.raises(DeviceError, match="the virtual machine is off: switch it on first"):
                await call()


async def test_what_cannot_be_saved(linux: LinuxImage, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    files: dict[str, Any] = {"kernel": linux.kernel, "initrd": linux.initrd}
    with trio.fail_after(600):
        async with serve(Qemu(arch="arm64", **files, disk=Image(path=image, writable=True))) as client:
            await client.power.on()
            with pytest.raises(DeviceError, match="there are no snapshots of a machine whose disk is 'writable'"):
                await client.save("x")
            with pytest.raises(BadValue, match="a snapshot's name is letters"):
                await client.save("1")
        memory = [
            "-object",
            "memory-backend-ram,id=shared,size=1M,share=on",
            "-device",
            "ivshmem-plain,memdev=shared,master=off",
        ]
        async with serve(Qemu(arch="arm64", **files, args=memory)) as client:
            await client.power.on()
            with pytest.raises(DeviceError, match=r"QEMU's snapshot-save failed: .*ivshmem"):
                await client.save("x")
            assert await client.snapshots() == []
            assert await client.monitor.status() == "running"
