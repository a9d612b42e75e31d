from __future__ import annotations

import gc
import os
import signal
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import trio

from jmp.driver import DeviceError, UsageError, schema, serve
from jmp.errors import LinkLost, Timeout
from jmp_drivers.shell import Command, Shell
from tests.fakes.bundled import problems_in


async def collect(items: Any) -> tuple[bytes, bytes, int]:
    """Standard output, standard error and exit status of a command."""
    out = {"stdout": b"", "stderr": b""}
    status = -1
    async for item in items:
        for key, value in item.items():
            if key == "exit_code":
                status = value
            else:
                out[key] += value
    return out["stdout"], out["stderr"], status


async def test_each_command_is_a_method() -> None:
    driver = Shell(commands={"greet": "echo hello; echo careful >&2; exit 3", "reset-usb": Command("true")})
    with trio.fail_after(60):
        async with serve(driver) as shell:
            assert await collect(shell.greet()) == (b"hello\n", b"careful\n", 3)
            assert await collect(shell.reset_usb()) == (b"", b"", 0)


async def test_nothing_of_a_session_stays_in_memory() -> None:
    """An exporter lives for months, and makes its drivers anew for each session."""
    driver = Shell(commands={"greet": "echo hello"})
    kept = weakref.ref(driver)
    with trio.fail_after(60):
        async with serve(driver) as shell:
            assert await collect(shell.greet()) == (b"hello\n", b"", 0)
    del driver, shell
    gc.collect()
    assert kept() is None


def test_commands_through_the_blocking_client() -> None:
    with serve(Shell(commands={"greet": 'echo "hello $1"'})) as shell:
        assert list(shell.greet("world")) == [{"stdout": b"hello world\n"}, {"exit_code": 0}]


async def test_help_text_is_the_description_or_the_command() -> None:
    driver = Shell(commands={"one": "uptime", "two": Command("uptime", description="How long it has been up.")})
    with trio.fail_after(60):
        async with serve(driver) as shell:
            assert shell.one.__doc__.startswith("one(*args: ")
            assert shell.one.__doc__.endswith("Run: uptime")
            assert shell.two.__doc__.endswith("How long it has been up.")


async def test_arguments_are_never_executed(tmp_path: Path) -> None:
    arguments = ["$(touch owned)", "; touch owned", "a b", "*", "-n", "", '"', "ü"]
    command = Command("""for each; do printf '<%s>' "$each"; done; printf %s "$0" """, cwd=tmp_path)
    with trio.fail_after(60):
        async with serve(Shell(commands={"show": command})) as shell:
            stdout, stderr, status = await collect(shell.show(*arguments))
    assert (stdout.decode(), stderr, status) == ("".join(f"<{each}>" for each in arguments) + "show", b"", 0)
    assert os.listdir(tmp_path) == []


async def test_nul_in_an_argument_is_refused() -> None:
    with trio.fail_after(60):
        async with serve(Shell(commands={"echo": "echo"})) as shell:
            with pytest.raises(UsageError, match="NUL"):
                await collect(shell.echo("a\0b"))


async def test_input_reaches_the_command_and_none_is_end_of_file() -> None:
    data = os.urandom(1_000_000)
    with trio.fail_after(60):
        async with serve(Shell(commands={"cat": "cat", "ignore": "exit 0"})) as shell:
            assert await collect(shell.cat(stdin=data)) == (data, b"", 0)
            assert await collect(shell.cat()) == (b"", b"", 0)
            assert await collect(shell.ignore(stdin=data)) == (b"", b"", 0)


async def test_folder_environment_and_interpreter(tmp_path: Path) -> None:
    code = "import os, sys; print(os.getcwd(), os.environ['BENCH'], 'PATH' in os.environ, sys.argv[1:])"
    command = Command(code, interpreter=sys.executable, cwd=tmp_path, env={"BENCH": "bench1"})
    with trio.fail_after(60):
        async with serve(Shell(commands={"measure": command})) as shell:
            stdout, _, status = await collect(shell.measure("3"))
    assert (stdout.decode(), status) == (f"{tmp_path} bench1 True ['measure', '3']\n", 0)


async def test_output_comes_while_the_command_runs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    with trio.fail_after(60):
        async with serve(Shell(commands={"talk": Command("echo one; cat go", cwd=tmp_path)})) as shell:
            items = shell.talk()
            assert await anext(items) == {"stdout": b"one\n"}
            await trio.Path(tmp_path / "go").write_text("two\n")
            assert await collect(items) == (b"two\n", b"", 0)


async def test_reader_that_stops_holds_the_command_up_but_no_other() -> None:
    with trio.fail_after(60):
        async with serve(Shell(commands={"flood": "cat /dev/zero", "hi": "echo hi"})) as shell:
            flood = shell.flood()
            await anext(flood)
            assert await collect(shell.hi()) == (b"hi\n", b"", 0)
            await flood.aclose()


WAITS = "trap 'echo TERM > signalled; exit' TERM; sleep 1000 & echo $$; wait"


async def started(items: Any) -> int:
    """The process group of a command that tells it."""
    item = await anext(items)
    group = int(item["stdout"])
    os.killpg(group, 0)
    return group


def assert_gone(group: int) -> None:
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)


async def test_caller_giving_up_ends_all_its_processes(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with serve(Shell(commands={"work": Command(WAITS, cwd=tmp_path)})) as shell:
            items = shell.work()
            group = await started(items)
            await items.aclose()
    assert_gone(group)
    assert (tmp_path / "signalled").read_text() == "TERM\n"


async def test_end_of_the_session_ends_all_its_processes(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with serve(Shell(commands={"work": Command(WAITS, cwd=tmp_path)})) as shell:
            items = shell.work()
            group = await started(items)
        assert_gone(group)
        with pytest.raises(LinkLost):
            await anext(items)
    assert (tmp_path / "signalled").read_text() == "TERM\n"


async def test_command_out_of_time_is_ended_after_its_output_was_told() -> None:
    commands: dict[str, str | Command] = {"work": Command("echo $$; sleep 1000", timeout=0.2)}
    with trio.fail_after(60):
        async with serve(Shell(commands=commands)) as shell:
            items = shell.work()
            group = await started(items)
            with pytest.raises(Timeout, match=r"^work did not end within 0\.2 s and was ended$"):
                await anext(items)
            assert_gone(group)


async def test_signal_is_told_as_a_shell_does() -> None:
    with trio.fail_after(60):
        async with serve(Shell(commands={"crash": "kill -SEGV $$"})) as shell:
            assert await collect(shell.crash()) == (b"", b"", 128 + signal.SIGSEGV)


async def test_missing_interpreter_is_told() -> None:
    with trio.fail_after(60):
        async with serve(Shell(commands={"run": Command("x", interpreter="no-such-tool")})) as shell:
            with pytest.raises(DeviceError, match="cannot start no-such-tool: no such program"):
                await collect(shell.run())


@pytest.mark.parametrize(
    ("commands", "problem"),
    [
        ({"two words": "true"}, "'two words' cannot be the name of a method"),
        ({"_secret": "true"}, "'_secret' cannot be"),
        ({"a-b": "true", "a_b": "true"}, "'a_b' is there twice"),
        ({"empty": " "}, "'empty' is empty"),
        ({"typo": {"comand": "true"}}, "unknown key 'comand' (did you mean 'command'?)"),
    ],
)
def test_configuration_is_checked(commands: dict[str, Any], problem: str) -> None:
    driver, problems = schema.load(Shell, {"commands": commands})
    assert driver is None
    assert problem in str(problems)


def test_documented_configuration_is_valid() -> None:
    assert problems_in("docs/drivers/shell.md") == []
