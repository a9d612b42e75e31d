"""Containers, by podman and runc, with an image that is busybox and nothing else."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from jmp.driver import BadValue, ConfigError, DeviceError, serve
from jmp_drivers.container import Container
from tests.fakes.dialogue import Dialogue

# What this takes of limits and networks is what every machine has that may run containers at all.
OPTIONS = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024", "--network=none"]


@pytest.fixture(scope="module")
def podman() -> Iterator[list[str]]:
    """The engine with a store of its own, which has the image."""
    folder = Path(tempfile.mkdtemp(prefix="jmp-"))  # podman refuses long paths, as pytest's are
    program = [
        *("podman", "--runtime=runc", "--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--events-backend=none"),
        *(f"--root={folder}/store", f"--runroot={folder}/run"),
    ]
    busybox = Path("/bin/busybox").read_bytes()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name in ("bin/busybox", "bin/sh"):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(busybox), 0o755
            tar.addfile(entry, io.BytesIO(busybox))
    subprocess.run([*program, "import", "-", "board"], input=packed.getvalue(), check=True, capture_output=True)
    yield program
    subprocess.run([*program, "rm", "--all", "--force", "--time=0"], check=True, capture_output=True)
    shutil.rmtree(folder, ignore_errors=True)


def board(podman: list[str], **more: Any) -> Container:
    given: dict[str, Any] = {"image": "board", "command": ["/bin/sh"], "options": OPTIONS, "program": podman}
    return Container(**(given | more))


def containers(podman: list[str]) -> list[str]:
    listed = subprocess.run([*podman, "ps", "--all", "--quiet"], check=True, capture_output=True, text=True)
    return listed.stdout.split()


async def test_power_console_and_commands(podman: list[str]) -> None:
    with trio.fail_after(100):
        async with serve(board(podman)) as dut:
            assert await dut.power.state() == "off"
            with pytest.raises(DeviceError, match="is not running: switch it on"):
                await dut.run(["/bin/busybox", "true"])
            with pytest.raises(DeviceError, match="is not running: switch it on"):
                await dut.console.send(b"x")
            async with dut.console.connect() as stream:
                await dut.power.on()
                console = Dialogue(stream)
                assert await dut.power.state() == "on"
                await console.send("echo $((6*7)) > /answer; /bin/busybox cat /answer\n")
                await console.expect(r"\n42")
                assert await dut.run(["/bin/busybox", "cat", "/answer"]) == {
                    "stdout": "42\n",
                    "stderr": "",
                    "exit_code": 0,
                }
                assert (await dut.run(["/bin/sh", "-c", "echo no >&2; exit 3"])) == {
                    "stdout": "",
                    "stderr": "no\n",
                    "exit_code": 3,
                }
                await dut.pause()
                await dut.resume()
                await dut.power.cycle(wait=0)
                await console.send("echo again $((5+4))\n")
                await console.expect("again 9")
                await dut.power.off()
                assert await dut.power.state() == "off"
            with pytest.raises(BadValue, match="no command"):
                await dut.run([])
        assert await trio.to_thread.run_sync(containers, podman) == []


async def test_what_cannot_be(podman: list[str]) -> None:
    with trio.fail_after(100):
        async with serve(board(podman, image="localhost/none")) as dut:
            with pytest.raises(DeviceError, match="the container cannot be made of localhost/none: "):
                await dut.run(["true"])
            with pytest.raises(DeviceError, match="there is no container"):
                await dut.power.on()
        async with serve(board(podman, command=["/no/such"])) as dut:
            with pytest.raises(DeviceError, match=r"the container does not start: .*/no/such"):
                await dut.power.on()
        async with serve(board(podman, program="podman-none")) as dut:
            with pytest.raises(DeviceError, match="cannot start podman-none: no such program"):
                await dut.run(["true"])


async def test_one_that_is_removed_and_those_of_the_dead(podman: list[str]) -> None:
    with trio.fail_after(100):
        async with serve(board(podman)) as dut:
            await dut.power.on()
            await trio.run_process(
                [*podman, "rm", "--all", "--force", "--time=0"], capture_stdout=True, capture_stderr=True
            )
            with pytest.raises(DeviceError, match="the container is gone"):
                await dut.power.state()
        create = [*podman, "create", "--label=jmp.owner=999999999", *OPTIONS, "board", "/bin/sh"]
        await trio.run_process(create, capture_stdout=True)
        async with serve(board(podman)) as dut:
            assert await dut.power.state() == "off"
            assert len(await trio.to_thread.run_sync(containers, podman)) == 1


def test_wrong_configuration() -> None:
    for config, message in (({"image": "-v"}, "name of an image"), ({"image": "a", "program": []}, "podman or docker")):
        given: dict[str, Any] = config
        with pytest.raises(ConfigError, match=message):
            Container(**given)
