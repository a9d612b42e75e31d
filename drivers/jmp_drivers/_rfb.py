"""The client side of RFB, the protocol of VNC (RFC 6143): the screen as it comes, keys and pointer as they go.

Pixels are asked for as four bytes (red, green, blue, nothing) and in the two encodings that every server has, raw and copied, so
that a picture is exact: what else there is saves bandwidth on far networks.
"""

from __future__ import annotations

import struct
from enum import IntEnum

import trio

from jmp.driver import Stream
from jmp.errors import DeviceError, Refused, UsageError

# Numbers as in RFC 6143.
_VERSIONS = (b"RFB 003.003\n", b"RFB 003.007\n", b"RFB 003.008\n")
_NONE, _VNC = 1, 2  # security types
_SET_PIXEL_FORMAT, _SET_ENCODINGS, _UPDATE_REQUEST, _KEY, _POINTER = 0, 2, 3, 4, 5  # from the client
_UPDATE, _COLOURS, _BELL, _CUT_TEXT = range(4)  # from the server
_RAW, _COPY, _DESKTOP_SIZE = 0, 1, -223  # encodings
_PIXEL_FORMAT = struct.pack(">BBBBHHHBBB3x", 32, 24, 0, 1, 255, 255, 255, 0, 8, 16)
_RECTANGLE = struct.Struct(">HHHHi")
_LONGEST_TEXT = 1024 * 1024  # bytes of a reason or a clipboard that are believed
_LARGEST = 16384  # pixels of a side


class Button(IntEnum):
    """The pointer's buttons, by their bits."""

    LEFT = 1
    MIDDLE = 2
    RIGHT = 4
    WHEEL_UP = 8
    WHEEL_DOWN = 16


class Rfb:
    """A VNC server behind a connected stream. Make it, `negotiate`, then keep `run` running."""

    def __init__(self, stream: trio.abc.Stream, name: str) -> None:
        self._stream = stream
        self._name = name
        self._received = bytearray()
        self._pixels = bytearray()  # four bytes each
        self.width = self.height = 0
        self.generation = 0
        """Counts updates."""
        self._drawn = 0  # pixels, in all updates that are complete
        self._news = trio.lowlevel.ParkingLot()
        self._asked = False  # for a change, and not been told of one since
        self._sending = trio.Lock()
        self.pointer = (0, 0)
        """Where it was put last."""

    # ---- the beginning

    async def negotiate(self, password: str) -> None:
        """Get in, and agree on pixels. Raises as `log_in` does."""
        await self.log_in(password)
        await self._send(b"\1")  # others may look as well
        self.width, self.height = struct.unpack(">HH", await self._receive(4))
        await self._receive(16)  # its own pixel format
        await self._receive_text()  # the desktop's name
        self._resize(self.width, self.height)
        encodings = (_COPY, _RAW, _DESKTOP_SIZE)
        await self._send(
            struct.pack(">B3x", _SET_PIXEL_FORMAT)
            + _PIXEL_FORMAT
            + struct.pack(f">BxH{len(encodings)}i", _SET_ENCODINGS, len(encodings), *encodings)
        )

    async def log_in(self, password: str) -> None:
        """Get in; what follows is the client's first word, which all versions have alike.

        Raises `DeviceError` for what is no VNC server, `Refused` if it does not take the password.
        """
        greeting = await self._receive(12)
        if not greeting.startswith(b"RFB ") or not greeting.endswith(b"\n"):
            raise DeviceError(f"{self._name} does not speak VNC")
        # Servers tell numbers of their own; the highest of the three that is not higher than theirs is right.
        version = max((each for each in _VERSIONS if each <= greeting), default=_VERSIONS[0])
        await self._send(version)
        await self._authenticate(await self._choose(version, bool(password)), version, password)

    async def _choose(self, version: bytes, has_password: bool) -> int:
        if version == _VERSIONS[0]:
            (kind,) = struct.unpack(">I", await self._receive(4))  # the server's choice
            offered = [kind] if kind else []
        else:
            (count,) = await self._receive(1)
            offered = list(await self._receive(count))
        if not offered:
            raise Refused(f"{self._name} refuses the connection: {await self._receive_text()}")
        for kind in (_VNC, _NONE) if has_password else (_NONE, _VNC):
            if kind in offered:
                if version != _VERSIONS[0]:
                    await self._send(bytes([kind]))
                return int(kind)
        raise DeviceError(
            f"{self._name} asks for a login of a kind that is not known here ({', '.join(map(str, offered))}): "
            "let it ask for a password or for nothing"
        )

    async def _authenticate(self, kind: int, version: bytes, password: str) -> None:
        if kind == _VNC:
            if not password:
                raise Refused(f"{self._name} asks for a password, and none is configured")
            await self._send(_answer(password, await self._receive(16)))
        elif version != _VERSIONS[2]:
            return  # it says nothing about nothing
        (failed,) = struct.unpack(">I", await self._receive(4))
        if failed:
            why = await self._receive_text() if version == _VERSIONS[2] else "wrong password"
            raise Refused(f"{self._name} lets nobody in with this password: {why}")

    # ---- the screen

    async def run(self) -> None:
        """Follow the server until the stream ends; raises `DeviceError` then."""
        while True:
            (kind,) = await self._receive(1)
            if kind == _UPDATE:
                await self._take_update()
            elif kind == _COLOURS:
                _, count = struct.unpack(">xHH", await self._receive(5))
                await self._receive(6 * count)
            elif kind == _CUT_TEXT:
                await self._receive(3)
                await self._receive_text()
            elif kind != _BELL:
                raise DeviceError(f"{self._name} does not speak VNC properly: it sent message {kind}")

    async def screen(self) -> tuple[int, int, bytes]:
        """Width, height and the pixels of all that is there now, three bytes each."""
        while True:
            size, before = (self.width, self.height), self._drawn
            await self._ask(incremental=False)
            # It may come in several updates, and be preceded by one that was under way.
            while size == (self.width, self.height) and self._drawn - before < self.width * self.height:
                await self._news.park()
            if size == (self.width, self.height):  # else it has just become another screen, of which nothing has come
                return self.picture()

    async def changed(self, since: int) -> int:
        """Wait for a change later than that of number ``since``; its number."""
        while self.generation <= since:
            if not self._asked:
                await self._ask(incremental=True)
            await self._news.park()
        return self.generation

    def picture(self) -> tuple[int, int, bytes]:
        """What has come so far."""
        rgb = bytearray(3 * self.width * self.height)
        for channel in range(3):
            rgb[channel::3] = self._pixels[channel::4]
        return self.width, self.height, bytes(rgb)

    async def _ask(self, *, incremental: bool) -> None:
        self._asked = True
        await self._send(struct.pack(">BBHHHH", _UPDATE_REQUEST, incremental, 0, 0, self.width, self.height))

    async def _take_update(self) -> None:
        (count,) = struct.unpack(">xH", await self._receive(3))
        drawn = 0
        for _ in range(count):
            x, y, width, height, encoding = _RECTANGLE.unpack(await self._receive(_RECTANGLE.size))
            if encoding == _DESKTOP_SIZE:
                self._resize(width, height)
                continue
            if x + width > self.width or y + height > self.height:
                raise DeviceError(f"{self._name} does not speak VNC properly: it draws beside its screen")
            drawn += width * height
            if encoding == _RAW:
                for row in range(height):
                    self._put(x, y + row, await self._receive(4 * width))
            elif encoding == _COPY:
                from_x, from_y = struct.unpack(">HH", await self._receive(4))
                rows = [self._get(from_x, from_y + row, width) for row in range(height)]
                for row, pixels in enumerate(rows):
                    self._put(x, y + row, pixels)
            else:
                raise DeviceError(f"{self._name} does not speak VNC properly: it uses encoding {encoding}")
        self._asked = False
        self._drawn += drawn
        self.generation += 1
        self._news.unpark_all()

    def _resize(self, width: int, height: int) -> None:
        if not (0 < width <= _LARGEST and 0 < height <= _LARGEST):
            raise DeviceError(f"{self._name} has a screen of {width} x {height} pixels, which is none")
        self.width, self.height = width, height
        self._pixels = bytearray(4 * width * height)

    def _put(self, x: int, y: int, pixels: bytes) -> None:
        start = 4 * (y * self.width + x)
        self._pixels[start : start + len(pixels)] = pixels

    def _get(self, x: int, y: int, width: int) -> bytes:
        start = 4 * (y * self.width + x)
        return bytes(self._pixels[start : start + 4 * width]).ljust(4 * width, b"\0")

    # ---- keys and pointer

    async def key(self, keysym: int, *, down: bool) -> None:
        await self._send(struct.pack(">BBxxI", _KEY, down, keysym))

    async def point(self, x: int, y: int, buttons: int = 0) -> None:
        """Put the pointer there, with these buttons (bits of `Button`) held."""
        self.pointer = (x, y)
        await self._send(struct.pack(">BBHH", _POINTER, buttons, x, y))

    # ---- bytes

    async def _send(self, data: bytes) -> None:
        async with self._sending:
            try:
                await self._stream.send_all(data)
            except trio.BrokenResourceError as error:
                raise self._gone() from error

    async def _receive(self, size: int) -> bytes:
        while len(self._received) < size:
            try:
                data = await self._stream.receive_some(max(65536, size - len(self._received)))
            except trio.BrokenResourceError as error:
                raise self._gone() from error
            if not data:
                raise self._gone()
            self._received += data
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

    async def _receive_text(self) -> str:
        (size,) = struct.unpack(">I", await self._receive(4))
        if size > _LONGEST_TEXT:
            raise DeviceError(f"{self._name} does not speak VNC properly: a text of {size} bytes")
        return (await self._receive(size)).decode("latin-1")

    def _gone(self) -> DeviceError:
        return DeviceError(f"{self._name} closed the connection")


async def welcome(viewer: Stream) -> bytes:
    """The server's side of getting in, for a viewer that is asked for nothing. What it has sent after that.

    Raises `UsageError` if it is no viewer.
    """
    received = bytearray()

    async def take(size: int) -> bytes:
        while len(received) < size:
            data = await viewer.receive_some()
            if not data:
                raise UsageError("the viewer closed the connection before it was one")
            received.extend(data)
        taken = bytes(received[:size])
        del received[:size]
        return taken

    await viewer.send_all(_VERSIONS[2])
    greeting = await take(12)
    if not greeting.startswith(b"RFB "):
        raise UsageError("what connected is no viewer: it does not speak VNC")
    version = max((each for each in _VERSIONS if each <= greeting), default=_VERSIONS[0])
    if version == _VERSIONS[0]:
        await viewer.send_all(struct.pack(">I", _NONE))
    else:
        await viewer.send_all(bytes([1, _NONE]))
        await take(1)
        if version == _VERSIONS[2]:
            await viewer.send_all(struct.pack(">I", 0))
    return bytes(received)


def _answer(password: str, challenge: bytes) -> bytes:
    """The challenge under DES, whose key is the password's first eight characters with their bits the other way round."""
    from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
    from cryptography.hazmat.primitives.ciphers import Cipher, modes

    key = bytes(int(f"{each:08b}"[::-1], 2) for each in password.encode("latin-1", "replace")[:8].ljust(8, b"\0"))
    # DES is what remains of Triple DES with one key.
    encryptor = Cipher(TripleDES(key * 3), modes.ECB()).encryptor()
    return bytes(encryptor.update(challenge) + encryptor.finalize())
