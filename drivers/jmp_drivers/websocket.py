"""A WebSocket server as a network port."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from dataclasses import field
from urllib.parse import urlsplit

import trio
import wsproto
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)

from jmp.driver import ConfigError, DeviceError, Stream, export, exportstream
from jmp.driver.interfaces import Network
from jmp_drivers._reason import reason
from jmp_drivers._tasks import open_nursery

_Say = Callable[..., Awaitable[None]]
_PIECE = 64 * 1024
_NORMAL = (1000, 1001)  # codes of an end in order
_SHOWN = 200  # characters of a refusal that an error quotes


class WebSocket(Network):
    """A WebSocket server: of a device's own web interface, or websockify's. Each stream is a connection of its own.

    What a client sends goes out as binary messages (``text``: as text), and the content of whatever messages come is what it
    gets. When the client ends its input, the connection is closed in order.
    """

    url: str = field(metadata={"secret": True, "doc": "ws://HOST/PATH or wss://HOST/PATH"})
    subprotocol: str = field(default="", metadata={"doc": "such as binary, which websockify wants"})
    headers: dict[str, str] = field(
        default_factory=dict, metadata={"secret": True, "doc": "more headers, such as Authorization"}
    )
    text: bool = field(default=False, metadata={"doc": "send text messages"})
    verify: bool = field(default=True, metadata={"doc": "ask for a valid certificate"})
    timeout: float = field(default=10.0, metadata={"doc": "seconds that connecting may take"})

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("ws", "wss") or not parts.hostname:
            raise ConfigError("url: write ws://HOST/PATH or wss://HOST/PATH")
        if not self.timeout > 0:
            raise ConfigError(f"timeout must be more than 0 seconds, not {self.timeout:g}")
        self._parts = parts
        self._target = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"  # the path may hold a secret

    @export
    async def address(self) -> str:
        return self._target

    @exportstream
    async def connect(self, stream: Stream) -> None:
        web = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        try:
            with trio.fail_after(self.timeout):
                server = await self._open()
                try:
                    await self._shake_hands(web, server)
                except BaseException:
                    await trio.aclose_forcefully(server)
                    raise
        except trio.TooSlowError:
            raise DeviceError(f"cannot connect to {self._target}: no answer within {self.timeout:g} s") from None
        except OSError as error:
            raise DeviceError(f"cannot connect to {self._target}: {reason(error)}") from error
        except trio.BrokenResourceError as error:
            raise DeviceError(f"cannot connect to {self._target}: {reason(error.__cause__ or error)}") from error
        except wsproto.utilities.RemoteProtocolError as error:
            raise DeviceError(f"{self._target} does not speak WebSocket: {error}") from error
        sending = trio.Lock()

        async def say(event: wsproto.events.Event, state: ConnectionState = ConnectionState.OPEN) -> None:
            async with sending:
                if web.state is state:  # while it waited for its turn, the server may have closed
                    await server.send_all(web.send(event))

        try:
            async with server, open_nursery() as nursery:
                nursery.start_soon(self._outward, stream, web, say)
                await self._inward(stream, web, server, say)
                nursery.cancel_scope.cancel()
        except trio.BrokenResourceError as error:
            raise DeviceError(f"{self._target} broke the connection: {reason(error.__cause__)}") from error
        await stream.send_eof()

    async def _open(self) -> trio.abc.Stream:
        secure = self._parts.scheme == "wss"
        host = self._parts.hostname or ""
        stream: trio.abc.Stream = await trio.open_tcp_stream(host, self._parts.port or (443 if secure else 80))
        if secure:
            context = ssl.create_default_context()
            if not self.verify:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            stream = trio.SSLStream(stream, context, server_hostname=host)
        return stream

    async def _shake_hands(self, web: wsproto.WSConnection, server: trio.abc.Stream) -> None:
        parts = self._parts
        request = Request(
            host=parts.netloc.rpartition("@")[2],
            target=(parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
            subprotocols=[self.subprotocol] if self.subprotocol else [],
            extra_headers=[(name.encode(), value.encode()) for name, value in self.headers.items()],
        )
        await server.send_all(web.send(request))
        refusal: int | None = None
        words = b""
        while True:
            data = bytes(await server.receive_some(_PIECE))
            web.receive_data(data or None)
            for event in web.events():
                if isinstance(event, AcceptConnection):
                    return
                if isinstance(event, RejectConnection):
                    refusal = event.status_code
                elif isinstance(event, RejectData):
                    words += event.data
                if refusal is not None and (
                    (isinstance(event, RejectConnection) and not event.has_body)
                    or (isinstance(event, RejectData) and event.body_finished)
                ):
                    said = " ".join(words.decode(errors="replace").split())[:_SHOWN]
                    raise DeviceError(f"{self._target} refuses the connection: status {refusal}{said and f': {said}'}")
            if not data:
                raise DeviceError(f"{self._target} closed the connection before it was one")

    async def _outward(self, stream: Stream, web: wsproto.WSConnection, say: _Say) -> None:
        async for data in stream:
            if web.state is not ConnectionState.OPEN:
                return  # the server closes; how, the other direction tells
            content = bytes(data)
            message = TextMessage(data=content.decode(errors="replace")) if self.text else BytesMessage(data=content)
            await say(message)
        await say(CloseConnection(code=1000))

    async def _inward(self, stream: Stream, web: wsproto.WSConnection, server: trio.abc.Stream, say: _Say) -> None:
        """Until the server closes."""
        while True:
            for event in web.events():
                if isinstance(event, BytesMessage):
                    await stream.send_all(bytes(event.data))
                elif isinstance(event, TextMessage):
                    await stream.send_all(event.data.encode())
                elif isinstance(event, Ping):
                    await say(event.response())
                elif isinstance(event, CloseConnection):
                    await say(event.response(), ConnectionState.REMOTE_CLOSING)
                    if event.code not in _NORMAL:
                        why = f": {event.reason}" if event.reason else ""
                        raise DeviceError(f"{self._target} closed the connection with code {event.code}{why}")
                    return
            data = bytes(await server.receive_some(_PIECE))
            if not data:
                raise DeviceError(f"{self._target} broke the connection: it was closed")
            web.receive_data(data)
