"""``j`` starts at once: it loads nothing that it does not need."""

from __future__ import annotations

import ast
import json
import os
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Sequence
from pathlib import Path

import msgpack
import pytest

from jmp.errors import DeviceError
from jmp.rpc.messages import describe

JMP = [sys.executable, "-c", "import sys; from jmp.cli import main; sys.exit(main())"]
HEAVY = {"asyncio", "trio", "typer", "click", "rich", "prompt_toolkit", "yaml", "cryptography"}
LOADED = """\
import json, sys
from jmp.cli.j import main
code = main(sys.argv[1:])
print(json.dumps([code, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


CONFIG = """\
apiVersion: jmp/v1
kind: Exporter
metadata: {name: b}
export:
  power: {type: mock-power}
  board: {children: {power: {type: mock-power}}}
  broken: {type: command-power, config: {on: "echo it smokes >&2; exit 3", off: "true"}}
  alias: {ref: board.power}
  console: {type: echo}
"""
PATHS = f"import sys; sys.path[:0] = {sys.path!r}\n"


def in_session(tmp_path: Path, *command: str) -> subprocess.CompletedProcess[str]:
    config = tmp_path / "bench.yaml"
    config.write_text(CONFIG)
    return subprocess.run(
        [*JMP, "shell", "--exporter-config", str(config), "--", *command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(("line", "code"), [("power state", 0), ("power --help", 0), ("power fly", 64)])
def test_j_loads_nothing_heavy(tmp_path: Path, line: str, code: int) -> None:
    done = in_session(tmp_path, sys.executable, "-c", LOADED, *line.split())
    got, loaded = json.loads(done.stdout.splitlines()[-1])
    assert got == code, done.stderr
    assert not HEAVY & set(loaded)


QUICK = """\
from jmp.j import main
code, loaded = main(), sorted(sys.modules)
import json
print(json.dumps([code, loaded]))
"""


@pytest.mark.parametrize("line", ["power on", "power cycle", "board.power on", "board power off"])
def test_what_is_called_most_loads_next_to_nothing(tmp_path: Path, line: str) -> None:
    done = in_session(tmp_path, sys.executable, "-S", "-E", "-c", PATHS + QUICK, *line.split())
    code, loaded = json.loads(done.stdout)
    assert code == 0, done.stderr
    assert {name for name in loaded if name.startswith("jmp")} == {"jmp", "jmp.j", "jmp.client", "jmp.client.table"}
    assert not {"typing", "re", "socket", "dataclasses", "inspect", "shutil"} & set(loaded)


LINES = [
    *("power state", "power on", "power cycles", "power state -o json", "broken on"),
    *("alias on", "board power", "board.power on", "power fly", "console"),
]


def test_the_quick_way_does_what_the_general_way_does(tmp_path: Path) -> None:
    """In one session, each line by both ways."""
    script = """
        import subprocess, sys
        for line in {lines!r}:
            for way in ("jmp.j", "jmp.cli.j"):
                code = "import sys; from " + way + " import main; sys.exit(main())"
                done = subprocess.run([sys.executable, "-c", code, *line.split()], capture_output=True, text=True)
                print([line, done.returncode, done.stdout, done.stderr])
    """
    done = in_session(tmp_path, sys.executable, "-c", textwrap.dedent(script.format(lines=LINES)))
    got = [ast.literal_eval(line) for line in done.stdout.splitlines()]
    assert len(got) == 2 * len(LINES)
    assert got[::2] == got[1::2]
    codes = {line: code for line, code, _, _ in got}
    assert codes["power on"] == 0
    assert codes["broken on"] != 0


def answering(messages: Sequence[bytes]) -> str:
    """The path of a socket at which somebody says these messages, one after each of the client's; an empty one is the end."""
    path = f"{tempfile.mkdtemp()}/s"
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()

    def serve() -> None:
        with server, server.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
            for message in messages:
                connection.recv(65536)
                if not message:
                    return
                connection.sendall(message)
            while connection.recv(65536):
                pass

    threading.Thread(target=serve, daemon=True).start()
    return path


def message(*frames: object, opcode: int = 2, end: bool = True) -> bytes:
    data = b"".join(msgpack.packb(frame) for frame in frames) if opcode in (0, 2) else b"".join(frames)  # type: ignore
    size = bytes([len(data)]) if len(data) < 126 else b"\x7e" + len(data).to_bytes(2, "big")
    return bytes([0x80 * end | opcode]) + size + data


HELLO = (0, 0, {"version": [1, 0], "agent": "test"})
POWER = {"interface": "jmp.power/v1", "methods": {"on": {"kind": 0, "parameters": []}}}
REPORT = message(HELLO, (2, 1, msgpack.packb([0, {"tree": {"children": {"power": POWER}}}]), True))


@pytest.mark.parametrize(
    ("messages", "code", "said"),
    [
        ([message((2, 3, b"\x92\x00", False), (2, 3, b"\xc0", True))], 0, ""),
        ([message((7, 0, b"?")) + message(b"!", opcode=9) + message((2, 3, b"\x92\x00\xc0", False), (3, 3))], 0, ""),
        ([message((2, 3, b"\x92\x00", False)), message((2, 3, b"\xc0", True))], 0, ""),
        ([message((5, 3), end=False) + message((2, 3, b"\x92\x00\xc0", True), opcode=0)], 0, ""),
        ([message((6, 3, 1, describe(DeviceError("no current"))))], 74, "jmp: no current\n"),
        ([message(b"\x03\xe9over", opcode=8)], 69, "jmp: the link was lost during power.on: over; whether it was"),
        ([b""], 69, "jmp: the link was lost during power.on: the other side ended it; whether it was"),
        ([b"\xff\xff\xff"], 76, "jmp: power.on was answered with what is no answer"),
        ([message((2, 3, b"\x91\x02", True))], 76, "jmp: power.on was answered with what is no answer"),
    ],
)
def test_after_the_call_nothing_is_done_twice(messages: Sequence[bytes], code: int, said: str) -> None:
    environ = {**os.environ, "JMP_HOST": f"unix:{answering([REPORT, *messages])}"}
    command = [sys.executable, "-c", "import sys; from jmp.j import main; sys.exit(main())", "power", "on"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environ)
    assert done.stderr.startswith(said), done.stderr
    assert (done.returncode, done.stdout) == (code, "")


def test_j_says_where_it_belongs() -> None:
    outside = {name: value for name, value in os.environ.items() if name not in ("JMP_HOST", "JUMPSTARTER_HOST")}
    command = [sys.executable, "-c", "import sys; from jmp.cli.j import main; sys.exit(main())", "power", "on"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=outside)
    assert done.returncode == 64
    assert done.stderr.startswith("jmp: j works inside a session: ")
    assert done.stderr.count("\n") == 1


def test_j_as_it_is_on_the_path(tmp_path: Path) -> None:
    done = in_session(tmp_path, "sh", "-c", "j power on; j power state; j powr")
    assert (done.stdout, done.returncode) == ("on\n", 64)
    assert done.stderr == "jmp: the device has no driver or verb 'powr' (did you mean 'power'?)\n"


def test_j_leaves_silently_when_its_reader_does(tmp_path: Path) -> None:
    done = in_session(tmp_path, "bash", "-c", "j --help | true; exit ${PIPESTATUS[1]}")
    assert (done.returncode, done.stderr) == (0, "")


def test_j_is_there_as_jmp_j_and_completed(tmp_path: Path) -> None:
    done = in_session(tmp_path, *JMP, "j", "power", "state")
    assert (done.returncode, done.stdout, done.stderr) == (0, "off\n", "")
    done = in_session(tmp_path, *JMP, "completion", "fish", "--line", "cd x; j power st")
    assert (done.returncode, done.stdout) == (0, "state\tWhether it is on.\n")
    done = in_session(tmp_path, *JMP, "completion", "bash", "--line", "jmp j po")
    assert (done.returncode, done.stdout) == (0, "power \n")
