"""The client of ``jmp.files/v1``: files of this machine for a device to fetch."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import IO, Final
from urllib.parse import quote

from jmp.driver.proxy import DriverClient, verb
from jmp.errors import UsageError

PIECE: Final = 256 * 1024
"""Bytes read or written at once."""


class FilesClient(DriverClient):
    """Files that the device can fetch."""

    @verb
    async def put(self, file: Path | str, *, name: str | None = None) -> str:
        """Serve FILE to the device, under its own name unless NAME is given. The result is the URL for the device.

        The device gets the old content until the new one is complete. A file that cannot be read is a UsageError.
        """
        path = Path(file)
        name = name or path.name
        try:
            source: IO[bytes] = await self._backend.run(path.open, "rb")
            with source:
                async with self._backend.open(self._node.path, "write", (), {"name": name}) as stream:
                    while piece := await self._backend.run(source.read, PIECE):
                        await stream.send_all(piece)
                    await stream.send_eof()
                    while await stream.receive_some():  # its end says that the file is in its place
                        pass
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
        address = str(await self._backend.call(self._node.path, "address", (), {}))
        name = str(PurePosixPath(name.lstrip("/")))  # as the exporter takes it, too
        return address + (quote(name) if address.startswith("http") else name)

    @verb
    async def get(self, name: str, file: Path | str | None = None) -> int:
        """Copy what is served as NAME into FILE, by default one of that name in this folder. The result is its size.

        A file that cannot be written is a UsageError; the part that was written stays.
        """
        path = Path(file or Path(name).name)
        size = 0
        async with self._backend.open(self._node.path, "read", (), {"name": name}) as stream:
            data = await stream.receive_some()  # which tells whether there is such a file at all
            try:
                sink: IO[bytes] = await self._backend.run(path.open, "wb")
                with sink:
                    while data:
                        size += await self._backend.run(sink.write, data)
                        data = await stream.receive_some()
            except OSError as error:
                raise UsageError(f"{path} cannot be written: {error.strerror or error}") from error
        return size
