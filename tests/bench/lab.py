"""The processes that the benches measure: exporters of either make, a lab, and the workers that use them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import build
from tests.bench.worker import Figures

SECONDS = 300
"""How long one measurement may take."""

ENTRY_POINTS = """\
[jmp.drivers]
bench-device = tests.bench.devices:BenchDevice
bench-disk = jmp_drivers.virtual_board.card:Card
bench-console = tests.bench.devices:BenchConsole
"""
CONFIG = """\
apiVersion: jmp/v1
kind: Exporter
metadata: {{name: bench, labels: {{board: bench}}}}
export:
  device: {{type: bench-device}}
  disk: {{type: bench-disk, config: {{capacity: {capacity}, image: {image}}}}}
  port: {{type: tcp, config: {{host: 127.0.0.1, port: {port}}}}}
  power: {{type: mock-power}}
"""


class Contender(Protocol):
    """Who takes part in some measurements."""

    def measure(self, what: str, short: bool) -> Figures | None:
        """Its figures; None if this is nothing that it does."""


class Failed(Exception):
    """A measurement could not be carried out."""


class Worker:
    """A process that measures; see :mod:`tests.bench.worker`."""

    def __init__(self, process: subprocess.Popen[str], what: Sequence[str] = ()) -> None:
        self._process = process
        self._what = what
        self.ready = self._read()["ready"]

    def measure(self, what: str, short: bool) -> Figures | None:
        if self._what and what not in self._what:
            return None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"what": what, "short": short}) + "\n")
        self._process.stdin.flush()
        reply = self._read()
        if "failed" in reply:
            raise Failed(f"{what}: {reply['failed']}")
        figures: Figures = reply["figures"]
        return figures

    def _read(self) -> dict[str, Figures]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Failed("the process that measures has ended")
        reply: dict[str, Figures] = json.loads(line)
        return reply


def environment(*path: Path, **more: str) -> dict[str, str]:
    """This process's, with these folders and this checkout to import from."""
    found = os.environ.get("PYTHONPATH") if not path else None
    return {**os.environ, "PYTHONPATH": found or os.pathsep.join(map(str, (*path, build.ROOT))), **more}


@contextmanager
def started(
    module: str, *arguments: str | Path, python: str | Path = sys.executable, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A module of the benches as a process; ended after the block. What peers say on standard error is nobody's affair."""
    command = [str(python), "-m", f"tests.bench.{module}", *map(str, arguments)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if str(python) == sys.executable else subprocess.DEVNULL,
        text=True,
        env=env or environment(),
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def worker(
    module: str,
    *arguments: str | Path,
    what: Sequence[str] = (),
    python: str | Path = sys.executable,
    env: dict[str, str] | None = None,
) -> Iterator[Worker]:
    with started(module, *arguments, python=python, env=env) as process:
        yield Worker(process, what)
        assert process.stdin is not None
        process.stdin.close()  # at whose end it ends what it has started itself
        with suppress(subprocess.TimeoutExpired):  # A peer that hangs at its end is killed, and its figures stay.
            process.wait(30)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        raise Failed("a process has ended before it said anything")
    return line


def plugin(folder: Path) -> Path:
    """A folder to import from, which registers the drivers of the benches as an installed distribution does."""
    info = folder / "plugin" / "bench-0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bench\nVersion: 0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return info.parent


def write_config(folder: Path, port: int, capacity: int) -> Path:
    path = folder / "bench.yaml"
    path.write_text(CONFIG.format(port=port, capacity=capacity, image=folder / "disk"))
    return path


@contextmanager
def target() -> Iterator[int]:
    """The port of a TCP server that obeys."""
    with started("target") as process:
        yield int(first_line(process))


def resident(pid: int) -> int:
    """Bytes of memory that a process has now."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise Failed(f"process {pid} is gone")
