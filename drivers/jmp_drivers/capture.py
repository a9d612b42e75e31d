"""What passes on a network interface, by the program tcpdump."""

from __future__ import annotations

import re
import tempfile
from dataclasses import field
from subprocess import PIPE
from typing import ClassVar

import trio

from jmp.driver import BadValue, ConfigError, DeviceError, Driver, Stream, UsageError, exportstream
from jmp_drivers._process import leashed
from jmp_drivers._tasks import open_nursery
from jmp_drivers.qemu.program import require

_PIECE = 64 * 1024
_GRACE = 2.0  # seconds for tcpdump to hand out what it has


class Capture(Driver):
    """Captures what passes on a network interface of the exporter's machine, by ``tcpdump``: a pcap file that grows.

    The exporter needs the right to do so: it runs as root, or tcpdump has CAP_NET_RAW. ``filter`` limits what a client can
    ever see, to the device's own packets say; a client's filter limits it further.
    """

    interface: ClassVar[str | None] = "jmp.capture/v1"

    device: str = field(metadata={"key": "interface", "doc": "the interface: eth1, br0, any"})
    filter: str = field(default="", metadata={"doc": "pcap filter, such as 'host 192.168.7.2'"})
    snaplen: int = field(default=0, metadata={"doc": "bytes that are kept of a packet; 0: all"})

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][\w.@:-]*", self.device):
            raise ConfigError(f"interface: {self.device!r} cannot be the name of one")
        if self.snaplen < 0:
            raise ConfigError(f"snaplen must be 0 or more, not {self.snaplen}")

    async def open(self) -> None:
        self._program = require("tcpdump", "tcpdump")

    @exportstream
    async def capture(self, stream: Stream, filter: str = "", count: int = 0, seconds: float = 0) -> None:
        """Packets from now on, as a pcap file: all that the filter ('tcp port 22') lets through, until the client ends its input.

        With count, until there have been so many; with seconds, for so long.
        """
        if count < 0 or seconds < 0:
            raise BadValue("count and seconds must be 0 (no limit) or more")
        both = " and ".join(f"({each})" for each in (self.filter, filter) if each)
        argv = [self._program, "-i", self.device, "-s", str(self.snaplen), "-U", "-n", "-w", "-"]
        argv += ["-c", str(count)] if count else []
        with tempfile.TemporaryFile() as complaints:
            # What follows -- is one filter, whatever it looks like.
            command = [*argv, "--", *([both] if both else [])]
            async with leashed(command, stdout=PIPE, stderr=complaints, grace=_GRACE) as process:
                assert process.stdout is not None
                async with open_nursery() as nursery:
                    nursery.start_soon(self._until_enough, stream, process, seconds)
                    while data := await process.stdout.receive_some(_PIECE):
                        await stream.send_all(bytes(data))
                    nursery.cancel_scope.cancel()
                status = await process.wait()
            complaints.seek(0)
            said = [line for line in complaints.read().decode(errors="replace").splitlines() if line]
        if status > 0:  # below, it was ended, by us
            told = [line for line in said if line.startswith("tcpdump: ") and "listening on" not in line]
            words = (told or said or [f"status {status}"])[-1]
            if "syntax error" in words or "parse" in words or "can't" in words:
                raise UsageError(f"{words.removeprefix('tcpdump: ')} in the filter {both!r}")
            raise DeviceError(f"cannot capture on {self.device}: {words.removeprefix('tcpdump: ')}")

    async def _until_enough(self, stream: Stream, process: trio.Process, seconds: float) -> None:
        """End tcpdump when the client wants no more, or the time is over."""
        with trio.move_on_after(seconds or float("inf")):
            while await stream.receive_some():
                pass
        process.terminate()
