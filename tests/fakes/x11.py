"""A real X server whose screen is a VNC server (Xtigervnc), and the few words of X11 with which a test draws and listens."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

# Numbers as in the X Window System Protocol, version 11.
_CHANGE_WINDOW_ATTRIBUTES, _QUERY_POINTER, _CLEAR_AREA, _GET_KEYBOARD_MAPPING = 2, 38, 61, 101
_BACKGROUND_PIXEL, _EVENT_MASK = 0x2, 0x800
_KEYS_AND_BUTTONS = 0x1 | 0x4  # presses
_KEY_PRESS, _BUTTON_PRESS = 2, 4


@contextmanager
def xtigervnc(path: Path, *options: str, size: str = "320x200") -> Iterator[X11]:
    """The server, whose VNC is at the Unix socket ``path``."""
    reading, writing = os.pipe()
    command = [
        *("Xtigervnc", "-displayfd", str(writing), "-nolisten", "tcp", "-ac", "-depth", "24", "-geometry", size),
        *("-rfbport", "-1", "-rfbunixpath", str(path), "-SecurityTypes", "None", *options),
    ]
    with subprocess.Popen(command, pass_fds=[writing], stderr=subprocess.DEVNULL) as server:
        os.close(writing)
        try:
            with open(reading) as told:
                display = int(told.readline())
            with X11(display) as client:
                yield client
        finally:
            server.terminate()


class X11:
    """A client of an X server. Blocks."""

    def __init__(self, display: int) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(f"/tmp/.X11-unix/X{display}")
        self._socket.sendall(struct.pack("<BxHHHHxx", ord("l"), 11, 0, 0, 0))
        ready, length = struct.unpack("<BxxxxxH", self._receive(8))
        assert ready == 1
        setup = self._receive(4 * length)
        vendor, _, _, formats = struct.unpack_from("<HHBB", setup, 16)
        self._first_key, self._last_key = struct.unpack_from("<BB", setup, 26)
        (self._root,) = struct.unpack_from("<I", setup, 32 + (vendor + 3) // 4 * 4 + 8 * formats)
        self._pending: list[bytes] = []

    def __enter__(self) -> X11:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()

    def fill(self, rgb: int, x: int = 0, y: int = 0, width: int = 0, height: int = 0) -> None:
        """Fill a rectangle with a colour (0xRRGGBB), by default all."""
        self._send(struct.pack("<BxHIII", _CHANGE_WINDOW_ATTRIBUTES, 4, self._root, _BACKGROUND_PIXEL, rgb))
        self._send(struct.pack("<BBHIhhHH", _CLEAR_AREA, 0, 4, self._root, x, y, width, height))
        self.pointer()  # which is answered once this has been done

    def pointer(self) -> tuple[int, int]:
        """Where the pointer is."""
        self._send(struct.pack("<BxHI", _QUERY_POINTER, 2, self._root))
        x, y = struct.unpack_from("<hh", self._reply(), 16)
        return x, y

    def listen(self) -> None:
        """From now on, tell what is pressed."""
        mask = _KEYS_AND_BUTTONS
        self._send(struct.pack("<BxHIII", _CHANGE_WINDOW_ATTRIBUTES, 4, self._root, _EVENT_MASK, mask))
        self.pointer()

    def pressed(self, count: int) -> list[tuple[str, int, tuple[int, int]]]:
        """The next presses: "key" and its keysym or "button" and its number, and where the pointer was."""
        found: list[tuple[str, int, tuple[int, int]]] = []
        while len(found) < count:
            event = self._pending.pop(0) if self._pending else self._receive(32)
            code, detail = event[0] & 0x7F, event[1]
            place: tuple[int, int] = struct.unpack_from("<hh", event, 20)
            (state,) = struct.unpack_from("<H", event, 28)
            if code == _KEY_PRESS:
                columns = self._keysyms(detail)
                found.append(("key", columns[state & 1] or columns[0], place))
            elif code == _BUTTON_PRESS:
                found.append(("button", detail, place))
        return found

    def _keysyms(self, keycode: int) -> Sequence[int]:
        self._send(struct.pack("<BxHBBxx", _GET_KEYBOARD_MAPPING, 2, keycode, 1))
        reply = self._reply()
        return struct.unpack_from(f"<{reply[1]}I", reply, 32)

    def _reply(self) -> bytes:
        while True:
            message = self._receive(32)
            assert message[0] != 0, f"an X11 error: {message!r}"
            if message[0] == 1:
                (more,) = struct.unpack_from("<I", message, 4)
                return message + self._receive(4 * more)
            self._pending.append(message)

    def _send(self, request: bytes) -> None:
        self._socket.sendall(request)

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self._socket.recv(size - len(data))
            assert more, "the X server has closed the connection"
            data += more
        return data
