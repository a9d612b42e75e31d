"""The client of ``jmp.flasher/v1``: an image to a device's flash, by a program at the exporter."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

from jmp.driver.images import Ahead
from jmp.driver.proxy import DriverClient, verb

_PERCENT: Final = re.compile(rb"(?<![\d.])(\d{1,3})(?:\.\d+)? ?%")


class FlasherClient(DriverClient):
    """A device's flash."""

    @verb
    async def flash(
        self,
        image: Path | str,
        *,
        target: Annotated[str, "where: a partition, an address, an alternate setting; default: as configured"] = "",
        decompress: bool = True,
        verbose: Annotated[bool, "show what the program says"] = False,
        progress: Callable[[int, int | None], None] | None = None,
    ) -> dict[str, Any]:
        """Flash an image: a file, - for standard input, http(s):// or s3://BUCKET/KEY. It is unpacked on the way.

        Whether it is verified afterwards is the program's affair. The result has the number of bytes, their sha256 and the
        seconds that all took. An image that cannot be read is a UsageError; a program that fails a DeviceError, in its words.
        """
        begin = time.monotonic()
        ahead = await self._backend.run(Ahead, str(image), decompress)
        size = 0
        try:
            name = Path(ahead.source.name).name
            for packed in (".gz", ".xz", ".bz2", ".zst"):
                name = name.removesuffix(packed)
            async with self._backend.open(self._node.path, "flash", (), {"target": target, "name": name}) as stream:
                while piece := await self._backend.run(ahead.next):
                    await stream.send_all(piece)
                    size += len(piece)
                await stream.send_eof()
                while said := await stream.receive_some():
                    if verbose:
                        sys.stderr.buffer.write(said)
                        sys.stderr.flush()
                    if progress is not None and (percent := _PERCENT.findall(said)):
                        progress(size * min(int(percent[-1]), 100) // 100, size)
        finally:
            ahead.close()
        seconds = round(time.monotonic() - begin, 3)
        return {"bytes": size, "sha256": ahead.source.checksum.hexdigest(), "seconds": seconds}
