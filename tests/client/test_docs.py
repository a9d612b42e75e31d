"""What docs/python.md and docs/pytest.md show works as it stands there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.bundled import ROOT, blocks

BOARD = (ROOT / "jmp/examples/virtual-board.yaml").read_text()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the virtual board's configuration."""
    (tmp_path / "board.yaml").write_text(BOARD)
    for name in ("JMP_HOST", "JUMPSTARTER_HOST", "JMP_EXPORTER"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def run(place: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=place, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("number", "prints"),
    [
        (0, "on\n"),
        (1, "on\n"),
        (3, "Linux\nTrue\n"),
        (4, None),
    ],
)
def test_python(place: Path, number: int, prints: str | None) -> None:
    out = run(place, "-c", blocks("docs/python.md", "python")[number])
    if prints is not None:
        assert out == prints
    else:
        assert "board.console.connect did not finish" in out, "whichever end notices first"
        assert "board has no method or driver 'reset_button'" in out


def test_pytest(place: Path) -> None:
    (place / "test_device.py").write_text(blocks("docs/pytest.md", "python")[0])
    assert "2 passed" in run(place, "-m", "pytest", "-q", "--jmp-exporter", "board.yaml", "test_device.py")
