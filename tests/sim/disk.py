"""A disk under the embedded store: what SQLite has written there when its process is killed, or its machine loses its power.

The real store runs on real files, each process on copies of what its machine's disk had. Its thread is none: whatever would block
takes its time here, before and after it is done all at once. If the process is killed meanwhile, what was being appended to the
write-ahead log is there up to some byte, and of what was being moved from there into the database some pages are. Without power,
what was not synced may be missing, too.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, Final, TypeVar

import trio

from jmp.controller.sqlite import FILE, SqliteStore, _Commit
from jmp.controller.store import Change, Key
from jmp.errors import LabError
from tests.sim.world import Process

T = TypeVar("T")
MEMORY: Final = Path("/dev/shm")
"""Where syncing costs nothing."""
LOG: Final = f"{FILE}-wal"
PAGE: Final = 4096
ROOM: Final = 1 << 30
"""Pages that a file may have when the disk is not full."""
FULL_SYNC: Final = 2
Files = dict[str, bytes]


class Inline:
    """In place of ``jmp.controller.worker.Worker``: a disk that belongs to the process of whoever calls it."""

    def __init__(self, name: str) -> None:
        self.disk: SqliteDisk | None = None

    async def run(self, function: Callable[[], T]) -> T:
        """As the real one: whoever is cancelled waits all the same. Not if the process is killed."""
        assert self.disk is not None
        return await self.disk.run(function)

    async def close(self) -> None:
        """Nothing is left."""


class SqliteDisk:
    """That of one process, with its store."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._directory = Path(tempfile.mkdtemp(prefix="jmp-sim-", dir="/dev/shm"))  # syncing costs nothing there
        for name, content in process.machine.disk["files"].items():
            (self._directory / name).write_bytes(content)
        self._rng = process.world.rng
        self.store = SqliteStore.open(self._directory)
        self.store._worker.disk = self  # type: ignore[attr-defined]
        database = self.store._database
        database.execute(f"PRAGMA wal_autocheckpoint = {self._rng.choice((2, 20, 1000))}")
        [(self._syncing,)] = database.execute("PRAGMA synchronous")
        self._synced = self._files()
        self._before: Files | None = None
        """While something is being written: what was there before."""
        self._full = False
        process.dying = self._crash

    async def run(self, function: Callable[[], T]) -> T:
        """Do what takes its time."""
        with trio.CancelScope(shield=True):
            await self._seek()
            self._check()
            self._before = self._files()
            try:
                result = function()
                now = self._files()
                await self._seek()
                self._check()
            finally:
                self._before = None
        if self._syncing >= FULL_SYNC or now.get(FILE) != self._synced.get(FILE):
            self._synced = now
        return result

    def _check(self) -> None:
        if not self._process.alive:
            raise LabError("the process was killed")
        full = bool(self._process.machine.disk.get("full"))
        if full is not self._full and self.store._lock_file >= 0:
            self._full = full
            self.store._database.execute(f"PRAGMA max_page_count = {1 if full else ROOM}").fetchall()

    async def _seek(self) -> None:
        world = self._process.world
        await trio.sleep(self._rng.random() * self._rng.choice((0.0, 0.002, 0.002, 0.3 if world.faults else 0.0)))

    def _files(self) -> Files:
        there = (FILE, LOG)
        return {name: (self._directory / name).read_bytes() for name in there if (self._directory / name).exists()}

    def _crash(self, silently: bool) -> None:
        """The process is no more; what it has left is what the next one begins with."""
        now = self._files()
        before = self._synced if silently else self._before or now
        self._process.machine.disk["files"] = torn(before, now, self._rng)
        self.store._database.close()
        if self.store._lock_file >= 0:
            os.close(self.store._lock_file)
            self.store._lock_file = -1
        shutil.rmtree(self._directory)


def torn(before: Files, now: Files, rng: Random) -> Files:
    """What may be there when what turns ``before`` into ``now`` is broken off."""
    if before == now or before.keys() != now.keys() or LOG not in now:
        return rng.choice((before, now))
    if before[FILE] == now[FILE]:
        end = rng.choice((len(now[LOG]), rng.randrange(len(now[LOG]))))
        return {FILE: now[FILE], LOG: now[LOG][:end] + before[LOG][end:]}
    # The log is complete before anything is taken from it.
    pages = range(0, max(len(before[FILE]), len(now[FILE])), PAGE)
    mixed = b"".join(rng.choice((before, now))[FILE][at : at + PAGE] or now[FILE][at : at + PAGE] for at in pages)
    return {FILE: mixed, LOG: now[LOG]}


@contextmanager
def _opened(files: Files) -> Iterator[tuple[SqliteStore, Path]]:
    """A store on these files, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="jmp-sim-") as name:
        directory = Path(name)
        for name, content in files.items():
            (directory / name).write_bytes(content)
        store = SqliteStore.open(directory)
        try:
            yield store, directory
        finally:
            store._database.close()
            os.close(store._lock_file)


def format_files(records: dict[Key, Any]) -> Files:
    """What a store leaves that has these records."""
    commit = _Commit([Change(*key, None, record) for key, record in records.items()], version=1)
    with _opened({}) as (store, directory):
        store._write_one_by_one([commit])
        store._database.execute("UPDATE last SET version = 1")
        store._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return {FILE: (directory / FILE).read_bytes()}


def records_in(files: Files) -> dict[Key, Any]:
    """What a store finds there."""
    with _opened(files) as (store, _):
        return {(kind, name): store._read(kind, name, version, value) for kind, name, version, value in store._rows()}
