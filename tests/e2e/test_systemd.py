"""The unit files, as systemd reads them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import build

pytestmark = [pytest.mark.real, pytest.mark.zipapp]


UNITS = build.ROOT / "deploy" / "systemd"


@pytest.mark.parametrize("file", sorted(path.name for path in UNITS.iterdir()))
def test_systemd_accepts_the_unit(tmp_path: Path, file: str) -> None:
    unit = tmp_path / file.replace("@", "@bench")
    text = (UNITS / file).read_text()
    assert "/usr/local/bin/jmp" in text
    unit.write_text(text.replace("/usr/local/bin/jmp", str(build.DIST / "jmp")))  # it looks for the program
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
