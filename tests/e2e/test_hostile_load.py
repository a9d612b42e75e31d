"""Peers who do their worst, as fast as they can, for seconds: memory stays what it was, and others' calls go on."""

from __future__ import annotations

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
        calm = typical(dut, 0.5)
        before = served.resident()
        command = [sys.executable, "-m", "tests.e2e.hostile", kind, served.url, passphrase]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as hostile:
            try:
                typical(dut, 1.0)  # it has begun by then
                busy = typical(dut, 2.0)
                assert hostile.poll() is None
            finally:
                hostile.kill()
        grown = served.peak() - before
        print(
            f"{kind}: a call takes {1000 * calm:.2f} ms, then {1000 * busy:.2f} ms; memory grew by {grown / MIB:.1f} MiB"
        )
        assert grown < 64 * MIB
        assert busy < 0.25  # figures are the bench's; here nobody is kept out
        assert typical(dut, 0.3) < 0.25
    assert "Traceback" not in served.log.read_text()
