"""An electronic control unit that speaks UDS, on a CAN bus or behind a DoIP gateway."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import can
import isotp

VIN = b"WVWZZZ1KZ8W000001"
SEED, KEY = b"\x11\x22\x33\x44", b"\x44\x33\x22\x11"


class Ecu:
    """What it answers to a request."""

    def __init__(self) -> None:
        self.session = 1
        self.unlocked = False
        self.alive = 0
        self.faults = [(0x123456, 0x2F)]
        self.data = {0xF190: VIN, 0x0100: b"\x00"}

    def answer(self, request: bytes) -> bytes:
        service, rest = request[0], request[1:]
        try:
            return bytes([service + 0x40]) + self._do(service, rest)
        except KeyError:
            return bytes([0x7F, service, 0x31])
        except PermissionError:
            return bytes([0x7F, service, 0x33])
        except NotImplementedError:
            return bytes([0x7F, service, 0x11])

    def _do(self, service: int, rest: bytes) -> bytes:
        match service:
            case 0x10:
                self.session = rest[0]
                return rest[:1] + b"\x00\x32\x01\xf4"
            case 0x11:
                self.session, self.unlocked = 1, False
                return rest[:1]
            case 0x14:
                self.faults.clear()
                return b""
            case 0x19 if rest[0] == 0x02:
                return b"\x02\xff" + b"".join(code.to_bytes(3, "big") + bytes([status]) for code, status in self.faults)
            case 0x22:
                return rest[:2] + self.data[int.from_bytes(rest[:2], "big")]
            case 0x23:
                return bytes(range(rest[-1]))
            case 0x27 if rest[0] & 1:
                return rest[:1] + SEED
            case 0x27:
                if rest[1:] != KEY:
                    raise PermissionError
                self.unlocked = True
                return rest[:1]
            case 0x2E:
                if not self.unlocked:
                    raise PermissionError
                self.data[int.from_bytes(rest[:2], "big")] = rest[2:]
                return rest[:2]
            case 0x31:
                return rest[:3] + b"\x2a"
            case 0x3E:
                self.alive += 1
                return rest[:1]
        raise NotImplementedError


@contextmanager
def on_can(make_bus: Callable[[], can.BusABC], ecu: Ecu) -> Iterator[None]:
    """The unit on a bus: it listens to 0x7e0 and answers as 0x7e8."""
    bus = make_bus()
    address = isotp.Address(isotp.AddressingMode.Normal_11bits, txid=0x7E8, rxid=0x7E0)
    stack = isotp.CanStack(bus, address=address)
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            request = stack.recv(block=True, timeout=0.05)
            if request is not None and not (request[0] == 0x3E and request[1] & 0x80 and ecu.answer(bytes(request))):
                stack.send(ecu.answer(bytes(request)))

    stack.start()
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        stack.stop()
        bus.shutdown()


@contextmanager
def behind_gateway(ecu: Ecu, address: int = 0x0E00, port: int = 0) -> Iterator[int]:
    """A DoIP gateway on loopback, with the unit behind it; yields its port."""

    def message(kind: int, payload: bytes) -> bytes:
        return struct.pack(">BBHI", 2, 0xFD, kind, len(payload)) + payload

    def serve(connection: socket.socket) -> None:
        stream = connection.makefile("rb")
        while len(header := stream.read(8)) == 8:
            _, _, kind, size = struct.unpack(">BBHI", header)
            payload = stream.read(size)
            if kind == 5:  # routing activation
                connection.sendall(message(6, payload[:2] + struct.pack(">HB", address, 0x10) + bytes(4)))
            elif kind == 0x8001:
                tester, unit = struct.unpack(">HH", payload[:4])
                if unit != address:
                    connection.sendall(message(0x8003, struct.pack(">HHB", unit, tester, 3)))
                    continue
                connection.sendall(message(0x8002, struct.pack(">HHB", unit, tester, 0)))
                connection.sendall(message(0x8001, struct.pack(">HH", unit, tester) + ecu.answer(payload[4:])))

    with socket.create_server(("127.0.0.1", port)) as listener:
        connections: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connections.append(connection)
                with connection, suppress(OSError):
                    serve(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for connection in connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            thread.join()
