"""A TCP proxy that cuts the connections that go through it: a network with faults, for real processes."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_RESET = struct.pack("ii", 1, 0)


class Cutter:
    """A proxy on loopback to one port there; made by :func:`cutter`. Its threads end with their connections."""

    def __init__(self, target: int) -> None:
        self.target = target
        """The port that connections are passed on to; a server that has come back elsewhere may change it."""
        self.cuts = 0
        self.carried = 0
        """Bytes, both ways."""
        self.connections = 0
        self.open = True
        """Whether new connections are let in."""
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._flow = threading.Event()
        self._flow.set()

    def cut(self) -> int:
        """Reset every connection there is; how many there were."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        self.cuts += 1
        for pair in pairs:
            for sock in pair:
                with suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()
        return len(pairs)

    def stall(self) -> None:
        """Carry nothing from now on, and say nothing of it: as a network that is gone."""
        self._flow.clear()

    def flow(self) -> None:
        """Carry again."""
        self._flow.set()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if not self.open:
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self.target), 5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            for sock in (near, far):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = (near, far)
            with self._lock:
                self._pairs.add(pair)
                self.connections += 1
            for source, sink in (pair, (far, near)):
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(256 << 10):
                self._flow.wait()
                sink.sendall(data)
                self.carried += len(data)
        for sock in (source, sink):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        with self._lock:
            self._pairs = {pair for pair in self._pairs if source not in pair}

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.flow()
        self.cut()


@contextmanager
def cutter(target: int) -> Iterator[Cutter]:
    """A proxy to a port on loopback, for the length of the block."""
    made = Cutter(target)
    thread = threading.Thread(target=made._accept)
    thread.start()
    try:
        yield made
    finally:
        made.close()
        thread.join()
