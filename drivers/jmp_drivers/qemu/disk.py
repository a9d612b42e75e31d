"""The virtual machine's disk: what a session sees of the user's image, and how it is read and written while QEMU is off.

The session's changes go to a qcow2 overlay, unless the image is ``writable``. The overlay is a file without a name: QEMU's
programs reach it as ``/proc/self/fd/N`` through a descriptor that they inherit, and it vanishes with us however we end.
Whatever its format, the disk is read and written through ``qemu-storage-daemon``, which speaks NBD.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import IO

import trio

from jmp.errors import DeviceError
from jmp_drivers._nbd import Nbd
from jmp_drivers._process import leashed
from jmp_drivers.qemu.program import require, while_alive

NODE = "session-disk"
"""QEMU's name of it, for its monitor."""


class Disk:
    """One session's disk."""

    def __init__(self, path: Path | None, *, format: str = "", size: int = 0, writable: bool = False) -> None:
        self._path = None if path is None else path.absolute()
        # By name, not by content: a guest that writes qcow2's first bytes to its raw disk would get at the host's files.
        self._path_format = format or ("qcow2" if path is not None and path.suffix == ".qcow2" else "raw")
        self._initial_size = size
        self._writable = writable
        self._overlay: IO[bytes] | None = None
        self.keeps_snapshots = not writable
        """Whether QEMU can put snapshots into it: not into the user's own image."""
        self.size = 0
        """Bytes, as the guest sees it; known after `prepare`."""

    async def prepare(self) -> None:
        """Begin a session: check the image and lay a fresh overlay over it. What an earlier session changed is gone.

        Raises `DeviceError` if the image is missing or broken, or if QEMU's tools are not installed.
        """
        if self._path is not None and not self._path.is_file():
            raise DeviceError(f"disk image {self._path} does not exist (or is no file); correct 'disk.path'")
        self.discard()
        with ExitStack() as on_failure:
            on_failure.callback(self.discard)
            if not self._writable:
                await self._lay_overlay()
            # -U: another session may have the image in use, which does not change its size
            answer = await self._run("qemu-img", "info", "-U", "--output=json", "-f", self._format, self._file)
            on_failure.pop_all()
        self.size = json.loads(answer)["virtual-size"]

    async def _lay_overlay(self) -> None:
        self._overlay = unnamed_file("the session's disk")
        backing = [] if self._path is None else ["-b", str(self._path), "-F", self._path_format]
        size = [str(self._initial_size)] if self._initial_size else []
        await self._run("qemu-img", "create", "-q", "-f", "qcow2", *backing, self._file, *size)

    def discard(self) -> None:
        """End a session: drop the overlay."""
        if self._overlay is not None:
            self._overlay.close()
            self._overlay = None

    @property
    def descriptors(self) -> Sequence[int]:
        """What a process needs to inherit to open the disk."""
        return () if self._overlay is None else (self._overlay.fileno(),)

    @property
    def options(self) -> Mapping[str, str]:
        """Of QEMU's ``-drive``."""
        return {"file": self._file, "format": self._format, "node-name": NODE}

    @property
    def _file(self) -> str:
        if self._overlay is not None:
            return f"/proc/self/fd/{self._overlay.fileno()}"
        return str(self._path)

    @property
    def _format(self) -> str:
        return self._path_format if self._writable else "qcow2"

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Nbd]:
        """Access to the disk's content while no QEMU uses it. Raises `DeviceError`, with the tool's own words."""
        blockdev = {
            "driver": self._format,
            "node-name": "disk",
            "detect-zeroes": "on",  # an image is mostly zeroes, which then take no room in the overlay
            "file": {"driver": "file", "filename": self._file},
        }
        with ExitStack() as stack:
            listener, client = _listening_pair(stack)
            complaints = stack.enter_context(tempfile.TemporaryFile())
            daemon = [
                *(require("qemu-storage-daemon", "qemu-system-common"), "--blockdev", json.dumps(blockdev)),
                *("--nbd-server", f"addr.type=fd,addr.str={listener.fileno()},max-connections=1"),
                *("--export", "type=nbd,id=disk,node-name=disk,name=disk,writable=on"),
            ]
            descriptors = [listener.fileno(), *self.descriptors]
            async with leashed(daemon, pass_fds=descriptors, stderr=complaints) as process:
                listener.close()
                nbd = Nbd(trio.SocketStream(trio.socket.from_stdlib_socket(client)))
                async with while_alive(process):
                    await nbd.negotiate("disk")
                if process.returncode is not None:
                    raise DeviceError(f"cannot open the disk image: {_said(complaints)}")
                yield nbd
                await nbd.flush()
                await nbd.disconnect()

    async def _run(self, *command: str) -> bytes:
        return await run_tool(command, self.descriptors)


def unnamed_file(what: str) -> IO[bytes]:
    """A file that vanishes with us. Raises `DeviceError`."""
    folder = os.environ.get("TMPDIR", "/var/tmp")  # not /tmp, which often is memory. QEMU's own snapshots go here too
    try:
        return tempfile.TemporaryFile(dir=folder)
    except OSError as error:
        raise DeviceError(f"no room for {what} in {folder}: {error.strerror}") from error


async def run_tool(command: Sequence[str], descriptors: Sequence[int]) -> bytes:
    """Run one of QEMU's tools, which inherits these, and return what it prints; raises `DeviceError` if it fails."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as complaints:
        argv = [require(command[0], "qemu-utils"), *command[1:]]
        async with leashed(argv, pass_fds=descriptors, stdout=output, stderr=complaints) as process:
            await process.wait()
        if process.returncode:
            raise DeviceError(f"{' '.join(command[:2])} failed: {_said(complaints)}")
        output.seek(0)
        return output.read()


def _listening_pair(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    """A listening Unix socket and a client that is connected to it already; nobody else can reach it."""
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    client = stack.enter_context(socket.socket(socket.AF_UNIX))
    with tempfile.TemporaryDirectory() as private:
        listener.bind(f"{private}/nbd")
        listener.listen()
        client.connect(f"{private}/nbd")
    return listener, client


def _said(complaints: IO[bytes]) -> str:
    complaints.seek(0)
    lines = complaints.read().decode(errors="replace").split("\n")
    return "; ".join(line.strip() for line in lines if line.strip())
