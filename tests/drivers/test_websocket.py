"""WebSocket servers as ports: spoken with the library websockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

import pytest
import trio
import wsproto
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as serve_websockets

from jmp.client.interfaces import client_class
from jmp.driver import ConfigError, DeviceError, serve
from jmp_drivers.websocket import WebSocket
from tests.fakes.ports import free_port


@contextmanager
def server(handler: Callable[[ServerConnection], None], port: int = 0, **options: Any) -> Iterator[str]:
    with serve_websockets(handler, "127.0.0.1", port, **options) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{running.socket.getsockname()[1]}/stream?token=geheim"
        finally:
            running.shutdown()
            thread.join()


def echo(connection: ServerConnection) -> None:
    for message in connection:
        connection.send(message)


def on(url: str, **config: Any) -> Any:
    return serve(WebSocket(url=url, **config), class_of=client_class)


def receive(stream: Any, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = stream.receive_some()
        assert more, f"it ended after {len(data)} bytes"
        data += more
    return data


def test_bytes_pass_both_ways_and_the_end_in_order() -> None:
    everything = bytes(range(256)) * 1000
    with server(echo) as url, on(url) as port:
        assert port.address() == url.partition("/stream")[0]
        with port.connect() as stream:
            stream.send_all(everything)
            assert receive(stream, len(everything)) == everything
            stream.send_eof()
            assert stream.receive_some() == b""
        with port.socket() as sock:
            sock.settimeout(60)
            sock.sendall(b"hello")
            assert sock.recv(5) == b"hello"


def test_text_subprotocols_and_headers() -> None:
    seen: list[Any] = []

    def tell(connection: ServerConnection) -> None:
        assert connection.request is not None
        seen.extend([connection.subprotocol, connection.request.headers["Authorization"], connection.request.path])
        seen.append(connection.recv())
        connection.send("grüß dich")

    config = {"text": True, "subprotocol": "binary", "headers": {"Authorization": "Basic x"}}
    with server(tell, subprotocols=["binary"]) as url, on(url, **config) as port, port.connect() as stream:
        stream.send_all("schön".encode())
        assert receive(stream, 11) == "grüß dich".encode()
    assert seen == ["binary", "Basic x", "/stream?token=geheim", "schön"]


def test_what_goes_wrong_is_told() -> None:
    def leave(connection: ServerConnection) -> None:
        connection.recv()
        connection.close(4001, "no more coffee")

    def refuse(connection: ServerConnection, request: object) -> Any:
        return connection.respond(HTTPStatus.FORBIDDEN, "members only")

    absent = f"ws://127.0.0.1:{free_port()}"
    cases: list[tuple[Callable[[ServerConnection], None], dict[str, Any], str]] = [
        (leave, {}, "closed the connection with code 4001: no more coffee"),
        (echo, {"process_request": refuse}, "refuses the connection: status 403: members only"),
    ]
    for handler, options, problem in cases:
        with server(handler, **options) as url, on(url) as port:
            with pytest.raises(DeviceError, match=problem) as caught, port.connect() as stream:  # noqa: PT012
                stream.send_all(b"x")
                receive(stream, 1)
            assert "geheim" not in str(caught.value)
    with on(absent) as port, pytest.raises(DeviceError, match="Connection refused"), port.connect() as stream:
        stream.receive_some()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"ws://127.0.0.1:{silent.getsockname()[1]}"
        late = pytest.raises(DeviceError, match=r"no answer within 0\.2 s")
        with on(url, timeout=0.2) as port, late, port.connect() as stream:
            stream.receive_some()


@pytest.mark.parametrize("turns", range(12))
async def test_both_may_close_at_once(turns: int) -> None:
    """The client closes, and some turns of the driver's scheduler later, so that their words cross in one, the server does."""
    now, done = threading.Event(), threading.Event()

    def close(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            web = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
            web.receive_data(connection.recv(10_000))
            assert list(web.events())
            connection.sendall(web.send(wsproto.events.AcceptConnection()))
            connection.sendall(web.send(wsproto.events.BytesMessage(b"ready")))
            now.wait()
            connection.sendall(web.send(wsproto.events.CloseConnection(1000)))
            done.set()
            while connection.recv(10_000):
                pass

    with trio.fail_after(60), socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=close, args=(listener,))
        thread.start()
        async with on(f"ws://127.0.0.1:{listener.getsockname()[1]}/") as port, port.connect() as stream:
            assert await stream.receive_some() == b"ready"
            await stream.send_eof()
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            now.set()
            done.wait()  # nothing of ours goes on meanwhile
            assert await stream.receive_some() == b""
        thread.join()


@pytest.mark.parametrize("url", ["http://h/", "ws://", "h:80"])
def test_configurations_that_cannot_be(url: str) -> None:
    with pytest.raises(ConfigError, match="write ws://HOST/PATH"):
        WebSocket(url=url)
