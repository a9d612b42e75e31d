"""WebSocket links without an event loop: for threads and for commands that have to start at once.

One thread may send while another one receives. A thread that receives never waits for one that sends: it leaves the answer to
a ping to that one. Imports are light (:mod:`ssl` for ``wss`` only).
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterable, Sequence
from os import PathLike
from time import monotonic
from typing import TYPE_CHECKING, Final

from jmp.errors import LabError, LinkLost, ProtocolViolation, Timeout, UsageError
from jmp.link.address import Address, parse
from jmp.link.interrupts import wait
from jmp.link.rfc6455 import MAX_MESSAGE, Buffer, ClientHandshake, Closed, Codec, Violation

if TYPE_CHECKING:
    from jmp.link.tls import Tls

CLOSE_SECONDS: Final = 1.0
"""How long a polite close may take, see :mod:`jmp.link.websocket`, as for the sizes below."""

_READ: Final = 256 << 10
_SEND_BUFFER: Final = 1 << 20
_MAX_BUFFERS: Final = 512
_CLOSED_HERE: Final = "this side closed the connection"
_NOT_WAITING: Final = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)
"""And no SIGPIPE, whatever the program does with that."""


class BlockingLink:
    """The client's end of a link, made by :func:`connect`. ``peer`` names the other end, as for :class:`~jmp.link.Link`.

    Once the link has ended, sending and receiving raise :class:`~jmp.errors.LinkLost`, or
    :class:`~jmp.errors.ProtocolViolation` if the other end broke the rules.
    """

    def __init__(self, sock: socket.socket, codec: Codec, peer: str) -> None:
        sock.setblocking(True)
        with contextlib.suppress(OSError):  # a Unix socket has no such delay
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self.peer = peer
        self._socket = sock
        self._tls: Tls | None = None
        self._tls_state = threading.Lock()  # OpenSSL's objects take one thread at a time; never held while waiting
        self._codec = codec
        self._polls = {event: select.poll() for event in (select.POLLIN, select.POLLOUT)}
        for event, poll in self._polls.items():  # one thread at a time waits for either
            poll.register(sock.fileno(), event)
        self._early = b""
        self._rest = memoryview(b"")  # of the last thing written; goes out before anything else
        self._reading = threading.Lock()
        self._writing = threading.Lock()
        self._end: LinkLost | ProtocolViolation | None = None
        self._closing = False

    def send(self, parts: Sequence[Buffer]) -> None:
        """Send the message made of ``parts``, joined; returns when the system has taken it."""
        with self._writing:
            if self._closing:
                raise self._end or LinkLost(_CLOSED_HERE)
            if self._end is not None:
                raise self._end
            self._write(self._codec.encode(parts), None)
            if self._codec.has_replies:
                self._write([self._codec.take_replies()], None)
        # The receiving thread may have left one in the very last moment.
        self._reply()

    def receive(self, timeout: float | None = None) -> bytes | None:
        """Wait for the next message; None if none comes within ``timeout`` seconds (0: do not wait)."""
        deadline = None if timeout is None else monotonic() + timeout
        with self._reading:
            if self._end is not None:
                raise self._end
            while True:
                try:
                    message = self._codec.next_message()
                except (Closed, Violation) as end:
                    self._end = end
                    self._reply()
                    raise
                if self._codec.has_replies:
                    self._reply()
                if message is not None:
                    return message
                try:
                    data = self._read(deadline)
                except (LinkLost, ProtocolViolation) as end:
                    self._end = self._end or end
                    raise self._end from end.__cause__
                if data is None:
                    return None
                if not data:
                    self._end = self._end or LinkLost(
                        _CLOSED_HERE if self._closing else "the other side ended the connection without a good-bye"
                    )
                    raise self._end
                self._codec.feed(data)

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Say good-bye, then close; takes at most :data:`CLOSE_SECONDS`. May be called again, and by any thread."""
        if self._closing:
            return
        self._closing = True
        deadline = monotonic() + CLOSE_SECONDS
        try:
            if self._writing.acquire(timeout=CLOSE_SECONDS):
                try:
                    self._write([self._codec.take_replies(), self._codec.encode_close(code, reason)], deadline)
                finally:
                    self._writing.release()
                # A thread that is receiving meets the other side's good-bye itself.
                if self._reading.acquire(timeout=max(0, deadline - monotonic())):
                    try:
                        self._discard(deadline)
                    finally:
                        self._reading.release()
        except (LinkLost, ProtocolViolation, Timeout):
            pass  # it is closed below in any case
        finally:
            self._end = self._end or LinkLost(_CLOSED_HERE)
            self._abandon()

    def abort(self, reason: str) -> None:
        """Take the connection for lost, at once and without a good-bye; a thread that waits for it finds out."""
        self._end = self._end or LinkLost(reason)
        self._closing = True
        self._abandon()

    def arrived(self, position: int) -> bool | None:
        """As in :class:`~jmp.link.Link`: not known here."""
        return None

    def disown(self) -> None:
        """Forget the link without a good-bye: after a fork, in the child, it is the parent's."""
        self._reading, self._writing, self._tls_state = threading.Lock(), threading.Lock(), threading.Lock()
        self._closing = True
        self._end = LinkLost(_CLOSED_HERE)
        self._socket.close()  # the child's handle of it only

    def _abandon(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for it; closing does not
        self._socket.close()

    def _handshake(
        self, handshake: ClientHandshake, tls: Tls | None, fingerprint: str | None, deadline: float | None
    ) -> None:
        if tls is not None:
            while True:
                done, reply = tls.handshake()
                self._write([reply], deadline)
                if done:
                    break
                tls.feed(self._read_in_time(deadline))
            if fingerprint is not None:
                tls.check_fingerprint(fingerprint)
            self._tls = tls
            self._early = tls.decrypt() or b""
        self._write([handshake.request], deadline)
        while (early := handshake.feed(self._read_in_time(deadline))) is None:
            pass
        self._codec.feed(early)

    def _read_in_time(self, deadline: float | None) -> bytes:
        data = self._read(deadline)
        if data is None:
            raise Timeout(f"{self.peer} did not answer in time")
        return data

    def _discard(self, deadline: float) -> None:
        """Read until the other side has closed too: closing a socket that holds unread bytes would destroy ours."""
        while not isinstance(self._end, Closed) and (data := self._read(deadline)):
            self._codec.feed(data)
            try:
                while self._codec.next_message() is not None:
                    pass
            except Closed:
                return
            except Violation:
                continue

    def _reply(self) -> None:
        """Answer without waiting; leave it to the sending thread if there is one."""
        while self._codec.has_replies and self._writing.acquire(blocking=False):
            try:
                # What can still be read is worth reading, and then says itself that the link is lost.
                with contextlib.suppress(LinkLost, ProtocolViolation):
                    if not self._push_rest():
                        return
                    self._put([self._codec.take_replies()])
            finally:
                self._writing.release()

    def _write(self, buffers: Sequence[Buffer], deadline: float | None) -> None:
        """Write all of it. The caller holds ``_writing``."""
        if self._rest:
            self._wait_written(deadline)
        self._put(buffers)
        if self._rest:
            self._wait_written(deadline)

    def _put(self, buffers: Sequence[Buffer]) -> None:
        """Write what the system takes, and keep the rest. The caller has seen to it that there was none."""
        if self._tls is not None:
            with self._tls_state:
                buffers = [self._tls.encrypt(buffers)]
        elif len(buffers) > _MAX_BUFFERS:
            buffers = [b"".join(buffers)]
        written = self._push(buffers)
        if written < sum(map(len, buffers)):
            self._rest = memoryview(b"".join(buffers))[written:]

    def _wait_written(self, deadline: float | None) -> None:
        while not self._push_rest():
            if not self._poll(select.POLLOUT, deadline):
                raise Timeout("the other side took nothing in time")

    def _push_rest(self) -> bool:
        """Write what the system takes of the rest; return whether none is left."""
        if self._rest:
            self._rest = self._rest[self._push([self._rest]) :]
        return not self._rest

    def _push(self, buffers: Sequence[Buffer]) -> int:
        try:
            if len(buffers) == 1:
                return self._socket.send(buffers[0], _NOT_WAITING)
            return self._socket.sendmsg(buffers, [], _NOT_WAITING)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._broken(error) from error

    def _read(self, deadline: float | None) -> bytes | None:
        """Wait for the next bytes, ``b""`` at their end, None past the deadline. The caller holds ``_reading``."""
        if self._early:
            data, self._early = self._early, b""
            return data
        while self._poll(select.POLLIN, deadline):  # and then read: Ctrl-C must not take what has been read
            try:
                data = self._socket.recv(_READ, socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._broken(error) from error
            if self._tls is None:
                return data
            with self._tls_state:
                self._tls.feed(data)
                plain = self._tls.decrypt()
            if plain is None:
                return b""
            if plain:
                return plain
        return None

    def _poll(self, event: int, deadline: float | None) -> bool:
        if self._socket.fileno() < 0:
            raise LinkLost(_CLOSED_HERE)
        poll = self._polls[event]
        # Rounded up, so that it is never polled in vain at the very end.
        left = None if deadline is None else min(max(0, int((deadline - monotonic()) * 1000 + 0.999)), 2**31 - 1)
        return bool(wait(poll.poll, left))

    def _broken(self, error: OSError) -> LinkLost:
        return LinkLost(_CLOSED_HERE if self._closing else f"the connection broke: {error.strerror or error}")


def connect(
    url: str,
    *,
    token: str | None = None,
    fingerprint: str | None = None,
    ca: str | PathLike[str] | None = None,
    headers: Iterable[tuple[str, str]] = (),
    max_message: int = MAX_MESSAGE,
    timeout: float | None = None,
) -> BlockingLink:
    """As :func:`jmp.link.websocket.connect`; raises :class:`~jmp.errors.Timeout` after ``timeout`` seconds."""
    deadline = None if timeout is None else monotonic() + timeout
    address = parse(url)
    if fingerprint is not None and address.scheme != "wss":
        raise UsageError(f"a fingerprint needs a wss:// address, not {address}")
    handshake = ClientHandshake(
        address.authority, "/" if address.scheme == "unix" else address.path, token=token, headers=headers
    )
    tls = None
    if address.scheme == "wss":
        from jmp.link.tls import Tls, client_context

        tls = Tls(client_context(ca=ca, pinned=fingerprint is not None), server_side=False, hostname=address.host)
    codec = Codec(client=True, mask=address.scheme == "ws", max_message=max_message)
    link = BlockingLink(_dial(address, timeout), codec, str(address))
    try:
        link._handshake(handshake, tls, fingerprint, deadline)
    except BaseException:
        link._abandon()
        raise
    return link


def _dial(address: Address, timeout: float | None) -> socket.socket:
    try:
        if address.scheme != "unix":
            return socket.create_connection((address.host, address.port), timeout)
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(timeout)
            sock.connect(address.path)
        except BaseException:
            sock.close()
            raise
        return sock
    except TimeoutError as error:
        raise Timeout(f"{address} did not answer in time") from error
    except OSError as error:
        raise LabError(f"cannot reach {address}: {error.strerror or error}") from error
