"""Peers who do their worst, as fast as they can, for seconds: memory stays what it was, and others' calls go on."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.hostile import KINDS
from tests.e2e.product import Served, serving
from tests.e2e.streams import MIB, connect, write_config

ROOT = Path(__file__).parents[2]
ROUNDS = 5
pytestmark = pytest.mark.zipapp


@pytest.fixture
def served(folder: Path) -> Iterator[Served]:
    with serving(write_config(folder, 9), "--listen=127.0.0.1:0") as served:
        yield served


def typical(dut: Any, seconds: float) -> float:
    """The median of how long a call takes."""
    taken = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        dut.power.on()
        taken.append(time.monotonic() - began)
    return statistics.median(taken)


@pytest.mark.parametrize("kind", KINDS)
def test_others_go_on_and_memory_is_bounded(served: Served, kind: str) -> None:
    given = dict(zip(served.shell[1::2], served.shell[2::2], strict=True))
    passphrase = Path(given["--passphrase-file"]).read_text().strip()
    with connect(served) as dut:
        typical(dut, 0.2)
        before = served.resident()
        # It is to use up what it attacks, not this machine, which in truth is another one than its own: hence the least priority.
        command = ["nice", "-n", "19", sys.executable, "-m", "tests.e2e.hostile", kind, served.url, passphrase]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as hostile:
            try:
                typical(dut, 0.8)  # it has begun by then
                rounds = [compared(dut, hostile) for _ in range(ROUNDS)]
                assert hostile.poll() is None
            finally:
                hostile.kill()
        grown = served.peak() - before
        for calm, busy, used in rounds:
            print(
                f"{kind}: a call takes {1000 * calm:.2f} ms, then {1000 * busy:.2f} ms, {busy / calm:.2f} times as long,"
                f" while the attack has {100 * used:.0f} % of a processor"
            )
        print(f"{kind}: memory grew by {grown / MIB:.1f} MiB")
        assert grown < 64 * MIB
        # The best round, since others use this machine, too; what an attack costs is there in each in which it had its share.
        assert min(busy / calm for calm, busy, _ in rounds) < 3
        assert min(busy for _, busy, _ in rounds) < 0.25
        typical(dut, 0.1)
    assert "Traceback" not in served.log.read_text()


def compared(dut: Any, hostile: subprocess.Popen[bytes]) -> tuple[float, float, float]:
    """How long a call takes while that one does nothing, and while it does its worst; how much of a processor it then has."""
    hostile.send_signal(signal.SIGSTOP)
    try:
        typical(dut, 0.05)  # what it had sent is through by then
        calm = typical(dut, 0.15)
    finally:
        hostile.send_signal(signal.SIGCONT)
    typical(dut, 0.05)
    began, before = time.monotonic(), used(hostile)
    busy = typical(dut, 0.3)
    return calm, busy, (used(hostile) - before) / (time.monotonic() - began)


def used(process: subprocess.Popen[bytes]) -> float:
    """Seconds of processor time that it has had."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
