"""Snapshots of a running machine: memory, devices and disk, to go back to.

The disk's part is kept in the session's own disk, everything else in a file of the session without a name, which QEMU inherits
and is told of when it first needs it. So they outlive QEMU, but not the session.
"""

from __future__ import annotations

import re
import time
from typing import IO, Any

from jmp.errors import BadValue, DeviceError
from jmp_drivers.qemu.disk import NODE, Disk, run_tool, unnamed_file
from jmp_drivers.qemu.qmp import Qmp

_STATE = "session-state"  # QEMU's name of the file
_NAME = re.compile(r"[A-Za-z][\w.-]{0,63}")  # QEMU takes what is a number for something else


class Snapshots:
    """A session's, by name."""

    def __init__(self, disk: Disk | None) -> None:
        self._disk = disk
        self._saved: dict[str, float] = {}
        self._file: IO[bytes] | None = None
        self._formatted = False

    def prepare(self) -> None:
        """Begin a session: there is none yet. Raises `DeviceError`."""
        self.discard()
        self._file = unnamed_file("the session's snapshots")

    def discard(self) -> None:
        """End a session."""
        self._saved.clear()
        self._formatted = False
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What QEMU needs to inherit."""
        return () if self._file is None else (self._file.fileno(),)

    def listed(self) -> list[dict[str, Any]]:
        """Name and time (seconds since 1970) of each, oldest first."""
        return [{"name": name, "time": when} for name, when in self._saved.items()]

    def check(self, name: str) -> None:
        """Raises `BadValue` if there is none of that name."""
        if name not in self._saved:
            there = ", ".join(self._saved)
            raise BadValue(
                f"there is no snapshot {name!r}; {f'there are: {there}' if there else 'none has been saved yet'}"
            )

    async def save(self, qmp: Qmp, name: str) -> None:
        """Save the machine as it is; one of that name is replaced. Raises `DeviceError` with QEMU's own words."""
        if not _NAME.fullmatch(name):
            raise BadValue(f"a snapshot's name is letters, digits, '.', '_' and '-' behind a letter, not {name!r}")
        nodes = await self._attach(qmp)
        self._saved.pop(name, None)
        await qmp.run_job("snapshot-delete", {"tag": name, "devices": nodes})
        await qmp.run_job("snapshot-save", {"tag": name, "vmstate": _STATE, "devices": nodes})
        self._saved[name] = time.time()

    async def load(self, qmp: Qmp, name: str) -> None:
        """Make the machine, which is paused, what it was. Raises `DeviceError`; what it is then cannot be told."""
        nodes = await self._attach(qmp)
        await qmp.run_job("snapshot-load", {"tag": name, "vmstate": _STATE, "devices": nodes})

    async def forget(self, qmp: Qmp, name: str) -> None:
        """Delete one."""
        nodes = await self._attach(qmp)
        await qmp.run_job("snapshot-delete", {"tag": name, "devices": nodes})
        self._saved.pop(name, None)

    async def _attach(self, qmp: Qmp) -> list[str]:
        """Tell this QEMU of the file, if it does not know it yet; the names of all that a snapshot is put into."""
        if self._disk is not None and not self._disk.keeps_snapshots:
            raise DeviceError("there are no snapshots of a machine whose disk is 'writable'")
        assert self._file is not None
        path = f"/proc/self/fd/{self._file.fileno()}"
        if not self._formatted:
            await run_tool(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"], self.descriptors)
            self._formatted = True
        known = {each.get("node-name") for each in await qmp.execute("query-named-block-nodes", {"flat": True})}
        if _STATE not in known:
            blockdev = {"driver": "qcow2", "node-name": _STATE, "file": {"driver": "file", "filename": path}}
            await qmp.execute("blockdev-add", blockdev)
        return [_STATE, *([] if self._disk is None else [NODE])]
