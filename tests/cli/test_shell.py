"""``jmp shell`` around a command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

JMP = [sys.executable, "-c", "import sys; from jmp.cli import main; sys.exit(main())"]


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (["sh", "-c", "exit 7"], 7, ""),
        (["sh", "-c", "kill -TERM $$"], 143, ""),
        (["no-such-command"], 64, "jmp: there is no command 'no-such-command' on the path\n"),
        (["/"], 64, "jmp: / cannot be run: Permission denied\n"),
    ],
)
def test_the_commands_code_is_returned(tmp_path: Path, command: list[str], code: int, said: str) -> None:
    config = tmp_path / "bench.yaml"
    config.write_text("apiVersion: jmp/v1\nkind: Exporter\nmetadata: {name: b}\nexport: {power: {type: mock-power}}\n")
    done = subprocess.run(
        [*JMP, "shell", "--exporter-config", str(config), "--", *command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (code, said)
