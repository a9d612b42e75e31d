"""``jmp shell`` around a command."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import trio

from jmp.cli.ending import POLITE
from jmp.cli.shell import run_command

JMP = [sys.executable, "-c", "import sys; from jmp.cli import main; sys.exit(main())"]


def bench(tmp_path: Path) -> Path:
    config = tmp_path / "bench.yaml"
    config.write_text("apiVersion: jmp/v1\nkind: Exporter\nmetadata: {name: b}\nexport: {power: {type: mock-power}}\n")
    return config


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (["sh", "-c", "exit 7"], 7, ""),
        (["sh", "-c", "kill -TERM $$"], 143, ""),
        (["no-such-command"], 64, "jmp: there is no command 'no-such-command' on the path\n"),
        (["2s"], 64, "jmp: there is no command '2s' on the path; --wait takes no duration, but --wait-limit 2s does\n"),
        (["/"], 64, "jmp: / cannot be run: Permission denied\n"),
    ],
)
def test_the_commands_code_is_returned(tmp_path: Path, command: list[str], code: int, said: str) -> None:
    config = bench(tmp_path)
    done = subprocess.run(
        [*JMP, "shell", "--exporter-config", str(config), "--", *command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (code, said)


def test_a_command_that_there_is_not_is_told_before_anybody_is_asked_for_the_device() -> None:
    words = ["shell", "--connect", "unix:/nowhere", "--", "no-such-command"]
    done = subprocess.run([*JMP, *words], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (64, "jmp: there is no command 'no-such-command' on the path\n")


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


REPORTS = """\
import time
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.2)
    print("report", flush=True)
"""


def test_a_command_may_report_before_it_is_ended(tmp_path: Path) -> None:
    """As with Ctrl-C, also below a shell of its own, and also if it was started from the prompt."""
    for inside in ("prompt", "command"):
        config = bench(tmp_path)
        line = shlex.join([sys.executable, "-c", REPORTS]) + "; true"
        command = [] if inside == "prompt" else ["--", "sh", "-c", line]
        with subprocess.Popen(
            [*JMP, "shell", "--exporter-config", str(config), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as shell:
            assert shell.stdin is not None
            assert shell.stdout is not None
            if inside == "prompt":
                shell.stdin.write(f"{line}\n")
                shell.stdin.flush()
            assert shell.stdout.readline() == "ready\n"
            shell.terminate()
            assert shell.communicate(timeout=60)[0] == "report\n"
            assert shell.returncode == 143


async def test_a_command_that_takes_no_notice_is_ended_by_force(tmp_path: Path) -> None:
    deaf = f"trap '' INT TERM; echo > {tmp_path}/ready; sleep 60"
    os.mkfifo(tmp_path / "ready")
    steps = [step._replace(seconds=min(step.seconds, 0.01)) for step in POLITE[:2]] + [POLITE[2]]
    with trio.fail_after(60), trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(run_command, ["sh", "-c", deaf], dict(os.environ), steps))
            await trio.to_thread.run_sync((tmp_path / "ready").read_text)
            scope.cancel()
    assert scope.cancelled_caught
