"""A web server for one page and the byte stream that it shows, at an address of this machine.

Whoever knows the address of the page, a random word of which is a secret, may use the device: so it is bound to loopback, and a
request is answered only if it names this server as its host (a foreign name that leads here is none) and, where it opens the
stream, comes from a page of this server. The stream is reached by a Unix socket that only this user can connect to.
"""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from importlib.resources import files
from itertools import count
from typing import Final, NamedTuple

import h11
import trio
import wsproto
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, TextMessage

from jmp.client.adapters.listen import Bound
from jmp.errors import JmpError

_Say = Callable[[wsproto.events.Event], Awaitable[None]]
SECONDS: Final = 15.0
"""How long a request may take to come."""
_PIECE: Final = 64 * 1024
_MAX_HEAD: Final = 16 * 1024
_LONGEST_REASON: Final = 123
"""Bytes that fit into a WebSocket's last word."""
_FAILED: Final = 4000
"""Code of a WebSocket's end by an error: this, and the error's exit code. 4075 is a console that another client writes to."""
_TYPES: Final[Mapping[str, str]] = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "mjs": "text/javascript; charset=utf-8",
    "json": "application/json",
}
_SAFE: Final = (
    # Nothing from elsewhere. xterm.js and noVNC set styles of elements, and noVNC draws pictures that it makes.
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
        "img-src 'self' data: blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
    ("Cache-Control", "no-store"),
)


class Page(NamedTuple):
    """What is served."""

    name: str
    """``console`` or ``screen``."""
    title: str
    watch: bool
    """Only to look at."""


class Server:
    """One page, and its stream; ``why`` tells what error ended the connection to that from an address.

    ``ports`` are the ways to have the stream, with the Unix socket of each: "" is how the user has asked for it.
    """

    def __init__(
        self, page: Page, bound: Bound, ports: Mapping[str, str], why: Callable[[str], JmpError | None]
    ) -> None:
        host = f"[{bound.host}]" if ":" in bound.host else bound.host
        self._hosts = {f"{host}:{bound.port}", f"localhost:{bound.port}"}
        self._root = f"/{secrets.token_urlsafe(24)}/"
        self.url = f"http://{host}:{bound.port}{self._root}"
        self._page = page
        self._ports = {f"{self._root}stream/{way}".rstrip("/"): port for way, port in ports.items()}
        self._settings = {"name": page.title, "watch": page.watch, "ways": list(ports)}
        self._why = why
        self._connections = count()

    async def serve(self, sock: socket.socket) -> None:
        """Until cancelled."""
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        await trio.serve_listeners(self._connection, [listener])

    async def _connection(self, stream: trio.SocketStream) -> None:
        """One request: the root of its task."""
        async with stream:
            connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD)
            request: h11.Request | None = None
            try:
                with trio.move_on_after(SECONDS) as patience:
                    request = await _request(connection, stream)
                    if request is None:
                        return
                    headers = {name.decode("ascii"): value.decode("latin-1") for name, value in request.headers}
                    if headers.get("upgrade", "").lower() != "websocket":
                        await _send(connection, stream, *self._answer(request, headers))
                        await _take_leave(stream)
                        return
                    if (refusal := self._refusal(request, headers)) is not None:
                        await _send(connection, stream, *refusal)
                        return
            except h11.RemoteProtocolError:
                return
            except trio.BrokenResourceError:
                return
            if request is not None and not patience.cancelled_caught:
                await self._join(stream, request, connection.trailing_data[0])

    # ---- pages

    def _answer(self, request: h11.Request, headers: Mapping[str, str]) -> tuple[int, str, bytes]:
        """Status, type and content."""
        if headers.get("host") not in self._hosts:
            return 421, "html", b"this is another server"
        target = request.target.partition(b"?")[0].decode("ascii")
        if request.method != b"GET":
            return 405, "html", b"GET only"
        if not _same(target[: len(self._root)], self._root):
            return 404, "html", b"there is nothing here"
        path = target[len(self._root) :] or f"{self._page.name}.html"
        if path == "settings.json":
            return 200, "json", json.dumps(self._settings).encode()
        kind = path.rpartition(".")[2]
        if kind not in _TYPES or any(part in ("", ".", "..") for part in path.split("/")):
            return 404, "html", b"there is nothing here"
        try:
            return 200, kind, files("jmp.client.web").joinpath(*path.split("/")).read_bytes()
        except OSError:
            return 404, "html", b"there is nothing here"

    # ---- the stream

    def _refusal(self, request: h11.Request, headers: Mapping[str, str]) -> tuple[int, str, bytes] | None:
        """Why the stream is not for this one; None if it is."""
        if headers.get("host") not in self._hosts:
            return 421, "html", b"this is another server"
        if self._port(request) is None:
            return 404, "html", b"there is nothing here"
        if headers.get("origin") != f"http://{headers['host']}":
            return 403, "html", b"this is for this server's own page"
        return None

    def _port(self, request: h11.Request) -> str | None:
        target = request.target.decode("ascii")
        return next((port for path, port in self._ports.items() if _same(target, path)), None)

    async def _join(self, near: trio.SocketStream, request: h11.Request, early: bytes) -> None:
        port = self._port(request)
        assert port is not None  # nobody who asked for another was let in
        web = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
        try:
            web.initiate_upgrade_connection(list(request.headers), request.target)
            out = web.send(AcceptConnection())
        except wsproto.utilities.RemoteProtocolError:
            return
        sending = trio.Lock()

        async def say(event: wsproto.events.Event) -> None:
            async with sending:
                await near.send_all(web.send(event))

        try:
            await near.send_all(out)
            here = f"{port}-{next(self._connections)}"
            with trio.socket.socket(socket.AF_UNIX) as sock:
                await sock.bind(here)  # so that this connection's error can be told from others'
                await sock.connect(port)
                far = trio.SocketStream(sock)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._upward, web, near, far, say, early, nursery.cancel_scope)
                    await self._downward(far, say, partial(self._why, here))
                    nursery.cancel_scope.cancel()
        except* (OSError, trio.BrokenResourceError, wsproto.utilities.LocalProtocolError):
            pass  # whoever looked is gone

    async def _upward(
        self,
        web: wsproto.WSConnection,
        near: trio.SocketStream,
        far: trio.SocketStream,
        say: _Say,
        early: bytes,
        scope: trio.CancelScope,
    ) -> None:
        """What the page sends, until it leaves."""
        data = early
        while True:
            if data:
                web.receive_data(data)
            for event in web.events():
                if isinstance(event, BytesMessage | TextMessage):
                    content = event.data.encode() if isinstance(event.data, str) else bytes(event.data)
                    await far.send_all(content)
                elif isinstance(event, Ping):
                    await say(event.response())
                elif isinstance(event, CloseConnection):
                    await say(event.response())
                    scope.cancel()
                    return
            data = bytes(await near.receive_some(_PIECE))
            if not data:
                scope.cancel()
                return

    async def _downward(self, far: trio.SocketStream, say: _Say, why: Callable[[], JmpError | None]) -> None:
        """What the device sends, and at last why it sends no more."""
        try:
            async for data in far:
                await say(BytesMessage(data=bytes(data)))
        except trio.BrokenResourceError:
            pass
        error = why()
        told = "the device has ended it" if error is None else error.message
        while len(told.encode()) > _LONGEST_REASON:
            told = told[:-2].rstrip("…") + "…"
        await say(CloseConnection(code=1000 if error is None else _FAILED + error.exit_code, reason=told))


def _same(one: str, other: str) -> bool:
    return secrets.compare_digest(one.encode(), other.encode())


async def _request(connection: h11.Connection, stream: trio.SocketStream) -> h11.Request | None:
    """The head of the request; None if there is none."""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            return event
        if event is not h11.NEED_DATA:
            return None
        connection.receive_data(bytes(await stream.receive_some(_PIECE)))


async def _send(connection: h11.Connection, stream: trio.SocketStream, status: int, kind: str, body: bytes) -> None:
    headers = [("Content-Type", _TYPES[kind]), ("Content-Length", str(len(body))), ("Connection", "close"), *_SAFE]
    parts = [connection.send(h11.Response(status_code=status, headers=headers))]
    parts += [connection.send(h11.Data(data=body)), connection.send(h11.EndOfMessage())]
    await stream.send_all(b"".join(part or b"" for part in parts))


async def _take_leave(stream: trio.SocketStream) -> None:
    """Say that nothing more comes, and read what still does: closing a socket with unread bytes would destroy the answer."""
    with trio.move_on_after(1.0):
        await stream.send_eof()
        while await stream.receive_some(_PIECE):
            pass
