"""Every mistake is one line on standard error that says what to do, and a documented exit code."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import build
from tests.e2e.product import argv, j, jmp, serving, session

pytestmark = pytest.mark.zipapp

BENCH = """\
apiVersion: jmp/v1
kind: Exporter
metadata: {name: bench}
export:
  power: {type: mock-power}
  loose: {type: command-power, config: {on: "true", off: "exit 3"}}
  missing: {type: serial, config: {url: /dev/there-is-none}}
"""
BENCHES = {
    "key.yaml": BENCH.replace("mock-power}", "mock-power, confg: {}}"),
    "driver.yaml": BENCH.replace("mock-power", "moc-power"),
    "type.yaml": BENCH.replace("url: /dev/there-is-none", "url: 7"),
    "broken.yaml": "export: [a\n",
}
IN_SESSION = ("shell", "--exporter-config", "bench.yaml", "--")


@pytest.fixture
def bench(folder: Path) -> Path:
    (folder / "bench.yaml").write_text(BENCH)
    for name, text in BENCHES.items():
        (folder / name).write_text(text)
    return folder


def is_one_line(done: subprocess.CompletedProcess[str], code: int, message: str) -> None:
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert re.fullmatch(rf"jmp: .*{message}.*\n", done.stderr), done.stderr
    assert f"| {code} |" in (build.ROOT / "docs" / "cli.md").read_text()


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (("frob",), 64, "there is no command 'frob'.*see jmp --help"),
        (("shell", "--frob"), 64, "--frob"),
        (("shell", "--exporter", "nobody", "--", "true"), 64, "there is no exporter 'nobody'"),
        (("exporter", "serve", "nobody"), 64, "there is no exporter 'nobody'"),
        (("exporter", "serve", "none.yaml"), 64, "there is no file none.yaml"),
        (("exporter", "serve", "bench.yaml", "--listen", "blah"), 64, "'blah' is neither unix:PATH nor HOST:PORT"),
        (("exporter", "serve", "bench.yaml", "--listen", "127.0.0.1:99999"), 64, "127.0.0.1:99999"),
        (("exporter", "serve", "bench.yaml", "--listen", "host.invalid:1"), 69, "cannot listen at host.invalid:1"),
        (("shell", "--exporter-config", "key.yaml", "--", "true"), 78, r"key.yaml:5: .*did you mean 'config'\?"),
        (
            ("shell", "--exporter-config", "driver.yaml", "--", "true"),
            78,
            r"driver.yaml:5: .*did you mean 'mock-power'\?",
        ),
        (("shell", "--exporter-config", "type.yaml", "--", "true"), 78, "type.yaml:7: .*url: expected str, got 7"),
        (("shell", "--exporter-config", "broken.yaml", "--", "true"), 78, "broken.yaml:2: not YAML"),
        (("shell", "--connect", "http://bench", "--", "true"), 64, "is not an address: use unix:/path"),
        (("shell", "--connect", "unix:/there/is/none", "--", "true"), 69, "cannot reach unix:/there/is/none"),
    ],
)
def test_of_jmp(bench: Path, command: tuple[str, ...], code: int, message: str) -> None:
    is_one_line(jmp(*command), code, message)


@pytest.mark.parametrize("command", [("version",), ("driver", "list"), ("exporter", "example", "virtual-board")])
def test_output_that_goes_nowhere(bench: Path, command: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(argv(*command), stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    done.stdout = ""
    is_one_line(done, 64, "standard output cannot be written: No space left on device")
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as broken:
        done = subprocess.run(argv(*command), stdout=broken, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (141, "")
    closed = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *argv(*command)], stderr=subprocess.PIPE, text=True, check=False, timeout=60
    )
    assert (closed.returncode, closed.stderr) == (0, "")


@pytest.fixture
def host(bench: Path) -> Iterator[str]:
    with serving(bench / "bench.yaml") as served, session(served) as host:
        yield host


def test_of_j(host: str) -> None:
    for command, code, message in (
        (("powr", "on"), 64, r"no driver or verb 'powr' \(did you mean 'power'\?\)"),
        (("power", "fly"), 64, "no driver or verb 'fly' .*known: cycle"),
        (("power", "cycle", "--wait", "soon"), 64, "wait: expected float, got 'soon'"),
        (("power", "cycle", "1", "2"), 64, "no further argument '2': cycle"),
        (("power.on",), 64, "on is a verb, a word of its own: power on"),
        (("power", "on", "--frob"), 64, "no option --frob"),
        (("loose", "off"), 74, "the command for 'off' failed with exit status 3"),
        (("missing", "history"), 74, "missing is degraded: serial port /dev/there-is-none: no such device"),
    ):
        done = subprocess.run(
            j(*command), capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "JMP_HOST": host}
        )
        is_one_line(done, code, message)


def test_of_j_outside_a_session(folder: Path) -> None:
    done = subprocess.run(j("power", "on"), capture_output=True, text=True, timeout=60, check=False)
    is_one_line(done, 64, "start one with jmp shell")


def test_a_port_in_use(bench: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = jmp("exporter", "serve", "bench.yaml", "--listen", f"127.0.0.1:{port}")
    is_one_line(done, 69, f"cannot listen at 127.0.0.1:{port}: the address is in use: .*choose another with --listen")


def test_a_driver_with_a_mistake_in_it(bench: Path) -> None:
    """Of a package that its author has installed: it crosses as the driver's fault, without a traceback."""
    (bench / "mine.py").write_text(
        "from jmp.driver import Driver, export\n\nclass Mine(Driver):\n    @export\n    def go(self) -> int:\n"
        "        return 1 // 0\n"
    )
    information = bench / "mine-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[jmp.drivers]\nmine = mine:Mine\n")
    (bench / "bench.yaml").write_text(BENCH.replace("mock-power", "mine").replace("power:", "own:"))
    done = subprocess.run(
        argv(*IN_SESSION, "j", "own", "go"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(bench)},
    )
    done.stderr = "".join(line for line in done.stderr.splitlines(keepends=True) if "missing is degraded" not in line)
    is_one_line(done, 70, "ZeroDivisionError")
