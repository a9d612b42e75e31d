"""One HTTP request on Trio: what a relay needs, and nothing more (no redirects, no proxies, no connection kept)."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
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


async def request(
    method: str, url: str, *, headers: Mapping[str, str], body: bytes = b"", verify: bool = True
) -> Response:
    """Send one request and read the answer, whatever its status; `verify` asks for a valid certificate.

    Raises `HttpError`. Waits for ever; the time-out belongs to the caller, and cancellation closes the connection.
    """
    target = urlsplit(url)
    host, secure = target.hostname or "", target.scheme == "https"
    try:
        stream: trio.abc.Stream = await trio.open_tcp_stream(host, target.port or (443 if secure else 80))
        if secure:
            stream = trio.SSLStream(stream, _tls(verify), server_hostname=host, https_compatible=True)
        async with stream:
            return await _converse(
                stream,
                h11.Request(
                    method=method,
                    target=(target.path or "/") + (f"?{target.query}" if target.query else ""),
                    headers=[
                        ("Host", target.netloc.rpartition("@")[2]),
                        ("Connection", "close"),
                        ("Content-Length", str(len(body))),
                        *headers.items(),
                    ],
                ),
                body,
            )
    except OSError as error:
        raise HttpError(reason(error)) from error
    except trio.BrokenResourceError as error:
        raise HttpError(reason(error.__cause__ or error)) from error
    except h11.RemoteProtocolError as error:
        raise HttpError(f"it does not speak HTTP properly: {error}") from error


async def _converse(stream: trio.abc.Stream, head: h11.Request, body: bytes) -> Response:
    connection = h11.Connection(h11.CLIENT)
    out = [connection.send(event) for event in (head, h11.Data(data=body), h11.EndOfMessage())]
    await stream.send_all(b"".join(part for part in out if part))
    answer: h11.Response | None = None
    received = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some()))
        elif isinstance(event, h11.Response):
            answer = event
        elif isinstance(event, h11.Data):
            received += event.data
            if len(received) > _MAX_BODY:
                raise HttpError(f"its answer is longer than {_MAX_BODY} bytes")
        elif isinstance(event, h11.EndOfMessage):
            assert answer is not None
            headers = {name.decode("ascii"): value.decode("latin-1") for name, value in answer.headers}
            return Response(answer.status_code, answer.reason.decode("latin-1"), bytes(received), headers)


def _tls(verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
