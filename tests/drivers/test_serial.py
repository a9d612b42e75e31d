from __future__ import annotations

import os
import select
import socket
import termios
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
import serial
import serial.rfc2217
import trio
import trio.testing
from serial.urlhandler import protocol_socket

from jmp.driver import BadValue, DeviceError, schema, serve
from jmp.errors import Busy
from jmp_drivers._process import leashed
from jmp_drivers.serial import Serial
from tests.fakes.bundled import problems_in
from tests.fakes.ports import free_port

# pyserial's RFC 2217 client still uses setDaemon and setName
pytestmark = pytest.mark.filterwarnings("ignore:set(Daemon|Name)\\(\\) is deprecated:DeprecationWarning")


class Board:
    """The far end of the serial line: a pseudo-terminal's other side, so what the driver opens is a real tty."""

    def __init__(self) -> None:
        self._fd, slave = os.openpty()
        self.path = os.ttyname(slave)
        # Somebody must hold the slave, or the master has an error while the driver has not opened it.
        self._slave: int | None = slave
        os.set_blocking(self._fd, False)
        self.stream = trio.lowlevel.FdStream(self._fd)

    async def read(self, size: int) -> bytes:
        return await read(self.stream, size)

    async def write(self, data: bytes) -> None:
        await self.stream.send_all(data)

    def line_speed(self) -> int:
        """The speed constant that the driver has set: the two sides share one termios."""
        speed: int = termios.tcgetattr(self._fd)[4]
        return speed

    async def unplug(self) -> None:
        if self._slave is not None:
            os.close(self._slave)
            self._slave = None
        await self.stream.aclose()


@asynccontextmanager
async def board() -> AsyncIterator[Board]:
    far_end = Board()
    try:
        yield far_end
    finally:
        await far_end.unplug()


async def read(stream: Any, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = await stream.receive_some(size - len(data))
        assert chunk, f"the stream ended after {bytes(data)!r}"
        data += chunk
    return bytes(data)


async def test_bytes_pass_both_ways_unchanged() -> None:
    everything = bytes(range(256)) * 8
    with trio.fail_after(60):
        async with board() as far, serve(Serial(url=far.path)) as console, console.connect() as stream:
            await stream.send_all(everything)
            assert await far.read(len(everything)) == everything
            await far.write(everything)
            assert await read(stream, len(everything)) == everything


def test_through_the_blocking_client() -> None:
    with serve(Serial(url="loop://")) as console, console.connect() as stream:
        stream.send_all(b"hello")
        received = b""
        while received != b"hello":
            received += stream.receive_some()


async def test_two_readers_get_all_of_10000_lines_and_a_late_one_the_history() -> None:
    lines = b"".join(b"line %05d of the boot log\r\n" % number for number in range(10_000))
    got: dict[str, bytes] = {}

    async def take(name: str, console: Any, write: bool) -> None:
        async with console.connect(write=write) as stream:
            got[name] = await read(stream, len(lines))

    with trio.fail_after(60):
        async with board() as far, serve(Serial(url=far.path, history_size=1000)) as console:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(take, "one", console, True)
                nursery.start_soon(take, "two", console, False)
                await trio.testing.wait_all_tasks_blocked()
                await far.write(lines)
            assert got == {"one": lines, "two": lines}
            assert await console.history() == lines[-1000:]
            async with console.connect(write=False) as late:
                await far.write(b"login: ")
                assert await read(late, 1007) == lines[-1000:] + b"login: "


async def test_one_writes_and_send_works_all_the_same() -> None:
    with trio.fail_after(60):
        async with board() as far, serve(Serial(url=far.path)) as console, console.connect() as writer:
            await writer.send_all(b"a")
            assert await far.read(1) == b"a"
            with pytest.raises(Busy, match="another client is writing"):
                async with console.connect() as second:
                    await second.receive_some()
            await console.send(b"b")
            assert await far.read(1) == b"b"


async def test_settings_reach_the_line_and_the_baud_rate_can_change() -> None:
    with trio.fail_after(60):
        async with board() as far, serve(Serial(url=far.path, baudrate=57600)) as console:
            assert (await console.baudrate(), far.line_speed()) == (57600, termios.B57600)
            assert await console.baudrate(1_500_000) == 1_500_000
            assert far.line_speed() == termios.B1500000
            await console.send_break(0.01)
            with pytest.raises(BadValue, match=r"serial port .*-1"):
                await console.baudrate(-1)
            assert far.line_speed() == termios.B1500000


async def test_modem_lines_that_do_not_exist_are_told() -> None:
    with trio.fail_after(60):
        async with board() as far, serve(Serial(url=far.path)) as console:
            with pytest.raises(DeviceError, match=r"serial port .*: it has no such line or setting"):
                await console.dtr(True)


async def test_settings_that_the_port_refuses_are_told() -> None:
    with trio.fail_after(60):
        async with board() as far:
            # All else is as it is to be already: glibc complains only if nothing of what it asks for was done.
            serial.Serial(far.path, 115200, inter_byte_timeout=0).close()
            async with serve(Serial(url=far.path, parity="even")) as console:
                with pytest.raises(DeviceError, match="it does not support these settings"):
                    await console.history()


async def test_sending_is_throttled_to_cps(autojump_clock: trio.testing.MockClock) -> None:
    sent: list[float] = []

    class Slow(Serial):
        async def _write_now(self, data: bytes) -> None:
            sent.append(trio.current_time())
            assert len(data) == 1

    driver = Slow(url="loop://", cps=20)
    start = trio.current_time()
    await driver._write(b"12345")
    await driver._write(b"6")
    await trio.sleep(10)
    await driver._write(b"7")
    assert [round(each - start, 3) for each in sent] == [0, 0.05, 0.1, 0.15, 0.2, 0.25, 10.25]


async def test_throttled_bytes_arrive() -> None:
    with trio.fail_after(60):
        async with board() as far, serve(Serial(url=far.path, cps=1000)) as console:
            start = trio.current_time()
            await console.send(b"0123456789" * 3)
            assert await far.read(30) == b"0123456789" * 3
            assert trio.current_time() - start >= 0.029


async def test_output_is_logged_with_the_time(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    with trio.fail_after(60):
        async with (
            board() as far,
            serve(Serial(url=far.path, log_file=log, log_timestamps=True)) as console,
            console.connect() as stream,
        ):
            await far.write(b"booting\n")
            await read(stream, 8)
    assert log.read_text().endswith("Z booting\n")


async def test_log_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with serve(Serial(url="loop://", log_file=tmp_path / "no" / "log")) as console:
            with pytest.raises(DeviceError, match=r"cannot write the console log .*/no/log: No such file or directory"):
                await console.history()


# ---- missing, busy, unplugged


async def test_missing_device_is_named() -> None:
    with trio.fail_after(60):
        async with serve(Serial(url="/dev/ttyNOPE7")) as console:
            with pytest.raises(
                DeviceError, match=r"serial port /dev/ttyNOPE7: no such device; (present: /dev/|there are)"
            ):
                await console.history()


async def test_port_in_use_is_told() -> None:
    with trio.fail_after(60):
        async with board() as far, serve(Serial(url=far.path)), serve(Serial(url=far.path)) as second:
            with pytest.raises(DeviceError, match=rf"serial port {far.path}: another program is using it"):
                await second.history()


@pytest.mark.parametrize("url", ["warp://core", "rfc2217://127.0.0.1:1", "socket://127.0.0.1:1"])
async def test_what_pyserial_objects_to_is_told(url: str) -> None:
    with trio.fail_after(60):
        async with serve(Serial(url=url)) as console:
            with pytest.raises(DeviceError, match=f"serial port {url}: "):
                await console.history()


async def test_unplugged_in_use_gives_clients_the_last_words_and_one_error_and_the_port_can_return(
    tmp_path: Path,
) -> None:
    link = tmp_path / "port"
    returned = trio.Event()

    class Watched(Serial):
        async def open(self) -> None:
            await super().open()
            if link.readlink() == Path(second.path):
                returned.set()

    with trio.fail_after(60):
        async with board() as first, board() as second:
            link.symlink_to(first.path)
            async with serve(Watched(url=str(link))) as console:
                async with console.connect() as stream:
                    await first.write(b"Kernel panic")
                    assert await read(stream, 12) == b"Kernel panic"
                    link.unlink()
                    link.symlink_to(second.path)
                    await first.unplug()
                    with pytest.raises(DeviceError, match=rf"^serial port {link} is gone: it was unplugged"):
                        await stream.receive_some()
                with pytest.raises(DeviceError, match=f"serial port {link}"):
                    await console.send(b"x")
                await returned.wait()
                assert await console.history() == b"Kernel panic"
                await console.send(b"hello")
                assert await second.read(5) == b"hello"


# ---- URLs


async def test_loop() -> None:
    with trio.fail_after(60):
        async with serve(Serial(url="loop://")) as console, console.connect() as stream:
            await stream.send_all(b"echo" * 1000)
            assert await read(stream, 4000) == b"echo" * 1000
            assert await console.baudrate(9600) == 9600
            await console.dtr(False)
            await console.rts(False)
            await console.send_break(0.01)
            for wrong in (-1, 1e9):
                with pytest.raises(BadValue, match="duration must be more than 0 and at most 60 seconds, not"):
                    await console.send_break(wrong)


async def test_raw_terminal_server_over_socket() -> None:
    async def serve_one(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b"login: ")
            assert await read(stream, 5) == b"root\n"

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, serve_one, 0, host="127.0.0.1"))
            url = f"socket://127.0.0.1:{listener.socket.getsockname()[1]}"
            async with serve(Serial(url=url)) as console, console.connect() as stream:
                assert await read(stream, 7) == b"login: "
                await stream.send_all(b"root\n")
                with pytest.raises(DeviceError, match=rf"serial port {url} is gone: .*closed by the other side"):
                    await stream.receive_some()
            nursery.cancel_scope.cancel()


async def test_what_a_terminal_server_says_while_its_port_is_opened_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def until_it_speaks(port: Any) -> None:
        select.select([port._socket], [], [], 10)

    monkeypatch.setattr(protocol_socket.Serial, "_reconfigure_port", until_it_speaks)
    await test_raw_terminal_server_over_socket()


class Uart:
    """A serial port with modem lines, behind pyserial's own RFC 2217 server; what the driver sets is seen here."""

    def __init__(self) -> None:
        self.baudrate, self.bytesize, self.parity, self.stopbits = 115200, 8, "N", 1.0
        self.xonxoff = self.rtscts = False
        self.dtr = self.rts = self.cts = self.dsr = self.cd = True
        self.ri = self._break = False
        self.breaks = 0

    @property
    def break_condition(self) -> bool:
        return self._break

    @break_condition.setter
    def break_condition(self, value: bool) -> None:
        self.breaks += value
        self._break = value

    def reset_input_buffer(self) -> None: ...
    def reset_output_buffer(self) -> None: ...


@contextmanager
def rfc2217_server(uart: Uart) -> Iterator[str]:
    """Answers in capitals what it is sent; leaves when told to."""
    server = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        connection, _ = server.accept()
        with connection:
            writer = type("Writer", (), {"write": staticmethod(connection.sendall)})()
            manager = serial.rfc2217.PortManager(uart, writer)  # type: ignore[arg-type]
            while data := connection.recv(4096):
                answer = b"".join(manager.filter(data)).upper()
                if answer == b"LEAVE":
                    return
                connection.sendall(b"".join(manager.escape(answer)))

    thread = threading.Thread(target=run)
    thread.start()
    with server:
        yield f"rfc2217://127.0.0.1:{server.getsockname()[1]}"
        thread.join()


async def test_rfc2217_carries_settings_and_modem_lines() -> None:
    uart = Uart()
    with rfc2217_server(uart) as url, trio.fail_after(60):
        driver = Serial(url=url, baudrate=57600, bytesize=7, parity="even", stopbits=2, initial_dtr=False)
        async with serve(driver) as console, console.connect() as stream:
            assert (uart.baudrate, uart.bytesize, uart.parity, uart.stopbits) == (57600, 7, "E", 2)
            assert (uart.dtr, uart.rts) == (False, True)
            await stream.send_all(b"hello")
            assert await read(stream, 5) == b"HELLO"
            await console.baudrate(9600)
            await console.dtr(True)
            await console.rts(False)
            await console.send_break(0.01)
            assert (uart.baudrate, uart.dtr, uart.rts, uart.breaks, uart.break_condition) == (
                9600,
                True,
                False,
                1,
                False,
            )


async def test_rfc2217_server_that_goes_away_is_noticed() -> None:
    with rfc2217_server(Uart()) as url, trio.fail_after(60):
        async with serve(Serial(url=url)) as console, console.connect() as stream:
            await stream.send_all(b"leave")
            with pytest.raises(DeviceError, match=r"^serial port rfc2217:.* is gone: connection failed"):
                await stream.receive_some()


async def listening(port: int) -> None:
    """Returns once a server accepts connections. For one that gives no sign of its readiness."""
    while True:
        try:
            await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
        except OSError:
            await trio.sleep(0.02)
        else:
            return


@pytest.mark.real
async def test_ser2net(tmp_path: Path) -> None:
    """Debian's ser2net serves one end of a pair of pseudo-terminals made by socat."""
    near, far, config = tmp_path / "near", tmp_path / "far", tmp_path / "ser2net.yaml"
    port = free_port()
    await trio.Path(config).write_text(
        "%YAML 1.1\n---\nconnection: &dut\n"
        f"  accepter: telnet(rfc2217),tcp,127.0.0.1,{port}\n"
        f"  connector: serialdev,{near},115200n81,local\n"
        "  options:\n    max-connections: 2\n"
    )
    pair = ["socat", "-d", "-d", f"pty,raw,echo=0,link={near}", f"pty,raw,echo=0,link={far}"]
    with trio.fail_after(60):
        async with leashed(pair, stderr=PIPE) as line, leashed(["ser2net", "-n", "-c", str(config)]):
            await until(line.stderr, b"starting data transfer loop")
            await listening(port)
            async with (
                serve(Serial(url=f"rfc2217://127.0.0.1:{port}?ign_set_control", baudrate=57600)) as console,
                serve(Serial(url=str(far))) as board,
                console.connect() as stream,
                board.connect() as device,
            ):
                await stream.send_all(b"ping")
                assert await read(device, 4) == b"ping"
                await device.send_all(b"pong")
                assert await read(stream, 4) == b"pong"
                assert speed(near) == termios.B57600
                assert await console.baudrate(9600) == 9600
                assert speed(near) == termios.B9600


async def until(stream: trio.abc.ReceiveStream | None, sign: bytes) -> None:
    assert stream is not None
    seen = b""
    while sign not in seen:
        seen += await stream.receive_some()


def speed(path: Path) -> int:
    """The constant of the speed that somebody has set on a terminal."""
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        found: int = termios.tcgetattr(fd)[4]
        return found
    finally:
        os.close(fd)


async def test_ten_watchers_and_one_writer_and_one_that_takes_over_and_a_watcher_that_reads_nothing() -> None:
    boot = b"".join(b"line %05d of the boot log\r\n" % number for number in range(20_000))
    got: list[bytes] = []

    async def watch(console: Any, *, task_status: trio.TaskStatus[None]) -> None:
        async with console.connect(write=False) as stream:
            seen = await read(stream, len(b"before"))
            task_status.started()
            got.append(seen + await read(stream, len(boot + b"after")))

    with trio.fail_after(60):
        async with board() as far, serve(Serial(url=far.path)) as console, console.connect() as writer:
            await far.write(b"before")
            assert await read(writer, 6) == b"before"
            async with console.connect(write=False), trio.open_nursery() as watchers:  # this one reads nothing
                for _ in range(10):
                    await watchers.start(watch, console)
                async with trio.open_nursery() as traffic:
                    traffic.start_soon(far.write, boot)
                    assert await read(writer, len(boot)) == boot
                await writer.send_all(b"one")
                assert await far.read(3) == b"one"
                async with console.connect(take_over=True, replay=False) as second:
                    await second.send_all(b"two")
                    assert await far.read(3) == b"two"
                    await far.write(b"after")
                    assert (await read(writer, 66)).strip().startswith(b"[another client writes to this console now")
                    assert await read(second, 5) == await read(writer, 5) == b"after"
                    await writer.send_all(b"three")
                    with pytest.raises(Busy, match="another client has taken this console over"):
                        await writer.receive_some()
            assert got == [b"before" + boot + b"after"] * 10


# ---- configuration


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({}, "missing key 'url'"),
        ({"baudrate": 0}, "baudrate must be above 0"),
        ({"stopbits": 3}, "stopbits must be 1, 1.5 or 2"),
        ({"bytesize": 9}, "expected 5|6|7|8"),
        ({"parity": "E"}, "expected none|even"),
        ({"rtscts": True, "xonxoff": True}, "exclude each other"),
        ({"log_size": 0}, "log_size must be above 0"),
        ({"log_kept": -1}, "log_kept must be 0 or more"),
        ({"cps": 0}, "cps must be above 0"),
        ({"baudrte": 9600}, "did you mean 'baudrate'?"),
    ],
)
def test_configuration_is_checked(config: dict[str, Any], problem: str) -> None:
    driver, problems = schema.load(Serial, config if not config else {"url": "loop://", **config})
    assert driver is None
    assert problem in str(problems)


def test_configuration_in_the_words_of_the_documentation() -> None:
    driver, problems = schema.load(
        Serial, {"url": "loop://", "dtr": False, "rts": "on", "stopbits": 1.5, "parity": "even"}
    )
    assert problems == []
    assert driver is not None
    assert (driver.initial_dtr, driver.initial_rts, driver.stopbits, driver.parity) == (False, True, 1.5, "even")


def test_documented_configurations_are_valid() -> None:
    assert problems_in("docs/drivers/serial.md") == []
    assert problems_in("jmp/examples/serial.yaml") == []
