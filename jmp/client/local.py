"""An exporter of one's own: a child process that serves one session and ends with it."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from jmp.environment import import_path, session_directory
from jmp.errors import BY_CODE, JmpError, LabError

START_SECONDS: Final = 60.0
"""Seconds until the exporter must listen: it has read its configuration by then, and has opened nothing yet."""
STOP_SECONDS: Final = 30.0
"""Seconds that its drivers may take to close."""


@contextmanager
def exporter_process(exporter: str | os.PathLike[str]) -> Iterator[str]:
    """Start the exporter with this name or configuration file for one session; the URL to connect to.

    It ends when that session does, even if this process is killed. Raises what the exporter itself says is wrong, such as
    :class:`~jmp.errors.ConfigError`.
    """
    with session_directory() as directory:
        url = f"unix:{directory / 'exporter.sock'}"
        code = f"import sys; sys.path[:0] = {import_path()!r}; from jmp.cli import main; sys.exit(main())"
        argv = [
            sys.executable,
            "-S",
            "-E",
            "-c",
            code,
            "exporter",
            "serve",
            os.fspath(exporter),
            "--listen",
            url,
            "--once",
        ]
        said = directory / "exporter.log"
        alive, held = os.pipe()  # the child holds the other end until it ends
        try:
            with _readiness(directory / "ready.sock") as ready, said.open("wb") as log:
                environ = {**os.environ, "NOTIFY_SOCKET": str(directory / "ready.sock")}
                process = subprocess.Popen(
                    argv, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, pass_fds=(held,)
                )
                os.close(held)
                try:
                    readable, _, _ = select.select([ready.fileno(), alive], [], [], START_SECONDS)
                    if ready.fileno() not in readable:
                        raise _failure(process, said)
                    yield url
                finally:
                    _stop(process)
        finally:
            os.close(alive)


@contextmanager
def _readiness(path: Path) -> Iterator[socket.socket]:
    """A socket that speaks the sd_notify protocol's receiving side."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        yield sock


def _failure(process: subprocess.Popen[bytes], said: Path) -> JmpError:
    if process.poll() is None and not said.stat().st_size:
        return LabError(f"the exporter did not start within {START_SECONDS:g} s")
    lines = said.read_text(errors="replace").strip().splitlines()
    status = process.wait(STOP_SECONDS)
    message = lines[-1].removeprefix("jmp: ") if lines else f"the exporter ended with status {status}"
    return next((error for error in BY_CODE.values() if error.exit_code == status), LabError)(message)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
