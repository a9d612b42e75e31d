"""Who waits for news of what. A listener misses nothing that is told between two waits."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import trio


class Listener:
    """Somebody who waits; made by :meth:`News.listen`."""

    def __init__(self) -> None:
        self._told = trio.Event()

    async def wait(self) -> None:
        """Wait for news since the last wait, or since the beginning. Cancelled, it loses none."""
        await self._told.wait()
        self._told = trio.Event()


class News:
    """Topics, which need no making, and their listeners."""

    def __init__(self) -> None:
        self._listeners: dict[Hashable, set[Listener]] = {}

    @contextmanager
    def listen(self, *topics: Hashable) -> Iterator[Listener]:
        """A listener of all ``topics`` for the length of a block."""
        listener = Listener()
        for topic in topics:
            self._listeners.setdefault(topic, set()).add(listener)
        try:
            yield listener
        finally:
            for topic in topics:
                self._listeners[topic].discard(listener)
                if not self._listeners[topic]:
                    del self._listeners[topic]

    def has_listener(self, topic: Hashable) -> bool:
        """Whether anybody listens to ``topic``."""
        return topic in self._listeners

    def tell(self, topic: Hashable) -> None:
        """Wake all who listen to ``topic``."""
        for listener in self._listeners.get(topic, ()):
            listener._told.set()
