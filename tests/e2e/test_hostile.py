"""Strangers at a listening exporter's port: what they send is refused, costs no memory, and disturbs nobody."""

from __future__ import annotations

import itertools
import os
import random
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from tests.e2e.product import Served, serving
from tests.e2e.streams import MIB, connect, write_config

pytestmark = pytest.mark.zipapp

ROUNDS = 25
noise = random.Random(4711)
elsewhere = (f"127.0.{number >> 8}.{number & 255}" for number in itertools.count(2))


@pytest.fixture
def served(folder: Path) -> Iterator[Served]:
    with serving(write_config(folder, 9), "--listen=127.0.0.1:0") as served:
        yield served


def test_the_session_of_another_client_is_undisturbed_and_memory_constant(served: Served) -> None:
    with connect(served) as dut, dut.echo.connect() as echo:

        def undisturbed() -> None:
            dut.power.on()
            data = os.urandom(50_000)
            echo.send_all(data)
            received = bytearray()
            while len(received) < len(data):
                received += echo.receive_some()
            assert received == data

        def each_once() -> None:
            for attack in ATTACKS:
                attack(served)
                undisturbed()

        each_once()  # now all code that this takes is loaded
        before = served.resident()
        for _ in range(ROUNDS):
            each_once()
        grown = served.resident() - before
        print(f"memory grew by {grown} bytes")
        assert grown < 16 * MIB
        with half_handshakes(served):
            undisturbed()
    assert "Traceback" not in served.log.read_text()


def test_each_is_told_what_was_wrong(served: Served) -> None:
    for attack in ATTACKS:
        attack(served)
    log = served.log.read_text()
    for told in (
        "answered 400 Bad Request: this is not a WebSocket handshake",
        "answered 431 Request Header Fields Too Large",
        "answered 401 Unauthorized: the passphrase is wrong",
        "answered 401 Unauthorized: a passphrase is needed",
        "a message was longer than",
    ):
        assert told in log
    assert served.end() == 0


# ---- without TLS, or not to its end


def address(served: Served) -> tuple[str, int]:
    host, _, port = served.url.removeprefix("wss://").partition(":")
    return host, int(port)


@contextmanager
def tcp(served: Served) -> Iterator[socket.socket]:
    """A connection, each from another of this machine's addresses: who fails again and again from one of them has to wait."""
    with socket.create_connection(address(served), timeout=30, source_address=(next(elsewhere), 0)) as sock:
        yield sock


def garbage_instead_of_tls(served: Served) -> None:
    with tcp(served) as sock, suppress(ConnectionError):
        sock.sendall(noise.randbytes(100_000))
        while sock.recv(65536):
            pass


def http_instead_of_https(served: Served) -> None:
    with tcp(served) as sock, suppress(ConnectionError):
        sock.sendall(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")
        while sock.recv(65536):
            pass


def gone_at_once(served: Served) -> None:
    with tcp(served):
        pass


@contextmanager
def half_handshakes(served: Served) -> Iterator[None]:
    """Some who begin a TLS handshake and then say no more."""
    hello, incoming = ssl.MemoryBIO(), ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context().wrap_bio(incoming, hello).do_handshake()
    half = hello.read()[:50]
    with tcp(served) as one, tcp(served) as two, tcp(served) as three:
        for sock in (one, two, three):
            sock.sendall(half)
        yield


# ---- without the passphrase


def context() -> ssl.SSLContext:
    """Trusts everybody."""
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    return trusting


def asked(served: Served, request: bytes) -> bytes:
    """The answer to bytes sent over TLS."""
    answer = bytearray()
    with tcp(served) as sock, context().wrap_socket(sock) as tls:
        with suppress(ConnectionError):
            tls.sendall(request)
        with suppress(ConnectionError):
            while data := tls.recv(65536):
                answer += data
    return bytes(answer)


def garbage_instead_of_http(served: Served) -> None:
    assert asked(served, noise.randbytes(1000)).startswith(b"HTTP/1.1 400 ")


def no_websocket(served: Served) -> None:
    answer = asked(served, b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"this is not a WebSocket handshake" in answer


def endless_head(served: Served) -> None:
    answer = asked(served, b"GET / HTTP/1.1\r\nX: " + 17 * 1024 * b"x")
    assert answer.startswith(b"HTTP/1.1 431 ")


class Stranger:
    """A WebSocket by the sans-I/O half of `websockets`: its threaded client stalls over TLS now and then, whatever the server."""

    def __init__(self, tls: ssl.SSLSocket, url: str, *headers: tuple[str, str]) -> None:
        self.tls = tls
        self.protocol = ClientProtocol(parse_uri(url), subprotocols=[Subprotocol("jmp.v1")])
        request = self.protocol.connect()
        for name, value in headers:
            request.headers[name] = value
        self.protocol.send_request(request)
        self.flush()
        while self.protocol.state is State.CONNECTING:
            self.receive()
            if self.protocol.handshake_exc is not None:
                raise self.protocol.handshake_exc

    def flush(self) -> None:
        with suppress(ConnectionError, ssl.SSLEOFError):  # what it says last can be read even so
            for data in self.protocol.data_to_send():
                if data:
                    self.tls.sendall(data)

    def receive(self) -> bool:
        """Take what comes next; whether there was something."""
        data = b""
        with suppress(ConnectionError, ssl.SSLEOFError):
            data = self.tls.recv(65536)
        if data:
            self.protocol.receive_data(data)
        else:
            self.protocol.receive_eof()
        self.flush()
        return bool(data)


@contextmanager
def upgraded(served: Served, *headers: tuple[str, str]) -> Iterator[Stranger]:
    with tcp(served) as sock, context().wrap_socket(sock) as tls:
        yield Stranger(tls, served.url, *headers)


def refusal(served: Served, *headers: tuple[str, str]) -> tuple[int, bytes]:
    """Status and text of the answer to a request that is not let in."""
    with pytest.raises(InvalidStatus) as caught, upgraded(served, *headers):
        pass
    response = caught.value.response
    return response.status_code, bytes(response.body or b"")


def no_passphrase(served: Served) -> None:
    status, text = refusal(served)
    assert (status, text[:22]) == (401, b"a passphrase is needed")


def wrong_passphrase(served: Served) -> None:
    assert refusal(served, ("Authorization", "Bearer open sesame")) == (401, b"the passphrase is wrong")


# ---- with it


@contextmanager
def known(served: Served) -> Iterator[Stranger]:
    """A WebSocket that has been let in."""
    given = dict(zip(served.shell[1::2], served.shell[2::2], strict=True))
    passphrase = Path(given["--passphrase-file"]).read_text().strip()
    with upgraded(served, ("Authorization", f"Bearer {passphrase}")) as link:
        yield link


def closed_with(served: Served, message: bytes | str) -> int:
    """The close code that a message is answered with."""
    with known(served) as link:
        if isinstance(message, bytes):
            link.protocol.send_binary(message)
        else:
            link.protocol.send_text(message.encode())
        link.flush()
        while link.receive():
            pass
    assert link.protocol.close_code is not None
    return link.protocol.close_code


def garbage_message(served: Served) -> None:
    assert closed_with(served, b"\xc1" + noise.randbytes(1000)) == 1002


def text_message(served: Served) -> None:
    assert closed_with(served, "hello") == 1003


def oversized_message(served: Served) -> None:
    assert closed_with(served, bytes(3 * MIB)) == 1009


def half_message(served: Served) -> None:
    with known(served) as link:
        link.tls.sendall(bytes([0x82, 0xFF]) + (500_000).to_bytes(8, "big") + bytes(4) + bytes(1000))


ATTACKS: list[Callable[[Served], None]] = [
    garbage_instead_of_tls,
    http_instead_of_https,
    gone_at_once,
    garbage_instead_of_http,
    no_websocket,
    endless_head,
    no_passphrase,
    wrong_passphrase,
    garbage_message,
    text_message,
    oversized_message,
    half_message,
]
