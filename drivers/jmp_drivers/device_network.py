"""A network of the device's own, on an interface of the exporter's machine: addresses by DHCP, a way out by NAT."""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import socket
import struct
import tempfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from subprocess import PIPE
from typing import ClassVar

import trio

from jmp.driver import BadValue, ConfigError, DeviceError, Driver, export
from jmp.errors import Timeout
from jmp_drivers._process import leashed
from jmp_drivers.qemu.program import require

_MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")
_ACK = re.compile(r"DHCPACK\(\S+\) (\S+) (\S+)(?: (\S+))?")
_WAY = "jmp0"  # the interface, in the namespace, that leads to the machine
_RESOLVED = (
    "/run/systemd/resolve/resolv.conf"  # name servers of a machine whose own one is at an address of the machine alone
)
_ROUTE, _LINKS = 0, 1  # linux/netlink.h, linux/rtnetlink.h: what to be told of
_INDEX = 0x8933  # linux/sockios.h: SIOCGIFINDEX
_START = 30.0  # seconds that dnsmasq may take to begin
_WORDS = 5  # lines of what it says that are kept for its end


class DeviceNetwork(Driver):
    """A network of the device's own: its interface gets an address, the device one by DHCP, and NAT leads out.

    The device reaches what the exporter reaches (``nat``), and nobody but the exporter reaches the device. Addresses, rules and
    the DHCP server (``ip``, ``nft``, ``dnsmasq``) are there during the session; the exporter runs as root or has CAP_NET_ADMIN.
    With ``namespace`` all of it, the interface too, is in a network namespace of its own, which ends with the exporter.
    """

    interface: ClassVar[str | None] = "jmp.device-network/v1"

    device: str = field(metadata={"key": "interface", "doc": "the interface that leads to the device"})
    address: str = field(default="192.168.7.1/24", metadata={"doc": "the exporter's in this network"})
    hosts: dict[str, str] = field(default_factory=dict, metadata={"doc": "hardware address → the address that it gets"})
    nat: bool = field(default=True, metadata={"doc": "lead to other networks, behind the exporter's address"})
    namespace: bool = field(default=False, metadata={"doc": "have it in a network namespace, out of the machine's own"})
    dns: list[str] = field(
        default_factory=list, metadata={"doc": "name servers to ask; default: those of the exporter"}
    )
    boot_file: str = field(default="", metadata={"doc": "what DHCP names for a boot by TFTP, from the exporter"})
    options: list[str] = field(default_factory=list, metadata={"doc": "more arguments for dnsmasq"})

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][\w.@:-]{0,14}", self.device):
            raise ConfigError(f"interface: {self.device!r} cannot be the name of one")
        try:
            self._own = IPv4Interface(self.address)
        except ValueError as error:
            raise ConfigError(f"address: write one with its network, as 192.168.7.1/24: {error}") from error
        if not 8 <= self._own.network.prefixlen <= 29:
            raise ConfigError(
                f"address: a network of {self._own.network.prefixlen} bits is none for devices; take 8 to 29"
            )
        for mac, address in self.hosts.items():
            if not _MAC.fullmatch(mac.lower()):
                raise ConfigError(f"hosts: {mac!r} is no hardware address; write 02:00:00:00:00:01")
            try:
                inside = IPv4Address(address) in self._own.network
            except ValueError:
                inside = False
            if not inside:
                raise ConfigError(f"hosts: {address!r} is no address in {self._own.network}")
        self._table = f"jmp_{re.sub(r'[^A-Za-z0-9]', '_', self.device)}"
        number = zlib.crc32(self.device.encode())
        link = IPv4Network((f"169.254.{number % 128}.{number // 128 % 64 * 4}", 30))
        self._here, self._there = (
            link[1],
            link[2],
        )  # with a namespace: the machine's end of the way to it, and the other
        self._towards = f"jmp-{number:08x}" if self.namespace else self.device
        self._inside: list[str] = []  # what runs a program where the network is
        self._holding = trio.CancelScope()
        self._serving = trio.CancelScope()
        self._watching = trio.CancelScope()
        self._leases: dict[str, dict[str, str]] = {}
        self._news = trio.lowlevel.ParkingLot()

    # ---- life

    async def open(self) -> None:
        for program, package in (("ip", "iproute2"), ("nft", "nftables"), ("dnsmasq", "dnsmasq-base")):
            require(program, package)
        try:
            socket.if_nametoindex(self.device)
        except OSError:
            raise DeviceError(f"there is no interface {self.device} on the exporter's machine") from None
        try:
            if self.namespace:
                require("nsenter", "util-linux")
                await self.nursery.start(self._hold)
                await self._lead_in()
                await _run([*self._inside, "nft", "-f", "-"], self._inner_rules())
            await self._run("ip", "address", "replace", str(self._own), "dev", self.device)
            await self._run("ip", "link", "set", self.device, "up")
            if self.namespace:
                network = str(self._own.network)
                await _run(["ip", "route", "replace", network, "via", str(self._there), "dev", self._towards])
            await _run(["nft", "-f", "-"], self._rules())
            if self.nat:
                await _write("/proc/sys/net/ipv4/ip_forward", "1")
            await self.nursery.start(self._serve)
            await self.nursery.start(self._watch)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._clean_up()
            raise

    async def close(self) -> None:
        self._watching.cancel()
        self._serving.cancel()
        await self._clean_up()

    async def _clean_up(self) -> None:
        undo = [["nft", "delete", "table", "inet", self._table]]
        if self.namespace:
            undo.insert(0, [*self._inside, "ip", "link", "set", self.device, "netns", str(os.getpid())])
            undo.append(["ip", "link", "delete", self._towards])
        else:
            undo.append(["ip", "address", "delete", str(self._own), "dev", self.device])
        for command in undo:
            try:
                await _run(command)
            except DeviceError as error:
                self.log.debug("%s", error.message)  # it was not there yet, or the interface is gone
        self._holding.cancel()

    async def _run(self, *words: str) -> None:
        await _run([*self._inside, *words])

    # ---- its namespace

    async def _hold(self, task_status: trio.TaskStatus[None]) -> None:
        """A process whose network namespace it is: with it, however the exporter ends, all in there is gone."""
        with trio.CancelScope() as self._holding:
            async with leashed(["unshare", "--net", "sh", "-c", "echo; exec sleep infinity"], stdout=PIPE) as process:
                assert process.stdout is not None
                if not await process.stdout.receive_some():
                    raise DeviceError(
                        "there can be no network namespace: the exporter needs CAP_SYS_ADMIN, or to be root"
                    )
                self._inside = ["nsenter", "--target", str(process.pid), "--net"]
                task_status.started()
                await process.wait()
                self.lost("its network namespace has been ended")

    async def _lead_in(self) -> None:
        """Take the interface in, and make a way between in there and here."""
        holder = self._inside[2]
        peer = ["peer", "name", _WAY, "netns", holder]
        await _run(["ip", "link", "add", self._towards, "type", "veth", *peer])
        await _run(["ip", "address", "add", f"{self._here}/30", "dev", self._towards])
        await _run(["ip", "link", "set", self._towards, "up"])
        await _run(["ip", "link", "set", self.device, "netns", holder])
        await self._run("ip", "link", "set", "lo", "up")
        await self._run("ip", "address", "add", f"{self._there}/30", "dev", _WAY)
        await self._run("ip", "link", "set", _WAY, "up")
        await self._run("ip", "route", "add", "default", "via", str(self._here))
        await self._run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")

    def _inner_rules(self) -> str:
        """nft's, in the namespace: the device finds the machine at the exporter's address, and the other way round."""
        device = f'"{self.device}"'
        own = f"iifname {device} ip daddr {self._own.ip}"
        return f"""
            table inet jmp {{
                chain to_exporter {{ type nat hook prerouting priority dstnat;
                    {own} udp dport {{ 53, 67 }} accept
                    {own} tcp dport 53 accept
                    {own} meta l4proto {{ tcp, udp }} dnat ip to {self._here}
                }}
                chain from_exporter {{ type nat hook postrouting priority srcnat; oifname {device} masquerade
                }}
                chain through {{ type filter hook forward priority filter; policy drop;
                    ct state established,related accept
                    iifname "{_WAY}" accept
                    iifname {device} ip daddr {self._here} accept
                    {f"iifname {device} accept" if self.nat else ""}
                }}
            }}
        """

    def _rules(self) -> str:
        """nft's on the machine, in place of what was left of a session that was killed."""
        towards = f'"{self._towards}"'
        out = f"iifname {towards} oifname != {towards} accept" if self.nat else ""
        inside = f"{self._own.network}, {self._there}" if self.namespace else str(self._own.network)
        nat = f"ip saddr {{ {inside} }} oifname != {towards} masquerade" if self.nat else ""
        return f"""
            table inet {self._table}
            delete table inet {self._table}
            table inet {self._table} {{
                chain out {{ type nat hook postrouting priority srcnat; {nat}
                }}
                chain through {{ type filter hook forward priority filter;
                    oifname {towards} ct state established,related accept
                    {out}
                    iifname {towards} drop
                    oifname {towards} drop
                }}
            }}
        """

    async def _watch(self, task_status: trio.TaskStatus[None]) -> None:
        """The interface itself, which may be unplugged."""
        holder = self._inside[2] if self._inside else "self"
        with trio.CancelScope() as self._watching, await trio.to_thread.run_sync(_link_news, holder) as news:
            task_status.started()
            while _is_there(news, self.device):
                await trio.lowlevel.wait_readable(news)
                with suppress(BlockingIOError):
                    while news.recv(65536):
                        pass
            self.lost(f"the interface {self.device} is gone")

    async def _serve(self, task_status: trio.TaskStatus[None]) -> None:
        """dnsmasq, from start to end."""
        said: list[str] = []
        started = False
        with trio.CancelScope() as self._serving, tempfile.TemporaryDirectory(prefix="jmp-lan-") as folder:
            async with leashed(self._dnsmasq(folder), stderr=PIPE) as process:
                assert process.stderr is not None
                rest = b""
                async for data in process.stderr:
                    *lines, rest = (rest + bytes(data)).split(b"\n")
                    for line in lines:
                        text = line.decode(errors="replace").strip()
                        said = [*said, text][-_WORDS:]
                        self._take(text)
                        if not started and "started, version" in text:
                            started = True
                            task_status.started()
                status = await process.wait()
        if self._serving.cancelled_caught:
            return
        words = next((each for each in said if "failed" in each or "bad" in each), said[-1] if said else "")
        problem = f"dnsmasq ended with status {status}{f': {words}' if words else ''}"
        if not started:
            raise DeviceError(problem)
        self.lost(problem)

    def _dnsmasq(self, folder: str) -> Sequence[str]:
        network = self._own.network
        line = [
            *self._inside,
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--log-facility=-",
            "--user=root",
            "--no-hosts",
        ]
        line += [f"--interface={self.device}", "--bind-interfaces", "--except-interface=lo", "--no-ping"]
        line += [f"--pid-file={folder}/pid", f"--dhcp-leasefile={folder}/leases", "--dhcp-authoritative"]
        line += [f"--dhcp-range={network[2]},{network[-2]},{network.netmask},1h"]
        line += [f"--dhcp-host={mac.lower()},{address}" for mac, address in self.hosts.items()]
        line += ["--no-resolv", *(f"--server={each}" for each in self.dns)] if self.dns else []
        line += [f"--resolv-file={_RESOLVED}"] if self.namespace and not self.dns and Path(_RESOLVED).exists() else []
        line += [f"--dhcp-boot={self.boot_file},,{self._own.ip}"] if self.boot_file else []
        line += [] if self.nat else ["--dhcp-option=3"]  # no way out is offered
        return [*line, *self.options]

    def _take(self, line: str) -> None:
        if match := _ACK.search(line):
            address, mac, name = match[1], match[2].lower(), match[3] or ""
            self._leases[mac] = {"mac": mac, "address": address, "name": name}
            self._news.unpark_all()

    # ---- what clients call

    @export
    async def leases(self) -> list[dict[str, str]]:
        """Who has got an address in this session: mac, address, and the name that it told."""
        return list(self._leases.values())

    @export
    async def wait_lease(self, mac: str = "", timeout: float = 60.0) -> str:  # noqa: ASYNC109  # for callers without Trio
        """Wait until a device has got an address, the one with this hardware address if it is given; its address."""
        wanted = mac.lower()
        if wanted and not _MAC.fullmatch(wanted):
            raise BadValue(f"{mac!r} is no hardware address; write 02:00:00:00:00:01")
        with trio.move_on_after(timeout):
            while True:
                for lease in reversed(self._leases.values()):
                    if wanted in ("", lease["mac"]):
                        return lease["address"]
                await self._news.park()
        raise Timeout(f"no device{f' {wanted}' if wanted else ''} has asked for an address within {timeout:g} s")


def _link_news(holder: str) -> socket.socket:
    """A socket that tells of interfaces, in a process's network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as here, open(f"/proc/{holder}/ns/net") as there:
        if holder != "self" and libc.setns(there.fileno(), 0):
            raise DeviceError(f"its network namespace cannot be entered: {os.strerror(ctypes.get_errno())}")
        try:
            news = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _ROUTE)
            news.bind((0, _LINKS))
        finally:
            if holder != "self":
                libc.setns(here.fileno(), 0)  # the thread is others' too
    return news


def _is_there(news: socket.socket, interface: str) -> bool:
    """Whether there is such an interface where the socket is."""
    try:
        fcntl.ioctl(news, _INDEX, struct.pack("16s24x", interface.encode()))
    except OSError:
        return False
    return True


async def _run(argv: Sequence[str], stdin: str = "") -> None:
    """Raises `DeviceError` with the program's words."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as said:
        given.write(stdin.encode())
        given.seek(0)
        async with leashed(argv, stdin=given, stdout=said, stderr=said) as process:
            status = await process.wait()
        said.seek(0)
        words = said.read().decode(errors="replace").strip().splitlines()
    if status:
        raise DeviceError(f"{argv[0]} failed: {words[0] if words else f'status {status}'}")


async def _write(path: str, text: str) -> None:
    try:
        await trio.Path(path).write_text(text)
    except OSError as error:
        raise DeviceError(f"cannot write {path}: {error.strerror}") from error
