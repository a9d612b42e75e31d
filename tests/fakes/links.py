"""Listeners, certificates and bare-handed peers to test links against."""

from __future__ import annotations

import datetime
import functools
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from jmp.errors import LinkLost
from jmp.link.address import parse
from jmp.link.rfc6455 import ClientHandshake
from jmp.link.tls import fingerprint_of, server_context
from jmp.link.websocket import UpgradeRequest, WebSocketLink, serve

KINDS = ("unix", "ws", "wss")


class Certificate(NamedTuple):
    """A self-signed certificate for localhost and 127.0.0.1, with its key, as PEM."""

    pem: bytes
    key: bytes
    fingerprint: str

    def context(self, directory: Path) -> ssl.SSLContext:
        """A listener's context; leaves ``cert.pem`` and ``key.pem`` in the directory."""
        (directory / "cert.pem").write_bytes(self.pem)
        (directory / "key.pem").write_bytes(self.key)
        return server_context(directory / "cert.pem", directory / "key.pem")


@functools.cache
def certificate() -> Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Certificate(
        made.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        fingerprint_of(made.public_bytes(serialization.Encoding.DER)),
    )


async def listen(kind: str, directory: Path) -> tuple[str, list[trio.SocketListener]]:
    """Listen for ``unix``, ``ws`` or ``wss``; return the URL, too."""
    if kind == "unix":
        sock = trio.socket.socket(trio.socket.AF_UNIX)
        await sock.bind(str(directory / "socket"))
        sock.listen(100)
        return f"unix:{directory / 'socket'}", [trio.SocketListener(sock)]
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    return f"{kind}://127.0.0.1:{listeners[0].socket.getsockname()[1]}", listeners


async def echo(link: WebSocketLink, identity: object) -> None:
    """Send every message back."""
    try:
        while True:
            message = await link.receive()
            if not link.send_nowait([message]):
                await link.send([message])
    except LinkLost:
        pass


async def anyone(request: UpgradeRequest) -> UpgradeRequest:
    """Let everybody in."""
    return request


@asynccontextmanager
async def serving(
    kind: str,
    directory: Path,
    handler: Callable[[WebSocketLink, UpgradeRequest], Awaitable[object]] = echo,
    authenticate: Callable[[UpgradeRequest], Awaitable[UpgradeRequest]] = anyone,
    *,
    max_strangers: int = 64,
    max_waiting: int = 1024,
    handshake_seconds: float = 10.0,
    max_message: int = 1 << 20,
) -> AsyncIterator[str]:
    """Run a listener, and yield its URL, for 20 s at most; a handler's task is cancelled at the end."""
    url, listeners = await listen(kind, directory)

    async def run(task_status: trio.TaskStatus[object]) -> None:
        await serve(
            listeners,
            authenticate,
            handler,
            tls=certificate().context(directory) if kind == "wss" else None,
            max_message=max_message,
            max_strangers=max_strangers,
            max_waiting=max_waiting,
            handshake_seconds=handshake_seconds,
            task_status=task_status,
        )

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(run)
            yield url
            nursery.cancel_scope.cancel()


async def dial(url: str) -> trio.SocketStream:
    """Connect, and say nothing yet."""
    address = parse(url)
    if address.scheme == "unix":
        return await trio.open_unix_socket(address.path)
    return await trio.open_tcp_stream(address.host, address.port)


async def upgraded(url: str) -> trio.SocketStream:
    """Connect, and shake hands as a client; the frames are the caller's."""
    stream = await dial(url)
    handshake = ClientHandshake("localhost")
    await stream.send_all(handshake.request)
    while handshake.feed(await stream.receive_some(1)) is None:
        pass  # byte by byte, to leave the frames that follow
    return stream


async def read_exactly(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = await stream.receive_some(size - len(data))
        assert piece, f"the stream ended after {bytes(data)!r}"
        data += piece
    return bytes(data)


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    data = bytearray()
    async for piece in stream:
        data += piece
    return bytes(data)
