"""Writes docs/drivers.md from the drivers themselves: ``python3 drivers/reference.py``, where jmp and they are installed.

Examples are those of the drivers' pages, docs/drivers/*.md. What is tested against what stands here.
"""

from __future__ import annotations

import inspect
import re
import textwrap
import tomllib
from pathlib import Path
from pkgutil import resolve_name

from jmp.driver import Driver
from jmp.driver.schema import config_schema, describe

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "drivers.md"

TESTED = {
    "block-device": (
        "loop devices, a USB stick of the kernel's own that is pulled out",
        "content, read back; what is mounted or held is not touched; a device larger than was meant; loss and return",
    ),
    "sd-mux": (
        "a multiplexer that is a link to a loop device",
        "the order of switching, a card that does not appear, commands that fail",
    ),
    "sdwire": (
        "none: what `sd-mux-ctrl` is told",
        "its arguments, and its absence",
    ),
    "nbd": (
        "nbdkit and qemu-nbd",
        "content, flushing, exports by name, one that can only be read, a full disk, refusal",
    ),
    "fastboot": (
        "the program fastboot, and a boot loader of the test's that speaks its protocol",
        "images, variables, the loader's refusals; no device",
    ),
    "dfu": (
        "dfu-util, and a USB device in DFU mode on a kernel of its own",
        "an image, progress, a wrong alternate setting; no device",
    ),
    "esptool": (
        "esptool, and an ESP32's boot loader of the test's that speaks its protocol",
        "an image, by esptool's own loader (packed) and the chip's, progress, a flash that keeps something else; no port",
    ),
    "openocd": (
        "openocd with its own drivers, and an STM32F103 of the test's behind remote_bitbang, as its registers are described",
        "an image written, verified and started; a flash that is worn out, or not there; the chain, resets, another chip",
    ),
    "pyocd": (
        "pyocd with its own algorithm, and the same chip behind a probe of the test's that pyocd reaches by its network protocol",
        "an image written and started, progress, erasing; no probe",
    ),
    "probe-rs": (
        "none: what the program is told",
        "arguments, progress, errors; its absence",
    ),
    "flashrom": (
        "flashrom, with the chip that it emulates itself",
        "content both ways, an image of a wrong size, no chip",
    ),
    "uf2": (
        "mtools on a FAT file system",
        "content, what is no UF2 file, a disk that is none or not there",
    ),
    "command-flasher": (
        "programs of the system",
        "arguments, progress, time-out; one at a time; what is given up is ended",
    ),
    "capture": (
        "tcpdump on loopback",
        "packets, filters, limits, wrong filters, an interface that goes and returns; nothing of it is left",
    ),
    "command-camera": ("programs", "pictures as they are written, their end and last words"),
    "command-console": (
        "commands of the system",
        "every byte both ways, its end and its last words, that it is started again; nothing of it is left",
    ),
    "can": (
        "python-can's buses in a process and by multicast; the kernel's own",
        "frames both ways, FD, repetition, questions; an interface that is absent, goes down, comes back",
    ),
    "command-power": (
        "commands of the system",
        "orders, state, readings, time-out; a command that is given up leaves no process",
    ),
    "conserver": (
        "conserver and its client",
        "every byte both ways, break, a console that is not there, loss and return",
    ),
    "container": (
        "podman and docker",
        "power, console, commands, pause; no image, no command, removed by others; nothing is left, of the dead neither",
    ),
    "doip": (
        "a gateway and a unit whose DoIP and UDS are scapy's",
        "all services, refusals, sessions kept alive; no such unit, absence, loss and return",
    ),
    "dbus": ("dbus-daemon, dbus-send and busctl", "calls, as another user too; absence, loss and return"),
    "device-network": (
        "dnsmasq, nftables and a DHCP client, in network namespaces",
        "addresses, the way out, that others do not get in, in a namespace of its own too; an adapter that is pulled out "
        "and returns; nothing of it is left",
    ),
    "echo": ("sockets", "what is sent comes back, each side's end too"),
    "gpio": (
        "the kernel's simulated chip",
        "names, values, edges, pulses; lines in use, absent; a chip that goes and returns",
    ),
    "gpio-power": (
        "the kernel's simulated chip",
        "orders, polarity, what a session begins with; a chip that goes and returns",
    ),
    "http-camera": ("ustreamer", "pictures and streams, passwords, refusal, silence; pictures held against Pillow"),
    "http-power": (
        "an HTTP server",
        "requests, answers, readings, passwords that no message shows, refusal, silence, impostors",
    ),
    "http-server": ("curl", "content, ranges, several requests on a connection, refusals"),
    "iso-tp": ("the kernel's ISO-TP, and scapy's", "messages both ways, silence, nobody there"),
    "mock-power": ("none: it is one", "state and cycles"),
    "i2c": (
        "the kernel's simulated bus, i2c-tools",
        "devices found, bytes and words, absent devices, addresses that are barred",
    ),
    "ipmi-power": ("OpenIPMI's simulator of a BMC", "orders, state, no answer, wrong password"),
    "modbus": ("pymodbus's server, over TCP and a serial line", "numbers of all kinds, refusals, absent, lost"),
    "mqtt-power": (
        "mosquitto, and a relay on it",
        "orders, confirmation, measurements, silence, credentials, a broker that goes",
    ),
    "outlets": ("switches worked by commands", "the order, the delay, what a failing one does to the others"),
    "qemu": (
        "QEMU with U-Boot, and with Linux",
        "boot, console, power cycle, disks, ports, screen; pause; memory and disk as they were, of a machine that is on, off or "
        "was killed; a QEMU that is killed is noticed",
    ),
    "redfish-power": (
        "the emulator of sushy-tools",
        "orders until they are followed, state, no answer, no such system",
    ),
    "renode": (
        "none: a program of the test's that speaks as Renode does, which is in no package registry",
        "on, off, reset, firmware, the console, commands of the monitor and their failures; its end; nothing runs on",
    ),
    "scpi": (
        "an instrument of our own over TCP, to the driver and to pyvisa-py; pyvisa-sim",
        "answers, blocks, errors, numbers; silence, absent, lost",
    ),
    "scpi-power": ("the same", "orders until they are followed, measurements"),
    "serial": (
        "pseudo-terminals, ser2net, pyserial's RFC 2217 server",
        "bytes, settings, modem lines, unplugging and return; ten watchers, a writer, one who takes over",
    ),
    "shelly": (
        "a server of its RPC that answers as the manufacturer's examples do, held against curl",
        "orders, measurements, digest authentication, loss and return",
    ),
    "shell": ("programs of the system", "output, status, time-out; arguments are never executed; no process is left"),
    "snmp-power": ("net-snmp's agent", "orders, measurements, versions 2c and 3, refusals, loss and return"),
    "spi": (
        "the kernel's spidev, on a bus of the test's with a wire and a memory",
        "bytes both ways, commands and answers, modes; absent, no such mode, a bus that goes and returns",
    ),
    "ssh": (
        "OpenSSH's server, its programs, and Fabric",
        "commands, files and folders with and without SFTP, tunnels, a terminal; keys, passwords, impostors, refusal",
    ),
    "tasmota": (
        "mosquitto, and a plug on it that speaks as Tasmota's documentation has it",
        "orders, measurements, its button; absent, unplugged, back",
    ),
    "ssh-console": ("OpenSSH's server", "every byte both ways, keys, passwords, impostors, refusal"),
    "ssh-power": (
        "sshd, as a machine and as a PDU with a prompt",
        "orders, state, failures, keys, passwords, another server in its place",
    ),
    "tcp": ("TCP servers", "bytes and each side's end both ways, refusal, reset, silence"),
    "telnet": (
        "telnetd of busybox and of inetutils, ser2net",
        "every byte both ways, options, break, raw ports, absence, loss and return",
    ),
    "tftp": (
        "curl and tftp-hpa's program",
        "content, block sizes, windows, numbers that begin again, loss, refusals; nothing is left after a session",
    ),
    "u-boot": (
        "U-Boot under QEMU",
        "the countdown stopped, commands and their status, values of all kinds in the environment, files and a Linux by TFTP; "
        "a line that loses characters carries nothing out",
    ),
    "uds": (
        "a unit whose ISO-TP and UDS are scapy's, on python-can's and the kernel's bus",
        "all services, refusals, sessions kept alive, silence",
    ),
    "udp": ("UDP sockets", "bounds of datagrams both ways, nobody there yet"),
    "unix": ("Unix sockets", "bytes and each side's end both ways, refusal"),
    "usb-hub-power": (
        "uhubctl, and a hub of the kernel's with a device on it",
        "orders and what the hub says then; no such hub, no such port, no such program",
    ),
    "virtual-board": ("none: it is a device", "boot, login, console, flashing, network ports, power"),
    "ustreamer": (
        "the program, with the kernel's simulated camera and with none",
        "pictures, sizes; a camera that goes and returns; its picture of none, the error, wrong arguments",
    ),
    "v4l2-camera": (
        "ffmpeg, with the kernel's simulated camera",
        "pictures, sizes, filters; two who look at once; a camera that is absent, busy, goes and returns; nothing runs on",
    ),
    "vnc": (
        "TigerVNC's X server; QEMU's for the driver qemu",
        "pixels, changes, keys, buttons, passwords, impostors, loss and return; pictures held against Pillow",
    ),
    "websocket": ("the library websockets' server", "bytes and text both ways, ends, refusals, silence"),
    "wake-on-lan": ("the program wakeonlan", "the same bytes as its packet; the commands for the rest"),
}
"""Driver → the counterpart in its tests, and what they assert."""


def render() -> str:
    """The page, as it has to be."""
    project = tomllib.loads((ROOT / "drivers/pyproject.toml").read_text())["project"]
    drivers: dict[str, type[Driver]] = {
        name: resolve_name(place) for name, place in sorted(project["entry-points"]["jmp.drivers"].items())
    }
    parts = [
        "# Drivers\n",
        "`jmp driver list` prints what is installed, `jmp driver show TYPE` a driver's configuration. To write one, see\n"
        "[drivers/README.md](../drivers/README.md). This page is made by `drivers/reference.py`.\n",
        table(
            ("type", "interface", "what", "page"),
            [(f"`{name}`", _interface(each), each.summary(), _link(name)) for name, each in drivers.items()],
        ),
        "## Tested against\n",
        "Each is tried on the real thing where it runs on a plain machine; continuous integration installs it. Besides, each is\n"
        "given a wrong configuration, an absent device, and one that is taken away in use and given back: one line says whose\n"
        "fault it is, and what is well again works without a restart. `tests/drivers/test_faults.py` has a row for each, or why\n"
        "a device cannot be absent or lost.\n",
        table(("type", "counterpart", "what is asserted"), [(f"`{name}`", *TESTED[name]) for name in drivers]),
        "## Configuration\n",
        *(section(name, each) for name, each in drivers.items()),
    ]
    return "\n".join(parts)


def section(name: str, driver: type[Driver]) -> str:
    """What a driver is, and its configuration."""
    schema = config_schema(driver)
    lines = []
    for key, item in schema["properties"].items():
        default = (
            "required" if key in schema["required"] else f"default `{item['default']}`" if "default" in item else ""
        )
        lines.append(f"- `{key}`: {', '.join(filter(None, (describe(item), default, item.get('description', ''))))}")
    about = inspect.getdoc(driver) or driver.summary()
    example = f"```yaml\napiVersion: jmp/v1\nkind: Exporter\nmetadata:\n  name: bench\nexport:\n{_example(name)}```\n"
    return "\n\n".join(filter(None, (f"### {name}", about, "\n".join(lines), example)))


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ("---",) * len(head), *rows))


def _interface(driver: type[Driver]) -> str:
    return f"`{driver.interface}`" if driver.interface else "composite"


def _page(name: str) -> Path:
    """The page whose title names the driver."""
    for path in sorted((ROOT / "docs/drivers").glob("*.md")):
        if name in re.split(r"[#:, \n]+", path.read_text().partition("\n")[0]):
            return path
    raise SystemExit(f"no page in docs/drivers is about {name}: name it in a title")


def _link(name: str) -> str:
    path = _page(name)
    return f"[{path.stem}](drivers/{path.name})"


def _example(name: str) -> str:
    """The driver's entry in the examples of its page; just its type if there is none."""
    for block in re.findall(r"^```yaml\n(.*?)^```", _page(name).read_text(), re.DOTALL | re.MULTILINE):
        for entry in re.findall(r"^  \S.*\n(?:    .*\n|\n)*", block.partition("\nexport:\n")[2], re.MULTILINE):
            if re.search(rf"^    type: {name}$", entry, re.MULTILINE):
                return str(entry).rstrip("\n") + "\n"
    return textwrap.indent(f"device:\n  type: {name}\n", "  ")


if __name__ == "__main__":
    PAGE.write_text(render())
