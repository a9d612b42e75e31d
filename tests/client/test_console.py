"""``j console`` on a real terminal and in pipes, with real processes, on the virtual board."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import termios
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from jmp.client.adapters.terminal import Command, Keys, Stamps, _asked
from jmp.client.console import ConsoleClient
from jmp.client.interfaces import client_class
from jmp.driver import serve
from jmp.driver.proxy import build, read_report
from jmp.errors import DeviceError, UsageError
from tests.fakes.bundled import driver_class
from tests.fakes.terminal import Terminal

RUN = "import sys; from jmp.cli{} import main; sys.exit(main())"
BOARD = """\
apiVersion: jmp/v1
kind: Exporter
metadata: {name: bench}
export:
  board: {type: virtual-board, config: {boot_time: 0.2}}
  power: {ref: board.power}
  console: {ref: board.console}
"""


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """A directory with a board's configuration, and ``j`` on its PATH."""
    (tmp_path / "bench.yaml").write_text(BOARD)
    (tmp_path / "home").mkdir()
    (tmp_path / "j").write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{RUN.format(".j")}" "$@"\n')
    (tmp_path / "j").chmod(0o755)
    return tmp_path


def command(bench: Path, script: str) -> list[str]:
    shell = [sys.executable, "-c", RUN.format(""), "shell", "--exporter-config", str(bench / "bench.yaml")]
    return [*shell, "--", "sh", "-c", script]


def environment(bench: Path) -> dict[str, str]:
    path = f"{bench}:{os.environ['PATH']}"
    kept = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    return {**kept, "PATH": path, "HOME": str(bench / "home"), "TERM": "xterm", "LANG": "C.UTF-8"}


def on_terminal(bench: Path, script: str) -> Terminal:
    return Terminal(command(bench, script), environment(bench))


def in_pipe(bench: Path, script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(bench, script), env=environment(bench), capture_output=True, text=True, timeout=60, check=False
    )


# ---- the escape key


def test_keys_for_the_device_and_for_this_program() -> None:
    keys = Keys(b"\x1d")
    assert keys.feed(b"ls\r\x03\x1a\xff") == [b"ls\r\x03\x1a\xff"]
    assert keys.feed(b"a\x1dbc") == [b"a", Command.BREAK, b"c"]
    assert keys.feed(b"\x1d") == [], "the command comes later"
    assert keys.feed(b"q") == [Command.QUIT]
    assert keys.feed(b"\x1d\x1d") == [Command.QUIT]
    assert keys.feed(b"x\x1d]y") == [b"x\x1dy"], "the escape key itself"
    assert keys.feed(b"\x1d?\x1d!") == [Command.HELP, Command.HELP]


def test_another_escape_key() -> None:
    keys = Keys(b"\x01")
    assert keys.name == "Ctrl-A"
    assert keys.feed(b"\x1d\x01a\x01q") == [b"\x1d\x01", Command.QUIT]
    assert "Ctrl-A a  send Ctrl-A itself" in keys.help(can_break=False)
    assert "break" not in keys.help(can_break=False)
    assert "power" not in keys.help(can_break=False)


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_lines_with_their_times(size: int) -> None:
    came = b"one\r\ntwo\n\r\r\nthree"
    stamps, shown = Stamps(on=True), b""
    for start in range(0, len(came), size):
        shown += stamps.feed(came[start : start + size], datetime(2026, 1, 2, 3, 4, 5, 678901))
    at = b"[03:04:05.678] "
    assert shown == at + b"one\r\n" + at + b"two\n\r\r" + at + b"\n" + at + b"three"
    stamps.on = False
    assert stamps.feed(b"\nfour\n", datetime(2026, 1, 2)) == b"\nfour\n"
    stamps.on = True
    assert stamps.feed(b"five", datetime(2026, 1, 2)) == b"[00:00:00.000] five"


def test_the_power_that_belongs_to_a_console() -> None:
    def node(interface: str | None = None, **children: Any) -> dict[str, Any]:
        return {"interface": interface, "children": children}

    def found(path: str, **tree: Any) -> str | None:
        client = build(None, read_report(node(**tree)), client_class)  # type: ignore[arg-type]
        for step in path.split("."):
            client = client._children[step]
        assert isinstance(client, ConsoleClient)
        return client._power()

    console, power = node("jmp.console/v1"), node("jmp.power/v1")
    assert found("a", a=console) is None
    assert found("a", a=console, b=node(p=power)) == "b.p", "the only one"
    assert found("b.c", a=power, b=node(c=console, p=power)) == "b.p", "the one beside it"
    assert found("b.c", a=power, b=node(c=console, p=power, q=power)) is None
    assert found("b.c", b=node(c=console, p=power), power={"ref": "b.p"}, console={"ref": "b.c"}) == "b.p"


# ---- on a terminal

SANE = "stty -a | grep -o -e '-*icanon' -e '-*echo ' | tr -d ' '"


def test_log_in_and_leave_the_terminal_as_it_was(bench: Path) -> None:
    with on_terminal(bench, f"j power on; j console; echo left $?; {SANE}") as terminal:
        terminal.until("Ctrl-] q quits")
        terminal.until("login:$")
        terminal.type("root\r")
        terminal.until("#$")
        terminal.type("sleep 100\r\x03")
        terminal.type("echo $USER!\r")
        terminal.until("^root!$")
        terminal.type("\x1d?")
        terminal.until("send Ctrl-] itself")
        terminal.type("\x1dq")
        terminal.until(r"left 0\n+icanon\necho")
        assert terminal.end() == 0


def test_the_time_of_each_line_is_shown_on_request(bench: Path) -> None:
    with on_terminal(bench, "j power on; j console; j console --timestamps; echo over") as terminal:
        terminal.until("login:$")
        terminal.type("root\r\x1dt")
        terminal.until("#$")
        terminal.type("echo $USER!\r")
        terminal.until(r"^\[\d\d:\d\d:\d\d\.\d{3}\] root!$")
        terminal.type("\x1dt\x1dq")
        terminal.until(r"(?s)quits.*quits.*\n\[[\d:.]{12}\] root!$")
        terminal.type("\x1dq")
        terminal.until("over")


def test_keys_that_switch_the_power(bench: Path) -> None:
    with on_terminal(bench, "j console; j power state") as terminal:
        terminal.until("quits")
        terminal.type("\x1d?")
        terminal.until("Ctrl-] c  switch the power off and on")
        terminal.type("\x1d1")
        terminal.until(r"(?s)\[board.power on\].*login:$")
        terminal.type("\x1dc")
        terminal.until(r"(?s)\[board.power cycle\].*login:$")
        terminal.type("\x1d0\x1dq")
        terminal.until(r"\[board.power off\]")
        terminal.until("^off$")


def test_one_who_comes_late_sees_what_came_before_unless_it_is_not_wanted(bench: Path) -> None:
    with on_terminal(bench, "j power on; j console; j console; j console --no-replay") as terminal:
        terminal.until("login:$")
        terminal.type("\x1dq")
        terminal.until(r"(?s)login:.*quits.*login:$")
        terminal.type("\x1dq")
        terminal.until(r"(?s)quits.*quits.*quits")
        assert terminal.text.count("login:") == 2
        terminal.type("\r")
        terminal.until(r"(?s)(login:.*){3}")
        terminal.type("\x1d\x1d")
        assert terminal.end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_the_terminal_as_it_was(bench: Path, number: signal.Signals) -> None:
    script = f"sh -c 'echo $$ > pid; exec j console'; echo left $?; {SANE}"
    with on_terminal(bench, f"cd {bench}; {script}") as terminal:
        terminal.until("quits")
        terminal.type("\x1d?")
        terminal.until("this help")
        os.kill(int((bench / "pid").read_text()), number)
        terminal.until(rf"left {128 + number}\n+icanon\necho")
        assert terminal.end() == 0


def test_the_end_of_the_session_leaves_the_terminal_as_it_was(bench: Path) -> None:
    with on_terminal(bench, "j console") as terminal:
        terminal.until("quits")
        terminal.type("\x1d?")
        terminal.until("this help")
        assert not line_mode(terminal)
        terminal.program.kill(signal.SIGTERM)
        assert terminal.end() == 128 + signal.SIGTERM
        assert terminal.raw.endswith(b"\x1b[0m\x1b[?25h\r\n")
        assert line_mode(terminal)


def line_mode(terminal: Terminal) -> bool:
    """Whether the terminal is as shells want it."""
    return bool(termios.tcgetattr(terminal.program.child_fd)[3] & termios.ICANON)


def test_a_second_writer_watches_or_takes_over_and_is_refused_in_a_pipe(bench: Path) -> None:
    named = bench / "named"
    script = f"j power on; mkfifo {named}; j console pty > {named} & head -n 1 {named}"  # from then on it is the writer
    script += "; j console </dev/null; echo left $?; j console; j console --watch; j console --take-over --no-replay"
    with on_terminal(bench, script) as terminal:
        terminal.until("jmp: another client is writing to board.console; `j board console --watch`")
        terminal.until("left 75")
        terminal.until("another client writes to this console, you watch; Ctrl-] w writes in its place(.|\n)*login:$")
        terminal.type("ignored\x1dq")
        terminal.until("read-only, Ctrl-] w writes(.|\n)*login:$")
        terminal.type("ignored\x1dq")
        terminal.until("read-only(.|\n)*quits")
        terminal.type("root\r")
        terminal.until("virtual:~#$")
        terminal.type("\x1dq")
        terminal.end()
        assert "ignored" not in terminal.text


def test_a_writer_who_is_taken_over_watches_on_and_may_take_the_console_back(bench: Path) -> None:
    """In two terminals at one session."""
    with on_terminal(bench, f"echo $JMP_HOST > {bench}/host; j power on; j console") as terminal:
        terminal.until("login:$")
        terminal.type("root\r")
        terminal.until("virtual:~#$")
        session = {**environment(bench), "JMP_HOST": (bench / "host").read_text().strip()}
        with Terminal([str(bench / "j"), "console", "--take-over", "--no-replay"], session) as other:
            other.until("quits")
            terminal.until("another client writes to this console now")
            terminal.type("lost")
            terminal.until("another client writes to this console, you watch; Ctrl-] w writes in its place")
            other.type("echo from $USER\r")
            terminal.until("from root")
            terminal.type("\x1d?")
            terminal.until("Ctrl-] w  write, in place of the client that does")
            terminal.type("\x1dw")
            terminal.until("you write to this console now")
            other.until("another client writes to this console now")
            terminal.type("echo back $USER\r")
            other.until("back root")
            other.type("\x1dq")
            other.end()
        terminal.until("back root")
        terminal.type("\x1dq")
        terminal.end()
        assert "lost" not in other.text


def test_a_line_that_can_send_no_break_does_not_end_the_console(capsys: pytest.CaptureFixture[str]) -> None:
    async def send_break() -> None:
        raise DeviceError("serial port /dev/ttyACM0: it does not support this")

    _asked("break", send_break)
    assert capsys.readouterr().err == (
        "\r\n[break]\r\n\r\n[break: serial port /dev/ttyACM0: it does not support this]\r\n"
    )


# ---- in pipes


def test_piped_input_is_sent_and_its_output_shown(bench: Path) -> None:
    script = "j power on; j console < /dev/null; printf 'root\\necho $USER!\\n' | j console --idle 0.5; echo left $?"
    done = in_pipe(bench, script)
    assert "\nroot!\n" in done.stdout
    assert done.stdout.endswith("left 0\n")
    assert done.stderr == ""


def test_output_can_be_read_without_writing(bench: Path) -> None:
    reader = "timeout -s INT 5 j console pipe"
    done = in_pipe(bench, f"j power on; {reader} | (sed '/^virtual login:/q'; j power off)")
    assert "virtual-linux 1.0" in done.stdout


async def test_interact_is_for_blocking_clients() -> None:
    async with serve(driver_class("virtual-board")(), class_of=client_class) as board:
        with pytest.raises(UsageError, match="needs a blocking client"):
            await board.console.interact()
