"""A TCP server behind the ports that are forwarded, and the program that uses such a port. Standard library only.

python target.py              serves; prints its port
python target.py PORT SHORT   uses the port; prints figures
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time

from tests.bench.payload import BLOCK, MIB, ORDER, Checked, blocks, order, read_order
from tests.bench.worker import Figures, Span, p50, repeated

PING = BLOCK[:64]


def exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise EOFError("the connection ended")
        data += piece
    return bytes(data)


def obey(connection: socket.socket) -> None:
    """Do what the other side orders, until it ends."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1) if connection.family != socket.AF_UNIX else None
    with connection:
        what, size = read_order(exactly(connection, ORDER))
        if what == "d":
            for block in blocks(size):
                connection.sendall(block)
        elif what == "u":
            checked = Checked(size)
            while checked.left:
                checked.feed(connection.recv(256 * 1024))
            connection.sendall(b"+")
        else:
            while data := connection.recv(64 * 1024):
                connection.sendall(data)


def serve() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        while True:
            connection, _ = server.accept()
            threading.Thread(target=obey, args=(connection,), daemon=True).start()


def connected(port: int, first: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(first)
    return connection


def upload(connection: socket.socket, size: int) -> float:
    """MB/s. The order has been given."""
    began = time.perf_counter()
    for block in blocks(size):
        connection.sendall(block)
    exactly(connection, 1)
    return size / (time.perf_counter() - began) / 1e6


def download(connection: socket.socket, size: int) -> float:
    """MB/s. The order has been given."""
    began = time.perf_counter()
    checked = Checked(size)
    while checked.left:
        checked.feed(connection.recv(256 * 1024))
    return size / (time.perf_counter() - began) / 1e6


def use(port: int, span: Span) -> Figures:
    size = span.size(256 * MIB, MIB)
    with connected(port, order("u", size)) as connection:
        up = upload(connection, size)
    with connected(port, order("d", size)) as connection:
        down = download(connection, size)
    with connected(port, order("e")) as connection:

        def ping() -> None:
            connection.sendall(PING)
            if exactly(connection, len(PING)) != PING:
                raise ValueError("other bytes came back")

        taken = repeated(ping, span)
    return {"forward-up": up, "forward-down": down, "forward-p50": p50(taken)}


def used(port: int, span: Span) -> Figures:
    """What a program measures that uses a forwarded port."""
    command = [sys.executable, "-m", "tests.bench.target", str(port), "short" if span.short else "full"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    figures: Figures = json.loads(done.stdout)
    return figures


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(use(int(sys.argv[1]), Span(sys.argv[2] == "short"))))
    else:
        serve()
