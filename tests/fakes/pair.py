"""Two mux cores and the frames on their way between them."""

from __future__ import annotations

import itertools
from collections import deque

import msgpack

from jmp.mux.protocol import Event, Mux, Role
from jmp.wire.frames import MAX_MESSAGE


def frames_of(message: bytes) -> list[bytes]:
    """A message, cut into its frames."""
    unpacker = msgpack.Unpacker(max_buffer_size=2**31 - 1)
    unpacker.feed(message)
    ends = [0]
    for _ in unpacker:
        ends.append(unpacker.tell())
    return [message[start:end] for start, end in itertools.pairwise(ends)]


class Pair:
    """A dialler and a listener. Frames wait in ``under_way[end]`` until they are delivered to ``end``."""

    def __init__(self, *, max_streams: int = 1024) -> None:
        self.dialler = Mux(Role.DIALLER, max_streams=max_streams)
        self.listener = Mux(Role.LISTENER, max_streams=max_streams)
        self.ends = (self.dialler, self.listener)
        self.under_way: tuple[deque[bytes], deque[bytes]] = (deque(), deque())

    def post(self) -> None:
        """Put what both sides want to send on its way."""
        for end, mux in enumerate(self.ends):
            while parts := mux.outgoing():
                self.under_way[1 - end].extend(frames_of(b"".join(parts)))

    def deliver(self, end: int, count: int | None = None) -> list[Event]:
        """Let the next ``count`` frames arrive at an end, all of them by default, in as few messages as possible."""
        self.post()
        queue = self.under_way[end]
        events: list[Event] = []
        left = len(queue) if count is None else min(count, len(queue))
        while left:
            message = b""
            while left and len(message) + len(queue[0]) <= MAX_MESSAGE:
                message += queue.popleft()
                left -= 1
            events += self.ends[end].receive(message)
        return events

    def pump(self) -> tuple[list[Event], list[Event]]:
        """Deliver until nothing is on its way; what dialler and listener learnt."""
        events: tuple[list[Event], list[Event]] = ([], [])
        self.post()
        while any(self.under_way):
            for end in (0, 1):
                events[end].extend(self.deliver(end))
            self.post()
        return events

    def to_listener(self) -> list[Event]:
        """Pump, and see what the listener learnt; the dialler has to learn nothing."""
        dialler, listener = self.pump()
        assert dialler == []
        return listener

    def to_dialler(self) -> list[Event]:
        dialler, listener = self.pump()
        assert listener == []
        return dialler
