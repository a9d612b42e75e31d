"""One abstract class per capability: what a client may rely on when it sees the interface id.

A driver subclasses the interface and implements its methods, plain or asynchronous; the marks are inherited. Clients map the
ids to richer classes of their own (see :mod:`jmp.client.interfaces`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable
from typing import Any, ClassVar, Literal

import trio

from jmp.driver.driver import Driver, check_seconds, export, exportstream

Stream = trio.abc.HalfCloseableStream
PowerState = Literal["on", "off", "unknown"]


class Power(Driver):
    """Switches a device on and off."""

    interface: ClassVar[str | None] = "jmp.power/v1"

    @export
    @abstractmethod
    def on(self) -> Awaitable[None] | None:
        """Switch on."""

    @export
    @abstractmethod
    def off(self) -> Awaitable[None] | None:
        """Switch off."""

    @export
    @abstractmethod
    def state(self) -> PowerState | Awaitable[PowerState]:
        """Whether it is on."""

    @export
    async def cycle(self, wait: float = 1.0) -> None:
        """Switch off, wait (seconds), switch on. Given up half-way, it stays off."""
        check_seconds("wait", wait)
        await self.invoke("off")
        await trio.sleep(wait)
        await self.invoke("on")


class Console(Driver):
    """A device's console: bytes both ways."""

    interface: ClassVar[str | None] = "jmp.console/v1"

    @exportstream
    @abstractmethod
    async def connect(self, stream: Stream, replay: bool = True, write: bool = True, take_over: bool = False) -> None:
        """Attach: what came before (unless replay is off), then what comes. Any number may read; one may write.

        With take_over, in the place of whoever does.
        """

    @export
    @abstractmethod
    def history(self) -> bytes | Awaitable[bytes]:
        """The newest of what came so far."""

    @export
    @abstractmethod
    def send(self, data: bytes) -> Awaitable[None] | None:
        """Send to the device, whoever is attached."""


class BootLoader(Driver):
    """U-Boot on a console: what clients have to know to talk to it. The talking is theirs.

    Its children are the board's ``console`` (``jmp.console/v1``) and, if there are any, ``power`` and ``tftp``.
    """

    interface: ClassVar[str | None] = "jmp.u-boot/v1"

    @export
    @abstractmethod
    def settings(self) -> dict[str, Any] | Awaitable[dict[str, Any]]:
        """The prompt and the like; keys that a client does not know are to be ignored."""


class Storage(Driver):
    """A device's storage medium: bytes at offsets."""

    interface: ClassVar[str | None] = "jmp.storage/v1"

    @exportstream
    @abstractmethod
    async def write(self, stream: Stream, offset: int = 0) -> None:
        """Replace the content from offset on with what the client sends, until the end of its input."""

    @exportstream
    @abstractmethod
    async def read(self, stream: Stream, offset: int = 0, size: int | None = None) -> None:
        """Send size bytes (default: all) of the content from offset on."""

    @export
    @abstractmethod
    def size(self) -> int | Awaitable[int]:
        """Size of the medium in bytes."""

    @export
    @abstractmethod
    def digest(self, size: int | None = None, offset: int = 0, algorithm: str = "sha256") -> str | Awaitable[str]:
        """Checksum, in hexadecimal, of size bytes (default: all) of the content from offset on."""

    @export
    async def fetch(
        self,
        url: str,
        offset: int = 0,
        headers: dict[str, str] | None = None,
        decompress: bool = True,
        resume: bool = False,
    ) -> AsyncIterator[dict[str, Any]]:
        """Write an image that the exporter itself fetches by HTTP or HTTPS, with these headers, and tell how far it is.

        With resume, what the medium holds already of its beginning is left alone. Items are dicts of taken and total (bytes of
        the file; None if not known); the last has bytes and sha256 of the image, how many were written, and checksums: that
        sha256, and the file's if it was unpacked.
        """
        from jmp.driver.fetching import fetched

        async for item in fetched(self, url, offset, headers or {}, decompress, resume):
            yield item


class Flasher(Driver):
    """Programs a device's flash through its boot loader or a debug probe, by a program of the exporter's machine."""

    interface: ClassVar[str | None] = "jmp.flasher/v1"

    @exportstream
    @abstractmethod
    async def flash(self, stream: Stream, target: str = "", name: str = "") -> None:
        """Flash what the client sends, until the end of its input, and send what the program says meanwhile.

        TARGET is where: a partition, an address, an alternate setting; NAME the image's, whose ending may tell its format.
        """


class Files(Driver):
    """Files that a device can fetch from the exporter, by TFTP or HTTP say. The names are those that the device asks for."""

    interface: ClassVar[str | None] = "jmp.files/v1"

    @exportstream
    @abstractmethod
    async def write(self, stream: Stream, name: str) -> None:
        """Serve what the client sends as NAME from its end on, in place of what was served so."""

    @exportstream
    @abstractmethod
    async def read(self, stream: Stream, name: str) -> None:
        """The content of NAME."""

    @export
    @abstractmethod
    def list(self) -> dict[str, int] | Awaitable[dict[str, int]]:
        """What is served: names and sizes in bytes."""

    @export
    @abstractmethod
    def remove(self, name: str) -> Awaitable[None] | None:
        """Serve NAME no longer."""

    @export
    @abstractmethod
    def address(self) -> str | Awaitable[str]:
        """Where the files are, as the device has to ask: a URL that names are put after."""


class Network(Driver):
    """A port that can be connected to: TCP, Unix and the like."""

    interface: ClassVar[str | None] = "jmp.network/v1"

    @exportstream
    @abstractmethod
    async def connect(self, stream: Stream) -> None:
        """Open one connection to the port."""

    @export
    @abstractmethod
    def address(self) -> str | Awaitable[str]:
        """Where the port is, as seen from the exporter."""


class Ssh(Network):
    """A device's SSH server, and who may log in there. The client's own ssh does the rest."""

    interface: ClassVar[str | None] = "jmp.ssh/v1"

    @export
    @abstractmethod
    def identity(self) -> dict[str, Any] | Awaitable[dict[str, Any]]:
        """Who to log in as: user, key (a private one) and password, each empty if there is none.

        And as host_keys what the server is known by, as ``TYPE KEY``; empty if it may have any.
        """


class Video(Driver):
    """What can be seen of a device: its screen, or a camera that looks at it."""

    interface: ClassVar[str | None] = "jmp.video/v1"

    @export
    @abstractmethod
    def screenshot(self) -> bytes | Awaitable[bytes]:
        """What is to be seen now, as a PNG or JPEG file."""

    @export
    @abstractmethod
    def frames(self, interval: float = 0.2) -> AsyncIterator[bytes]:
        """What is to be seen now, and again whenever it has changed, as PNG or JPEG files; at most one in interval seconds."""

    @export
    @abstractmethod
    def size(self) -> list[int] | Awaitable[list[int]]:
        """Width and height in pixels."""


class Vnc(Video, Network):
    """A screen with keyboard and pointer, which is a VNC server too: connect is a connection to that one."""

    interface: ClassVar[str | None] = "jmp.vnc/v1"

    @exportstream
    async def view(self, stream: Stream) -> None:
        """A connection to the VNC server for a viewer that is asked for no password: the driver gives the one that it knows."""
        await self.connect(stream)

    @export
    @abstractmethod
    def type(self, text: str, interval: float = 0.02) -> Awaitable[None] | None:
        """Type a text, with so many seconds from one key to the next."""

    @export
    @abstractmethod
    def press(self, *keys: str, hold: float = 0.05) -> Awaitable[None] | None:
        """Press keys one after the other, each for so many seconds: enter, f2, ctrl+alt+delete."""

    @export
    @abstractmethod
    def move(self, x: int, y: int) -> Awaitable[None] | None:
        """Put the pointer there."""

    @export
    @abstractmethod
    def click(
        self, x: int, y: int, button: Literal["left", "middle", "right"] = "left", count: int = 1
    ) -> Awaitable[None] | None:
        """Click there; with count 2, twice in a row."""

    @export
    @abstractmethod
    def drag(
        self, x: int, y: int, to_x: int, to_y: int, button: Literal["left", "middle", "right"] = "left"
    ) -> Awaitable[None] | None:
        """Press a button at x, y and let it go at to_x, to_y."""

    @export
    @abstractmethod
    def scroll(self, steps: int) -> Awaitable[None] | None:
        """Turn the pointer's wheel: down by so many steps, or up if they are negative."""


class Datagram(Driver):
    """A port that takes and sends datagrams, such as UDP."""

    interface: ClassVar[str | None] = "jmp.datagram/v1"

    @exportstream
    @abstractmethod
    async def connect(self, stream: Stream) -> None:
        """Exchange datagrams: each is its length (16 bit, big-endian) and its bytes."""

    @export
    @abstractmethod
    def address(self) -> str | Awaitable[str]:
        """Where the port is, as seen from the exporter."""


class Shell(Driver):
    """Runs configured commands on the exporter's machine: every exported method streams the output of one.

    Items are ``{"stdout": bytes}``, ``{"stderr": bytes}`` and, as the last, ``{"exit_code": int}``.
    """

    interface: ClassVar[str | None] = "jmp.shell/v1"


Output = AsyncIterator[dict[str, Any]]
