from __future__ import annotations

import os
from pathlib import Path

import pytest

import build


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in; HOME is another one, and nothing in the environment is about jmp."""
    (tmp_path / "home").mkdir()
    work = tmp_path / "work"
    work.mkdir()
    for name in list(os.environ):
        if name.startswith(("XDG_", "JMP_", "PYTEST", "PYTHON")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home" / "state"))  # root's would be the system's
    monkeypatch.setenv("SHIV_ROOT", str(build.ROOT / "build" / "e2e-cache"))
    monkeypatch.chdir(work)
    return work
