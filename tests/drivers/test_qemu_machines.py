from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jmp_drivers.qemu.machines import DEFAULTS, Arch, Hardware, command_line, forwarded_ports


def words(arch: Arch = "arm64", disk: dict[str, str] | None = None, **hardware: Any) -> list[str]:
    hardware = {"forward": {}, **hardware}
    return command_line(Hardware(arch=arch, **hardware), serial=5, monitor=6, disk=disk)


def options(arch: Arch = "arm64", disk: dict[str, str] | None = None, **hardware: Any) -> list[tuple[str, str]]:
    """Option and value, for each option that has one."""
    line = words(arch, disk, **hardware)
    return [
        (option, value)
        for option, value in zip(line, [*line[1:], "-"], strict=True)
        if option.startswith("-") and not value.startswith("-")
    ]


def test_a_boot_loader_needs_only_arch_and_bios() -> None:
    assert " ".join(words(bios=Path("u-boot.bin"))) == (
        "qemu-system-aarch64 -nodefaults -no-user-config -machine virt -accel tcg -cpu cortex-a57 -m 256M"
        " -chardev socket,id=serial,fd=5 -serial chardev:serial -chardev socket,id=monitor,fd=6 -mon chardev=monitor,mode=control"
        " -bios u-boot.bin -netdev user,id=net -device virtio-net-device,netdev=net -display none"
    )


@pytest.mark.parametrize(("arch", "binary"), [(arch, defaults.binary) for arch, defaults in DEFAULTS.items()])
def test_every_architecture_has_its_program(arch: Arch, binary: str) -> None:
    assert words(arch)[0] == binary


def test_a_kernel_gets_its_console_on_the_serial_port() -> None:
    assert ("-append", "console=ttyAMA0") in options("arm64", kernel=Path("Image"))
    assert ("-append", "console=ttyS0") in options("x86_64", kernel=Path("bzImage"))
    assert ("-append", "quiet") in options(kernel=Path("Image"), append="quiet")
    assert "-append" not in words(bios=Path("u-boot.bin"))


def test_all_files_and_sizes() -> None:
    found = options(
        kernel=Path("k"), initrd=Path("i"), dtb=Path("d"), memory="1G", smp=2, machine="virt,secure=on", cpu="max"
    )
    assert {("-kernel", "k"), ("-initrd", "i"), ("-dtb", "d"), ("-m", "1G"), ("-smp", "2")} <= set(found)
    assert {("-machine", "virt,secure=on"), ("-cpu", "max")} <= set(found)


def test_an_accelerator_runs_the_processor_of_the_host() -> None:
    assert {("-accel", "kvm"), ("-cpu", "host")} <= set(options("x86_64", accel="kvm"))


def test_forwarded_ports_are_chosen_by_the_system_on_loopback() -> None:
    found = dict(options(forward={"ssh": 22, "web": 80}))
    assert found["-netdev"] == "user,id=net,hostfwd=tcp:127.0.0.1:0-:22,hostfwd=tcp:127.0.0.1:0-:80"


def test_no_network() -> None:
    line = " ".join(words(network=False))
    assert "net" not in line.replace("-nodefaults", "")


def test_virtio_is_attached_as_the_machine_allows() -> None:
    disk = {"file": "/d,e", "format": "raw"}
    assert ("-device", "virtio-blk-device,drive=disk") in options("riscv64", disk)
    assert ("-drive", "if=none,id=disk,file=/d,,e,format=raw") in options("riscv64", disk)
    assert ("-device", "virtio-blk-pci,drive=disk") in options("x86_64", disk, machine="pc-q35-7.2")
    assert ("-device", "virtio-net-pci,netdev=net,romfile=") in options("x86_64")


def test_a_board_keeps_its_own_processor_memory_disk_and_network() -> None:
    line = " ".join(words("arm64", {"file": "/sd", "format": "raw"}, machine="raspi3b"))
    assert "-cpu" not in line
    assert "-m " not in line
    assert "virtio" not in line
    assert "-drive id=disk,file=/sd,format=raw -nic user,id=net" in line


def test_a_screen_listens_nowhere() -> None:
    assert ("-vnc", "none") in options(vnc=True)
    assert ("-device", "virtio-gpu-pci") in options(vnc=True)
    assert ("-device", "VGA") in options("x86_64", vnc=True)


def test_further_arguments_and_another_program() -> None:
    assert words(args=["-rtc", "base=utc"])[-2:] == ["-rtc", "base=utc"]
    line = command_line(Hardware(arch="arm", forward={}), serial=5, monitor=6, binary="/opt/qemu")
    assert line[0] == "/opt/qemu"


def test_the_table_of_forwarded_ports() -> None:
    table = (
        "Hub -1 (net):\r\n"
        "  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n"
        "  TCP[ESTABLISHED]   16       10.0.2.15 38882       10.0.2.2 5555     0     0\r\n"
        "  TCP[HOST_FORWARD]  14       127.0.0.1 38205       10.0.2.15    22     0     0\r\n"
        "  TCP[HOST_FORWARD]  13       127.0.0.1 41809       10.0.2.15    80     0     0\r\n"
    )
    assert forwarded_ports(table) == {22: 38205, 80: 41809}
    assert forwarded_ports("") == {}
