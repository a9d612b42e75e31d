"""Files of a lease that a device can fetch: what the TFTP and the HTTP server share."""

from __future__ import annotations

import io
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path, PurePosixPath
from typing import ClassVar

import trio

from jmp.driver import BadValue, ConfigError, DeviceError, Stream, export, exportstream
from jmp.driver.interfaces import Files
from jmp.errors import NotFound

_PIECE = 256 * 1024  # bytes read at once
_PART = ".jmp-"  # what the names of files begin with that are not complete yet


class FileServer(Files):
    """Files of the lease, in a folder that lives as long as the session, and files of the exporter below `root`."""

    scheme: ClassVar[str]

    host: str = field(
        default="0.0.0.0", metadata={"doc": "address that the server listens at; best the one that the device sees"}
    )
    root: Path | None = field(
        default=None, metadata={"doc": "folder of the exporter whose files are served as well, and never changed"}
    )
    advertise: str | None = field(
        default=None, metadata={"doc": "address or name by which the device reaches the server; default: `host`"}
    )
    limit: int = field(default=8 * 1024**3, metadata={"doc": "bytes that the files of a session may have together"})

    _folder: Path | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ConfigError(f"limit must be at least 1 byte, not {self.limit}")

    async def open(self) -> None:
        if self.root is not None and not self.root.is_dir():
            raise DeviceError(f"root: there is no folder {self.root}")
        self._folder = Path(await trio.to_thread.run_sync(lambda: tempfile.mkdtemp(prefix="jmp-files-")))

    async def close(self) -> None:
        if self._folder is not None:
            await trio.to_thread.run_sync(lambda folder: shutil.rmtree(folder, ignore_errors=True), self._folder)
            self._folder = None

    @exportstream
    async def write(self, stream: Stream, name: str) -> None:
        target = self._own(name)
        part = self._own(_PART + secrets.token_hex(8))
        with _blaming(name):
            try:
                room = self.limit - sum((await self._sizes(own=True)).values())
                async with await trio.open_file(part, "wb") as file:
                    async for data in stream:
                        room -= len(data)
                        if room < 0:
                            raise BadValue(
                                f"{name} does not fit: files of a session have {self.limit} bytes at most (limit)"
                            )
                        await file.write(data)
                await trio.Path(target.parent).mkdir(parents=True, exist_ok=True)
                os.replace(part, target)
            finally:
                part.unlink(missing_ok=True)

    @exportstream
    async def read(self, stream: Stream, name: str) -> None:
        with self.opened(name) as file:
            while data := await trio.to_thread.run_sync(file.read, _PIECE):
                await stream.send_all(data)

    @export
    async def list(self) -> dict[str, int]:
        return await self._sizes()

    @export
    async def remove(self, name: str) -> None:
        target = self._own(name)
        if not target.is_file():
            self.opened_path(name)  # which says that there is none
            raise BadValue(f"{name} is a file of the exporter: it cannot be removed")
        with _blaming(name):
            target.unlink()

    @export
    async def address(self) -> str:
        return f"{self.scheme}://{self.authority()}/"

    def authority(self) -> str:
        """Host, and port if it is not the scheme's own, as the device has to ask for them."""
        raise NotImplementedError

    def reached(self) -> str:
        """The address by which the device reaches this machine: unless it is known, the one that leads out of it."""
        host = self.advertise or self.host
        if host not in ("0.0.0.0", "::"):
            return f"[{host}]" if ":" in host else host
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(("192.0.2.1", 9))  # of a network for examples; nothing is sent
            except OSError:
                return "127.0.0.1"
            return str(probe.getsockname()[0])

    def opened_path(self, name: str) -> Path:
        """Where the file is that is served under a name. Raises `NotFound` if there is none."""
        for folder in (self._folder, self.root):
            if folder is not None:
                path = (folder / _relative(name)).resolve()
                if path.is_file() and path.is_relative_to(folder.resolve()) and not path.name.startswith(_PART):
                    return path
        raise NotFound(f"there is no file {name!r} here")

    @contextmanager
    def opened(self, name: str) -> Iterator[io.FileIO]:
        """The file that is served under a name. Raises `NotFound` if there is none, `DeviceError` if it cannot be read."""
        path = self.opened_path(name)
        with _blaming(name), io.FileIO(path) as file:
            yield file

    def _own(self, name: str) -> Path:
        if self._folder is None:
            raise DeviceError("the server is closed")
        return self._folder / _relative(name)

    async def _sizes(self, *, own: bool = False) -> dict[str, int]:
        folders = [folder for folder in (None if own else self.root, self._folder) if folder is not None]

        def look() -> dict[str, int]:
            return {
                path.relative_to(folder).as_posix(): path.stat().st_size
                for folder in folders
                for path in sorted(folder.rglob("*"))
                if path.is_file() and not path.name.startswith(_PART)
            }

        return await trio.to_thread.run_sync(look)


def _relative(name: str) -> PurePosixPath:
    """A name as a path below a folder. Devices like to begin it with a slash."""
    path = PurePosixPath(name.lstrip("/"))
    if not path.parts or ".." in path.parts or "\0" in name:
        raise BadValue(f"{name!r} cannot be the name of a file")
    return path


@contextmanager
def _blaming(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DeviceError(f"{name}: {error.strerror or error}") from error
