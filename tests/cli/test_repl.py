"""The prompt of ``jmp shell`` on a real terminal, with real processes."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fakes.terminal import Terminal

JMP = [sys.executable, "-c", "import sys; from jmp.cli import main; sys.exit(main())"]
BENCH = """\
apiVersion: jmp/v1
kind: Exporter
metadata: {name: bench}
motd: Mind the camera.
export:
  power: {type: mock-power}
  loop: {type: echo}
  tool: {type: shell, config: {commands: {hold: 'exec 3>held; echo begun; sleep 600'}}}
  port: {type: serial, config: {url: port}}
"""


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    (tmp_path / "bench.yaml").write_text(
        BENCH.replace("port}", f"{tmp_path}/port}}").replace("held", f"{tmp_path}/held")
    )
    (tmp_path / "home").mkdir()
    return tmp_path


def environment(bench: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    return {**kept, "HOME": str(bench / "home"), "SHELL": "/bin/sh", "TERM": "xterm-256color", "LANG": "C.UTF-8"}


@contextmanager
def prompt(bench: Path, *options: str, columns: int = 80, lines: int = 24, **more: str) -> Iterator[Terminal]:
    command = [*JMP, "shell", *(options or ("--exporter-config", str(bench / "bench.yaml")))]
    with Terminal(command, {**environment(bench), **more}, columns=columns, lines=lines) as terminal:
        terminal.until(r"^bench.*> \Z|^bench.*>\Z")
        yield terminal


def say(terminal: Terminal, line: str, answer: str) -> None:
    terminal.type(f"{line}\r")
    terminal.until(answer)
    terminal.until(r"^bench[^\n]*>\Z")


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (120, 40)])
def test_it_begins_with_where_one_is_and_ctrl_d_leaves(bench: Path, columns: int, lines: int) -> None:
    with prompt(bench, columns=columns, lines=lines) as terminal:
        shown = terminal.text.splitlines()
        assert shown[:2] == ["Mind the camera.", "bench: help shows what there is, Tab completes, Ctrl-D leaves."]
        assert "jmp: port is degraded: " in terminal.text
        assert shown[-1] == "bench (port degraded)>"
        say(terminal, "nope-nope", "not found")
        terminal.until(r"^bench \(port degraded\) \[127\]>\Z")
        terminal.type("\x04")
        assert terminal.end() == 0


def test_help_fits_a_narrow_terminal(bench: Path) -> None:
    config = bench / "bench.yaml"
    config.write_text(config.read_text().replace("camera.", "camera, which stands where nobody sees it."))
    with prompt(bench, columns=40, lines=60) as terminal:
        assert terminal.text.startswith("Mind the camera, which stands where\nnobody sees it.\n")
        say(terminal, "help", r"^At this prompt:\n  help +what there is")
        assert "  cd      change the folder, for this\n          and later lines\n" in terminal.text
        assert "\nshell, where j DRIVER VERB and pytest\nuse this device too.\n" in terminal.text


def test_verbs_commands_pipes_and_what_is_kept(bench: Path) -> None:
    with prompt(bench) as terminal:
        say(terminal, "power on", r"> power on$")
        say(terminal, "power state", r"^on$")
        say(terminal, "j power state | tr a-z A-Z", r"^ON$")
        say(terminal, f"cd {bench}/home && pwd", r"^/.*/home$")
        say(terminal, "power off && power state | tee log", r"^off$")
        assert (bench / "home/log").read_text() == "off\n"
        say(terminal, "export COLOUR='dark  red' OTHER=1", r"OTHER=1$")
        say(terminal, 'echo "<$COLOUR>" $(basename $PWD)', r"^<dark  red> home$")
        say(terminal, "unset COLOUR", "unset COLOUR$")
        say(terminal, 'echo "<$COLOUR>"', r"^<>$")
        say(terminal, "printf without-newline", r"^without-newline%$")
        say(terminal, "echo 'one\r2'", r"^one\n2$")
        say(terminal, "echo back\\\rslash", r"^backslash$")
        say(terminal, "help power cycle", r"^Usage: power cycle \[--wait NUMBER\]$")
        say(terminal, "power fly", r"'power' has no driver or verb 'fly'")
        terminal.type("exit 7\r")
        assert terminal.end() == 7


def test_completion_shows_verbs_with_what_they_do(bench: Path) -> None:
    with prompt(bench) as terminal:
        terminal.type("power c\t")
        terminal.until(r"^bench.*> power cycle\b")
        terminal.until(r"^ +cycles +How often it went")
        terminal.type("\x03")
        say(terminal, "power state", r"^off$")


def test_a_pasted_text_is_shown_first_and_stops_at_the_line_that_fails(bench: Path) -> None:
    with prompt(bench) as terminal:
        terminal.type("\x1b[200~power on\npower fly\npower off\n\x1b[201~")
        terminal.until(r"> power on\n +> power fly\n +> power off\Z")
        terminal.type("\r")
        terminal.until(r"^jmp: line 2 of 3 failed; 1 line is left, at the prompt again\nbench.*\[64\]> power off\Z")
        terminal.type("\x03")
        say(terminal, "power state", r"^on$")


def test_ctrl_c_ends_a_call_at_the_driver_a_command_and_a_line(bench: Path) -> None:
    with prompt(bench) as terminal:
        os.mkfifo(bench / "held")
        held = os.open(bench / "held", os.O_RDONLY | os.O_NONBLOCK)
        terminal.type("tool hold\r")
        terminal.until("^begun$")
        terminal.type("\x03")
        terminal.until(r"\[130\]>\Z")
        os.set_blocking(held, True)
        assert os.read(held, 1) == b"", "the driver's command has ended"
        os.close(held)
        terminal.type("trap 'echo caught; exit 9' INT; echo ready; while :; do read x; done\r")
        terminal.until("^ready$")
        terminal.type("\x03")
        terminal.until(r"\[9\]>\Z")
        assert "caught" in terminal.text
        terminal.type("half a li\x03")
        say(terminal, "power state", r"^off$")
        terminal.type("\x04")
        assert terminal.end() == 0


def test_news_of_a_driver_comes_above_the_line_that_is_being_typed(bench: Path) -> None:
    master, slave = os.openpty()
    try:
        with prompt(bench) as terminal:
            terminal.type("power st")
            terminal.until(r"power st\Z")
            (bench / "port").symlink_to(os.ttyname(slave))
            terminal.until(r"^jmp: port is ready again\nbench> power st\Z")
            terminal.type("ate\r")
            terminal.until(r"^off\nbench>\Z")
    finally:
        os.close(master)
        os.close(slave)


def test_a_stream_verb_takes_the_terminal_and_gives_it_back(bench: Path) -> None:
    with prompt(bench) as terminal:
        # Of two lines, the second is told when the terminal is the command's already.
        terminal.type("\x1b[200~power state\nloop connect\x1b[201~\r")
        terminal.until(r"^\+ loop connect$")
        terminal.type("to and fro\r")
        terminal.until(r"^to and fro\nto and fro$")
        terminal.type("\x04")
        terminal.until(r"^bench[^\n]*>\Z")
        say(terminal, "stty -a", r"(^| )icanon( |$)")
        say(terminal, "power state", r"^off$")


@contextmanager
def serving(bench: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    url = f"unix:{bench}/bench.sock"
    command = [*JMP, "exporter", "serve", str(bench / "bench.yaml"), "--listen", url]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(bench)) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if line.startswith("  jmp shell --connect"):
                    break
            yield process, url
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_the_exporter_is_one_line_and_69(bench: Path, number: signal.Signals) -> None:
    with serving(bench) as (process, url), prompt(bench, "--connect", url) as terminal:
        process.send_signal(number)
        assert terminal.end() == 69
        told = [line for line in terminal.text.splitlines() if line.startswith("jmp: ") and "degraded" not in line]
        assert told == ["jmp: the session is over: its exporter has stopped or cannot be reached any more"]


def test_term_leaves_the_terminal_as_it_was(bench: Path) -> None:
    script = f'stty -a >before; "$@"; echo "code $?"; stty -a >after; cmp before after && echo same # {bench}'
    command = ["sh", "-c", f"cd {bench}; {script}", "sh", *JMP, "shell", "--exporter-config", "bench.yaml"]
    with Terminal(command, environment(bench)) as terminal:
        terminal.until(r"^bench[^\n]*>\Z")
        terminal.type("kill -TERM $(ps -o ppid= -p $PPID)\r")
        terminal.until(r"^same$")
        assert "code 143" in terminal.text


def test_the_history_is_kept_and_private(bench: Path) -> None:
    with prompt(bench) as terminal:
        say(terminal, "power state", r"^off$")
        terminal.type("\x04")
        assert terminal.end() == 0
    history = bench / "home/.local/state/jmp/history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert stat.S_IMODE(history.parent.stat().st_mode) == 0o700
    with prompt(bench) as terminal:
        terminal.type("pow")
        terminal.until(r"> power state\Z")  # the rest is a suggestion
        terminal.type("\x1b[C\r")
        terminal.until(r"^off$")


def test_no_color_means_none(bench: Path) -> None:
    with prompt(bench, NO_COLOR="1") as terminal:
        assert b"\x1b[33m" not in terminal.raw
        assert b";33m" not in terminal.raw
    with prompt(bench) as terminal:
        assert b"33m" in terminal.raw


def script(bench: Path, text: str) -> subprocess.CompletedProcess[str]:
    command = [*JMP, "shell", "--exporter-config", str(bench / "bench.yaml")]
    return subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=120, check=False, env=environment(bench)
    )


def test_lines_that_are_piped_in_are_a_script_as_for_sh(bench: Path) -> None:
    done = script(bench, "# a comment\npower on\npower fly\nread x; echo $x\nfor read\npower state\n(exit 3)\n")
    assert done.stdout == "for read\non\n"
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("jmp: 'power' has no driver or verb 'fly'")
    assert script(bench, "(exit 3)\nexit\necho never").returncode == 3
    assert script(bench, "exit 5").returncode == 5
    assert script(bench, "").returncode == 0


def test_what_is_told_of_the_link_leaves_the_prompt_below_it(bench: Path) -> None:
    """Without a key being pressed; and what had been typed is there still."""
    from tests.e2e.product import wait_for
    from tests.fakes.cutter import cutter

    log = bench / "log"
    command = [*JMP, "exporter", "serve", str(bench / "bench.yaml"), "--listen", "127.0.0.1:0"]
    with log.open("w") as sink, subprocess.Popen(command, stderr=sink, text=True, env=environment(bench)) as exporter:
        try:
            options = wait_for(log, exporter, "  jmp shell --connect")[-1].split()[2:]
            port = int(options[1].rpartition(":")[2])
            with cutter(port) as link:
                options[1] = f"wss://127.0.0.1:{link.port}"
                with prompt(bench, *options) as terminal:
                    terminal.type("power o")
                    terminal.until(r"^bench.*> power o")
                    link.cut()
                    terminal.until(r"^jmp: resumed after [0-9.]+ s\nbench.*> power o[a-z]*\Z")
                    terminal.type("n\r")
                    terminal.until(r"power on\n(.*\n)?bench.*>\Z")
                    link.cut()
                    terminal.until(r"(?s)resumed after.*^jmp: resumed after [0-9.]+ s\nbench.*>\Z")
                    terminal.type("\x04")
                    assert terminal.end() == 0
        finally:
            exporter.terminate()
