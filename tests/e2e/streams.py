"""A TCP server of a test's own behind an exporter process, and what is sent through it."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jmp
from tests.e2e.product import Served

MIB = 1 << 20
GIB = 1 << 30
SECONDS = 120.0
"""How long a socket may stand still before its test fails."""
BLOCK = os.urandom(MIB)


def digest_of(blocks: int) -> bytes:
    """The checksum of so many times `BLOCK`."""
    whole = hashlib.sha256()
    for _ in range(blocks):
        whole.update(BLOCK)
    return whole.digest()


def write_config(folder: Path, port: int) -> Path:
    """An exporter with the server's port as ``data``, an ``echo`` and a ``power``."""
    path = folder / "bench.yaml"
    path.write_text(f"""\
apiVersion: jmp/v1
kind: Exporter
metadata: {{name: bench}}
export:
  data: {{type: tcp, config: {{host: 127.0.0.1, port: {port}}}}}
  echo: {{type: echo}}
  power: {{type: mock-power}}
""")
    return path


@contextmanager
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(SECONDS)
        yield server


@contextmanager
def peer(server: socket.socket, talk: Callable[[socket.socket], None]) -> Iterator[None]:
    """The next connection to the server is given to ``talk``, in a thread that has ended when the block has."""

    def accept() -> None:
        connection, _ = server.accept()
        with connection:
            connection.settimeout(SECONDS)
            talk(connection)

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def connect(served: Served) -> Any:
    """A blocking client of an exporter process, with the credentials that the exporter's own line names."""
    given = dict(zip(served.shell[1::2], served.shell[2::2], strict=True))
    file = given.get("--passphrase-file")
    passphrase = Path(file).read_text().strip() if file else None
    return jmp.connect(given["--connect"], passphrase=passphrase, fingerprint=given.get("--fingerprint"))


def send_blocks(blocks: int) -> Callable[[socket.socket], None]:
    def talk(connection: socket.socket) -> None:
        for _ in range(blocks):
            connection.sendall(BLOCK)

    return talk


def flood(connection: socket.socket) -> None:
    """Send until the other side is gone."""
    with suppress(ConnectionError):
        while True:
            connection.sendall(BLOCK)


def answer_digest(connection: socket.socket) -> None:
    """Read to the end of input, and send the checksum of what came."""
    whole = hashlib.sha256()
    while data := connection.recv(MIB):
        whole.update(data)
    connection.sendall(whole.digest())


def download(dut: Any) -> bytes:
    """The checksum of all that ``data`` sends."""
    whole = hashlib.sha256()
    with dut.data.connect() as stream:
        while data := stream.receive_some():
            whole.update(data)
    return whole.digest()


def upload(dut: Any, blocks: int) -> bytes:
    """What ``data`` answers to so many times `BLOCK`."""
    answer = bytearray()
    with dut.data.connect() as stream:
        for _ in range(blocks):
            stream.send_all(BLOCK)
        stream.send_eof()
        while data := stream.receive_some():
            answer += data
    return bytes(answer)
