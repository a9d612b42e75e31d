"""A real U-Boot under QEMU, by the client of ``jmp.u-boot/v1``: prompt, commands, environment, files by TFTP.

Its server listens at port 69, the only one that this U-Boot asks, of a loopback address that is nobody else's; QEMU's NAT leads
there.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

import jmp
from jmp.client.interfaces import client_class
from jmp.driver import serve
from jmp.errors import Busy, ConfigError, DeviceError, NotFound, Timeout, UsageError
from jmp_drivers.qemu import Qemu
from jmp_drivers.u_boot import UBoot
from tests.fakes.sessions import shell_session
from tests.real.linux_image import LinuxImage

pytestmark = pytest.mark.real

CONFIG = """\
apiVersion: jmp/v1
kind: Exporter
metadata: {{name: bench}}
export:
  board:
    type: qemu
    config:
      arch: arm64
      bios: /usr/lib/u-boot/qemu_arm64/u-boot.bin
  tftp:
    type: tftp
    config: {{host: {address}}}
  u-boot:
    type: u-boot
    config: {{tftp_window: 8, timeout: 200, boot_timeout: 200}}
    children:
      console: {{ref: board.console}}
      power: {{ref: board.power}}
      tftp: {{ref: tftp}}
  bare:
    type: u-boot
    config: {{timeout: 1, boot_timeout: 1, repeat: 0.2}}
    children:
      console: {{ref: board.console}}
"""


@pytest.fixture
def config() -> str:
    address = "127." + ".".join(str(1 + each % 254) for each in secrets.token_bytes(3))
    return CONFIG.format(address=address)


@pytest.fixture
def dut(tmp_path: Path, config: str) -> Iterator[Any]:
    (tmp_path / "bench.yaml").write_text(config)
    with jmp.fail_after(600), jmp.connect(exporter=str(tmp_path / "bench.yaml")) as device:
        yield device


def test_prompt_commands_and_environment(dut: Any) -> None:
    dut.u_boot.interrupt(cycle=True)
    dut.u_boot.interrupt()  # it is there
    assert dut.u_boot.run("version").startswith("U-Boot 20")
    with dut.u_boot.attach() as u:
        assert u.run("echo one; echo two") == "one\ntwo\n"
        assert u.run("true") == ""
        assert u.execute("false").status == 1
        assert u.execute("printenv nope").output == '## Error: "nope" not defined\n'
        with pytest.raises(DeviceError, match="U-Boot: 'nosuch' ended with status 1: Unknown command 'nosuch'"):
            u.run("nosuch")
        for value in ("plain", 'it\'s "quoted"', "$kernel_addr_r; reset", "a  b\\n", "x" * 400):
            u.env_set("value", value)
            assert u.env_get("value") == value
            assert u.env()["value"] == value
        u.env_set("value")
        with pytest.raises(NotFound, match="U-Boot has no environment variable 'value'"):
            u.env_get("value")
        for refused in ("", "two\nlines"):
            with pytest.raises(UsageError, match="one line that is not empty"):
                u.run(refused)
        with pytest.raises(
            Timeout, match=r"U-Boot: 'sleep 30' had not ended after 0\.5 s, and was interrupted; it said nothing"
        ):
            u.run("sleep 30", timeout=0.5)
        assert u.run("echo back") == "back\n", "what took too long has been interrupted"
        with pytest.raises(Timeout, match="it said last"):
            u.run("if true; then", timeout=0.5)
        assert u.run("echo back") == "back\n", "so has what was not complete"


def test_what_is_not_saved_is_forgotten(dut: Any) -> None:
    """This U-Boot has nowhere to save to: its driver does not get on with the flash that QEMU emulates. It says so."""
    dut.u_boot.interrupt(cycle=True)
    with pytest.raises(DeviceError, match="U-Boot: 'saveenv' ended with status 1: Failed"):
        dut.u_boot.env_set("lost", "yes", save=True)
    assert dut.u_boot.env_get("lost") == "yes"
    dut.u_boot.reset()
    assert "lost" not in dut.u_boot.env()


def test_files_by_tftp(dut: Any, tmp_path: Path) -> None:
    (tmp_path / "some blob").write_bytes(os.urandom(700_001))
    dut.u_boot.interrupt(cycle=True)
    assert dut.u_boot.load(tmp_path / "some blob") == 700_001
    assert dut.u_boot.load(tmp_path / "some blob", "0x41000000") == 700_001
    assert list(dut.tftp.list()) == ["some blob"]
    with pytest.raises(DeviceError, match=r"U-Boot did not boot: (\w[^;]*; )?Bad Linux ARM64 Image magic"):
        dut.u_boot.boot(tmp_path / "some blob", command="booti")
    with pytest.raises(UsageError, match="some blob is no kernel that is known here"):
        dut.u_boot.boot(tmp_path / "some blob")
    with pytest.raises(UsageError, match="none cannot be read"):
        dut.u_boot.boot(tmp_path / "none")
    with pytest.raises(ConfigError, match="U-Boot has no TFTP server here"):
        dut.bare.load(tmp_path / "some blob")
    with pytest.raises(ConfigError, match="bare has no power here: give it a child 'power'"):
        dut.bare.interrupt(cycle=True)


async def test_linux_is_booted_from_the_exporter(tmp_path: Path, config: str, linux: LinuxImage) -> None:
    """Under Trio: kernel and RAM disk by TFTP, then a login; U-Boot does not answer any more."""
    (tmp_path / "bench.yaml").write_text(config)
    with trio.fail_after(600):
        async with jmp.connect(exporter=str(tmp_path / "bench.yaml")) as dut, dut.u_boot.attach() as u:
            await dut.board.power.on()
            await u.interrupt()
            said = await u.boot(linux.kernel, initrd=linux.initrd, args=linux.append)
            assert "Loading Ramdisk" in said
            await u.console.expect("dut login: ", timeout=400)
            with pytest.raises(Busy, match="another client is writing to this console"):
                await dut.bare.run("version")


def test_on_any_console_without_a_driver(dut: Any) -> None:
    with pytest.raises(Timeout, match="it said nothing"):  # it is off
        dut.bare.interrupt()
    with dut.board.console.u_boot(timeout=200, boot_timeout=200) as u:
        dut.board.power.on()
        u.interrupt()
        assert "CPU" in u.run("help bdinfo; echo CPU")


def test_on_the_command_line(tmp_path: Path, config: str) -> None:
    def j(*words: str) -> tuple[int, str, str]:
        done = subprocess.run(
            ["j", "u-boot", *words], env=environ, capture_output=True, text=True, timeout=400, check=False
        )
        return done.returncode, done.stdout, done.stderr

    with shell_session(tmp_path, config) as environ:
        assert j("interrupt", "--cycle") == (0, "", "")
        assert j("env-set", "greeting", "hello there") == (0, "", "")
        assert j("run", "echo $greeting") == (0, "hello there\n", "")
        code, out, err = j("run", "false")
        assert (code, out, err) == (74, "", "jmp: U-Boot: 'false' ended with status 1: it printed nothing\n")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"prompt": "(=> "}, r"prompt: '\(=> ' is no regular expression: missing \)"),
        ({"stop": ""}, "stop must not be empty"),
        ({"timeout": 0}, "timeout must be more than 0 seconds, not 0"),
        ({"repeat": -1}, "repeat must be 0 or more seconds, not -1"),
    ],
)
def test_configuration(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        UBoot(**config)


class Lossy(Qemu):
    """Its serial line swallows a letter."""

    def __post_init__(self) -> None:
        super().__post_init__()
        vm = self._vm
        whole = vm.type

        async def type(data: bytes) -> None:
            await whole(data.replace(b"z", b""))

        vm.type = type  # type: ignore[method-assign]


async def test_a_line_that_loses_characters_carries_nothing_out() -> None:
    board, loader = Lossy(arch="arm64", bios=Path("/usr/lib/u-boot/qemu_arm64/u-boot.bin")), UBoot()
    loader.children |= {"board": board, "console": board.children["console"]}
    with trio.fail_after(600):
        async with serve(loader, class_of=client_class) as u_boot:
            await u_boot.board.power.on()
            await u_boot.interrupt()
            with pytest.raises(
                DeviceError, match=r"did not echo \"setenv 'x' 'zero'\": .* or the line loses characters"
            ):
                await u_boot.env_set("x", "zero")
            with pytest.raises(NotFound, match="no environment variable 'x'"):
                await u_boot.env_get("x")
