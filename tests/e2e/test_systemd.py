"""The unit file, as systemd reads it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import build

pytestmark = [pytest.mark.real, pytest.mark.zipapp]


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "jmp-exporter@bench.service"
    text = (build.ROOT / "deploy" / "systemd" / "jmp-exporter@.service").read_text()
    assert "/usr/local/bin/jmp" in text
    unit.write_text(text.replace("/usr/local/bin/jmp", str(build.DIST / "jmp")))  # it looks for the program
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
