"""Devices that go while their driver is in use, and come back: what test_faults.py tries each driver with.

The counterparts are those of the drivers' own tests, so the real ones wherever they run here.
"""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
)
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio

from jmp.driver import Driver
from jmp_drivers._process import leashed
from jmp_drivers.block import SdMux, SdWire
from jmp_drivers.bmc import IpmiPower, RedfishPower
from jmp_drivers.camera import CommandCamera, HttpCamera, Ustreamer
from jmp_drivers.can.uds import Doip
from jmp_drivers.command_console import Conserver, SshConsole
from jmp_drivers.dbus import DBus
from jmp_drivers.flashers import (
    CommandFlasher,
    Dfu,
    Esptool,
    Fastboot,
    Flashrom,
    OpenOcd,
    ProbeRs,
    ProgramFlasher,
    PyOcd,
    Uf2,
)
from jmp_drivers.mqtt import MqttPower
from jmp_drivers.nbd import NbdStorage
from jmp_drivers.network import Tcp, Unix
from jmp_drivers.outlets import Outlets
from jmp_drivers.power import CommandPower, HttpPower
from jmp_drivers.scpi import Scpi, ScpiPower
from jmp_drivers.ssh import Ssh
from jmp_drivers.ssh_power import SshPower
from jmp_drivers.websocket import WebSocket
from tests.drivers.test_block import loop_device
from tests.drivers.test_bmc import ipmi_sim, sushy
from tests.drivers.test_camera import jpeg
from tests.drivers.test_command_console import conserver
from tests.drivers.test_scpi import Supply
from tests.drivers.test_telnet import listening, until
from tests.drivers.test_websocket import echo, server
from tests.fakes.ecu import VIN, Ecu, behind_gateway
from tests.fakes.mqtt import mosquitto
from tests.fakes.ports import free_port
from tests.fakes.sshd import sshd


@dataclass
class Loss:
    """A driver at work, and what takes its device away."""

    driver: Driver
    use: Callable[[Any], Awaitable[object]]
    """Does with the client what needs the device."""
    says: str
    """What the error says, or one of them: a pattern."""
    take: Callable[[], Awaitable[None]]
    give: Callable[[], Awaitable[None]]


LOSSES: dict[str, Callable[[Path], AbstractAsyncContextManager[Loss]]] = {}
"""Type of a driver → what it is tried with, in a folder of its own."""


def loses(*types: str) -> Callable[[Callable[[str, Path], AsyncIterator[Loss]]], None]:
    """Try these drivers so; the function gets the driver's type and a folder."""

    def add(function: Callable[[str, Path], AsyncIterator[Loss]]) -> None:
        for each in types:
            LOSSES[each] = partial(asynccontextmanager(function), each)

    return add


class Plug:
    """A counterpart that can be pulled out and put in again."""

    def __init__(self, make: Callable[[], AbstractAsyncContextManager[object]], nursery: trio.Nursery) -> None:
        self._make = make
        self._nursery = nursery
        self._scope = trio.CancelScope()
        self._out = trio.Event()
        self._out.set()

    async def put_in(self) -> None:
        self._scope, self._out = trio.CancelScope(), trio.Event()
        await self._nursery.start(self._run)

    async def pull_out(self) -> None:
        self._scope.cancel()
        await self._out.wait()

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        try:
            with self._scope:
                async with self._make():
                    task_status.started()
                    await trio.sleep_forever()
        finally:
            self._out.set()


@asynccontextmanager
async def plugged(make: Callable[[], AbstractAsyncContextManager[object]]) -> AsyncIterator[Plug]:
    async with trio.open_nursery() as nursery:
        plug = Plug(make, nursery)
        await plug.put_in()
        yield plug
        await plug.pull_out()


@asynccontextmanager
async def plain(manager: AbstractContextManager[object]) -> AsyncIterator[None]:
    """A counterpart that runs in threads, and may wait for the driver when it ends."""
    await trio.to_thread.run_sync(manager.__enter__)
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(manager.__exit__, None, None, None)


# ---- what answers at a TCP port


@asynccontextmanager
async def answering(handler: Callable[[trio.SocketStream], Awaitable[None]], port: int) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(trio.serve_tcp, handler, port, host="127.0.0.1"))
        yield
        nursery.cancel_scope.cancel()


async def echoing(stream: trio.SocketStream) -> None:
    async with stream:
        async for data in stream:
            await stream.send_all(data)


async def said(sent: bytes, wanted: bytes, client: Any) -> None:
    """Open a stream, send something, wait for the answer."""
    async with client.connect() as stream:
        await stream.send_all(sent)
        await until(stream, wanted)


@loses("tcp")
async def _(_: str, folder: Path) -> AsyncIterator[Loss]:
    port = free_port()
    async with plugged(lambda: answering(echoing, port)) as plug:
        driver = Tcp(host="127.0.0.1", port=port)
        says = rf"cannot connect to tcp:127\.0\.0\.1:{port}: Connection refused"
        yield Loss(driver, partial(said, b"x", b"x"), says, plug.pull_out, plug.put_in)


@loses("unix")
async def _(_: str, folder: Path) -> AsyncIterator[Loss]:
    path = folder / "socket"

    @asynccontextmanager
    async def socat() -> AsyncIterator[None]:
        async with leashed(["socat", f"UNIX-LISTEN:{path},fork,unlink-early", "EXEC:cat"]):
            while not path.exists():  # noqa: ASYNC110  # another process makes it
                await trio.sleep(0.01)
            yield

    async with plugged(socat) as plug:
        says = "cannot connect to unix:.*socket: (Connection refused|No such file)"
        yield Loss(Unix(path=path), partial(said, b"x", b"x"), says, plug.pull_out, plug.put_in)


@loses("websocket")
async def _(_: str, folder: Path) -> AsyncIterator[Loss]:
    port = free_port()

    async with plugged(lambda: plain(server(echo, port))) as plug:
        driver = WebSocket(url=f"ws://127.0.0.1:{port}/")
        yield Loss(driver, partial(said, b"x", b"x"), "Connection refused", plug.pull_out, plug.put_in)


@loses("dbus")
async def _(_: str, folder: Path) -> AsyncIterator[Loss]:
    path = folder / "bus"

    @asynccontextmanager
    async def daemon() -> AsyncIterator[None]:
        path.unlink(missing_ok=True)
        argv = ["dbus-daemon", "--session", "--nofork", "--nopidfile", f"--address=unix:path={path}"]
        async with leashed(argv):
            while not path.exists():  # noqa: ASYNC110  # another process makes it
                await trio.sleep(0.01)
            yield

    async with plugged(daemon) as plug:
        use = partial(said, b"\0AUTH\r\n", b"REJECTED")
        yield Loss(DBus(path=path), use, "cannot connect to unix:.*bus: ", plug.pull_out, plug.put_in)


@loses("scpi", "scpi-power")
async def _(type_: str, folder: Path) -> AsyncIterator[Loss]:
    port, supply = free_port(), Supply()
    async with plugged(lambda: answering(supply.serve, port)) as plug:
        says = "is gone|was not answered|Connection refused"
        if type_ == "scpi":
            driver: Driver = Scpi(host="127.0.0.1", port=port)
            yield Loss(driver, lambda client: client.identify(), says, plug.pull_out, plug.put_in)
        else:
            driver = ScpiPower(host="127.0.0.1", port=port)
            yield Loss(driver, lambda client: client.state(), says, plug.pull_out, plug.put_in)


@loses("doip")
async def _(_: str, folder: Path) -> AsyncIterator[Loss]:
    port, ecu = free_port(), Ecu()

    async def read(client: Any) -> None:
        assert await client.read(0xF190) == VIN

    async with plugged(lambda: plain(behind_gateway(ecu, port=port))) as plug:
        driver = Doip(host="127.0.0.1", port=port, unit=0x0E00, timeout=10)
        says = "unit 0x0e00 behind 127|DoIP gateway 127.*Connection refused"
        yield Loss(driver, read, says, plug.pull_out, plug.put_in)


# ---- switches


def state(client: Any) -> Any:
    return client.state()


@loses("redfish-power")
async def _(_: str, folder: Path) -> AsyncIterator[Loss]:
    port = free_port()
    async with plugged(lambda: sushy(folder, port)) as plug:
        driver = RedfishPower(url=f"http://127.0.0.1:{port}", timeout=60)
        says = rf"GET /redfish/.* at http://127\.0\.0\.1:{port}: Connection refused"
        yield Loss(driver, state, says, plug.pull_out, plug.put_in)


@loses("ipmi-power")
async def _(_: str, folder: Path) -> AsyncIterator[Loss]:
    port = free_port()
    async with plugged(lambda: ipmi_sim(folder, port)) as plug:
        driver = IpmiPower(host="127.0.0.1", port=port, username="lab", password="s3cret", timeout=4)
        says = r"BMC 127\.0\.0\.1: it does not answer|status at 127\.0\.0\.1 did not end within 4 s"
        yield Loss(driver, state, says, plug.pull_out, plug.put_in)


@loses("mqtt-power")
async def _(_: str, folder: Path) -> AsyncIterator[Loss]:
    port = free_port()
    async with plugged(lambda: mosquitto(folder, port, "allow_anonymous true")) as plug:
        driver = MqttPower(broker=f"127.0.0.1:{port}", command="relay", timeout=60)
        says = rf"MQTT broker 127\.0\.0\.1:{port}: (the connection is gone|Connection refused)"
        yield Loss(driver, lambda client: client.on(), says, plug.pull_out, plug.put_in)


@loses("http-power")
async def _(_: str, folder: Path) -> AsyncIterator[Loss]:
    port = free_port()

    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\non")

    async with plugged(lambda: answering(answer, port)) as plug:
        url = f"http://127.0.0.1:{port}/"
        driver = HttpPower(on_request=url, off_request=url, state_request=url)
        yield Loss(driver, state, rf"127\.0\.0\.1:{port}.*Connection refused", plug.pull_out, plug.put_in)


@loses("command-power", "outlets", "command-flasher", "command-camera")
async def _(type_: str, folder: Path) -> AsyncIterator[Loss]:
    """A tool that finds its device, or does not."""
    there, image = folder / "ttyUSB0", folder / "image"
    image.write_bytes(b"x")
    picture = folder / "picture.jpg"
    picture.write_bytes(jpeg("red"))
    tool = f"test -e {there} || {{ echo 'no such device' >&2; exit 1; }}"

    async def take() -> None:
        there.unlink()

    async def give() -> None:
        there.touch()

    await give()
    says = "no such device"
    power = CommandPower(on_command=tool, off_command=tool)
    match type_:
        case "command-power":
            yield Loss(power, lambda client: client.on(), says, take, give)
        case "outlets":
            several = Outlets()
            several.children["board"] = power
            yield Loss(several, lambda client: client.on(), says, take, give)
        case "command-flasher":
            flasher = CommandFlasher(flash_command=["sh", "-c", f"{tool}; cat {{file}} >/dev/null"])
            yield Loss(flasher, lambda client: client.flash(image), says, take, give)
        case "command-camera":
            camera = CommandCamera(command=f"{tool}; cat {picture}; sleep 1000")
            yield Loss(camera, lambda client: client.screenshot(), says, take, give)


# ---- by SSH


@loses("ssh", "ssh-console", "ssh-power")
async def _(type_: str, folder: Path) -> AsyncIterator[Loss]:
    port = free_port()
    with sshd(folder) as server:
        who, key = server.user, server.key
    async with plugged(lambda: plain(sshd(folder, port=port))) as plug:
        match type_:
            case "ssh":
                says = rf"cannot connect to tcp:127\.0\.0\.1:{port}: Connection refused"
                ssh = Ssh(host="127.0.0.1", port=port, user=who, key=key)
                yield Loss(ssh, lambda client: client.run("true", check=True), says, plug.pull_out, plug.put_in)
            case "ssh-console":
                console = SshConsole(host="127.0.0.1", port=port, user=who, key=key, command="cat")
                says = r"ssh to .*127\.0\.0\.1 ended with "
                yield Loss(console, partial(said, b"x\n", b"x"), says, plug.pull_out, plug.put_in)
            case "ssh-power":
                power = SshPower(
                    host="127.0.0.1",
                    port=port,
                    user=who,
                    identity=key,
                    host_key=server.host_key,
                    on_command="true",
                    off_command="true",
                )
                says = r"cannot reach 127\.0\.0\.1 by ssh: .*(refused|closed)"
                yield Loss(power, lambda client: client.on(), says, plug.pull_out, plug.put_in)


# ---- the rest


@loses("conserver")
async def _(_: str, folder: Path) -> AsyncIterator[Loss]:
    port = free_port()
    async with plugged(lambda: conserver(folder, "sh -c 'stty raw -echo; exec cat'", port)) as plug:
        driver = Conserver(console="dut", host="127.0.0.1", port=port, encrypted=False)
        yield Loss(driver, partial(said, b"x", b"x"), r"conserver 127\.0\.0\.1 ended with", plug.pull_out, plug.put_in)


@loses("http-camera")
async def _(_: str, folder: Path) -> AsyncIterator[Loss]:
    port = free_port()

    @asynccontextmanager
    async def ustreamer() -> AsyncIterator[None]:
        async with leashed(["ustreamer", "--device", "/dev/no-such", "--host", "127.0.0.1", "--port", str(port)]):
            await listening(port)
            yield

    async with plugged(ustreamer) as plug:
        driver = HttpCamera(snapshot=f"http://127.0.0.1:{port}/snapshot", timeout=60)
        says = rf"the camera at 127\.0\.0\.1:{port}: Connection refused"
        yield Loss(driver, lambda client: client.screenshot(), says, plug.pull_out, plug.put_in)


@loses("ustreamer")
async def _(_: str, folder: Path) -> AsyncIterator[Loss]:
    """The program itself is what can be taken away here: it is killed, and started again by the driver."""
    absent = folder / "video0"

    async def take() -> None:
        for each in Path("/proc").glob("[0-9]*/cmdline"):
            words = each.read_bytes().split(b"\0")
            if bytes(absent) in words and words[0].endswith(b"ustreamer"):
                os.kill(int(each.parent.name), signal.SIGKILL)

    async def give() -> None:
        await trio.lowlevel.checkpoint()

    driver = Ustreamer(device=absent, no_signal="picture", timeout=60)
    yield Loss(driver, lambda client: client.screenshot(), "ustreamer ended with|Connection re(fused|set)", take, give)


@loses("nbd")
async def _(_: str, folder: Path) -> AsyncIterator[Loss]:
    port = free_port()

    @asynccontextmanager
    async def nbdkit() -> AsyncIterator[None]:
        async with leashed(["nbdkit", "--foreground", "--ipaddr", "127.0.0.1", "--port", str(port), "memory", "1M"]):
            await listening(port)
            yield

    async with plugged(nbdkit) as plug:
        driver = NbdStorage(url=f"nbd://127.0.0.1:{port}")
        yield Loss(driver, lambda client: client.size(), "Connection refused", plug.pull_out, plug.put_in)


# ---- programs that look for their device each time


@loses("dfu", "esptool", "fastboot", "flashrom", "openocd", "probe-rs", "pyocd")
async def _(type_: str, folder: Path) -> AsyncIterator[Loss]:
    """The real programs are in test_flashers.py; here is one of the same name that finds its device, or does not."""
    made: dict[str, ProgramFlasher] = {
        "dfu": Dfu(),
        "esptool": Esptool(port="/dev/ttyUSB0"),
        "fastboot": Fastboot(partition="boot"),
        "flashrom": Flashrom(programmer="dummy"),
        "openocd": OpenOcd(config=["x.cfg"]),
        "probe-rs": ProbeRs(chip="x"),
        "pyocd": PyOcd(),
    }
    driver, image = made[type_], folder / "image.bin"
    image.write_bytes(b"x")
    there, program = folder / "there", folder / driver.program
    program.write_text(f"#!/bin/sh\ntest -e {shlex.quote(str(there))} && exit\necho 'Error: no device found'; exit 1\n")
    program.chmod(0o755)
    driver.program = str(program)  # type: ignore[misc]

    async def take() -> None:
        there.unlink()

    async def give() -> None:
        there.touch()

    await give()
    says = f"{program.name} ended with status 1: Error: no device found"
    yield Loss(driver, lambda client: client.flash(image), says, take, give)


@loses("uf2")
async def _(_: str, folder: Path) -> AsyncIterator[Loss]:
    disk, away, firmware = folder / "RPI-RP2", folder / "away", folder / "blink.uf2"
    await trio.run_process(["mformat", "-C", "-i", str(disk), "-f", "1440", "::"])
    firmware.write_bytes(b"UF2\nWQ]\x9e" + bytes(504))

    async def take() -> None:
        disk.rename(away)

    async def give() -> None:
        away.rename(disk)

    driver = Uf2(path=disk, patience=0.1)
    says = "RPI-RP2 is not there: is the board in its boot loader"
    yield Loss(driver, lambda client: client.flash(firmware), says, take, give)


@loses("sd-mux", "sdwire")
async def _(type_: str, folder: Path) -> AsyncIterator[Loss]:
    """A multiplexer that is a link to a loop device, with or without a card in it."""
    disk, card, there = folder / "disk", folder / "card", folder / "there"
    disk.write_bytes(bytes(1 << 20))
    there.touch()
    with loop_device(disk) as device:
        to_host, to_device = f"test ! -e {there} || ln -s {device} {card}", f"rm -f {card}"
        if type_ == "sd-mux":
            driver: SdMux = SdMux(path=card, to_host=to_host, to_device=to_device, patience=1)
        else:
            program = folder / "sd-mux-ctrl"
            program.write_text(f"#!/bin/sh\ncase $2 in --ts) {to_host} ;; *) {to_device} ;; esac\n")
            program.chmod(0o755)
            driver = SdWire(path=card, serial="x", patience=1)
            driver.to_host, driver.to_device = [str(program), "", "--ts"], [str(program), "", "--dut"]

        async def take() -> None:
            there.unlink()

        async def give() -> None:
            there.touch()

        async def use(client: Any) -> None:
            await client.host()
            await client.device()

        yield Loss(driver, use, "the card did not appear within 1 s", take, give)
