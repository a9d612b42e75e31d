"""The client of ``jmp.capture/v1``: packets into a file, or to a program."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, BinaryIO

from jmp.driver.proxy import DriverClient, verb
from jmp.errors import UsageError


class CaptureClient(DriverClient):
    """What passes on a network interface. ``capture()`` is a pcap file as a byte stream, to the end of what one sends."""

    @verb
    async def save(
        self,
        file: Path | str,
        *,
        filter: Annotated[str, "as of tcpdump: tcp port 22"] = "",
        count: Annotated[int, "packets after which it ends"] = 0,
        seconds: Annotated[float, "seconds after which it ends"] = 0.0,
    ) -> None:
        """Write packets to FILE, a pcap file; - is standard output. It ends with Ctrl-C, or as the options say.

        Each packet is written as it comes, so what there is when it ends is whole.
        """
        with ExitStack() as stack:
            if str(file) == "-":
                sink: BinaryIO = sys.stdout.buffer
            else:
                try:
                    sink = stack.enter_context(await self._backend.run(_create, Path(file)))
                except OSError as error:
                    raise UsageError(f"{file} cannot be written: {error.strerror or error}") from error
            wanted = {"filter": filter, "count": count, "seconds": seconds}
            async with self._backend.open(self._node.path, "capture", (), wanted) as stream:
                while data := await stream.receive_some():
                    await self._backend.run(_write, sink, data)


def _create(path: Path) -> BinaryIO:
    return path.open("wb")


def _write(sink: BinaryIO, data: bytes) -> None:
    sink.write(data)
    sink.flush()
