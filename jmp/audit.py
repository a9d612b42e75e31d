"""The audit log: who did what to which object, from where, with which result. One JSON object a line, only ever appended.

It goes on in a new file whenever the present one was renamed or removed, so logrotate needs no signal (and loses nothing with
``create`` or without). It never holds a token, and it never keeps the lab from working.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

log = logging.getLogger("jmp.audit")

STDOUT: Final = Path("-")
"""In place of a file: standard output, whose lines somebody else keeps."""

_TOKEN: Final = re.compile(r"\beyJ[\w-]*\.[\w-]*\.[\w-]*")
_SECRET: Final = frozenset({"token", "passphrase", "password", "secret"})


class Audit:
    """Appends to the file at ``path``; with None it keeps nothing. ``clock`` tells the seconds since the epoch.

    With a ``limit`` of bytes, a file that has grown beyond it becomes ``PATH.1``, in place of the one before.
    """

    def __init__(self, path: Path | None, *, limit: float = math.inf, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._limit = limit
        self._clock = clock
        self._file: int | None = None
        self._failed = False

    def record(self, *, actor: str, role: str, peer: str, action: str, object: str, result: str, **more: Any) -> None:
        """Append a line. If that fails, the log gets it once, and the line is lost."""
        if self._path is None:
            return
        entry = {
            "time": round(self._clock(), 3),
            "actor": actor,
            "role": role,
            "peer": peer,
            "action": action,
            "object": object,
            "result": result,
            **{key: value for key, value in more.items() if value not in (None, "", {}, [], ())},
        }
        line = json.dumps(_clean(entry), ensure_ascii=False, default=str) + "\n"
        try:
            self._append(self._path, line.encode("utf-8", "backslashreplace"))
        except OSError as error:
            self.close()
            if not self._failed:
                log.error("the audit log %s cannot be written: %s", self._path, error.strerror or error)
            self._failed = True
        else:
            if self._failed:
                log.warning("the audit log %s can be written again; what happened meanwhile is missing", self._path)
            self._failed = False

    def close(self) -> None:
        """Let go of the file; the next line opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _append(self, path: Path, line: bytes) -> None:
        if path == STDOUT:
            os.write(1, line)
            return
        if self._file is not None:
            here = os.fstat(self._file)
            if not _is_at(here, path):
                self.close()
            elif here.st_size > self._limit:
                path.replace(path.with_name(f"{path.name}.1"))
                self.close()
        if self._file is None:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            self._file = os.open(path, flags, 0o640)
        # One write, so that lines of several writers never mix. If the disk takes a part only, the rest would be garbage.
        if os.write(self._file, line) < len(line):
            os.write(self._file, b"\n")
            raise OSError(28, "only a part of a line was written")


def _is_at(here: os.stat_result, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _clean(value: Any) -> Any:
    """The value without secrets, should one get this far."""
    if isinstance(value, str):  # most are
        return _TOKEN.sub("...", value)
    if isinstance(value, Mapping):
        return {str(key): "..." if key in _SECRET else _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(item) for item in value]
    return value
