"""WebSocket links under Trio, over TCP, TLS and Unix sockets: the client's side and the listener's.

Theory of operation. Reading is :meth:`WebSocketLink.receive`, in whatever task calls it: no task and no channel per
message. It also answers pings, so it should be called promptly, by a reader that waits for no consumer.

Writing goes through :class:`_Pipe`: what the system takes at once is written at once, without a checkpoint; what it
does not take waits in ``_rest``, in order, and a Trio system task writes it as the socket drains. While there is a rest
the link accepts no further message (``send_nowait`` says False, ``send`` waits), so it holds one message at most. A
message is thus taken whole or not at all, whoever is cancelled; and a pong can never split a message: it is written
when there is no rest, or else by the system task once the rest is out.

Of wsproto only the server's opening handshake is used; this is the only file that imports it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, NoReturn, TypeVar

import trio

from jmp.errors import Busy, JmpError, LabError, LinkLost, ProtocolViolation, Refused, UsageError
from jmp.link import Link
from jmp.link.address import Address, parse
from jmp.link.rfc6455 import (
    ERROR_HEADER,
    MAX_HEAD,
    MAX_MESSAGE,
    SUBPROTOCOL,
    Buffer,
    ClientHandshake,
    Closed,
    Codec,
    Violation,
)
from jmp.link.sources import RATE, Sources
from jmp.link.tls import Tls, client_context

log = logging.getLogger(__name__)

CLOSE_SECONDS: Final = 1.0
"""How long a polite close may take: a round trip to a far lab and then some; a dead peer must not delay an exit."""

_READ: Final = 256 << 10  # bytes read at once; measured, like the next one, see the project's notes on speed
_SKIP_SECONDS: Final = 0.05
"""Between two reads of what nobody looks at: it may come as fast as the machine can, and others have something to do."""
_SEND_BUFFER: Final = 1 << 20
_MAX_BUFFERS: Final = 512  # below IOV_MAX of every system
_BLAMED: Final = 1002
"""The close code for who breaks the rules (RFC 6455, section 7.4.1)."""
_CLOSED_HERE: Final = "this side closed the connection"
_MAPPED: Final = bytes(10) + b"\xff\xff"
"""How an IPv6 address begins that is an IPv4 one."""
_NO_PAGES: Final[Mapping[str, tuple[str, bytes]]] = {}

Identity = TypeVar("Identity")


class _Pipe:
    """A connected socket, with TLS or without: bytes in, bytes out without waiting.

    ``refill`` is asked for more to write each time that a rest is written.
    """

    def __init__(self, sock: trio.socket.SocketType) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self.refill: Callable[[], bytes] = bytes
        self._socket = sock
        self._number = sock.fileno()  # -1 once it is closed here; asking the socket takes longer than a short read
        self._tls: Tls | None = None
        self.shaking = False
        """Whether a TLS handshake has begun here: it has cost something."""
        self._early = b""
        self._rest = memoryview(b"")
        self._drained = trio.lowlevel.ParkingLot()
        self._failed: LinkLost | ProtocolViolation | None = None

    @property
    def busy(self) -> bool:
        """Whether something written waits for the system to take it; then nothing more may be written."""
        return bool(self._rest)

    async def start_tls(self, tls: Tls) -> None:
        """Shake hands. Raises as :meth:`Tls.handshake` does, and LinkLost."""
        while True:
            done, reply = tls.handshake()
            if reply:
                self.write([reply])
                await self.flush()
            if done:
                break
            tls.feed(await self.receive())
            self.shaking = True
        self._tls = tls
        self._early = tls.decrypt() or b""

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Write all of it now, or as soon as the system takes it. Raises LinkLost."""
        if self._failed is not None:
            raise self._failed
        if self._tls is not None:
            buffers = [self._tls.encrypt(buffers)]
        elif len(buffers) > _MAX_BUFFERS:
            buffers = [b"".join(buffers)]
        written = self._push(buffers)
        if written < sum(map(len, buffers)):
            self._rest = memoryview(b"".join(buffers))[written:]
            # Not in anyone's nursery, because the write must be completed even if the writer is cancelled. It ends when
            # the rest is written or the socket is closed.
            trio.lowlevel.spawn_system_task(self._drain)

    async def flush(self) -> None:
        """Wait until nothing waits to be written. Raises LinkLost."""
        while self._rest:
            await self._drained.park()
        if self._failed is not None:
            raise self._failed

    async def receive(self) -> bytes:
        """Wait for the next bytes, ``b""`` at their end. Raises LinkLost. Cancellation loses nothing."""
        if self._early:
            data, self._early = self._early, b""
            return data
        while True:
            if self._number < 0:
                raise LinkLost(_CLOSED_HERE)
            try:
                # Not the socket's own recv: that would try first, which is in vain whenever an answer is waited for.
                await trio.lowlevel.wait_readable(self._number)
                data = os.read(self._number, _READ)
            except BlockingIOError:
                continue
            except trio.ClosedResourceError:
                raise LinkLost(_CLOSED_HERE) from None
            except OSError as error:
                raise _broken(error) from error
            if self._tls is None:
                return data
            self._tls.feed(data)
            plain = self._tls.decrypt()
            if plain is None:
                return b""
            if plain:
                return plain

    async def skip(self) -> None:
        """Read to the end, at leisure, and look at nothing of it; nothing can be written from now on. Raises LinkLost."""
        self._tls = None  # what it holds may be much
        while True:
            try:
                await trio.lowlevel.wait_readable(self._number)
                if not os.read(self._number, _READ):
                    return
                await trio.sleep(_SKIP_SECONDS)
            except BlockingIOError:
                continue
            except trio.ClosedResourceError:
                raise LinkLost(_CLOSED_HERE) from None
            except OSError as error:
                raise _broken(error) from error

    def end_output(self) -> None:
        """Tell the other side that nothing more comes."""
        with contextlib.suppress(OSError):  # gone already, or told before
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        if self._failed is None:
            self._failed = LinkLost(_CLOSED_HERE)
        self._rest = memoryview(b"")
        self._drained.unpark_all()
        self._number = -1
        self._socket.close()

    async def _drain(self) -> None:
        """Write the rest. A system task, so it must not raise."""
        try:
            while self._rest:
                await trio.lowlevel.wait_writable(self._number)
                self._rest = self._rest[self._push([self._rest]) :]
                if not self._rest and (more := self.refill()):
                    self._rest = memoryview(more if self._tls is None else self._tls.encrypt([more]))
        except (LinkLost, ProtocolViolation) as error:
            self._failed = error
        except trio.ClosedResourceError:
            pass
        self._rest = memoryview(b"")
        self._drained.unpark_all()

    def _push(self, buffers: Sequence[Buffer]) -> int:
        """Give the system what it takes; return how many bytes that were. Raises LinkLost."""
        try:
            return os.write(self._number, buffers[0]) if len(buffers) == 1 else os.writev(self._number, buffers)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._failed = _broken(error)
            raise self._failed from error


def _broken(error: OSError) -> LinkLost:
    return LinkLost(f"the connection broke: {error.strerror or error}")


class WebSocketLink(Link):
    """A link over one WebSocket connection; made by :func:`connect` and :func:`serve`."""

    def __init__(self, pipe: _Pipe, codec: Codec, peer: str) -> None:
        self.peer = peer
        self._pipe = pipe
        self._codec = codec
        self._end: LinkLost | ProtocolViolation | None = None
        self._closing = False
        self._blamed = False
        self._receiving = False
        self._reader_left = trio.lowlevel.ParkingLot()
        pipe.refill = codec.take_replies

    @property
    def blamed(self) -> bool:
        """Whether the link ended because the other side broke the rules."""
        return self._blamed or isinstance(self._end, Violation)

    def send_nowait(self, parts: Sequence[Buffer]) -> bool:
        if self._end is not None:
            raise self._end
        if self._pipe.busy:
            return False
        self._pipe.write(self._codec.encode(parts))
        return True

    async def send(self, parts: Sequence[Buffer]) -> None:
        """As in :class:`~jmp.link.Link`; but cancelled, the message is not sent and the link stays whole."""
        await trio.lowlevel.checkpoint()
        while not self.send_nowait(parts):
            await self._pipe.flush()

    def receive_nowait(self) -> bytes | None:
        if self._end is not None:
            raise self._end
        return self._next_message()

    def _next_message(self) -> bytes | None:
        try:
            message = self._codec.next_message()
        except (Closed, Violation) as end:
            self._end = end
            self._reply()
            raise
        if self._codec.has_replies:
            self._reply()
        return message

    async def send_each(self, messages: Sequence[bytes]) -> None:
        """As in :class:`~jmp.link.Link`: all of them in one write. Without a checkpoint if that takes no waiting."""
        while self._end is None and self._pipe.busy:
            await self._pipe.flush()
        if self._end is not None:
            raise self._end
        self._pipe.write([buffer for message in messages for buffer in self._codec.encode((message,))])

    async def receive(self) -> bytes:
        """As in :class:`~jmp.link.Link`. Without a checkpoint when a message has already been read."""
        if self._end is not None:
            raise self._end
        while (message := self._next_message()) is None:
            self._receiving = True
            try:
                data = await self._pipe.receive()
            except (LinkLost, ProtocolViolation) as end:
                self._end = self._end or end
                raise self._end from end.__cause__
            finally:
                self._receiving = False
                if self._closing:
                    self._reader_left.unpark_all()
            if not data:
                self._end = LinkLost("the other side ended the connection without a good-bye")
                raise self._end
            self._codec.feed(data)
        return message

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """As in :class:`~jmp.link.Link`; takes at most :data:`CLOSE_SECONDS`. On cancellation closes at once."""
        if self._closing:
            await trio.lowlevel.checkpoint()
            return
        self._closing = True
        self._blamed = self.blamed or code == _BLAMED
        self._end = self._end or LinkLost(_CLOSED_HERE)
        try:
            with trio.move_on_after(CLOSE_SECONDS):
                await self._pipe.flush()
                self._pipe.write([self._codec.take_replies(), self._codec.encode_close(code, reason)])
                await self._pipe.flush()
                while self._receiving:
                    await self._reader_left.park()
                if not isinstance(self._end, Closed):
                    await self._discard()
        except (LinkLost, ProtocolViolation):
            pass  # it is closed below in any case
        finally:
            self._pipe.close()

    def abort(self, reason: str) -> None:
        self._end = self._end or LinkLost(reason)
        self._pipe.close()

    async def _discard(self) -> None:
        """Read until the other side has closed too: closing a socket that holds unread bytes would destroy ours."""
        if isinstance(self._end, Violation):  # its good-bye cannot be made out, and much else may come
            await self._pipe.skip()
            return
        while data := await self._pipe.receive():
            self._codec.feed(data)
            try:
                while self._codec.next_message() is not None:
                    pass
            except Closed:
                return
            except Violation:
                self._pipe.end_output()  # its good-bye cannot be made out any more: it goes when we have ended
            if self.blamed:  # much else may come
                del data
                await trio.sleep(_SKIP_SECONDS)

    def _reply(self) -> None:
        if self._pipe.busy:
            return  # refilled when the rest is out
        # What can still be read is worth reading, and then says itself that the link is lost.
        with contextlib.suppress(LinkLost):
            self._pipe.write([self._codec.take_replies()])


async def connect(
    url: str,
    *,
    token: str | None = None,
    fingerprint: str | None = None,
    ca: str | os.PathLike[str] | None = None,
    headers: Iterable[tuple[str, str]] = (),
    max_message: int = MAX_MESSAGE,
) -> WebSocketLink:
    """Connect to a jmp at ``unix:/path``, ``ws://host:port`` or ``wss://host:port``.

    ``token`` authenticates this side. With ``fingerprint`` (SHA-256, hex) the server's certificate has to be that one,
    and is not verified otherwise; else it is verified as usual, against ``ca`` if given. Nothing but the TLS handshake
    is sent before that. How long it may take is up to the caller.

    Raises :class:`~jmp.errors.LabError` if nothing answers there, and as :class:`~jmp.link.rfc6455.ClientHandshake` does.
    """
    address = parse(url)
    if fingerprint is not None and address.scheme != "wss":
        raise UsageError(f"a fingerprint needs a wss:// address, not {address}")
    handshake = ClientHandshake(
        address.authority, "/" if address.scheme == "unix" else address.path, token=token, headers=headers
    )
    pipe = _Pipe(await _dial(address))
    try:
        if address.scheme == "wss":
            tls = Tls(client_context(ca=ca, pinned=fingerprint is not None), server_side=False, hostname=address.host)
            await pipe.start_tls(tls)
            if fingerprint is not None:
                tls.check_fingerprint(fingerprint)
        pipe.write([handshake.request])
        while (early := handshake.feed(await pipe.receive())) is None:
            pass
    except BaseException:
        pipe.close()
        raise
    codec = Codec(client=True, mask=address.scheme == "ws", max_message=max_message)
    codec.feed(early)
    return WebSocketLink(pipe, codec, str(address))


async def _dial(address: Address) -> trio.socket.SocketType:
    try:
        if address.scheme == "unix":
            return (await trio.open_unix_socket(address.path)).socket
        return (await trio.open_tcp_stream(address.host, address.port)).socket
    except OSError as error:
        cause: BaseException = error
        if isinstance(error.__cause__, ExceptionGroup):
            # Of several addresses that were tried, the failure of the first one is as telling as any.
            cause = _leaves(error.__cause__)[0]
        raise LabError(f"cannot reach {address}: {_reason(cause)}") from error


def _reason(error: BaseException) -> str:
    """Say why in the system's words. Trio repeats the address in its own."""
    code = getattr(error, "errno", None)
    # A name that is not found has a negative number of another kind.
    return os.strerror(code) if code is not None and code > 0 else getattr(error, "strerror", None) or str(error)


@dataclass(frozen=True)
class UpgradeRequest:
    """What a client said before it was let in. ``headers`` has lower-case names."""

    peer: str
    token: str | None = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)


async def serve(
    listeners: Sequence[trio.SocketListener],
    authenticate: Callable[[UpgradeRequest], Awaitable[Identity]],
    handler: Callable[[WebSocketLink, Identity], Awaitable[object]],
    *,
    tls: ssl.SSLContext | None = None,
    max_message: int = MAX_MESSAGE,
    max_strangers: int = 64,
    max_waiting: int = 1024,
    handshake_seconds: float = 10.0,
    pages: Mapping[str, tuple[str, bytes]] = _NO_PAGES,
    task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Accept connections until cancelled; run ``handler(link, identity)`` for each one, then close it.

    ``authenticate`` decides before the upgrade: it returns an identity, or raises a :class:`~jmp.errors.JmpError` whose
    message the client is told, as 401 for :class:`~jmp.errors.Refused` and as 503 else. Until then a client is a
    stranger: at most ``max_strangers`` are served at once, for ``handshake_seconds`` each; up to ``max_waiting`` more wait
    for their turn, as long (a lab's exporters all come at once after a restart), and those beyond are closed. What goes
    wrong with one connection is logged and never ends the others. An address whose connections are refused, or break the rules,
    again and again is served more slowly (:mod:`jmp.link.sources`). Reports itself started once it accepts; the listeners
    are closed at the end.

    ``pages`` are for everybody: by path their content type and content, such as the CA that a client needs before it trusts us.
    """
    server = _Server(authenticate, handler, tls, max_message, max_strangers, max_waiting, handshake_seconds, pages)
    await trio.serve_listeners(server.serve, list(listeners), task_status=task_status)


class _Rejected(Exception):
    """The client was answered with an HTTP error; the text is for the log."""

    def __init__(self, text: str, *, blamed: bool) -> None:
        super().__init__(text)
        self.blamed = blamed
        """It is the client's fault."""


class _Shown(Exception):
    """The client got the page that it asked for, which was all."""


@dataclass
class _Server(Generic[Identity]):
    authenticate: Callable[[UpgradeRequest], Awaitable[Identity]]
    handler: Callable[[WebSocketLink, Identity], Awaitable[object]]
    tls: ssl.SSLContext | None
    max_message: int
    max_strangers: int
    max_waiting: int
    handshake_seconds: float
    pages: Mapping[str, tuple[str, bytes]]

    def __post_init__(self) -> None:
        self.turns = trio.CapacityLimiter(self.max_strangers)
        self.sources = Sources()

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection: the root of its task."""
        peer = _name(stream.socket)
        source = _source(stream.socket)
        if (wait := self.sources.wait(source, trio.current_time())) > self.handshake_seconds:
            log.debug("%s: closed: too many others from there wait", peer)  # as they were warned of
            stream.socket.close()
            return
        pipe = _Pipe(stream.socket)
        try:
            if (waiting := self.turns.statistics().tasks_waiting) >= self.max_waiting:
                log.warning("%s: closed: %d other connections wait to authenticate", peer, waiting)
                return
            link, identity = await self._let_in(pipe, peer, source, wait)
            try:
                await self._handle(link, identity)
            finally:
                if link.blamed:
                    self._blame(peer, source, 2)  # one of them is what it was given for being let in
        except* trio.TooSlowError:
            log.warning("%s: closed: the opening handshake took over %g s", peer, self.handshake_seconds)
        except* _Shown as shown:
            log.info("%s: %s", peer, _leaves(shown)[0])
        except* LinkLost as errors:
            log.info("%s: %s", peer, "; ".join(str(error) for error in _leaves(errors)))
        except* (JmpError, _Rejected) as errors:
            log.warning("%s: %s", peer, "; ".join(str(error) for error in _leaves(errors)))
        except* Exception:
            log.exception("%s: internal error", peer)
        finally:
            pipe.close()

    async def _let_in(self, pipe: _Pipe, peer: str, source: str, wait: float) -> tuple[WebSocketLink, Identity]:
        """Let a stranger in after ``wait`` seconds, which were those of its source."""
        if wait:
            self.sources.failed(source, trio.current_time())  # until it is seen that it did not
            await trio.sleep(wait)
        try:
            with trio.fail_after(self.handshake_seconds) as patience:
                async with self.turns:
                    patience.deadline = trio.current_time() + self.handshake_seconds
                    welcomed = await self._welcome(pipe, peer)
        except Exception as error:
            if _is_to_blame(error, pipe) != bool(wait):
                if wait:
                    self.sources.succeeded(source, trio.current_time())
                else:
                    self._blame(peer, source)
            raise
        self.sources.succeeded(source, trio.current_time())
        return welcomed

    def _blame(self, peer: str, source: str, times: int = 1) -> None:
        if source and self.sources.failed(source, trio.current_time(), times):
            log.warning("%s: too many connections from there failed: %g a second are served from now on", peer, RATE)

    async def _handle(self, link: WebSocketLink, identity: Identity) -> None:
        try:
            await self.handler(link, identity)
        except Exception:
            await link.aclose(1011, "internal error")
            raise
        finally:
            await link.aclose()

    async def _welcome(self, pipe: _Pipe, peer: str) -> tuple[WebSocketLink, Identity]:
        if self.tls is not None:
            await pipe.start_tls(Tls(self.tls, server_side=True))
            await trio.lowlevel.checkpoint()  # it took long enough for others to have something to do
        head, early = await self._read_head(pipe)
        path = head.split(b" ", 2)[1].decode("latin-1")
        if path in self.pages:
            await _answer(pipe, "200 OK", *self.pages[path])
            raise _Shown(f"was shown {path}")
        # Late: it takes a sixth of the time that Trio takes, and the session of a single command may never be called on.
        import wsproto
        import wsproto.events

        connection = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
        try:
            connection.receive_data(head)
            request = next(connection.events())
        except (wsproto.utilities.RemoteProtocolError, UnicodeError) as error:
            await _reject(pipe, "400 Bad Request", f"this is not a WebSocket handshake: {error}")
        assert isinstance(request, wsproto.events.Request)
        if request.target != "/":
            await _reject(pipe, "404 Not Found", "jmp answers at the path / only")
        if SUBPROTOCOL not in request.subprotocols:
            await _reject(pipe, "400 Bad Request", f"this jmp speaks the WebSocket subprotocol {SUBPROTOCOL} only")
        headers = {name.decode("ascii").lower(): value.decode("latin-1") for name, value in request.extra_headers}
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        token = credentials.strip() if scheme.lower() == "bearer" else None
        try:
            identity = await self.authenticate(UpgradeRequest(peer, token, headers))
        except Refused as error:
            await _reject(pipe, "401 Unauthorized", error.message, ("WWW-Authenticate", "Bearer"))
        except JmpError as error:
            code = Busy.code if isinstance(error, Busy) else LabError.code
            await _reject(pipe, "503 Service Unavailable", error.message, (ERROR_HEADER, code))
        pipe.write([connection.send(wsproto.events.AcceptConnection(subprotocol=SUBPROTOCOL))])
        await pipe.flush()
        codec = Codec(client=False, max_message=self.max_message)
        codec.feed(early)
        return WebSocketLink(pipe, codec, peer), identity

    async def _read_head(self, pipe: _Pipe) -> tuple[bytes, bytes]:
        received = bytearray()
        while True:
            data = await pipe.receive()
            if not data:
                raise LinkLost("the connection ended before the opening handshake")
            received += data
            if not received.startswith(b"GET "[: len(received)]):
                # Said at once, because one that speaks another protocol, TLS say, waits for an answer to what it sent.
                await _reject(pipe, "400 Bad Request", "this is not a WebSocket handshake")
            head, end, early = bytes(received).partition(b"\r\n\r\n")
            if len(head) > MAX_HEAD:
                await _reject(pipe, "431 Request Header Fields Too Large", "the request is too long")
            if end:
                return head + end, early


async def _reject(pipe: _Pipe, status: str, reason: str, *headers: tuple[str, str]) -> NoReturn:
    await _answer(pipe, status, "text/plain; charset=utf-8", reason.encode(), *headers)
    raise _Rejected(f"answered {status}: {reason}", blamed=status.startswith("4"))


async def _answer(pipe: _Pipe, status: str, content_type: str, body: bytes, *headers: tuple[str, str]) -> None:
    lines = [
        f"HTTP/1.1 {status}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *(f"{name}: {value}" for name, value in headers),
    ]
    pipe.write(["\r\n".join([*lines, "", ""]).encode(), body])
    await pipe.flush()


def _name(sock: trio.socket.SocketType) -> str:
    if sock.family == socket.AF_UNIX:
        return f"unix:{sock.getsockname()}"
    try:
        host, port = sock.getpeername()[:2]
    except OSError:
        return "a client that is gone"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _source(sock: trio.socket.SocketType) -> str:
    """Where a connection comes from: its address, or the network of one that may have many; empty for a Unix socket."""
    if sock.family == socket.AF_UNIX:
        return ""
    try:
        host = str(sock.getpeername()[0])
    except OSError:
        return ""
    if ":" in host:
        address = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
        return address.hex() if address.startswith(_MAPPED) else address[:8].hex()
    return host


def _is_to_blame(error: Exception, pipe: _Pipe) -> bool:
    """Whether a stranger was not let in for something that it did."""
    if isinstance(error, _Rejected):
        return error.blamed
    return isinstance(error, ProtocolViolation) or (isinstance(error, LinkLost) and pipe.shaking)


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    return [
        leaf
        for error in group.exceptions
        for leaf in (_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    ]
