"""Ports for programs that want to be told a number."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

_kept: list[socket.socket] = []


def free_port() -> int:
    """A port of 127.0.0.1 at which nobody answers, and which the system gives to nobody until this test is over.

    A server that is told the number gets it: it says ``SO_REUSEADDR``, as all do that want to come back at once.
    """
    _kept.append(_reserved())
    return _number(_kept[-1])


@contextmanager
def reserved_ports(count: int) -> Iterator[list[int]]:
    """Such ports for the length of a block."""
    sockets = [_reserved() for _ in range(count)]
    try:
        yield [_number(each) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def release() -> None:
    """Give back all that :func:`free_port` has given."""
    while _kept:
        _kept.pop().close()


def _reserved() -> socket.socket:
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    taken.bind(("127.0.0.1", 0))  # and does not listen
    return taken


def _number(taken: socket.socket) -> int:
    number: int = taken.getsockname()[1]
    return number
