"""Port forward against real sockets, by threads and by tasks."""

from __future__ import annotations

import logging
import os
import socket
import stat
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import trio

from jmp.client.interfaces import client_class
from jmp.driver import Stream, exportstream
from jmp.driver.interfaces import Network
from jmp.driver.testing import serve
from jmp.errors import DeviceError, JmpError, LabError, UsageError
from jmp_drivers.network import Echo, Tcp
from jmp_drivers.virtual_board.driver import VirtualBoard

Handler = Callable[[socket.socket], None]


def receive_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))


def reversed_after_the_end(sock: socket.socket) -> None:
    """Answers only after the client's half-close, so it fails unless that is carried."""
    sock.sendall(receive_all(sock)[::-1])


@contextmanager
def tcp_server(handler: Handler, *, rcvbuf: int | None = None) -> Iterator[int]:
    """A server of threads on 127.0.0.1; its port."""
    with socket.socket() as listener:
        if rcvbuf:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(60)
        connections: list[threading.Thread] = []

        def one(sock: socket.socket) -> None:
            with sock:
                sock.settimeout(60)
                handler(sock)

        def accept() -> None:
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                connections.append(threading.Thread(target=one, args=(sock,)))
                connections[-1].start()

        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            acceptor.join()
            for connection in connections:
                connection.join()


def dial(bound: Any) -> socket.socket:
    if bound.path:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(bound.path)
    else:
        sock = socket.create_connection((bound.host, bound.port))
    sock.settimeout(60)
    return sock


def ask(bound: Any, question: bytes) -> bytes:
    with dial(bound) as sock:
        sock.sendall(question)
        sock.shutdown(socket.SHUT_WR)
        return receive_all(sock)


Use = Callable[[Any], None]


def by_threads(driver: Network, listen: str, use: Use) -> None:
    with serve(driver, class_of=client_class) as client, client.forward(listen) as bound:
        use(bound)


def by_tasks(driver: Network, listen: str, use: Use) -> None:
    async def main() -> JmpError | None:
        with trio.fail_after(60):
            async with serve(driver, class_of=client_class) as client:
                forward = client.forward(listen)
                try:
                    bound = await forward.__aenter__()
                except JmpError as error:
                    return error
                try:
                    await trio.to_thread.run_sync(use, bound, abandon_on_cancel=True)
                finally:
                    await forward.__aexit__(None, None, None)
        return None

    if (error := trio.run(main)) is not None:
        raise error  # on its own, not in a nursery's group


Side = Callable[[Network, str, Use], None]


@pytest.fixture(params=[by_threads, by_tasks])
def forwarding(request: pytest.FixtureRequest) -> Side:
    side: Side = request.param
    return side


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No thread of a forward outlives it."""
    yield
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("jmp")]
    assert not left


ANY = "127.0.0.1:0"


def test_half_close_is_carried_both_ways(forwarding: Side) -> None:
    def use(bound: Any) -> None:
        assert str(bound) == f"127.0.0.1:{bound.port}"
        for question in (b"first", b"second connection"):
            assert ask(bound, question) == question[::-1]

    with tcp_server(reversed_after_the_end) as port:
        forwarding(Tcp(host="127.0.0.1", port=port), ANY, use)


def test_the_port_may_end_first(forwarding: Side) -> None:
    heard: SimpleQueue[bytes] = SimpleQueue()

    def greet(sock: socket.socket) -> None:
        sock.sendall(b"welcome")
        sock.shutdown(socket.SHUT_WR)
        heard.put(receive_all(sock))

    def use(bound: Any) -> None:
        with dial(bound) as sock:
            assert receive_all(sock) == b"welcome"
            sock.sendall(b"thanks")
        assert heard.get(timeout=60) == b"thanks"

    with tcp_server(greet) as port:
        forwarding(Tcp(host="127.0.0.1", port=port), ANY, use)


def test_many_at_once_through_a_unix_socket(forwarding: Side, tmp_path: Path) -> None:
    path = tmp_path / "port"

    def use(bound: Any) -> None:
        assert (str(bound), bound.path) == (f"unix:{path}", str(path))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        open_ones = [dial(bound) for _ in range(20)]
        for number, sock in enumerate(open_ones):
            sock.sendall(b"%d" % number)
        for number, sock in reversed(list(enumerate(open_ones))):
            with sock:
                sock.shutdown(socket.SHUT_WR)
                assert receive_all(sock) == b"%d" % number

    forwarding(Echo(), f"unix:{path}", use)
    assert not path.exists()


def test_much_data_both_ways_at_once(forwarding: Side) -> None:
    data = os.urandom(1 << 20) * 16

    def use(bound: Any) -> None:
        with dial(bound) as sock:

            def send() -> None:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)

            sender = threading.Thread(target=send)
            sender.start()
            assert receive_all(sock) == data
            sender.join()

    forwarding(Echo(), ANY, use)


def test_a_refused_connection_ends_nothing_else(forwarding: Side, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # and does not listen
        port = reserved.getsockname()[1]

        def use(bound: Any) -> None:
            for _ in range(2):
                with dial(bound) as sock:
                    address = sock.getsockname()
                    with pytest.raises(ConnectionResetError):
                        sock.recv(1)
                assert f"127.0.0.1:{address[1]} was closed: cannot connect to tcp:127.0.0.1:{port}" in caplog.text

        forwarding(Tcp(host="127.0.0.1", port=port), ANY, use)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


def test_why_is_said_before_the_program_can_notice(forwarding: Side, tmp_path: Path) -> None:
    """Who looks for the reason when its program has ended finds it."""
    said: list[str] = []
    with socket.socket() as reserved, socket.socket(socket.AF_UNIX) as program:
        reserved.bind(("127.0.0.1", 0))  # and does not listen

        class Listening(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                program.send(b"x", socket.MSG_NOSIGNAL)
                said.append(record.getMessage())

        listening = Listening()
        logging.getLogger("jmp.forward").addHandler(listening)

        def use(bound: Any) -> None:
            program.connect(bound.path)
            program.settimeout(60)
            with suppress(ConnectionResetError):
                assert program.recv(1) == b""

        try:
            forwarding(Tcp(host="127.0.0.1", port=reserved.getsockname()[1]), f"unix:{tmp_path}/port", use)
        finally:
            logging.getLogger("jmp.forward").removeHandler(listening)
    assert len(said) == 1
    assert "a connection was closed: cannot connect to tcp:127.0.0.1" in said[0]


class Faulty(Network):
    """Breaks after half an answer."""

    @exportstream
    async def connect(self, stream: Stream) -> None:
        await stream.send_all(b"half an ")
        await stream.receive_some()
        raise DeviceError("the cable is gone")

    def address(self) -> str:
        return "faulty"


def test_what_breaks_is_no_end_of_output(forwarding: Side, caplog: pytest.LogCaptureFixture) -> None:
    def use(bound: Any) -> None:
        with dial(bound) as sock:
            assert sock.recv(100) == b"half an "
            sock.sendall(b"?")
            with pytest.raises(ConnectionResetError):
                sock.recv(100)
        assert "the cable is gone" in caplog.text

    forwarding(Faulty(), ANY, use)


def test_a_program_that_breaks_off_is_passed_on(forwarding: Side, caplog: pytest.LogCaptureFixture) -> None:
    ended: SimpleQueue[str] = SimpleQueue()

    def until_broken(sock: socket.socket) -> None:
        sock.sendall(b"hello")
        try:
            receive_all(sock)
            ended.put("an orderly end")
        except ConnectionResetError:
            ended.put("reset")

    def use(bound: Any) -> None:
        sock = dial(bound)
        assert sock.recv(100) == b"hello"
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()
        ended.get(timeout=60)

    with tcp_server(until_broken) as port:
        forwarding(Tcp(host="127.0.0.1", port=port), ANY, use)
    assert caplog.text == ""


class Deaf(Network):
    """Takes nothing and sends nothing, for ever."""

    @exportstream
    async def connect(self, stream: Stream) -> None:
        await trio.sleep_forever()

    def address(self) -> str:
        return "deaf"


class Endless(Network):
    """Sends for ever."""

    @exportstream
    async def connect(self, stream: Stream) -> None:
        while True:
            await stream.send_all(b"x" * 65536)

    def address(self) -> str:
        return "endless"


@pytest.mark.parametrize("driver", [Deaf, Endless])
def test_a_slow_side_slows_the_other_and_the_end_cuts_off(forwarding: Side, driver: type[Network]) -> None:
    socks: list[socket.socket] = []

    def use(bound: Any) -> None:
        sock = dial(bound)
        socks.append(sock)
        if driver is Deaf:
            sock.settimeout(1)
            with pytest.raises(TimeoutError):  # every buffer on the way is full
                sock.sendall(b"x" * (64 << 20))
        else:
            assert sock.recv(1) == b"x"

    forwarding(driver(), ANY, use)
    with socks[0] as sock, pytest.raises(ConnectionResetError):
        receive_all(sock)


def test_addresses_that_cannot_be(forwarding: Side, tmp_path: Path) -> None:
    def refused(listen: str, kind: type[Exception], reason: str) -> None:
        with pytest.raises(kind, match=reason):
            forwarding(Echo(), listen, lambda bound: None)

    refused("nowhere", UsageError, "cannot listen at 'nowhere': write PORT, HOST:PORT")
    refused("127.0.0.1:99999", UsageError, "write PORT")
    refused("::1:80", UsageError, "write PORT")
    refused("192.0.2.1:0", UsageError, "Cannot assign requested address")
    refused(f"unix:{tmp_path}/none/port", UsageError, "No such file or directory")
    refused(f"unix:/{'x' * 200}", UsageError, "path too long")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused(f"127.0.0.1:{taken.getsockname()[1]}", LabError, "the port is in use; choose another, or 0")
    (tmp_path / "file").write_text("precious")
    refused(f"unix:{tmp_path}/file", LabError, "there is such a file")
    assert (tmp_path / "file").read_text() == "precious"


def test_a_unix_socket_that_was_left_behind_is_replaced_and_one_in_use_is_not(forwarding: Side, tmp_path: Path) -> None:
    path = str(tmp_path / "port")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    forwarding(Echo(), f"unix:{path}", lambda bound: None)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen()
        with pytest.raises(LabError, match="another program listens there"):
            forwarding(Echo(), f"unix:{path}", lambda bound: None)


def test_by_number_and_on_ipv6(forwarding: Side) -> None:
    def use(bound: Any) -> None:
        assert ask(bound, b"hello") == b"hello"
        hosts.append(bound.host)

    hosts: list[str] = []
    forwarding(Echo(), "0", use)
    forwarding(Echo(), "[::1]:0", use)
    assert hosts == ["127.0.0.1", "::1"]


async def test_threads_and_tasks_are_not_mixed_up() -> None:
    async with serve(Echo(), class_of=client_class) as client:
        with pytest.raises(UsageError, match="async with"), client.forward():
            pass


def test_a_browser_on_the_virtual_board(tmp_path: Path) -> None:
    with serve(VirtualBoard(boot_time=0), class_of=client_class) as board:
        with board.console.connect() as console:
            board.power.on()
            seen = b""
            while b"login:" not in seen:
                seen += console.receive_some()
        with board.network.forward() as bound, urllib.request.urlopen(f"http://{bound}/", timeout=60) as answer:
            assert b"virtual" in answer.read()
        with board.network.forward(f"unix:{tmp_path}/http"):
            socat = ["socat", "-t30", "-", f"UNIX-CONNECT:{tmp_path}/http"]
            done = subprocess.run(socat, input=b"GET / HTTP/1.0\r\n\r\n", capture_output=True, timeout=60, check=True)
            assert done.stdout.startswith(b"HTTP/1.1 200 OK\r\n")
