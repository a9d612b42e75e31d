"""``j``: the quick way for what is called most, such as ``j power on``; :mod:`jmp.cli.j` for all else.

Nearly all that such a command costs is its imports. The quick way is for calls without arguments, in a session at a Unix socket,
of methods that answer with one value and whose driver has no client class: it does with msgpack and a socket alone what
:mod:`jmp.link`, :mod:`jmp.mux` and :mod:`jmp.rpc` do in general, as docs/protocol.md has it. Whatever it does not understand
before the call is made is left to the general way, which begins anew; what comes after is told by that way's means.
"""

from __future__ import annotations

import os
import sys

_HELLO, _OPEN, _DATA, _END, _CREDIT, _RESET, _PING, _PONG = 0, 1, 2, 3, 4, 6, 7, 8
_TEXT, _BINARY, _CLOSE, _WS_PING, _WS_PONG = 1, 2, 8, 9, 10
_RESULT = b"\x92\x00"
_NONE = b"\xc0"
MAX_REQUEST = 60_000
"""Bytes of what is sent at once: all of it fits into one frame."""


class _Odd(Exception):
    """This is nothing for the quick way."""


class _WasReset(Exception):
    """The call has failed: code and detail."""


_FAILURES = (_Odd, _WasReset, OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, ImportError)
"""What comes of links that end, and of answers that are none."""


def main() -> int:
    """Run the command line in ``sys.argv``; returns its exit code."""
    words, url = sys.argv[1:], os.environ.get("JMP_HOST", "")
    if (
        len(words) > 1
        and url.startswith("unix:")
        and not os.environ.get("JMP_CLIENT_PACKAGES")
        and None not in (sys.stdin, sys.stdout, sys.stderr)
    ):
        try:
            found = _find(url[5:], words)
            if found is not None:
                return _call(*found)
        except KeyboardInterrupt:
            return 130
    from jmp.cli.j import main as general

    return general()


def _find(socket: str, words: list[str]) -> tuple[_Session, str, str] | None:
    """The session, and the path and the method that are meant; None if that is for the general way."""
    if any(not word or word.startswith("-") for word in words):
        return None
    try:
        import msgpack

        from jmp.client.table import BUILTIN

        session = _Session(socket)
        answer = session.call("@session", "begin", {"who": _who(), "wait": 0.0})
        node = msgpack.unpackb(answer, raw=False, strict_map_key=False)["tree"]
        *path, verb = [step for word in words[:-1] for step in word.split(".")] + words[-1:]
        for step in path:
            node = node["children"][step]
        if verb in node.get("children", ()) or "ref" in node or node["interface"] in BUILTIN:
            return None
        for name, method in node["methods"].items():
            if name.replace("_", "-") == verb:
                if method["kind"] or any(_is_required(parameter) for parameter in method["parameters"]):
                    return None
                return session, ".".join(path), name
    except _FAILURES:
        pass  # the general way says what is wrong
    return None


def _is_required(parameter: dict[str, object]) -> bool:
    return bool(parameter.get("required", True)) and not str(parameter.get("kind")).startswith("var-")


def _call(session: _Session, path: str, method: str) -> int:
    """Make the call; its exit code."""
    try:
        value = session.call(path, method, {})
    except _FAILURES as error:
        return _failed(f"{path}.{method}", error)
    session.close()
    if value == _NONE:
        return 0
    from jmp.cli import guarded
    from jmp.cli.output import print_value
    from jmp.wire.codec import decode

    def show() -> int:
        print_value(decode(value))
        return 0

    return guarded(show)


def _failed(name: str, error: Exception) -> int:
    from jmp.cli import guarded
    from jmp.errors import LinkLost, ProtocolViolation
    from jmp.rpc.messages import FATES, from_reset

    def say() -> int:
        if isinstance(error, _WasReset):
            raise from_reset(name, *error.args)
        if isinstance(error, OSError | EOFError):
            raise LinkLost(f"the link was lost during {name}: {str(error) or 'the other side ended it'}; {FATES[None]}")
        raise ProtocolViolation(f"{name} was answered with what is no answer")

    return guarded(say)


def _who() -> str:
    """As :func:`jmp.client.connect.who`."""
    name = next(filter(None, map(os.environ.get, ("LOGNAME", "USER", "LNAME", "USERNAME"))), None)
    if name is None:
        import pwd

        try:
            name = pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            name = str(os.getuid())
    return f"{name}@{os.uname().nodename}"


class _Session:
    """A link to the session at a Unix socket; one call at a time."""

    def __init__(self, path: str) -> None:
        import _socket
        import binascii

        import msgpack

        self._pack, self._unpack = msgpack.packb, msgpack.unpackb
        self._unpacker = msgpack.Unpacker
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        self._socket.connect(path)
        key = binascii.b2a_base64(os.urandom(16), newline=False)
        self._socket.sendall(
            b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: "
            + key
            + b"\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: jmp.v1\r\n\r\n"
        )
        received = b""
        while b"\r\n\r\n" not in received:
            data = self._socket.recv(65536)
            received += data
            if not data or len(received) > 65536:
                raise _Odd
        head, _, self._received = received.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101 "):
            raise _Odd
        self._first = self._pack((_HELLO, 0, {"version": [1, 0], "agent": "jmp"}))
        self._number = -1

    def call(self, target: str, method: str, kwargs: dict[str, object]) -> bytes:
        """The encoded value with which a method answers."""
        self._number = number = self._number + 2
        request = self._pack([target, method, [], kwargs, {}])
        if len(request) > MAX_REQUEST:
            raise _Odd
        self._send(_BINARY, self._first + self._pack((_OPEN, number, request, True)))
        self._first = b""
        answer = b""
        while True:
            unpacker = self._unpacker(raw=False, max_buffer_size=1 << 21)
            unpacker.feed(self._message())
            for kind, stream, *more in unpacker:
                if kind == _HELLO and more[0]["version"][0] != 1:
                    raise _Odd
                if kind == _PING:
                    self._send(_BINARY, self._pack((_PONG, 0, more[0])))
                if stream != number:
                    continue
                if kind == _RESET:
                    raise _WasReset(more[0], more[1])
                if kind == _DATA:
                    answer += more[0]
                if kind == _END or (kind == _DATA and more[1]):
                    if not answer.startswith(_RESULT):
                        raise _Odd
                    return answer[2:]
                if kind == _DATA and more[0]:
                    self._send(_BINARY, self._pack((_CREDIT, number, len(more[0]))))

    def close(self) -> None:
        """Say good-bye, if anybody still listens."""
        try:  # contextlib takes as long to import as the rest of this
            self._send(_CLOSE, b"\x03\xe8")
        except OSError:
            return

    def _send(self, opcode: int, data: bytes) -> None:
        size = len(data)
        length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
        self._socket.sendall(bytes([0x80 | opcode]) + length + bytes(4) + data)  # masked with zeros

    def _message(self) -> bytes:
        """The next binary message."""
        message = b""
        while True:
            first, second = self._take(2)
            size = second & 0x7F
            if second & 0x80 or first & 0x70:
                raise _Odd
            if size > 125:
                size = int.from_bytes(self._take(2 if size == 126 else 8), "big")
            if size > 1 << 20:
                raise _Odd
            data, opcode = self._take(size), first & 0x0F
            if opcode == _CLOSE:
                raise EOFError(data[2:].decode(errors="replace"))
            if opcode == _WS_PING:
                self._send(_WS_PONG, data)
            elif opcode in (0, _BINARY):
                message += data
                if len(message) > 1 << 20:
                    raise _Odd
                if first & 0x80:
                    return message

    def _take(self, size: int) -> bytes:
        while len(self._received) < size:
            data = self._socket.recv(1 << 18)
            if not data:
                raise EOFError
            self._received += data
        taken, self._received = self._received[:size], self._received[size:]
        return taken
