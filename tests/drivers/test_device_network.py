"""A network of a device's own: a real DHCP client and real connections, each in a network namespace of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from jmp.driver import BadValue, ConfigError, DeviceError, serve
from jmp.errors import Timeout
from jmp_drivers.capture import Capture
from jmp_drivers.device_network import DeviceNetwork
from tests.fakes.bundled import ROOT, problems_in
from tests.fakes.patience import fails, works

DEVICE = "02:00:00:00:00:07"
UDHCPC = """#!/bin/sh
[ "$1" = bound ] || exit 0
ip address add "$ip/$mask" dev "$interface"
ip route add default via "$router"
"""
SERVER = """
import socket
with socket.create_server(("", 8000)) as server:
    print("ready", flush=True)
    connection, peer = server.accept()
    connection.sendall(peer[0].encode())
    connection.close()
"""
CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], 8000), timeout=float(sys.argv[2])) as connection:
    print(connection.recv(100).decode())
"""


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


HERE = [sys.executable, "-c", CLIENT, "192.168.7.42", "10"]


class Machine:
    """A network namespace with one interface, whose other end is here."""

    def __init__(self, holder: int) -> None:
        self._enter = ["nsenter", "-t", str(holder), "-n"]

    def run(self, *command: str) -> str:
        return run(*self._enter, *command)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Somebody who says, once, who is asking."""
        command = [*self._enter, sys.executable, "-c", SERVER]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            try:
                yield
            finally:
                server.kill()

    def ask(self, address: str, seconds: float = 60) -> str:
        return self.run(sys.executable, "-c", CLIENT, address, str(seconds)).strip()


@contextmanager
def machine(here: str, there: str, mac: str = "") -> Iterator[Machine]:
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo ready; exec sleep 1000"], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        try:
            run("ip", "link", "add", here, "type", "veth", "peer", "name", there)
            if mac:
                run("ip", "link", "set", there, "address", mac)
            run("ip", "link", "set", there, "netns", str(holder.pid))
            made = Machine(holder.pid)
            made.run("ip", "link", "set", there, "up")
            yield made
        finally:
            holder.kill()


async def plug(script: Path, device: Machine, lan: Any) -> None:
    """The device asks for an address, and gets the one that is meant for it."""
    dhcp = ["busybox", "udhcpc", "-i", "eth0", "-n", "-t", "20", "-q", "-f", "-s", str(script)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, lambda: device.run(*dhcp))
        assert await lan.wait_lease(DEVICE, timeout=60) == "192.168.7.42"
    (lease,) = await lan.leases()
    assert (lease["mac"], lease["address"]) == (DEVICE, "192.168.7.42")


async def reaches(device: Machine, world: Machine) -> None:
    """Out of it, behind the exporter's address; the exporter reaches the device, and others who know the way do not."""
    with world.serving():
        assert await trio.to_thread.run_sync(device.ask, "10.9.0.2") == "10.9.0.1"
    with device.serving():
        with pytest.raises(AssertionError, match="timed out"):
            await trio.to_thread.run_sync(world.ask, "192.168.7.42", 0.5)
        assert (await trio.to_thread.run_sync(run, *HERE)).strip() == "192.168.7.1"


async def story(folder: Path) -> None:
    """Runs in a network namespace that is the exporter's machine."""
    script = folder / "udhcpc"
    script.write_text(UDHCPC)
    script.chmod(0o755)
    with ExitStack() as stack:
        device = stack.enter_context(machine("nic0", "eth0", DEVICE))
        world = stack.enter_context(machine("up0", "eth0"))
        run("ip", "address", "add", "10.9.0.1/24", "dev", "up0")
        run("ip", "link", "set", "up0", "up")
        world.run("ip", "address", "add", "10.9.0.2/24", "dev", "eth0")
        world.run("ip", "route", "add", "192.168.7.0/24", "via", "10.9.0.1")
        hosts = {DEVICE: "192.168.7.42"}
        async with serve(DeviceNetwork(device="nic0", hosts=hosts, boot_file="Image")) as lan:
            with pytest.raises(Timeout, match="no device has asked for an address"):
                await lan.wait_lease(timeout=0.1)
            await plug(script, device, lan)
            await reaches(device, world)
            with pytest.raises(BadValue, match="is no hardware address"):
                await lan.wait_lease("x")
        nothing_is_left()
        device.run("ip", "address", "flush", "dev", "eth0")
        async with serve(DeviceNetwork(device="nic0", hosts=hosts, namespace=True)) as lan:
            await plug(script, device, lan)
            assert "nic0" not in run("ip", "link", "show"), "it is in there"
            await reaches(device, world)
            with Machine(os.getpid()).serving():  # the exporter's own servers are at its address in that network
                assert await trio.to_thread.run_sync(device.ask, "192.168.7.1") == "192.168.7.42"
        nothing_is_left()
        for inside in (False, True):
            async with serve(DeviceNetwork(device="nic0", nat=False, namespace=inside)) as lan:
                await lan.leases()
                with device.serving():  # it still has its address
                    assert (await trio.to_thread.run_sync(run, *HERE)).strip() == "192.168.7.1"
                with world.serving(), pytest.raises(AssertionError, match=r"timed out|unreachable"):
                    await trio.to_thread.run_sync(device.ask, "10.9.0.2", 0.5)
        async with serve(DeviceNetwork(device="nic0", options=["--no-such-option"])) as lan:
            with pytest.raises(DeviceError, match=r"dnsmasq ended with status 1: .*bad command line options"):
                await lan.leases()
        async with serve(DeviceNetwork(device="nic9")) as lan:
            with pytest.raises(DeviceError, match="there is no interface nic9"):
                await lan.leases()
        for inside in (False, True):
            with machine("usb0", "eth0") as adapter:
                async with serve(DeviceNetwork(device="usb0", namespace=inside)) as lan:
                    await lan.leases()
                    adapter.run("ip", "link", "delete", "eth0")  # its other end goes too
                    await fails(lan.leases, "the interface usb0 is gone|there is no interface usb0")
                    with machine("usb0", "eth0"):
                        await works(lan.leases)
            nothing_is_left()


def nothing_is_left() -> None:
    assert run("nft", "list", "tables") == ""
    assert "192.168.7.1" not in run("ip", "address", "show")
    assert "jmp" not in run("ip", "link", "show")
    assert "192.168.7" not in run("ip", "route")
    assert not [each for each in Path("/proc").glob("[0-9]*/cmdline") if b"--interface=nic0" in each.read_bytes()]


async def story_of_a_capture(folder: Path) -> None:
    """What is captured on an adapter that is pulled out and put in again, such as a USB one."""
    with trio.fail_after(60):
        async with serve(Capture(device="nic0")) as wire:

            async def captured() -> None:
                async with wire.capture(seconds=0.2) as stream:
                    while await stream.receive_some():
                        pass

            with machine("nic0", "eth0"):
                run("ip", "link", "set", "nic0", "up")
                async with wire.capture() as stream:
                    await stream.receive_some()  # the file's head: it is at work
                    run("ip", "link", "delete", "nic0")
                    with pytest.raises(
                        DeviceError, match=r"cannot capture on nic0: .*(disappeared|down|No such device)"
                    ):
                        await anext(aiter(stream))
            await fails(captured, "cannot capture on nic0: .*No such device")
            with machine("nic0", "eth0"):
                run("ip", "link", "set", "nic0", "up")
                await captured()


@pytest.mark.parametrize("name", ["story", "story_of_a_capture"])
def test_a_device_gets_an_address_and_a_way_out_and_is_left_alone(name: str, tmp_path: Path) -> None:
    inside = (
        f"import trio, sys; from pathlib import Path; from tests.drivers.test_device_network import {name};"
        f"trio.run({name}, Path(sys.argv[1])); print('all as it should be')"
    )
    command = ["unshare", "--net", sys.executable, "-c", inside, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.stdout == "all as it should be\n", done.stderr


def test_configurations_that_cannot_be() -> None:
    cases: list[dict[str, Any]] = [
        {"device": "-x"},
        {"device": "a;b"},
        {"device": "eth1", "address": "192.168.7.1"},
        {"device": "eth1", "address": "192.168.7.1/30"},
        {"device": "eth1", "address": "lab"},
        {"device": "eth1", "hosts": {"x": "192.168.7.2"}},
        {"device": "eth1", "hosts": {DEVICE: "10.0.0.1"}},
    ]
    for wrong in cases:
        with pytest.raises(ConfigError):
            DeviceNetwork(**wrong)


def test_examples_in_the_documentation_are_valid() -> None:
    assert problems_in("docs/drivers/device-network.md") == []
