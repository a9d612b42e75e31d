"""A user's test file with two machines that really boot, run by dist/jmp and by pytest alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import build
from tests.real.linux_image import LinuxImage

pytestmark = [pytest.mark.real, pytest.mark.zipapp]

BOOT = Path(__file__).with_name("boot")
PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_device.py")


@pytest.fixture
def folder(tmp_path: Path, linux: LinuxImage, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: the test file and the exporter's."""
    config = (BOOT / "exporter.yaml").read_text()
    for name in ("kernel", "initrd", "append"):
        config = config.replace(name.upper() + "\n", f"{getattr(linux, name)}\n")
    (tmp_path / "exporter.yaml").write_text(config)
    shutil.copy(BOOT / "test_device.py", tmp_path)
    for name in list(os.environ):
        if name.startswith(("JMP_", "PYTEST")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(
            (sys.executable, build.DIST / "jmp", "shell", "--exporter-config", "exporter.yaml", "--", *PYTEST),
            id="shell",
        ),
        pytest.param((*PYTEST, "--jmp-exporter", "exporter.yaml"), id="pytest"),
    ],
)
def test_boot(folder: Path, command: tuple[str | Path, ...]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == [
        "exporter.yaml",
        "test_device.py",
    ]
