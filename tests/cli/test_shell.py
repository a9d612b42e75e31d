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


def test_a_shell_loads_what_exporters_need_only_for_one_of_its_own() -> None:
    code = (
        "import sys, jmp.cli.shell; sys.exit(str({'yaml', 'jmp.exporter.config'} & sys.modules.keys() or '') or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


COLLECTING = """\
import gc, sys
from jmp.cli import main
{call}
sys.stderr.write(f"{{gc.isenabled()}} {{gc.get_freeze_count() > 0}}")
"""


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("sys.argv[1:] = ['exporter', 'example', 'virtual-board']; main()", "True True"),
        ("main(['exporter', 'example', 'virtual-board'])", "True False"),  # in somebody else's process
    ],
)
def test_the_garbage_collector_leaves_what_was_imported_alone(call: str, said: str) -> None:
    code = COLLECTING.format(call=call)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, said)
