"""Links carry whole binary messages between two processes, in order, and know nothing of what they mean.

``address``    where a link leads: URLs taken apart
``rfc6455``    bytes ↔ WebSocket messages, sans-I/O: the data path of every WebSocket link
``tls``        ciphertext ↔ plaintext, sans-I/O; certificates and their fingerprints
``websocket``  Trio links: client and listener, over TCP, TLS and Unix sockets
``blocking``   the same for a client without an event loop, on blocking sockets
``resume``     a session over one link after another, sans-I/O: what is sent again, and what is not
``resumable``  the same as a Trio link
``sessions``   which session a link that was accepted belongs to
``blocking_resumable``  the same as a blocking link
``memory``     a pair of links in one process, with delay, stall and cut for tests
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence


class Link(ABC):
    """Carries whole binary messages, in order, both ways.

    ``peer`` names the other end for logs and errors. All methods but :meth:`aclose` raise
    :class:`~jmp.errors.LinkLost` once the link has ended, for whatever reason, and
    :class:`~jmp.errors.ProtocolViolation` when the other end broke the link's own rules.
    """

    peer: str

    def send_nowait(self, parts: Sequence[bytes | memoryview]) -> bool:
        """Send the message made of ``parts``, joined, if that takes no waiting.

        False means that nothing was taken; :meth:`send` has to be used. Never to be called while a
        :meth:`send` is under way.
        """
        return False

    @abstractmethod
    async def send(self, parts: Sequence[bytes | memoryview]) -> None:
        """Send the message made of ``parts``, joined. One task at a time. Cancelled: it was not sent, the link stays whole."""

    def receive_nowait(self) -> bytes | None:
        """The next message if it has been read already; None: it has not, and :meth:`receive` waits for it."""
        return None

    async def send_each(self, messages: Sequence[bytes]) -> None:
        """Send several messages, which leave together if the link can do that. Cancelled: each was sent whole or not at all."""
        for message in messages:
            if not self.send_nowait((message,)):
                await self.send((message,))

    @abstractmethod
    async def receive(self) -> bytes:
        """Wait for the next message. One task at a time; cancellation loses nothing."""

    @abstractmethod
    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Say good-bye with a close code and reason (RFC 6455, section 7.4), then close. May be called again."""

    @abstractmethod
    def abort(self, reason: str) -> None:
        """Take the connection for lost, at once and without a good-bye: :meth:`receive` raises ``LinkLost`` with ``reason``."""

    def arrived(self, position: int) -> bool | None:
        """Whether the first ``position`` bytes of all that was sent have arrived at the other end; None: that is not known."""
        return None
