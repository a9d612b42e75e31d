"""Containers, by podman and by docker, with an image that is busybox and nothing else."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from jmp.driver import BadValue, ConfigError, DeviceError, serve
from jmp_drivers.container import Container
from tests.fakes.dialogue import Dialogue
from tests.fakes.patience import works

# What this takes of limits and networks is what every machine has that may run containers at all.
OPTIONS = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024", "--network=none"]


@contextmanager
def podman(folder: Path) -> Iterator[list[str]]:
    """With a store of its own."""
    yield [
        *("podman", "--runtime=runc", "--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--events-backend=none"),
        *(f"--root={folder}/store", f"--runroot={folder}/run"),
    ]


@contextmanager
def docker(folder: Path) -> Iterator[list[str]]:
    """With a daemon of its own, which leaves the machine's networks alone."""
    address = f"unix://{folder}/socket"
    daemon = ["dockerd", f"--host={address}", f"--pidfile={folder}/pid", "--storage-driver=vfs", "--bridge=none"]
    daemon += [f"--data-root={folder}/data", f"--exec-root={folder}/exec", "--iptables=false", "--ip6tables=false"]
    with subprocess.Popen(daemon, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if "API listen on" in line:
                break
        else:
            pytest.fail("".join(said))
        draining = threading.Thread(target=process.stderr.read)
        draining.start()
        try:
            yield ["/usr/bin/docker", f"--host={address}"]  # Debian's, beside its daemon
        finally:
            process.terminate()
            process.wait(60)
            draining.join()


@pytest.fixture(scope="module", params=[podman, docker], ids=["podman", "docker"])
def engine(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """The engine, which has the image."""
    folder = Path(tempfile.mkdtemp(prefix="jmp-"))  # podman refuses long paths, as pytest's are
    with request.param(folder) as program:
        busybox = Path("/bin/busybox").read_bytes()
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for name in ("bin/busybox", "bin/sh"):
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(busybox), 0o755
                tar.addfile(entry, io.BytesIO(busybox))
        subprocess.run([*program, "import", "-", "board"], input=packed.getvalue(), check=True, capture_output=True)
        yield program
        remove_all(program)
    shutil.rmtree(folder, ignore_errors=True)


def remove_all(engine: list[str]) -> None:
    for each in containers(engine):
        subprocess.run([*engine, "kill", each], check=False, capture_output=True)  # or podman is polite for ten seconds
        subprocess.run([*engine, "rm", "--force", each], check=True, capture_output=True)


def board(engine: list[str], **more: Any) -> Container:
    given: dict[str, Any] = {"image": "board", "command": ["/bin/sh"], "options": OPTIONS, "program": engine}
    return Container(**(given | more))


def containers(engine: list[str]) -> list[str]:
    listed = subprocess.run([*engine, "ps", "--all", "--quiet"], check=True, capture_output=True, text=True)
    return listed.stdout.split()


async def test_power_console_and_commands(engine: list[str]) -> None:
    with trio.fail_after(600):
        async with serve(board(engine)) as dut:
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
        assert await trio.to_thread.run_sync(containers, engine) == []


async def test_what_cannot_be(engine: list[str]) -> None:
    with trio.fail_after(600):
        async with serve(board(engine, image="localhost/none")) as dut:
            with pytest.raises(DeviceError, match="the container cannot be made of localhost/none: "):
                await dut.run(["true"])
            with pytest.raises(DeviceError, match="there is no container"):
                await dut.power.on()
        async with serve(board(engine, command=["/no/such"])) as dut:
            with pytest.raises(DeviceError, match=r"the container does not start: .*/no/such"):
                await dut.power.on()
        async with serve(board(engine, program="podman-none")) as dut:
            with pytest.raises(DeviceError, match="cannot start podman-none: no such program"):
                await dut.run(["true"])


async def test_one_that_is_removed_and_those_of_the_dead(engine: list[str]) -> None:
    with trio.fail_after(600):
        async with serve(board(engine)) as dut:
            await dut.power.on()
            await trio.to_thread.run_sync(remove_all, engine)
            with pytest.raises(DeviceError, match="the container is gone"):
                await dut.power.state()
            assert await works(dut.power.state) == "off", "another one is made"
            await dut.power.on()
        create = [*engine, "create", "--label=jmp.owner=999999999", *OPTIONS, "board", "/bin/sh"]
        await trio.run_process(create, capture_stdout=True)
        async with serve(board(engine)) as dut:
            assert await dut.power.state() == "off"
            assert len(await trio.to_thread.run_sync(containers, engine)) == 1


def test_wrong_configuration() -> None:
    for config, message in (({"image": "-v"}, "name of an image"), ({"image": "a", "program": []}, "podman or docker")):
        given: dict[str, Any] = config
        with pytest.raises(ConfigError, match=message):
            Container(**given)
