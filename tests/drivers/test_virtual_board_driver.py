"""The virtual board as its clients see it, served in this process."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from jmp.driver import Stream, serve
from jmp.errors import BadValue, Busy, ConfigError, DeviceError
from jmp_drivers.console import ConsoleOptions
from jmp_drivers.virtual_board import VirtualBoard, web
from jmp_drivers.virtual_board.image import Image, header
from jmp_drivers.virtual_board.shell import COMMANDS
from jmp_drivers.virtual_board.system import FILES, System
from tests.fakes.bundled import ROOT, problems_in

PROMPT = "root@virtual:~# "
KIB, MIB = 1024, 1024 * 1024


class Terminal:
    """One client of the console."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._received = bytearray()

    async def expect(self, text: str) -> str:
        """All up to and including `text`."""
        wanted = text.encode()
        searched = 0
        while (at := self._received.find(wanted, searched)) < 0:
            searched = max(len(self._received) - len(wanted), 0)
            data = await self._stream.receive_some()
            assert data, f"the console ended before {text!r}, after {bytes(self._received[-200:])!r}"
            self._received += data
        shown = bytes(self._received[: at + len(wanted)])
        del self._received[: at + len(wanted)]
        return shown.decode()

    async def send(self, text: str) -> None:
        await self._stream.send_all(text.encode())

    async def run(self, command: str) -> str:
        """A command's output, at the shell's prompt."""
        await self.send(f"{command}\r")
        await self.expect(f"{command}\r\n")
        return (await self.expect(PROMPT)).removesuffix(PROMPT)

    async def log_in(self) -> None:
        await self.expect("virtual login: ")
        await self.send("root\r")
        await self.expect(PROMPT)


@asynccontextmanager
async def bench(**config: Any) -> AsyncIterator[Any]:
    """A client of a board that boots in no time."""
    with trio.fail_after(60):
        async with serve(VirtualBoard(**{"boot_time": 0.0} | config)) as board:
            yield board


@asynccontextmanager
async def console(board: Any, **options: bool) -> AsyncIterator[Terminal]:
    async with board.console.connect(**options) as stream:
        yield Terminal(stream)


# Power and console ---------------------------------------------------------------------------------------------------


async def test_power_on_boot_log_login_command_power_off() -> None:
    async with bench() as board, console(board) as terminal:
        assert await board.power.state() == "off"
        await board.power.on()
        assert await board.power.state() == "on"
        assert "Linux version" in await terminal.expect("\r\nvirtual login: ")
        await terminal.send("root\r")
        await terminal.expect(PROMPT)
        assert (await terminal.run("uname -a")).startswith("Linux virtual 6.")
        await board.power.off()
        assert await board.power.state() == "off"
        assert (await board.console.history()).endswith(b"GNU/Linux\r\nroot@virtual:~# ")


async def test_the_board_can_switch_itself_off() -> None:
    async with bench() as board, console(board) as terminal:
        await board.power.on()
        await terminal.log_in()
        await terminal.send("poweroff\r")
        await terminal.expect("Power down\r\n")
        assert await board.power.state() == "off"


async def test_cycle_boots_again() -> None:
    async with bench() as board, console(board) as terminal:
        await board.power.on()
        await terminal.log_in()
        await board.power.cycle(wait=0.0)
        assert "Virtual Boot" in await terminal.expect("login: ")


async def test_boot_time_follows_the_clock(mock_clock: MockClock) -> None:
    async with bench(boot_time=2.0) as board, console(board) as terminal:
        await board.power.on()
        await terminal.expect("autoboot:  2 ")
        mock_clock.jump(0.5)
        await terminal.expect("\b\b\b 1 ")
        mock_clock.jump(0.5)
        await terminal.expect("Booting Linux")
        mock_clock.jump(0.5)
        assert "Run /sbin/init" not in await terminal.expect("clocksource")
        mock_clock.jump(0.5)
        await terminal.expect("login: ")


async def test_a_key_stops_the_boot() -> None:
    async with bench(boot_time=20.0) as board, console(board) as terminal:
        await board.power.on()
        await terminal.expect("Hit any key to stop autoboot")
        await board.console.send(b" ")
        await terminal.expect("=> ")
        await terminal.send("version\r")
        await terminal.expect("Virtual Boot 2026.01 (jmp virtual board)\r\n=> ")


async def test_every_reader_gets_every_line_and_a_late_one_the_history() -> None:
    wanted = "".join(f"{number}\r\n" for number in range(1, 10_001))
    shown = []

    async def read(terminal: Terminal) -> None:
        await terminal.expect("seq 10000\r\n")
        shown.append((await terminal.expect(PROMPT)).removesuffix(PROMPT))

    async with bench() as board, console(board) as writer, console(board, write=False) as reader:
        await board.power.on()
        await writer.log_in()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, reader)
            nursery.start_soon(read, writer)
            await writer.send("seq 10000\r")
        async with console(board, write=False) as late:
            await read(late)
        assert shown == 3 * [wanted]
        async with console(board, replay=False, write=False) as live:
            await writer.send("echo now\r")
            assert await live.expect(PROMPT) == f"echo now\r\nnow\r\n{PROMPT}"


async def test_only_one_client_writes() -> None:
    async with bench() as board, console(board):
        with pytest.raises(Busy):
            async with board.console.connect() as second:
                await second.receive_some()


async def test_megabytes_of_output_arrive_whole() -> None:
    async with bench() as board, console(board) as terminal:
        await board.power.on()
        await terminal.log_in()
        shown = await terminal.run("seq 1000000")
        assert hashlib.sha256(shown.encode()).digest() == _numbered_lines(1_000_000)


def _numbered_lines(count: int) -> bytes:
    return hashlib.sha256("".join(f"{number}\r\n" for number in range(1, count + 1)).encode()).digest()


async def test_more_input_than_the_board_can_hold_waits_for_it() -> None:
    async with bench() as board, console(board) as terminal:
        await board.power.on()
        await terminal.log_in()
        await terminal.send("sleep 0.1\r" + 50 * f"true {3000 * 'x'}\r" + "echo the last\r")
        await terminal.expect("\r\nthe last\r\n")


async def test_a_slow_line_can_be_interrupted() -> None:
    async with bench(baud=1_000_000) as board, console(board) as terminal:
        await board.power.on()
        await terminal.log_in()
        await terminal.send("seq 1000000000\r")
        await terminal.expect("\r\n100\r\n")
        await terminal.send("\x03")
        await terminal.expect(f"^C\r\n{PROMPT}")
        assert await terminal.run("echo $?") == "130\r\n"


async def test_reset_switches_off() -> None:
    driver = VirtualBoard(boot_time=0.0)
    with trio.fail_after(60):
        async with serve(driver) as board, console(board) as terminal:
            await board.power.on()
            await terminal.log_in()
            await driver.reset()
            assert await board.power.state() == "off"


# Storage -------------------------------------------------------------------------------------------------------------


async def flash(board: Any, data: bytes, offset: int = 0) -> None:
    async with board.storage.write(offset=offset) as stream:
        await stream.send_all(data)
        await stream.send_eof()
        assert await stream.receive_some() == b""


async def fetch(board: Any, **span: int) -> bytes:
    async with board.storage.read(**span) as stream:
        return b"".join([bytes(data) async for data in stream])


async def test_flash_power_cycle_and_the_new_version_runs() -> None:
    image = header(Image("demo", "2.1")) + bytes(range(256)) * 8 * KIB
    async with bench(size=16 * MIB) as board, console(board) as terminal:
        await board.power.on()
        await terminal.log_in()
        assert 'VERSION_ID="1.0"' in await terminal.run("cat /etc/os-release")
        await flash(board, image)
        await board.power.cycle(wait=0.0)
        await terminal.expect("demo 2.1 virtual ttyAMA0")
        await terminal.log_in()
        assert 'VERSION_ID="2.1"' in await terminal.run("cat /etc/os-release")
        digest = hashlib.sha256(image).hexdigest()
        assert await board.storage.digest(size=len(image)) == digest
        assert digest in await terminal.run(f"head -c {len(image)} /dev/mmcblk0 | sha256sum")
        assert (await board.storage.digest()) in await terminal.run("sha256sum /dev/mmcblk0")


async def test_storage_reads_and_writes_at_offsets() -> None:
    async with bench(size=4 * MIB) as board:
        assert await board.storage.size() == 4 * MIB
        await flash(board, b"hello", offset=3 * MIB)
        assert await fetch(board, offset=3 * MIB - 2, size=8) == b"\0\0hello\0"
        whole = bytes(3 * MIB) + b"hello" + bytes(MIB - 5)
        assert await fetch(board) == whole
        assert await board.storage.digest(algorithm="md5") == hashlib.md5(whole).hexdigest()
        assert await board.storage.digest(5, 3 * MIB) == hashlib.sha256(b"hello").hexdigest()
        assert await fetch(board, offset=4 * MIB) == b""


async def test_what_does_not_fit_on_the_card_is_refused() -> None:
    async with bench(size=4096) as board:
        with pytest.raises(BadValue, match="the card has 4096 bytes"):
            await flash(board, bytes(4097))
        with pytest.raises(BadValue, match="offset 5000: not on the card"):
            await flash(board, b"", offset=5000)
        with pytest.raises(BadValue, match="offset 4000, size 97: not on the card"):
            await fetch(board, offset=4000, size=97)
        with pytest.raises(BadValue, match="offset -1"):
            await board.storage.digest(offset=-1)
        with pytest.raises(BadValue, match=r"unknown algorithm 'crc32': one of .*sha256"):
            await board.storage.digest(algorithm="crc32")


async def test_only_one_client_writes_to_the_card() -> None:
    async with bench() as board, board.storage.write() as stream:
        await stream.send_all(b"x")
        with pytest.raises(Busy):
            await flash(board, b"y")
        await stream.send_eof()
        assert await stream.receive_some() == b""
        await flash(board, b"y")


async def test_a_large_card_takes_neither_memory_nor_disk() -> None:
    async with bench(size=1 << 40) as board, console(board) as terminal:
        await flash(board, b"end", offset=(1 << 40) - 3)
        assert await fetch(board, offset=(1 << 40) - 4) == b"\0end"
        await board.power.on()
        assert "VIRT 1024.00 GiB" in await terminal.expect("login: ")


async def test_the_card_is_fresh_each_session_unless_it_has_a_file(tmp_path: Path) -> None:
    image = tmp_path / "card.img"
    for kept, config in ((b"\0\0\0\0", {}), (b"kept", {"image": image})):
        async with bench(size=4096, **config) as board:
            await flash(board, b"kept")
        async with bench(size=4096, **config) as board:
            assert await fetch(board, size=4) == kept
    assert image.read_bytes() == b"kept" + bytes(4092)
    image.write_bytes(bytes(8192))
    async with bench(size=4096, image=image) as board:
        assert await board.storage.size() == 8192


async def test_a_card_that_somebody_makes_shorter_is_told(tmp_path: Path) -> None:
    image = tmp_path / "card.img"
    async with bench(size=4096, image=image) as board:
        image.write_bytes(b"short")
        for asked in (board.storage.digest, lambda: fetch(board)):
            with trio.fail_after(60), pytest.raises(DeviceError, match="somebody made it shorter than 4096 bytes"):
                await asked()


async def test_without_its_card_the_board_stays_at_the_boot_prompt(tmp_path: Path) -> None:
    async with bench(image=tmp_path / "nowhere" / "card.img") as board, console(board) as terminal:
        with pytest.raises(DeviceError, match=r"nowhere/card.img: No such file or directory"):
            await board.storage.size()
        await board.power.on()
        await terminal.expect("MMC: no card, dropping to boot prompt\r\n=> ")


# Network -------------------------------------------------------------------------------------------------------------


async def test_the_http_port_answers_while_the_board_is_up() -> None:
    async with bench(boot_time=20.0) as board:
        with pytest.raises(DeviceError, match="the board is off: switch it on first"):
            await request(board, b"GET / HTTP/1.1\r\n\r\n")
        await board.power.on()
        with pytest.raises(DeviceError, match="the board is not up: wait for its login prompt first"):
            await request(board, b"GET / HTTP/1.1\r\n\r\n")
    async with bench(hostname="dut-7") as board, console(board) as terminal:
        assert await board.network.address() == "dut-7:80"
        await board.power.on()
        await terminal.expect("dut-7 login: ")
        answer = await request(board, b"GET / HTTP/1.1\r\nHost: dut-7\r\n\r\n")
        head, body = answer.split(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        facts = json.loads(body)
        assert facts.pop("uptime") >= 0
        assert facts == {"hostname": "dut-7", "name": "virtual-linux", "version": "1.0"}
        assert await request(board, b"") == b""


async def request(board: Any, data: bytes) -> bytes:
    async with board.network.connect() as stream:
        await stream.send_all(data)
        await stream.send_eof()
        return b"".join([bytes(received) async for received in stream])


@pytest.mark.parametrize(
    ("received", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "200 OK"),
        (b"GET /?x=1 HTTP/1.0\n\n", "200 OK"),
        (b"GET /nothing HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"POST / HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        (b"GET / SPDY/3\r\n\r\n", "400 Bad Request"),
        (b"\xff\n\n", "400 Bad Request"),
        (b"GET / HTTP/1.1\r\nX: " + bytes(9000), "431 Request Header Fields Too Large"),
    ],
)
def test_http_statuses(received: bytes, status: str) -> None:
    assert web.complete(received)
    head, _, body = web.respond(received, System()).partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status}\r\n".encode())
    assert f"Content-Length: {len(body)}\r\n".encode() in head + b"\r\n"


def test_head_is_answered_without_a_body() -> None:
    assert web.respond(b"HEAD / HTTP/1.1\r\n\r\n", System()).endswith(b"\r\n\r\n")
    assert not web.complete(b"GET / HTTP/1.1\r\nHost: x\r\n")


async def test_the_echo_port_ends_with_the_boot_it_belongs_to() -> None:
    async with bench() as board, console(board) as terminal:
        assert await board.echo.address() == "virtual:7"
        await board.power.on()
        await terminal.log_in()
        async with board.echo.connect() as stream:
            await stream.send_all(b"hello")
            assert await stream.receive_some() == b"hello"
            await stream.send_eof()
            assert await stream.receive_some() == b""
        async with board.echo.connect() as stream:
            await stream.send_all(b"hello")
            assert await stream.receive_some() == b"hello"
            await terminal.send("reboot\r")
            with pytest.raises(DeviceError, match="the board went down"):
                await stream.receive_some()


# Configuration -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hostname": "no spaces"}, "hostname"),
        ({"boot_time": -1.0}, "boot_time"),
        ({"boot_time": float("nan")}, "boot_time"),
        ({"baud": 0}, "baud"),
        ({"size": 100}, "size"),
    ],
)
def test_wrong_configuration_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message} "):
        VirtualBoard(**config)


def test_the_blocking_client_does_the_same() -> None:
    with serve(VirtualBoard(boot_time=0.0)) as board:
        board.power.on()
        with board.console.connect() as stream:
            shown = b""
            while not shown.endswith(b"login: "):
                shown += stream.receive_some()
        board.power.off()
        assert board.power.state() == "off"


# Documentation -------------------------------------------------------------------------------------------------------

DOC = "docs/drivers/virtual-board.md"


def test_the_documented_configuration_is_valid_and_complete() -> None:
    assert problems_in(DOC) == []
    assert problems_in("jmp/examples/virtual-board.yaml") == []
    keys = {field.name for field in fields(VirtualBoard) if field.init}
    text = (ROOT / DOC).read_text()
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", text.partition("## Configuration")[2].partition("## ")[0], re.M)
    assert set(re.findall(r"\w+", " ".join(rows))) == keys
    example = (ROOT / "jmp/examples/virtual-board.yaml").read_text()
    assert set(re.findall(r"^      (?:# )?(\w+): ", example, re.M)) == keys - {
        field.name for field in fields(ConsoleOptions)
    }


def test_every_command_and_file_is_documented() -> None:
    text = (ROOT / DOC).read_text()
    table = text.partition("Its commands:")[2].partition("## ")[0]
    assert set(COMMANDS) <= set(re.findall(r"`(\w+)`", table))
    assert {path for path in FILES if path != "/dev/null"} <= set(re.findall(r"`([\w/-]+)`", table))


async def test_the_documented_dialogue() -> None:
    """Every line of it is shown; only the boot log is abridged."""
    dialogue = (ROOT / DOC).read_text().partition("<!-- console -->\n```\n")[2].partition("```")[0]
    async with bench(boot_time=3.0) as board, console(board) as terminal:
        await board.power.on()
        for line in dialogue.splitlines():
            shown, typed = re.fullmatch(r"(=> |.*login: |root@virtual:~# )?(.*)", line).groups()  # type: ignore[union-attr]
            await terminal.expect(shown or typed)
            if shown:
                await terminal.send(f"{typed}\r")
            elif "autoboot" in line:
                await terminal.send(" ")
        await terminal.expect("Power down")


async def test_the_console_is_logged_and_masked(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    async with bench(log_file=log, log_timestamps=True, secrets=["virtual login"]) as board, console(board) as terminal:
        await board.power.on()
        await terminal.expect("***: ")
    assert re.search(r"^\d{4}-\d\d-\d\dT[\d:.]+Z \*\*\*: $", log.read_text(), re.MULTILINE)
