"""What a device was asked and what it said while a test ran, for the report of a test that fails.

Theory of operation. Calls are noted as they are made (:mod:`jmp.client.calls`). Consoles need no reader for this: each driver
keeps the newest of its output, whoever reads it. :meth:`Recording.begin` remembers what it has kept, and what it has kept
in addition at the end is what the device said meanwhile. Should the exporter not be able to answer then, there is
still what this process itself has received (:data:`jmp.client.console.taps`).
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from jmp.client import calls, console
from jmp.client.calls import Call
from jmp.driver.proxy import Backend, Node, run
from jmp.errors import JmpError
from jmp.rpc.blocking import fail_after

MAX_CALLS: Final = 100
"""Calls of one test that are shown: the last ones."""
MAX_CONSOLE: Final = 16 * 1024
"""Characters of one console's output that are shown: the last ones."""
SECONDS: Final = 5.0
"""How long to wait for what the consoles have kept, at either end of a test."""

ANCHOR: Final = 256
"""Bytes by which the end of what was known is found again in what is known now."""
TRIES: Final = 64
"""Places that are looked at for it: only output that repeats itself has more than one."""

Section = tuple[str, str]


class Recording:
    """Of the tests of one process, one after the other."""

    def __init__(self) -> None:
        self._backend: Backend | None = None
        self._consoles: list[str] = []
        self._calls: deque[Call] = deque(maxlen=MAX_CALLS)
        self._count = 0
        self._began = 0.0
        self._kept: dict[str, bytes] | None = None
        self._received: dict[str, bytes] = {}
        self._asking: int | None = None

    def attach(self, device: Any) -> None:
        """Ask this blocking device about its consoles from now on."""
        self._backend = device._wrapped._backend
        self._consoles = sorted(consoles(device._wrapped._node))
        self.begin()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take note, for as long as the block lasts."""
        calls.taps.append(self._called)
        console.taps.append(self._heard)
        try:
            yield
        finally:
            calls.taps.remove(self._called)
            console.taps.remove(self._heard)

    def begin(self, *, ask: bool = True) -> None:
        """What has been so far is not wanted. Without ``ask``, the consoles are not asked what they keep, now and later."""
        self._forget()
        self._began = time.monotonic()
        self._kept = self._ask() if ask else None

    def take(self) -> list[Section]:
        """Titles and texts of what has been since :meth:`begin`, or since this was called last."""
        sections: list[Section] = []
        if self._calls:
            left_out = f"({self._count - len(self._calls)} before these)\n" if self._count > len(self._calls) else ""
            lines = (f"{call.began - self._began:9.3f} s  {call}" for call in self._calls)
            sections.append(("jmp calls", left_out + "\n".join(lines)))
        said = dict(self._received)
        if self._kept is not None:
            now = self._ask()
            said |= {path: since(self._kept.get(path, b""), kept) for path, kept in now.items()}
            self._kept |= now
        sections += ((f"jmp console {path}", text) for path in sorted(said) if (text := readable(said[path])))
        self._forget()
        return sections

    def _forget(self) -> None:
        self._calls.clear()
        self._count = 0
        self._received.clear()

    def _ask(self) -> dict[str, bytes]:
        """What the consoles have kept; without those that cannot tell."""
        kept: dict[str, bytes] = {}
        if self._backend is None:
            return kept
        self._asking = threading.get_ident()
        try:
            with fail_after(SECONDS):
                for path in self._consoles:
                    try:
                        kept[path] = run(self._backend.call(path, "history", (), {}))
                    except JmpError:
                        continue  # it is degraded, or the exporter is gone: the test's own errors say so
        finally:
            self._asking = None
        return kept

    def _called(self, call: Call) -> None:
        if self._asking != threading.get_ident():
            self._calls.append(call)
            self._count += 1

    def _heard(self, path: str, data: bytes) -> None:
        self._received[path] = (self._received.get(path, b"") + data)[-MAX_CONSOLE:]


def consoles(node: Node) -> set[str]:
    """The consoles of a device, by path; one that is there under several names once."""
    own = {node.path} if node.interface == "jmp.console/v1" else set()
    return own.union(*map(consoles, node.children.values()))


def since(before: bytes, now: bytes) -> bytes:
    """What was added to a buffer that keeps the newest of what is fed to it, and was ``before`` and is ``now``."""
    if now.startswith(before):
        return now[len(before) :]
    # Its beginning has been dropped: now begins with what is left of before, and as much of it as can be.
    tail, end = before[-ANCHOR:], len(now)
    for _ in range(TRIES):
        start = now.rfind(tail, 0, end)
        if start < 0:
            break
        end = start + len(tail)
        if before.endswith(now[:end]):
            return now[end:]
        end -= 1
    return now


_MOVES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b.|[\x00\x07\x08]|\r(?=\r*\n)")
_UNPRINTABLE = re.compile(r"[^\n\t\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def readable(output: bytes) -> str:
    """A console's output as a report can show it: the end of it, as text, without what moves a cursor or is not XML."""
    text = _MOVES.sub("", output[-2 * MAX_CONSOLE :].decode(errors="replace")).replace("\r", "\n")
    text = _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text).strip("\n")
    if len(text) > MAX_CONSOLE or len(output) > 2 * MAX_CONSOLE:
        return "(there was more before this)\n" + text[-MAX_CONSOLE:].partition("\n")[2]
    return text
