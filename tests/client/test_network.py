"""Datagrams and their forward against real UDP sockets; ``j net connect`` and ``j net forward`` as users run them."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from jmp.client.interfaces import client_class
from jmp.client.network import Unpacker, pack
from jmp.driver import Stream, exportstream
from jmp.driver.interfaces import Datagram
from jmp.driver.testing import serve
from jmp.errors import BadValue, DeviceError, ProtocolViolation, UsageError
from jmp_drivers.network import Udp
from tests.fakes.sessions import shell_session


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No thread of a forward outlives it."""
    yield
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("jmp")]
    assert not left


@contextmanager
def udp_server() -> Iterator[tuple[int, list[Any]]]:
    """Answers each datagram with itself in capitals; its port, and who has sent something."""
    senders: list[Any] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))

        def answer() -> None:
            while True:
                datagram, sender = sock.recvfrom(65535)
                if datagram == b"end of the server":
                    return
                if sender not in senders:
                    senders.append(sender)
                sock.sendto(datagram.upper(), sender)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield sock.getsockname()[1], senders
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
                last.sendto(b"end of the server", sock.getsockname())
            thread.join()


@pytest.mark.parametrize("step", [1, 2, 3, 1000])
def test_datagrams_are_found_in_a_stream_however_it_is_cut(step: int) -> None:
    datagrams = [b"", b"a", bytes(65535), b"\0\1", b""]
    stream = b"".join(map(pack, datagrams))
    unpacker = Unpacker()
    assert [found for at in range(0, len(stream), step) for found in unpacker.feed(stream[at : at + step])] == datagrams
    unpacker.end()
    assert list(unpacker.feed(b"\0\5half")) == []
    with pytest.raises(ProtocolViolation, match="in the middle of one"):
        unpacker.end()


def test_datagrams_by_threads() -> None:
    with udp_server() as (port, _), serve(Udp(host="127.0.0.1", port=port), class_of=client_class) as client:
        with client.connect() as port_:
            for datagram in (b"hello", b"", b"x" * 9000):
                port_.send(datagram)
                assert port_.receive() == datagram.upper()
            port_.send(b"again")
            assert next(iter(port_)) == b"AGAIN"
        with client.connect() as port_, pytest.raises(BadValue, match="at most 65535 bytes, this one has 65536"):
            port_.send(bytes(65536))


async def test_datagrams_by_tasks() -> None:
    with trio.fail_after(60), udp_server() as (port, _):
        async with serve(Udp(host="127.0.0.1", port=port), class_of=client_class) as client, client.connect() as port_:
            await port_.send(b"hello")
            assert await port_.receive() == b"HELLO"
            await port_.send(b"again")
            async for datagram in port_:
                assert datagram == b"AGAIN"
                break


Use = Callable[[Any], None]


def by_threads(driver: Datagram, use: Use, **options: Any) -> None:
    with serve(driver, class_of=client_class) as client, client.forward(**options) as bound:
        use(bound)


def by_tasks(driver: Datagram, use: Use, **options: Any) -> None:
    async def main() -> None:
        with trio.fail_after(60):
            async with serve(driver, class_of=client_class) as client, client.forward(**options) as bound:
                await trio.to_thread.run_sync(use, bound)

    trio.run(main)


@pytest.fixture(params=[by_threads, by_tasks])
def forwarding(request: pytest.FixtureRequest) -> Callable[..., None]:
    side: Callable[..., None] = request.param
    return side


@contextmanager
def program(bound: Any) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(60)
        sock.connect((bound.host, bound.port))
        yield sock


def test_each_program_gets_the_answers_to_its_own_datagrams(forwarding: Callable[..., None]) -> None:
    def use(bound: Any) -> None:
        with program(bound) as one, program(bound) as other:
            for number in range(3):
                one.send(b"one %d" % number)
                other.send(b"other %d" % number)
                assert other.recv(100) == b"OTHER %d" % number
                assert one.recv(100) == b"ONE %d" % number

    with udp_server() as (port, senders):
        forwarding(Udp(host="127.0.0.1", port=port), use)
    assert len(senders) == 2


class Counting(Datagram):
    """Answers each datagram with the number of its stream."""

    _streams: int = 0

    def __post_init__(self) -> None:
        self.ended = threading.Semaphore(0)

    @exportstream
    async def connect(self, stream: Stream) -> None:
        self._streams += 1
        try:
            async for _ in stream:
                await stream.send_all(pack(b"%d" % self._streams))
        finally:
            self.ended.release()

    def address(self) -> str:
        return "counting"


def asked(sock: socket.socket) -> int:
    """The number of the stream that answers."""
    while True:
        sock.send(b"hello")
        with suppress(TimeoutError):
            return int(sock.recv(100))


def test_a_stream_without_traffic_ends_and_the_next_datagram_opens_another(forwarding: Callable[..., None]) -> None:
    def use(bound: Any) -> None:
        with program(bound) as sock:
            sock.settimeout(1)  # then it asks again, as programs do: a datagram may come just when the stream ends
            streams = [asked(sock)]
            assert driver.ended.acquire(timeout=60)
            while (number := asked(sock)) == streams[0]:
                pass
            assert number > streams[0]

    driver = Counting()
    forwarding(driver, use, idle=0.1)


class Broken(Datagram):
    """Nothing gets through."""

    @exportstream
    async def connect(self, stream: Stream) -> None:
        raise DeviceError("the antenna is gone")

    def address(self) -> str:
        return "broken"


def test_a_stream_that_fails_is_told(forwarding: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    told = threading.Event()

    class Listener:
        def filter(self, record: Any) -> bool:
            told.set()
            return True

    caplog.handler.addFilter(listener := Listener())

    def use(bound: Any) -> None:
        with program(bound) as sock:
            sock.send(b"hello")
            assert told.wait(60)

    forwarding(Broken(), use)
    caplog.handler.removeFilter(listener)
    assert re.search(r"the datagrams of 127.0.0.1:\d+ are not forwarded: the antenna is gone", caplog.text)


def test_options_that_cannot_be() -> None:
    with serve(Counting(), class_of=client_class) as client:
        with pytest.raises(UsageError, match="idle must be more than 0"):
            client.forward(idle=0)
        with pytest.raises(UsageError, match="datagrams are forwarded to HOST:PORT only"), client.forward("unix:/x"):
            pass


# ---- on the command line

CONFIG = """\
apiVersion: jmp/v1
kind: Exporter
metadata: {{name: bench}}
export:
  net: {{type: tcp, config: {{host: 127.0.0.1, port: {port}}}}}
  echo: {{type: echo}}
  udp: {{type: udp, config: {{host: 127.0.0.1, port: {port}}}}}
"""


@contextmanager
def session(tmp_path: Path, port: int = 1) -> Iterator[dict[str, str]]:
    with shell_session(tmp_path, CONFIG.format(port=port)) as environ:
        yield environ


def test_connect_joins_standard_input_and_output(tmp_path: Path) -> None:
    """As ``ssh -o ProxyCommand='j net connect'`` uses it: any bytes, and the end of each side's output."""
    data = bytes(range(256)) * 4096

    def answer(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        with sock:
            received = b"".join(iter(lambda: sock.recv(65536), b""))
            sock.sendall(received[::-1])

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        with session(tmp_path, listener.getsockname()[1]) as environ:
            done = subprocess.run(
                ["j", "net", "connect"], input=data, capture_output=True, env=environ, timeout=60, check=False
            )
            assert (done.returncode, done.stderr) == (0, b"")
            assert done.stdout == data[::-1]
            thread.join()


def test_connect_says_why_it_could_not(tmp_path: Path) -> None:
    with session(tmp_path) as environ:
        done = subprocess.run(["j", "net", "connect"], capture_output=True, env=environ, timeout=60, check=False)
        assert done.returncode == 74
        assert done.stderr == b"jmp: cannot connect to tcp:127.0.0.1:1: Connection refused\n"


def test_forward_tells_where_and_ends_with_its_signal(tmp_path: Path) -> None:
    with session(tmp_path) as environ:
        for listen, number in ((f"unix:{tmp_path}/port", signal.SIGTERM), ("0", signal.SIGINT)):
            with subprocess.Popen(
                ["j", "echo", "forward", listen], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ, text=True
            ) as forward:
                assert forward.stdout is not None
                assert forward.stderr is not None
                line = forward.stdout.readline().strip()
                if listen == "0":
                    host, _, port = line.partition(":")
                    sock = socket.create_connection((host, int(port)))
                else:
                    assert line == listen
                    sock = socket.socket(socket.AF_UNIX)
                    sock.connect(str(tmp_path / "port"))
                with sock:
                    sock.settimeout(60)
                    sock.sendall(b"hello")
                    assert sock.recv(100) == b"hello"
                forward.send_signal(number)
                assert forward.wait(60) == 128 + number
                assert forward.stderr.read() == ""
        assert not (tmp_path / "port").exists()


def test_forward_says_what_was_refused_and_goes_on(tmp_path: Path) -> None:
    with (
        session(tmp_path) as environ,
        subprocess.Popen(
            ["j", "net", "forward"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ, text=True
        ) as forward,
    ):
        assert forward.stdout is not None
        assert forward.stderr is not None
        host, _, port = forward.stdout.readline().strip().partition(":")
        for _ in range(2):
            with socket.create_connection((host, int(port))) as sock:
                name = f"{host}:{sock.getsockname()[1]}"
                told = f"the connection from {name} was closed: cannot connect to tcp:127.0.0.1:1: Connection refused\n"
                assert forward.stderr.readline() == told
        forward.send_signal(signal.SIGINT)
        assert forward.wait(60) == 130


def test_forward_ends_with_its_session(tmp_path: Path) -> None:
    with session(tmp_path) as environ:
        forward = subprocess.Popen(
            ["j", "udp", "forward"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ, text=True
        )
        assert forward.stdout is not None
        assert forward.stdout.readline().startswith("127.0.0.1:")
    with forward:
        assert forward.wait(60) == 69
        assert forward.stderr is not None
        assert forward.stderr.read() == "jmp: the session is over, and so is the forward of udp\n"


def test_an_address_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    with session(tmp_path) as environ, socket.create_server(("127.0.0.1", 0)) as taken:
        for listen, code in (("nowhere", 64), (f"127.0.0.1:{taken.getsockname()[1]}", 69)):
            done = subprocess.run(
                ["j", "net", "forward", listen], capture_output=True, text=True, env=environ, timeout=60, check=False
            )
            assert done.returncode == code
            assert re.fullmatch(rf"jmp: cannot listen at '?{listen}'?: [^\n]*\n", done.stderr)
