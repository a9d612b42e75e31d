"""A driver's stream as a system's socket, a file, a port of pyserial."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import serial

from jmp.client.interfaces import client_class
from jmp.driver import DeviceError, UsageError, serve
from jmp.errors import Busy
from jmp_drivers.command_console import CommandConsole
from jmp_drivers.network import Echo, Tcp
from jmp_drivers.serial import Serial
from tests.fakes.ports import free_port


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield
    assert list(tmp_path.glob("jmp-socket-*")) == []


def test_a_socket_of_the_system() -> None:
    with serve(Echo(), class_of=client_class) as net, net.socket() as sock:
        assert isinstance(sock, socket.socket)
        sock.settimeout(60)
        with sock.makefile("rwb") as file:
            file.write(b"line\n")
            file.flush()
            assert file.readline() == b"line\n"
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(10) == b""


def test_what_ends_it_is_raised() -> None:
    port = free_port()
    refused = pytest.raises(DeviceError, match="Connection refused")
    with serve(Tcp(host="127.0.0.1", port=port), class_of=client_class) as net, refused, net.socket() as sock:
        sock.settimeout(60)
        sock.recv(10)


async def test_not_under_trio() -> None:
    async with serve(Echo(), class_of=client_class) as net:
        with pytest.raises(UsageError, match="needs a blocking client"):
            net.socket().__enter__()


def test_a_port_of_pyserial() -> None:
    with (
        serve(CommandConsole(command="exec cat"), class_of=client_class) as console,
        console.serial(timeout=60) as port,
    ):
        assert isinstance(port, serial.SerialBase)
        port.write(b"one\ntwo")
        assert port.readline() == b"one\n"
        assert port.read(3) == b"two"
        port.timeout = 0.05
        assert port.read(1) == b""
        with pytest.raises(serial.SerialException, match="cannot send a break"):
            port.send_break()
        with pytest.raises(Busy), console.serial(timeout=60) as second:
            second.read(1)
        with console.serial(timeout=60, take_over=True) as second:
            second.write(b"mine")
            assert second.read(4) == b"mine"


def test_its_line_is_the_devices() -> None:
    master, slave = os.openpty()
    try:
        with serve(Serial(url=os.ttyname(slave)), class_of=client_class) as console:
            with console.serial(baudrate=57600, timeout=60) as port:
                assert console.baudrate() == 57600
                port.baudrate = 9600
                assert console.baudrate() == 9600
                port.send_break(0.01)
                os.write(master, b"hello")
                assert port.read(5) == b"hello"
            with console.serial(timeout=60):
                assert console.baudrate() == 9600, "a port that names no rate leaves it alone"
    finally:
        os.close(master)
        os.close(slave)
