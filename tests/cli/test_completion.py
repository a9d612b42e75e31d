"""What Tab offers, and that bash, zsh and fish show it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from jmp.cli import COMMANDS, main

CODE = "import sys; from jmp.cli import main; sys.argv[0] = 'jmp'; sys.exit(main())"


@pytest.fixture
def shells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which ``jmp`` is a program, and two files are."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "jmp"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c {shlex.quote(CODE)} "$@"\n')
    program.chmod(0o755)
    (tmp_path / "my bench.yaml").touch()
    (tmp_path / "board.yaml").touch()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("jmp ", list(COMMANDS)),
        ("jmp sh", ["shell"]),
        ("cd x && jmp dem", ["demo"]),
        ("jmp lease rel", ["release"]),
        ("jmp config client c", ["create"]),
        ("jmp lease acquire --id", ["--idle"]),
        ("jmp lease acquire --idle 1h --id", []),
        ("jmp get leas", ["leases"]),
        ("jmp get leases -o ", ["table", "wide", "json", "yaml", "name"]),
        ("jmp get leases --output=js", ["--output=json"]),
        ("jmp driver show sdw", ["sdwire"]),
        ("jmp exporter example ser", ["serial"]),
        ("jmp exporter check bo", ["board.yaml"]),
        ("jmp shell --exporter-config my", ["my bench.yaml"]),
        ("jmp shell --exporter-config board.yaml -- fals", ["false"]),
        ("jmp shell -- cat bo", ["board.yaml"]),
        ("jmp admin create client ", []),
        ("jmp lease release ", []),  # there is no lab
        ("jmp nonsense ", []),
        ("jmp 'open", []),
        ("", []),
    ],
)
def test_offers(shells: Path, typed: str, offered: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "fish", "--line", typed]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert [line.partition("\t")[0] for line in told.out.splitlines()] == offered


def test_bash_completes(shells: Path) -> None:
    asked = "\n".join(
        f"COMP_LINE={shlex.quote(line)}; COMP_POINT=${{#COMP_LINE}}; _jmp; printf '<%s>' \"${{COMPREPLY[@]}}\"; echo"
        for line in ("jmp sh", "jmp exporter check my", "jmp get leases --output=js", "jmp lease re")
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", f'eval "$(jmp completion bash)"\n{asked}'],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "<shell >\n<'my bench.yaml' >\n<json >\n<release >\n"


def test_fish_completes(shells: Path) -> None:
    script = 'jmp completion fish | source; complete -C "jmp sh"; complete -C "jmp exporter check bo"'
    done = subprocess.run(["fish", "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"shell\t{COMMANDS['shell'].help}\nboard.yaml\n"


def test_zsh_completes(shells: Path) -> None:
    zsh = pexpect.spawn("zsh", ["-f"], encoding="utf-8", timeout=60, dimensions=(24, 100))
    zsh.sendline("PS1='> '; autoload -U compinit; compinit -u; eval \"$(jmp completion zsh)\"; echo rea''dy")
    zsh.expect_exact("ready\r\n")
    zsh.send("jmp exporter che\tmy\t\r")
    zsh.expect_exact("my bench.yaml:1: the file is empty")
    zsh.close(force=True)
