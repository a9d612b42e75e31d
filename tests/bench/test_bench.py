"""The benches work. Nothing is timed here, and the peers do not take part."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import build
from tests.bench.table import ROWS

pytestmark = pytest.mark.zipapp
SECONDS = 300
GROUPS = sorted({row.group for row in ROWS if not row.special})


@pytest.mark.parametrize("group", GROUPS)
def test_short(tmp_path: Path, group: str) -> None:
    out = tmp_path / "figures.json"
    command = [sys.executable, "-m", "tests.bench", group, "--short", "--json", str(out)]
    done = subprocess.run(command, cwd=build.ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())["rows"]
    wanted = {row.name for row in ROWS if row.group == group and not row.special}
    assert wanted <= {name for name, row in found.items() if row["medians"]["jmp"] > 0 or name == "consoles-memory"}
    assert group in done.stdout or all(name in done.stdout for name in wanted)
