"""A session of one's own: a child process that holds it, so that any number of connections and of programs can use it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from jmp.environment import HOST, import_path, session_directory
from jmp.errors import BY_CODE, JmpError, LabError

STOP_SECONDS: Final = 30.0
"""Seconds that its drivers may take to close."""

_HOLD: Final = """\
import os, sys
told = [f"{name}={value}" for name, value in os.environ.items()
        if name.startswith(("JMP_", "JUMPSTARTER_")) or name in ("PATH", "PYTHONPATH")]
sys.stdout.buffer.write("\\0".join([*told, "", ""]).encode(errors="surrogateescape"))
sys.stdout.buffer.flush()
sys.stdin.buffer.read()
"""
"""The command that such a session is for: it tells its environment, and stays until its input ends."""


class SessionProcess(NamedTuple):
    """A session that another process holds."""

    environment: dict[str, str]
    """What commands in it have in their environment, as far as that comes from the session."""
    log: Path
    """What its exporter and its hooks had to say."""

    @property
    def url(self) -> str:
        return self.environment[HOST]


@contextmanager
def session_process(*options: str) -> Iterator[SessionProcess]:
    """The session that ``jmp shell`` makes with these ``options``.

    It ends with the block, or when this process is killed; Ctrl-C in the terminal is this process's affair and not the
    session's, so that the block can leave the device in order. Raises what is wrong as ``jmp shell`` says it, as the class that
    its exit code stands for.
    """
    code = f"import sys; sys.path[:0] = {import_path()!r}; from jmp.cli import main; sys.exit(main())"
    command = [sys.executable, "-S", "-E", "-c"]
    with session_directory() as directory:
        said = directory / "session.log"
        with said.open("wb") as log:
            process = subprocess.Popen(
                [*command, code, "shell", *options, "--", *command, _HOLD],
                stdin=subprocess.PIPE,  # closed by the system if this process is killed, and then the command ends
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield SessionProcess(_environment(process, said), said)
        finally:
            _stop(process)


def _environment(process: subprocess.Popen[bytes], said: Path) -> dict[str, str]:
    """What the command of the session tells, once there is a session."""
    assert process.stdout is not None
    told = b""
    while not told.endswith(b"\0\0"):
        more = os.read(process.stdout.fileno(), 65536)
        if not more:
            raise _failure(process.wait(STOP_SECONDS), said.read_text(errors="replace").strip())
        told += more
    pairs = told.decode(errors="surrogateescape").rstrip("\0").split("\0")
    return dict(pair.split("=", 1) for pair in pairs)


def _failure(status: int, said: str) -> JmpError:
    message = said.splitlines()[-1].removeprefix("jmp: ") if said else f"the session ended with status {status}"
    return next((error for error in BY_CODE.values() if error.exit_code == status), LabError)(message)


def _stop(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.stdout.close()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
