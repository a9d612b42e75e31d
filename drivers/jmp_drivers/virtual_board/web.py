"""The service behind the board's network port: a tiny HTTP/1.1 server, one request a connection (RFC 9112)."""

from __future__ import annotations

import json

from jmp_drivers.virtual_board.system import System

HEAD_LIMIT = 8192
"""Bytes of a request's head, as common servers allow."""


def complete(received: bytes | bytearray) -> bool:
    """Whether this much of a connection's input can be answered."""
    return b"\r\n\r\n" in received or b"\n\n" in received or len(received) > HEAD_LIMIT


def respond(received: bytes | bytearray, system: System) -> bytes:
    """The whole response to what has been received. The server closes the connection after it."""
    if len(received) > HEAD_LIMIT:
        return _response("431 Request Header Fields Too Large", "the request's head is too long\n")
    match received.split(b"\n", 1)[0].decode("ascii", "replace").split():
        case ["GET" | "HEAD" as method, path, version] if version.startswith("HTTP/1."):
            head_only = method == "HEAD"
            if path.split("?")[0] == "/":
                facts = {
                    "hostname": system.hostname,
                    "uptime": round(system.uptime, 2),
                    "name": system.image.name,
                    "version": system.image.version,
                }
                return _response("200 OK", json.dumps(facts) + "\n", "application/json", head_only=head_only)
            return _response("404 Not Found", "this board serves / only\n", head_only=head_only)
        case [_, _, version] if version.startswith("HTTP/1."):
            return _response(
                "405 Method Not Allowed", "this board answers GET and HEAD only\n", extra="Allow: GET, HEAD\r\n"
            )
        case _:
            return _response("400 Bad Request", "this is not an HTTP/1 request\n")


def _response(status: str, text: str, kind: str = "text/plain", *, extra: str = "", head_only: bool = False) -> bytes:
    body = text.encode()
    head = (
        f"HTTP/1.1 {status}\r\nServer: jmp-virtual-board\r\nContent-Type: {kind}; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n{extra}Connection: close\r\n\r\n"
    )
    return head.encode() + (b"" if head_only else body)
