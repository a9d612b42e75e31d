"""The pytest plugin, in runs of pytest as users start them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.bundled import ROOT

TESTS = """\
def test_fails(dut):
    dut.board.power.on()
    with dut.board.console.expect(timeout=60) as console:
        console.expect("login: ")
    assert dut.board.power.state() == "off"


def test_passes(dut):
    dut.board.power.off()


async def test_async(dut_async):
    assert await dut_async.board.power.state() in ("on", "off")
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a board's configuration and tests of it."""
    (tmp_path / "board.yaml").write_text((ROOT / "jmp/examples/virtual-board.yaml").read_text())
    (tmp_path / "test_device.py").write_text(TESTS)
    for name in ("JMP_HOST", "JUMPSTARTER_HOST", "JMP_EXPORTER", "JMP_LEASE", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def run(place: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *arguments],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("more", [(), ("-n", "2")], ids=["one process", "xdist"])
def test_a_failing_test_has_calls_and_consoles_in_its_report(place: Path, more: tuple[str, ...]) -> None:
    code, out = run(place, "--jmp-exporter", "board.yaml", "--junit-xml", "report.xml", *more)
    assert code == 1
    assert "1 failed, 2 passed" in out
    for text in (out, (place / "report.xml").read_text()):
        assert "jmp calls" in text
        assert "board.power.state()" in text
        assert "Machine model: jmp virtual board" in text


def test_without_a_device_it_is_said_what_to_do(place: Path) -> None:
    code, out = run(place, "test_device.py::test_passes")
    assert code == 1
    assert "jmp: there is no device here: run pytest in `jmp shell`, or give --jmp-exporter NAME|FILE" in out


def test_a_device_that_cannot_be_had_is_one_line(place: Path) -> None:
    code, out = run(place, "--jmp-exporter", "nope", "test_device.py::test_passes")
    assert code == 1
    line = "jmp: there is no exporter 'nope' in "
    assert [text[: len(line)] for text in out.splitlines() if "no exporter" in text and "ERROR" not in text] == [line]
    assert "exception" not in out


def test_the_ini_file_names_the_exporter_beside_it(place: Path) -> None:
    (place / "pytest.ini").write_text("[pytest]\njmp_exporter = board.yaml\n")
    assert "1 passed" in run(place, "test_device.py::test_passes")[1]


def test_two_devices_are_one_too_many(place: Path) -> None:
    code, out = run(place, "--jmp-exporter", "board.yaml", "--jmp-selector", "board=x")
    assert code == 4
    assert "--jmp-exporter and --jmp-selector: a run uses one device" in out
