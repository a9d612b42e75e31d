"""One HTTP request on Trio: what a relay needs, and nothing more (no redirects, no proxies, no connection kept)."""

from __future__ import annotations

import base64
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import h11
import trio

from jmp_drivers._reason import reason

_MAX_BODY = 1024 * 1024  # bytes; a relay's answer is a line or a page


class HttpError(Exception):
    """No answer was to be had. The message says why and names neither target nor credentials."""


@dataclass(frozen=True)
class Response:
    status: int
    reason: str
    body: bytes
    headers: dict[str, str]
    """By name in lower case; of a name that is there twice, the last."""


def basic(username: str, password: str | None) -> str:
    """The value of ``Authorization`` for a name and a password."""
    return f"Basic {base64.b64encode(f'{username}:{password}'.encode()).decode()}"


async def request(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    body: bytes = b"",
    verify: bool = True,
    longest: int = _MAX_BODY,
) -> Response:
    """Send one request and read the answer, whatever its status; `verify` asks for a valid certificate.

    Raises `HttpError`. Waits for ever; the time-out belongs to the caller, and cancellation closes the connection.
    """
    async with opened(method, url, headers=headers, body=body, verify=verify) as (answer, pieces):
        received = bytearray()
        async for piece in pieces:
            received += piece
            if len(received) > longest:
                raise HttpError(f"its answer is longer than {longest} bytes")
        return replace(answer, body=bytes(received))


@asynccontextmanager
async def opened(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    body: bytes = b"",
    verify: bool = True,
    path: Path | None = None,
) -> AsyncIterator[tuple[Response, AsyncIterator[bytes]]]:
    """Send one request; the answer without its body, and that in pieces as it comes, for as long as the block lasts.

    With ``path`` the server is at that Unix socket. Raises `HttpError`, in the block too.
    """
    target = urlsplit(url)
    host, secure = target.hostname or "", target.scheme == "https"
    head = h11.Request(
        method=method,
        target=(target.path or "/") + (f"?{target.query}" if target.query else ""),
        headers=[
            ("Host", target.netloc.rpartition("@")[2]),
            ("Connection", "close"),
            ("Content-Length", str(len(body))),
            *headers.items(),
        ],
    )
    with _explained():
        if path is not None:
            stream: trio.abc.Stream = await trio.open_unix_socket(path)
        else:
            stream = await trio.open_tcp_stream(host, target.port or (443 if secure else 80))
        if secure:
            stream = trio.SSLStream(stream, _tls(verify), server_hostname=host, https_compatible=True)
        async with stream:
            connection = h11.Connection(h11.CLIENT)
            out = [connection.send(event) for event in (head, h11.Data(data=body), h11.EndOfMessage())]
            await stream.send_all(b"".join(part for part in out if part))
            while not isinstance(answer := connection.next_event(), h11.Response):
                if answer is h11.NEED_DATA:
                    connection.receive_data(bytes(await stream.receive_some()))
            names = {name.decode("ascii"): value.decode("latin-1") for name, value in answer.headers}
            response = Response(answer.status_code, answer.reason.decode("latin-1"), b"", names)
            async with aclosing(_pieces(connection, stream)) as pieces:
                yield response, pieces


async def _pieces(connection: h11.Connection, stream: trio.abc.Stream) -> AsyncGenerator[bytes, None]:
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some()))
        elif isinstance(event, h11.Data):
            yield bytes(event.data)
        elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
            return


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HttpError(reason(error)) from error
    except trio.BrokenResourceError as error:
        raise HttpError(reason(error.__cause__ or error)) from error
    except h11.RemoteProtocolError as error:
        raise HttpError(f"it does not speak HTTP properly: {error}") from error


def _tls(verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
