"""A test that hangs fails, by name, and the others go on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.fakes.bundled import ROOT

TESTS = """\
import pathlib, subprocess
import pytest

@pytest.fixture(scope="module", autouse=True)
def server():
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()
    pathlib.Path("down").touch()

def hang():
    with subprocess.Popen(["sh", "-c", "sleep 1000; true"]):
        pass

@pytest.fixture
def hangs_before():
    hang()

@pytest.fixture
def hangs_after():
    yield
    hang()

def test_first(server):
    subprocess.run(["sleep", "0.1"])  # the server is clearly older than what the others start

def test_program():
    hang()

def test_before(hangs_before):
    pass

def test_after(hangs_after):
    pass

def test_others(server):
    assert server.poll() is None
"""
WAITS = """\
import trio

async def wait():
    await trio.sleep_forever()

def test_waits():
    trio.run(wait)

def test_more():
    pass
"""


def run(folder: Path, *arguments: str) -> str:
    limits = [f"--override-ini={name}" for name in ("faulthandler_timeout=4", "faulthandler_exit_on_timeout=true")]
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "tests.fakes.hangs", *limits, *arguments]
    done = subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_who_waits_for_a_program_fails_and_is_taken_down(tmp_path: Path) -> None:
    (tmp_path / "test_programs.py").write_text(TESTS)
    out = run(tmp_path)
    assert "FAILED test_programs.py::test_program - call did not end in time" in out
    assert "in hang\n" in out
    assert "ERROR test_programs.py::test_before - setup did not end in time" in out
    assert "ERROR test_programs.py::test_after - teardown did not end in time" in out
    assert "1 failed, 3 passed, 2 errors" in out
    assert (tmp_path / "down").exists()


def test_who_waits_for_something_else_is_named_and_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "test_waits.py").write_text(WAITS)
    out = run(tmp_path, "-n", "1", "--dist", "worksteal")
    assert "crashed while running 'test_waits.py::test_waits'" in out
    assert "test_waits.py:4 in wait\n" in out
    assert "line 7 in test_waits\n" in out
    assert "PASSED test_waits.py::test_more" in out
