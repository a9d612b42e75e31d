"""Local mode as users have it: dist/jmp, processes, sockets."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import build

pytestmark = pytest.mark.zipapp

BENCH = """\
apiVersion: jmp/v1
kind: Exporter
metadata: {name: bench}
export:
  power: {type: mock-power}
  echo: {type: echo}
  missing: {type: serial, config: {url: /dev/there-is-none}}
"""
TEST = """\
def test_power(dut):
    dut.power.on()
    assert dut.power.state() == "on"
    with dut.echo.connect() as stream:
        stream.send_all(b"hello")
        stream.send_eof()
        assert stream.receive_some() == b"hello"
"""


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory with a configuration; HOME is another one."""
    (tmp_path / "home").mkdir()
    (tmp_path / "bench.yaml").write_text(BENCH)
    (tmp_path / "test_device.py").write_text(TEST)
    for name in list(os.environ):
        if name.startswith(("XDG_", "JMP_", "PYTEST", "PYTHON")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SHIV_ROOT", str(build.ROOT / "build" / "e2e-cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def jmp(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, build.DIST / "jmp", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


@contextmanager
def serving(bench: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """An exporter process that is ready, and its URL."""
    url = f"unix:{bench}/bench.sock"
    argv = [sys.executable, str(build.DIST / "jmp"), "exporter", "serve", "bench.yaml", "--listen", url]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if line.startswith("  jmp shell --connect"):
                    break
            yield process, url
        finally:
            process.send_signal(signal.SIGTERM)


def test_shell_runs_a_command_and_returns_its_code(bench: Path) -> None:
    done = jmp("shell", "--exporter-config", "bench.yaml", "--", "sh", "-c", "j power on; j power state; exit 7")
    assert (done.stdout, done.returncode) == ("on\n", 7)
    assert "missing is degraded" in done.stderr
    assert sorted(path.name for path in bench.iterdir()) == ["bench.yaml", "home", "test_device.py"]


def test_the_same_test_file_inside_a_session_and_on_its_own(bench: Path) -> None:
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_device.py"]
    inside = jmp("shell", "--exporter-config", "bench.yaml", "--", *pytest_)
    assert inside.returncode == 0, inside.stdout + inside.stderr
    alone = subprocess.run(
        [*pytest_, "--jmp-exporter", "bench.yaml"], capture_output=True, text=True, timeout=120, check=False
    )
    assert alone.returncode == 0, alone.stdout + alone.stderr


def test_one_user_at_a_time_and_the_next_one_after_a_kill(bench: Path) -> None:
    with serving(bench) as (process, url):
        holder = subprocess.Popen(
            [
                sys.executable,
                build.DIST / "jmp",
                "shell",
                "--connect",
                url,
                "--",
                "sh",
                "-c",
                "j power on; echo in; exec cat",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "in\n"
            refused = jmp("shell", "--connect", url, "--", "true")
            assert refused.returncode == 75
            assert re.fullmatch(
                r"jmp: bench is in use by \S+ since [-\d]+ [\d:]+; --wait queues for it\n", refused.stderr
            )
            holder.kill()
        after = jmp("shell", "--connect", url, "--wait", "--", "j", "power", "state")
        assert (after.stdout, after.returncode) == ("off\n", 0), "drivers are new for every session"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert not (bench / "bench.sock").exists()


def test_errors_are_one_line_with_a_code(bench: Path) -> None:
    script = "j powr; echo $?; j power fly; echo $?; j power cycle --wait soon; echo $?; j missing history; echo $?"
    done = jmp("shell", "--exporter-config", "bench.yaml", "--", "sh", "-c", script)
    assert done.stdout == "64\n64\n64\n74\n"
    assert "did you mean 'power'" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 5


def test_a_second_exporter_at_the_same_address_is_refused(bench: Path) -> None:
    with serving(bench) as (_, url):
        done = jmp("exporter", "serve", "bench.yaml", "--listen", url)
    assert done.returncode == 69
    assert "in use" in done.stderr
    assert done.stderr.count("\n") == 1
