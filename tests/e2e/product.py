"""dist/jmp as processes: what its users start, and what they can see of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import build

SECONDS = 120
"""How long a command may take on a machine that is busy with other tests."""
FIGURES = any(name.startswith("JMP_TEST_") for name in os.environ)
"""Whether stories are told at length, as docs/reliability.md has them, on a machine that does nothing else. Only then how long
something takes is held against its bound. Read before tests get an environment without such things."""


def argv(*arguments: str | Path) -> list[str]:
    """The command line of dist/jmp, run by the Python that runs the tests."""
    return [sys.executable, str(build.DIST / "jmp"), *map(str, arguments)]


def j(*arguments: str) -> list[str]:
    """The command line of dist/jmp under its other name."""
    link = build.BUILD / "e2e" / "j"
    if not link.exists():
        link.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # another test was faster
            link.symlink_to(build.DIST / "jmp")
    return [sys.executable, str(link), *arguments]


def jmp(*arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run dist/jmp to its end."""
    return subprocess.run(
        argv(*arguments),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env=env,
        stdin=subprocess.DEVNULL,
    )


@dataclass
class Served:
    """An exporter process."""

    process: subprocess.Popen[str]
    log: Path
    lines: list[str]

    @property
    def shell(self) -> list[str]:
        """What follows ``jmp`` on the line that the exporter proposes to its users."""
        (line,) = [line for line in self.lines if line.startswith("  jmp shell")]
        return line.split()[1:]

    @property
    def url(self) -> str:
        return self.shell[2]

    def resident(self) -> int:
        """Bytes of memory it has now."""
        return self._memory("VmRSS")

    def peak(self) -> int:
        """The most bytes of memory that it ever had."""
        return self._memory("VmHWM")

    def _memory(self, what: str) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith(what)]
        return int(line.split()[1]) * 1024

    def end(self) -> int:
        """Ask it to end; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SECONDS)


@contextmanager
def serving(config: Path, *listen: str) -> Iterator[Served]:
    """An exporter that is ready, at a socket beside its configuration unless told otherwise."""
    where = listen or (f"--listen=unix:{config.with_suffix('.sock')}",)
    log = config.with_suffix(".log")
    with log.open("w") as sink:
        process = subprocess.Popen(argv("exporter", "serve", config, *where), stderr=sink, text=True)
    with process:
        try:
            yield Served(process, log, wait_for(log, process, "  jmp shell --connect"))
        finally:
            process.terminate()


def wait_for(log: Path, process: subprocess.Popen[str], start: str) -> list[str]:
    """The lines of a log up to the first that begins with ``start``, as soon as it is there."""
    lines: list[str] = []
    threading.Thread(
        target=process.wait, daemon=True
    ).start()  # one that has ended unnoticed would still have its number
    with subprocess.Popen(
        ["tail", "-n", "+1", "-f", f"--pid={process.pid}", str(log)], stdout=subprocess.PIPE, text=True
    ) as tail:
        assert tail.stdout is not None
        for line in tail.stdout:
            lines.append(line.rstrip("\n"))
            if line.startswith(start):
                break
        tail.terminate()
    assert lines, f"the process ended without a word: {process.poll()}"
    assert lines[-1].startswith(start), "\n".join(lines)
    return lines


@contextmanager
def session(served: Served, *options: str) -> Iterator[str]:
    """A session held by a ``jmp shell``: the value of JMP_HOST that any number of programs can use."""
    command: Sequence[str] = argv(*served.shell, *options, "--", "sh", "-c", "echo $JMP_HOST; exec cat")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        assert shell.stdin is not None
        host = shell.stdout.readline().strip()
        assert host.startswith("unix:"), host
        yield host
        shell.stdin.close()
        assert shell.wait(SECONDS) == 0


def numbered(stream: IO[bytes], until: bytes) -> bytes:
    """What a stream says up to and with ``until``, which ends a line."""
    said = bytearray()
    while not said.endswith(until):
        line = stream.readline()
        assert line, f"ended after {bytes(said[-200:])!r}"
        said += line
    return bytes(said)
