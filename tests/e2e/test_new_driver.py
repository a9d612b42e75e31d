"""docs/write-a-driver.md as it stands: from jmp driver new to somebody else's client."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import build
from tests.e2e import product

TEXT = (build.ROOT / "docs/write-a-driver.md").read_text()


def run(script: str) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.zipapp
def test_the_guide_as_it_stands(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "jmp").symlink_to(product.argv()[1])
    (programs / "python3").symlink_to(sys.executable)  # the Python of the machine, without jmp and its drivers
    monkeypatch.setenv("PATH", f"{programs}:/usr/local/bin:/usr/bin:/bin")
    script = ["exec 2>&1"]
    for language, block in re.findall(r"^```(sh|python)\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE):
        if language == "sh":
            script.append(block)
        else:
            (name,) = re.findall(r"\A# (\S+)\n", block)
            (tmp_path / Path(name).name).write_text(block)
            script.append(f"cp {tmp_path / Path(name).name} {name}")
    out = run("\n".join(script))
    assert "path\tpath\trequired\tthe file\n" in out
    assert "4 passed" in out, "the template's tests, as made"
    assert "2 passed" in out
    for said in ("128\n", "40\n", "70\n"):
        assert f"\n{said}" in out, said
    assert "  # fan of nct6779\n  fan:\n    type: bench-fan\n" in out
    assert (folder / "bench-fan/device").read_text() == f"{70 * 255 // 100}\n"
