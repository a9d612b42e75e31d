"""From a stream to a socket by the shortest way."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import trio

from jmp.mux.stream import MuxStream


async def overflow(stream: trio.abc.ReceiveStream, connection: trio.SocketStream) -> AsyncIterator[bytes | bytearray]:
    """What comes from ``stream`` until its end, for ``connection``; without what that has taken by itself.

    It takes what the system has room for, in the turn in which it comes: a task would have to wait for its own turn. What is
    given out here has to be sent before the next is asked for, as in ``async for``.
    """

    def take(data: bytes) -> int:
        try:
            return os.write(connection.socket.fileno(), data)
        except OSError:
            return 0  # there is no room, or it is broken: who sends what is left waits, or finds out

    direct = stream if isinstance(stream, MuxStream) else None
    while True:
        if direct is not None:
            direct.take = take
        try:
            data = await stream.receive_some()
        finally:
            if direct is not None:
                direct.take = None  # what comes now is behind this
        if not data:
            return
        yield data
