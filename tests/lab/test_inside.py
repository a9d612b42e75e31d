"""Drivers on the lab machine's devices, and a lab on its networks: each file in tests/lab/inside is run there by pytest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.lab import machine

FILES = sorted((machine.HERE / "inside").glob("*.py"))


@pytest.mark.real
@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_inside(file: Path, tmp_path: Path) -> None:
    if not (machine.KERNEL / "linux").exists():
        pytest.skip(f"there is no kernel in {machine.KERNEL}: tests/lab/build_kernel.sh {machine.KERNEL}")
    status, output = machine.run(machine.pytest_command(file), tmp_path, seconds=600)
    print(output)
    assert status == 0, output
    assert re.search(r"^\d+ passed in", output, re.MULTILINE), output
