"""Hostile peers of a listener, as fast as they can, until they are ended: ``python -m tests.e2e.hostile KIND URL PASSPHRASE``."""

from __future__ import annotations

import socket
import ssl
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

import msgpack

from jmp.link.rfc6455 import ClientHandshake
from jmp.wire.frames import Kind, pack, pack_data

HELLO = pack(Kind.HELLO, 0, {"version": [1, 0], "agent": "hostile"})


class Hostile:
    """One of them."""

    def __init__(self, url: str, passphrase: str) -> None:
        self.url = url
        host, _, port = url.removeprefix("wss://").partition(":")
        self.address = host, int(port)
        self.passphrase = passphrase
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.tls.check_hostname = False
        self.tls.verify_mode = ssl.CERT_NONE

    def stranger(self) -> ssl.SSLSocket:
        """A connection after the TLS handshake."""
        return self.tls.wrap_socket(socket.create_connection(self.address, timeout=30))

    # ---- before they are let in

    def loris(self) -> None:
        """Say a letter of a request now and then, on a hundred connections, and begin again when that is not borne any longer."""
        request = ClientHandshake("lab", token="x" * 2000).request
        open_ones: list[tuple[ssl.SSLSocket, int]] = []
        pause = threading.Event()
        while True:
            with suppress(OSError):
                while len(open_ones) < 100:
                    open_ones.append((self.stranger(), 0))
            still = []
            for sock, at in open_ones:
                with suppress(OSError):
                    sock.sendall(request[at : at + 1])
                    still.append((sock, at + 1))
            open_ones = still
            pause.wait(0.05)

    def flood(self) -> None:
        """Shake hands up to the token, which is wrong."""
        while True:
            with suppress(OSError), self.stranger() as sock:
                sock.sendall(ClientHandshake("lab", token="wrong").request)
                sock.recv(1000)

    # ---- when they were

    def known(self) -> ssl.SSLSocket:
        """A WebSocket that was let in."""
        sock = self.stranger()
        handshake = ClientHandshake("lab", token=self.passphrase)
        sock.sendall(handshake.request)
        while handshake.feed(sock.recv(1)) is None:
            pass
        return sock

    def send(self, make: Callable[[int], bytes]) -> None:
        """Send messages for as long as they are taken, again and again; whatever is answered is read and thrown away."""
        while True:
            with suppress(OSError), self.known() as sock:
                sock.settimeout(0.0)
                self.message(sock, HELLO)
                for number in range(1 << 20):
                    self.message(sock, make(number))

    @staticmethod
    def message(sock: ssl.SSLSocket, data: bytes) -> None:
        """One masked binary message; reads what there is."""
        size = len(data)
        head = b"\x82" + (
            bytes([0x80 | size])
            if size < 126
            else bytes([0xFE]) + size.to_bytes(2, "big")
            if size < 65536
            else bytes([0xFF]) + size.to_bytes(8, "big")
        )
        rest = memoryview(head + bytes(4) + data)
        while rest:
            with suppress(ssl.SSLWantWriteError, ssl.SSLWantReadError):
                rest = rest[sock.send(rest) :]
            with suppress(ssl.SSLWantReadError):
                if not sock.recv(1 << 16):
                    raise ConnectionError

    def oversized(self) -> None:
        """Messages that are too long."""
        self.send(lambda number: bytes(3 << 20))

    def streams(self) -> None:
        """Open streams, none of which is ever used or closed."""

        def opens(number: int) -> bytes:
            first = 1 + 200 * number
            return b"".join(b"".join(pack_data(Kind.OPEN, first + 2 * index, b"", False)) for index in range(100))

        self.send(opens)

    def credit(self) -> None:
        """Claim more room than there is in the world, and use more than was given."""

        def lie(number: int) -> bytes:
            stream = 1 + 2 * number
            opened = b"".join(pack_data(Kind.OPEN, stream, b"", False))
            much = b"".join(pack_data(Kind.DATA, stream, bytes(60_000), False)) * 6
            return opened + pack(Kind.CREDIT, stream, 2**62) * 20 + much

        self.send(lie)

    def nesting(self) -> None:
        """Calls whose arguments are nested without end."""

        def deep(number: int) -> bytes:
            call = msgpack.packb(["power", "on"])[1:]
            return b"".join(pack_data(Kind.OPEN, 1 + 2 * number, b"\x95" + call + b"\x91" * 20_000, True))

        self.send(deep)

    def crowd(self) -> None:
        """Messages of as many frames as there is room for."""
        pings = b"".join([pack(Kind.PING, 0, b"")] * 200_000)
        self.send(lambda number: pings)

    def calls(self) -> None:
        """Good calls, as many in a message as there is room for."""
        call = msgpack.packb(["power", "on", [], {}])
        most = (1 << 20) // (len(call) + 12)

        def many(number: int) -> bytes:
            first = 1 + 2 * most * number
            return b"".join(b"".join(pack_data(Kind.OPEN, first + 2 * at, call, True)) for at in range(most))

        self.send(many)


KINDS = ("loris", "flood", "oversized", "streams", "credit", "nesting", "crowd", "calls")


if __name__ == "__main__":
    getattr(Hostile(sys.argv[2], sys.argv[3]), sys.argv[1])()
