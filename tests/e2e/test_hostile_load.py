"""Peers who do their worst, as fast as they can, for seconds: memory stays what it was, and others' calls go on.

How long these take depends on what else this machine has to do, an attacker on the same processors to begin with. What an attack
costs others is how long the exporter is at it until their turn comes: that is measured, in time of its processor.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.hostile import KINDS
from tests.e2e.product import FIGURES, SECONDS, Served, wait_for
from tests.e2e.streams import MIB, connect, write_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def served(folder: Path) -> Iterator[Served]:
    log = folder / "exporter.log"
    command = [sys.executable, "-m", "tests.e2e.turns", str(folder / "turns"), "exporter", "serve"]
    command += [str(write_config(folder, 9)), "--listen=127.0.0.1:0"]
    with log.open("w") as sink, subprocess.Popen(command, cwd=ROOT, stderr=sink, text=True) as process:
        try:
            yield Served(process, log, wait_for(log, process, "  jmp shell --connect"))
        finally:
            process.terminate()


def typical(dut: Any, seconds: float) -> float:
    """The median of how long a call takes."""
    taken = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        dut.power.on()
        taken.append(time.monotonic() - began)
    return statistics.median(taken)


def turns(served: Served, file: Path) -> list[float]:
    """Seconds of processor time that each round of the exporter's loop has taken since this was last asked; in order of size."""
    file.unlink(missing_ok=True)
    served.process.send_signal(signal.SIGUSR2)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        with suppress(FileNotFoundError):
            return sorted(json.loads(file.read_text()))
        os.sched_yield()
    raise AssertionError("the exporter does not answer")


@pytest.mark.parametrize("kind", KINDS)
def test_others_have_their_turn_and_memory_is_bounded(served: Served, folder: Path, kind: str) -> None:
    given = dict(zip(served.shell[1::2], served.shell[2::2], strict=True))
    passphrase = Path(given["--passphrase-file"]).read_text().strip()
    with connect(served) as dut:
        calm = typical(dut, 0.3)
        before = served.resident()
        command = [sys.executable, "-m", "tests.e2e.hostile", kind, served.url, passphrase]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as hostile:
            try:
                typical(dut, 0.8)  # it has begun by then
                turns(served, folder / "turns")
                busy = typical(dut, 1.5)
                took = turns(served, folder / "turns")
                assert hostile.poll() is None
            finally:
                hostile.kill()
        grown = served.peak() - before
        median, late = took[len(took) // 2], took[len(took) * 99 // 100]
        print(
            f"{kind}: a turn comes after {1e3 * median:.2f} ms of processor time, in 99 % after {1e3 * late:.2f} ms ({len(took)})"
            f"; a call takes {1e3 * calm:.2f} ms, then {1e3 * busy:.2f} ms; memory grew by {grown / MIB:.1f} MiB"
        )
        assert grown < 64 * MIB
        assert median < (0.0004 if kind == "oversized" else 0.002)  # what follows a violation is skipped
        assert late < 0.01
        assert not FIGURES or busy < 0.25
        typical(dut, 0.1)
    assert "Traceback" not in served.log.read_text()
