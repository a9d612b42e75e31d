"""What the documentation says is what the program does."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from jmp.cli import COMMANDS, main
from jmp.driver.plugins import driver_names
from jmp.errors import BY_CODE

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from jmp.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_help_blocks_are_what_the_program_prints() -> None:
    blocks = re.findall(r"```console\n\$ jmp (.*)\n([\s\S]*?)```", (ROOT / "docs/cli.md").read_text())
    assert blocks
    for arguments, printed in blocks:
        assert run(*arguments.split()).stdout == printed


def test_help_of_every_command_fits_a_small_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    rest = [[name] for name in COMMANDS]
    for words in rest:
        assert main([*words, "-h"]) == 0
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= 80, words
        usage, _, body = text.partition("\n")
        assert "{" not in usage, usage
        assert not re.search(r"\.\.\.$|<\w+>", body, re.MULTILINE), f"jmp {' '.join(words)} -h: {body}"
        if "COMMAND [ARGS]" in usage:
            rest += [[*words, name] for name in re.findall(r"^  (\w+)  ", body.partition("Commands:")[2], re.MULTILINE)]
    assert len(rest) > 70


def test_tests_that_are_named_are_there() -> None:
    named = {
        match
        for page in (ROOT / "docs").rglob("*.md")
        for match in re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", page.read_text())
    }
    assert named
    for file, name in named:
        assert (ROOT / file).is_file(), file
        assert not name or re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text(), re.MULTILINE), name


def test_every_command_of_a_lab_is_there() -> None:
    section = (ROOT / "docs/cli.md").read_text().partition("\n## A lab\n")[2].partition("\n## ")[0]
    commands = re.findall(r"`jmp ([a-z ]*[a-z])(?=[ `])", section)
    assert len(commands) > 15
    for words in map(str.split, commands):
        command: Any = get_command(getattr(import_module(COMMANDS[words[0]].module), COMMANDS[words[0]].app))
        for word in words[1:]:
            if commands_of := getattr(command, "commands", None):
                assert word in commands_of, f"jmp {' '.join(words)} is no command"
                command = commands_of[word]


def test_every_exit_code_is_documented() -> None:
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", (ROOT / "docs/cli.md").read_text(), re.MULTILINE)}
    assert {error.exit_code for error in BY_CODE.values()} | {0} == documented


def test_every_driver_has_a_page() -> None:
    table = (ROOT / "docs/drivers.md").read_text()
    assert set(driver_names()) == set(
        re.findall(r"`([a-z0-9-]+)`", "\n".join(re.findall(r"^\| (`[^|]*)\|", table, re.MULTILINE)))
    )
    for page in re.findall(r"\((drivers/.*?\.md)\)", table):
        assert (ROOT / "docs" / page).is_file(), page


def test_bad_input_is_one_line_and_a_documented_code(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("apiVersion: jmp/v1\nkind: Exporter\nmetadata: {name: x}\nexport:\n  power: {type: mock-powr}\n")
    router = ["router", "serve", "--name", "r", "--controller", "wss://127.0.0.1:1"]
    cases = [
        (["nope"], 64, "there is no command 'nope'"),
        (["get"], 64, "Missing argument 'KIND'"),
        (["completion"], 64, "Missing argument 'bash|zsh|fish'"),
        (["version", "x"], 64, "takes no argument 'x'"),
        (["exporter", "check", "."], 64, ". is a folder"),
        (["shell"], 64, "--exporter NAME"),
        (["shell", "--exporter", "nope"], 64, "there is no exporter 'nope'"),
        (["shell", "--exporter-config", str(wrong)], 78, "mock-power"),
        (["shell", "--connect", f"unix:{tmp_path}/none.sock", "--", "true"], 69, "cannot reach"),
        (["run"], 64, "--exporter-config FILE"),
        (["run", "--exporter-config", str(wrong)], 78, "wrong.yaml:5"),
        (["controller", "serve", "--listen", "8443"], 64, "--listen '8443' is not HOST:PORT"),
        (["controller", "serve", "--listen", "unix:x"], 64, "--listen unix:x: HOST:PORT is needed"),
        (["controller", "serve", "--http", "nobody"], 64, "--http 'nobody' is not HOST:PORT"),
        (["controller", "serve", "--url", "lab.example"], 64, "'lab.example' is not an address"),
        (
            ["controller", "serve", "--url", "ws://lab.example"],
            64,
            "--url ws://lab.example: a controller is reached by wss",
        ),
        ([*router, "--http", "nobody"], 64, "--http 'nobody' is not HOST:PORT"),
        ([*router, "--listen", ":99999"], 64, "--listen ':99999' is not HOST:PORT"),
        ([*router, "--drain", "soon"], 64, "'soon'"),
        ([*router, "--token-file", str(tmp_path / "none")], 78, "No such file"),
        (["exporter", "serve", "--bogus"], 64, "see jmp exporter serve --help"),
        (["exporter", "serve", str(wrong)], 78, "wrong.yaml:5"),
    ]
    for arguments, code, said in cases:
        done = run(*arguments)
        assert done.returncode == code, (arguments, done.stderr)
        assert said in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr


def test_who_reads_no_further_is_no_error_of_any_task() -> None:
    code = (
        "import sys; from jmp.cli import guarded\n"
        "def fail(): raise BaseExceptionGroup('', [BrokenPipeError()])\n"
        "sys.exit(guarded(fail))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (141, "")
