"""``jmp forward``, as users run it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests.fakes.sessions import shell_session

FORWARD = [sys.executable, "-c", "import sys; from jmp.cli import main; sys.exit(main())", "forward"]
CONFIG = """\
apiVersion: jmp/v1
kind: Exporter
metadata: {name: bench}
export:
  board:
    children:
      echo: {type: echo}
      other: {type: echo}
  power: {type: mock-power}
"""


def check(address: str) -> None:
    scheme, _, path = address.partition(":")
    if scheme == "unix":
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
    else:
        host, port = address.split(":")
        sock = socket.create_connection((host, int(port)))
    with sock:
        sock.settimeout(60)
        sock.sendall(b"hello")
        assert sock.recv(5) == b"hello"


def test_ports_of_an_exporter_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "bench.yaml").write_text(CONFIG)
    ports = ["board.echo", "board.other=unix:other.sock"]
    with subprocess.Popen(
        [*FORWARD, "--exporter-config", "bench.yaml", *ports], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        lines = [running.stdout.readline().split() for _ in ports]
        assert [each[0] for each in lines] == ["board.echo", "board.other"]
        check(lines[0][1])
        check(f"unix:{tmp_path}/other.sock")
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 130
    assert not (tmp_path / "other.sock").exists()


def test_ports_of_the_session_that_it_runs_in_and_what_is_none(tmp_path: Path) -> None:
    with shell_session(tmp_path, CONFIG) as session:

        def fails(*words: str) -> tuple[int, str]:
            done = subprocess.run(
                [*FORWARD, *words], env=session, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
            )
            return done.returncode, done.stderr

        assert fails("power") == (64, "jmp: power is no network port; it has cycle, cycles, off, on, state\n")
        assert fails("nothing") == (64, "jmp: there is no driver 'nothing'; j --help lists them\n")
        status, said = fails("board.echo=x")
        assert (status, "cannot listen at 'x'" in said) == (64, True)
        running = subprocess.Popen([*FORWARD, "board.echo"], env=session, stdout=subprocess.PIPE, text=True)
        assert running.stdout is not None
        check(running.stdout.readline().split()[1])
    with running:
        assert running.wait(60) == 69, "the session is over"
