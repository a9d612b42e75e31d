"""Records in a dictionary, which can outlive a controller, and which several can share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import trio

from jmp.controller.store import Change, Key, Record, Rejected, Stale, Store
from jmp.wire.records import Lease


class MemoryStore(Store):
    """Takes a checkpoint to commit. :meth:`share` makes another one of the same records."""

    def __init__(self) -> None:
        self.records: dict[Key, Any] = {}
        self.tried: list[Key] = []
        """What was to be committed so far,"""
        self.rejects: Callable[[Change], bool] = lambda change: False
        """and what of it is not taken."""
        self._version = [0]
        self._watchers: list[trio.MemorySendChannel[Change]] = []
        self._news: trio.MemoryReceiveChannel[Change] | None = None

    def share(self) -> MemoryStore:
        """A store for another controller."""
        other = MemoryStore()
        other.shared = self.shared = True
        other.records, other._version, other._watchers = self.records, self._version, self._watchers
        return other

    async def load(self) -> list[tuple[str, str, Any]]:
        await trio.lowlevel.checkpoint()
        send, self._news = trio.open_memory_channel[Change](math.inf)
        if self.shared:
            self._watchers.append(send)
        return [(kind, name, record) for (kind, name), record in self.records.items()]

    async def commit(self, changes: Sequence[Change]) -> list[Record | None]:
        await trio.lowlevel.checkpoint()
        for change in changes:
            there = self.records.get(change.key)
            if (there.version if there is not None else None) != (change.old.version if change.old else None):
                now = {other.key: self.records.get(other.key) for other in changes}
                raise Stale(f"{change.kind} {change.name} was changed", now)
        self.tried += [change.key for change in changes]
        if rejected := [change for change in changes if self.rejects(change)]:
            now = {other.key: self.records.get(other.key) for other in changes}
            raise Rejected(f"{rejected[0].kind} {rejected[0].name} cannot be kept", now)
        self._version[0] += 1
        self.commits += 1
        kept = [self._kept(change) for change in changes]
        for change, record in zip(changes, kept, strict=True):
            if record is None:
                del self.records[change.key]
            else:
                self.records[change.key] = record
            for watcher in self._watchers:
                watcher.send_nowait(replace(change, new=record))
        return kept

    def _kept(self, change: Change) -> Any:
        version = self._version[0]
        if self.shared and isinstance(change.new, Lease):
            number = change.old.number if isinstance(change.old, Lease) else version
            return replace(change.new, version=version, number=number)
        return None if change.new is None else replace(change.new, version=version)

    async def watch(self, tell: Callable[[Change], None]) -> None:
        assert self._news is not None
        async for change in self._news:
            tell(change)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
