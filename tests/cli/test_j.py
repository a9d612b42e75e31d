"""``j`` starts at once: it loads nothing that it does not need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

JMP = [sys.executable, "-c", "import sys; from jmp.cli import main; sys.exit(main())"]
HEAVY = {"asyncio", "trio", "typer", "click", "rich", "prompt_toolkit", "yaml", "cryptography"}
LOADED = """\
import json, sys
from jmp.cli.j import main
code = main(sys.argv[1:])
print(json.dumps([code, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def in_session(tmp_path: Path, *command: str) -> subprocess.CompletedProcess[str]:
    config = tmp_path / "bench.yaml"
    config.write_text("apiVersion: jmp/v1\nkind: Exporter\nmetadata: {name: b}\nexport: {power: {type: mock-power}}\n")
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
