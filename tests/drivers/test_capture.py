"""What passes on loopback, captured by tcpdump and read from the pcap file by hand."""

from __future__ import annotations

import socket
import struct
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from jmp.client.interfaces import client_class
from jmp.driver import BadValue, ConfigError, DeviceError, UsageError, serve
from jmp_drivers.capture import Capture
from tests.fakes.bundled import problems_in

PCAP = 0xA1B2C3D4


def packets(file: bytes) -> list[bytes]:
    """The packets of a pcap file; the last one may be incomplete."""
    assert struct.unpack_from("<I", file)[0] == PCAP
    found, at = [], 24
    while at + 16 <= len(file):
        (size,) = struct.unpack_from("<I", file, at + 8)
        if at + 16 + size > len(file):
            break
        found.append(file[at + 16 : at + 16 + size])
        at += 16 + size
    return found


class Talk:
    """Datagrams on loopback, to a port of their own."""

    def __init__(self, to: socket.socket) -> None:
        self.port: int = to.getsockname()[1]
        self._to = to

    def send(self, text: bytes) -> None:
        self._to.sendto(text, ("127.0.0.1", self.port))

    async def until_seen(self, stream: Any, text: bytes) -> bytes:
        """Say it again until it has been captured: nothing tells when tcpdump is ready."""
        seen = b""
        while text not in seen:
            self.send(text)
            with trio.move_on_after(0.1):
                seen += await stream.receive_some()
        return seen


async def rest(stream: Any) -> bytes:
    data = b""
    while more := await stream.receive_some():
        data += more
    return data


async def test_packets_that_a_filter_lets_through(tmp_path: Path) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as two,
    ):
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        mine, other = Talk(one), Talk(two)
        with trio.fail_after(60):
            async with serve(Capture(device="lo", filter=f"udp port {mine.port}")) as wire:
                async with wire.capture() as stream:
                    seen = await mine.until_seen(stream, b"first")
                    other.send(b"somebody else's")
                    mine.send(b"second")
                    while b"second" not in seen:
                        seen += await stream.receive_some()
                    await stream.send_eof()
                    found = packets(seen + await rest(stream))
                assert found[-1].endswith(b"second")
                assert all(b"else" not in each for each in found), "what the exporter does not show, nobody sees"
                async with wire.capture(filter="less 50", count=1) as stream:
                    mine.send(b"long" * 100)
                    seen = await mine.until_seen(stream, b"x")
                    (only,) = packets(seen + await rest(stream))
                    assert only.endswith(b"x")
                async with wire.capture(seconds=0.3) as stream:
                    assert packets(await rest(stream)) == []


async def test_into_a_file(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        mine = Talk(one)
        with trio.fail_after(60):
            async with serve(Capture(device="lo"), class_of=client_class) as wire:
                async with trio.open_nursery() as nursery:
                    options = {"filter": f"udp port {mine.port}", "count": 2}
                    nursery.start_soon(partial(wire.save, tmp_path / "two.pcap", **options))
                    while len(packets((tmp_path / "two.pcap").read_bytes() if _written(tmp_path) else HEAD)) < 2:
                        mine.send(b"x")
                        await trio.sleep(0.05)
                await wire.save(tmp_path / "none.pcap", filter="port 9", seconds=0.2)
                with pytest.raises(UsageError, match=r"no/x\.pcap cannot be written"):
                    await wire.save(tmp_path / "no/x.pcap")


HEAD = struct.pack("<I20x", PCAP)


def _written(folder: Path) -> bool:
    path = folder / "two.pcap"
    return path.exists() and path.stat().st_size >= len(HEAD)


async def test_what_is_wrong_is_told() -> None:
    with trio.fail_after(60):
        async with serve(Capture(device="lo")) as wire:
            for wrong in ("no such word", "-w /tmp/x"):
                with pytest.raises(UsageError, match="in the filter"):
                    async with wire.capture(filter=wrong) as stream:
                        await rest(stream)
            with pytest.raises(BadValue):
                async with wire.capture(count=-1) as stream:
                    await rest(stream)
        async with serve(Capture(device="no-such0")) as wire:
            with pytest.raises(DeviceError, match="cannot capture on no-such0: no-such0: No such device"):
                async with wire.capture() as stream:
                    await rest(stream)
    cases: list[dict[str, Any]] = [{"device": "-w"}, {"device": ""}, {"device": "lo", "snaplen": -1}]
    for config in cases:
        with pytest.raises(ConfigError):
            Capture(**config)


async def test_a_client_that_goes_leaves_no_tcpdump() -> None:
    with trio.fail_after(60):
        async with serve(Capture(device="lo")) as wire, wire.capture(filter="port 9") as stream:
            await stream.receive_some()  # the file's head
            assert _running()
        assert not _running()


def _running() -> str:
    """Command lines of our tcpdumps."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_text()
        except OSError:
            continue
        if "tcpdump" in line and "(port 9)" in line:
            lines.append(line)
    return "".join(lines)


def test_examples_in_the_documentation_are_valid() -> None:
    assert problems_in("docs/drivers/network.md") == []
