"""A Linux under QEMU, through the driver: what people do with a board that boots."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from jmp.driver import serve
from jmp_drivers.qemu import Qemu
from jmp_drivers.qemu.driver import Image
from tests.fakes.dialogue import Dialogue
from tests.real.linux_image import PASSWORD, LinuxImage

pytestmark = pytest.mark.real

PROMPT = "dut# "


@asynccontextmanager
async def machine(linux: LinuxImage, **config: Any) -> AsyncIterator[tuple[Any, Dialogue]]:
    """The client of a machine and its console."""
    files: dict[str, Any] = {"kernel": linux.kernel, "initrd": linux.initrd, "append": linux.append}
    with trio.fail_after(600):
        async with serve(Qemu(arch="arm64", **files, **config)) as client, client.console.connect() as stream:
            yield client, Dialogue(stream)


async def log_in(console: Dialogue) -> None:
    await console.expect("dut login: ")
    await console.send("root\r")
    await console.expect("Password: ")
    await console.send(PASSWORD + "\r")
    await console.expect(PROMPT)


async def test_it_boots_runs_commands_and_is_power_cycled(linux: LinuxImage) -> None:
    async with machine(linux, memory="192M", smp=2) as (client, console):
        await client.power.on()
        await log_in(console)
        assert "aarch64" in await console.ask("uname -m", PROMPT)
        assert "\n2\n" in await console.ask("nproc", PROMPT)
        await console.ask("echo lost > /root/file", PROMPT)
        await client.power.cycle(wait=0)
        await log_in(console)
        assert "No such file" in await console.ask("cat /root/file", PROMPT)
        await console.send("poweroff -f\r")
        await console.expect(r"\[the guest switched the machine off\]")
        assert await client.power.state() == "off"


async def test_its_ports_are_reached(linux: LinuxImage) -> None:
    data = os.urandom(1 << 20)
    async with machine(linux, forward={"web": 80, "echo": 7, "nobody": 81}, power_on_open=True) as (client, console):
        await console.expect("dut login: ")
        async with client.web.connect() as stream:
            await stream.send_all(b"GET /index.html HTTP/1.0\r\n\r\n")
            answer = await everything(stream)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\nhello from the dut\n")

        async with client.echo.connect() as stream, trio.open_nursery() as nursery:

            async def send() -> None:
                await stream.send_all(data)
                await stream.send_eof()

            nursery.start_soon(send)
            assert await everything(stream) == data

        addresses = {name: await client_port.address() for name, client_port in ports(client).items()}
        assert len(set(addresses.values())) == 3
        assert all(address.startswith("tcp:127.0.0.1:") for address in addresses.values())


async def test_what_is_flashed_while_off_is_on_its_disk(linux: LinuxImage) -> None:
    data = os.urandom(2 << 20)
    async with machine(linux, disk=Image(size="16M")) as (client, console):
        async with client.storage.write() as stream:
            await stream.send_all(data)
            await stream.send_eof()
            await stream.receive_some()
        await client.power.on()
        await log_in(console)
        digest = await console.ask("head -c 2097152 /dev/vda | sha256sum", PROMPT)
        assert hashlib.sha256(data).hexdigest() in digest
        await console.ask("echo from the guest > /dev/vda; sync", PROMPT)
        await client.power.off()
        async with client.storage.read(offset=0, size=20) as stream:
            assert await everything(stream) == b"from the guest\n" + data[15:20]


async def test_a_guest_is_given_time_to_shut_down(linux: LinuxImage) -> None:
    async with machine(linux) as (client, console):
        await client.power.on()
        await log_in(console)

        async def react() -> None:
            # This kernel has no driver for the machine's power button: play the daemon that would run poweroff.
            async with aclosing(client.monitor.events()) as events:
                async for event in events:
                    if event["event"] == "POWERDOWN":
                        await console.send("poweroff -f\r")
                        return

        async with trio.open_nursery() as nursery:
            nursery.start_soon(react)
            await wait_all_tasks_blocked()  # it listens
            await client.power.off(graceful=60)
        assert await client.power.state() == "off"
        assert b"[the guest switched the machine off]" in await client.console.history()


async def test_a_guest_that_does_not_shut_down_is_switched_off(linux: LinuxImage) -> None:
    async with machine(linux) as (client, console):
        await client.power.on()
        await console.expect("dut login: ")
        await client.power.off(graceful=0.1)
        assert await client.power.state() == "off"


def ports(client: Any) -> dict[str, Any]:
    return {"web": client.web, "echo": client.echo, "nobody": client.nobody}


async def everything(stream: trio.abc.ReceiveStream) -> bytes:
    data = bytearray()
    async for piece in stream:
        data += piece
    return bytes(data)
