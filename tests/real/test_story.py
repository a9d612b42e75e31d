"""The story of a board, by dist/jmp and a user's test file: booted from the network, flashed, booted from its disk, seen."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import build
from tests.real.story_image import APPEND, story_image

pytestmark = [pytest.mark.real, pytest.mark.zipapp]

STORY = Path(__file__).with_name("story")
# The user's side knows the tests' browser; dist/jmp does not see the checkout.
PYTEST = (
    "env",
    f"PYTHONPATH={build.ROOT}",
    sys.executable,
    "-m",
    "pytest",
    "-q",
    "-x",
    "-p",
    "no:cacheprovider",
    "test_device.py",
)


def test_story(tmp_path: Path) -> None:
    image = story_image()
    # U-Boot asks port 69, and QEMU's NAT leads to any address: one of loopback that is nobody else's.
    address = "127." + ".".join(str(1 + each % 254) for each in secrets.token_bytes(3))
    (tmp_path / "exporter.yaml").write_text((STORY / "exporter.yaml").read_text().replace("ADDRESS", address))
    for name in ("test_device.py", "login.png"):
        shutil.copy(STORY / name, tmp_path)
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("JMP_", "PYT"))}
    environ |= {
        "HOME": str(tmp_path),
        "STORY": str(image.kernel.parent),
        "STORY_APPEND": APPEND,
        "STORY_DATA": image.data,
    }
    command = (sys.executable, build.DIST / "jmp", "shell", "--exporter-config", "exporter.yaml", "--", *PYTEST)
    done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=850, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
