from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from subprocess import PIPE, STDOUT

import pytest
import trio

from jmp.errors import DeviceError
from jmp_drivers._process import leashed, relay

SHELL = ["sh", "-c"]


async def read_line(stream: trio.abc.ReceiveStream | None) -> bytes:
    assert stream is not None
    line = bytearray()
    while not line.endswith(b"\n"):
        piece = await stream.receive_some(1)
        assert piece, bytes(line)
        line += piece
    return bytes(line[:-1])


async def read_all(stream: trio.abc.ReceiveStream | None) -> bytes:
    assert stream is not None
    return b"".join([bytes(chunk) async for chunk in stream])


class Witness:
    """Holds on to a process that is not our child, to see it end."""

    def __init__(self, pid: int) -> None:
        self._pidfd = os.pidfd_open(pid)

    async def ended(self) -> None:
        await trio.lowlevel.wait_readable(self._pidfd)
        os.close(self._pidfd)


async def test_command_has_its_own_exit_status_pid_and_session() -> None:
    with trio.fail_after(60):
        async with leashed([*SHELL, "echo $$ $(ps -o sid= -p $$); exit 3"], stdout=PIPE) as process:
            pid, session = (await read_all(process.stdout)).split()
            assert int(pid) == int(session) == process.pid
            assert await process.wait() == 3


async def test_command_finds_no_child_it_did_not_start() -> None:
    code = "import os\ntry: print(os.wait())\nexcept ChildProcessError: print('alone')"
    with trio.fail_after(60):
        async with leashed([sys.executable, "-c", code], stdout=PIPE) as process:
            assert await read_all(process.stdout) == b"alone\n"


async def test_arguments_environment_folder_and_streams_are_the_commands(tmp_path: Path) -> None:
    (tmp_path / "tool").write_text('#!/bin/sh\necho "$1|$2|$COLOUR|$PWD"; cat; echo error >&2\n')
    (tmp_path / "tool").chmod(0o755)
    env = {"PATH": os.environ["PATH"], "COLOUR": "blue"}
    with trio.fail_after(60):
        async with leashed(
            ["./tool", "a b", "-c $HOME"], env=env, cwd=tmp_path, stdin=PIPE, stdout=PIPE, stderr=STDOUT
        ) as process:
            assert process.stdin is not None
            await process.stdin.send_all(b"in\n")
            await process.stdin.aclose()
            assert await read_all(process.stdout) == f"a b|-c $HOME|blue|{tmp_path}\nin\nerror\n".encode()


async def test_leaving_the_body_ends_the_command_politely() -> None:
    with trio.fail_after(60):
        async with leashed(
            [*SHELL, "trap 'exit 7' TERM; echo up; while :; do sleep 100 & wait; done"], stdout=PIPE
        ) as p:
            assert await read_line(p.stdout) == b"up"
    assert p.returncode == 7


async def test_cancellation_kills_a_deaf_command_and_its_descendants_after_the_grace_time() -> None:
    script = "trap '' TERM; sleep 1000 & echo $!; while :; do wait; done"
    with trio.fail_after(60):
        with trio.CancelScope() as scope:
            async with leashed([*SHELL, script], stdout=PIPE, grace=0.1) as process:
                await read_line(process.stdout)
                scope.cancel()
                await trio.sleep_forever()
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
    assert process.returncode == -signal.SIGKILL


async def test_what_an_ended_command_left_running_is_gone_with_the_context() -> None:
    with trio.fail_after(60):
        async with leashed([*SHELL, "sleep 1000 & echo $!"], stdout=PIPE) as process:
            await read_line(process.stdout)
            assert await process.wait() == 0
            os.killpg(process.pid, 0)
        with pytest.raises(ProcessLookupError):  # not even a zombie is left
            os.killpg(process.pid, 0)


async def test_command_and_descendants_die_with_us_even_by_kill_9() -> None:
    code = """
import trio
from subprocess import PIPE
from jmp_drivers._process import leashed, relay

async def main():
    async with leashed(["sh", "-c", "trap '' TERM HUP; sleep 1000 & echo $$ $!; wait"], stdout=PIPE) as process:
        print((await process.stdout.receive_some()).decode(), end="", flush=True)
        await trio.sleep_forever()

trio.run(main)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with trio.fail_after(60):
        holder = await trio.lowlevel.open_process([sys.executable, "-c", code], stdout=PIPE, env=env)
        victims = [Witness(int(pid)) for pid in (await read_line(holder.stdout)).split()]
        holder.kill()
        await holder.wait()
        for victim in victims:
            await victim.ended()
        assert holder.stdout is not None
        await holder.stdout.aclose()


async def relayed(script: str) -> tuple[int, dict[str, bytes]]:
    output = {"stdout": b"", "stderr": b""}

    async def keep(name: str, data: bytes) -> None:
        output[name] += data
        await trio.lowlevel.checkpoint()

    with trio.fail_after(60):
        async with leashed([*SHELL, script], stdout=PIPE, stderr=PIPE) as process:
            return await relay(process, keep), output


async def test_relay_hands_on_all_output_and_the_exit_status() -> None:
    assert await relayed("seq 100000; echo problem >&2; exit 4") == (
        4,
        {"stdout": b"".join(b"%d\n" % n for n in range(1, 100_001)), "stderr": b"problem\n"},
    )


async def test_relay_tells_a_signal_as_a_shell_does() -> None:
    assert await relayed("kill -SEGV $$") == (128 + signal.SIGSEGV, {"stdout": b"", "stderr": b""})


async def test_relay_does_not_wait_for_what_the_command_left_running() -> None:
    assert await relayed("echo done; sleep 1000 &") == (0, {"stdout": b"done\n", "stderr": b""})


async def test_relay_does_not_wait_for_ever_for_an_escaped_daemon_that_holds_the_pipe() -> None:
    code = "import subprocess; print(subprocess.Popen(['sleep', '1000'], start_new_session=True).pid, flush=True)"
    status, output = await relayed(f'{sys.executable} -W ignore -c "{code}"')
    assert status == 0
    daemon = int(output["stdout"])
    os.kill(daemon, signal.SIGKILL)
    await trio.to_thread.run_sync(os.waitpid, daemon, 0)  # an orphan becomes ours


@pytest.mark.parametrize("program", ["no-such-tool", "./no-such-tool"])
async def test_missing_program_is_named(program: str, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=f"cannot start {program}: no such program"):
        async with leashed([program], cwd=tmp_path):
            raise AssertionError


async def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"cannot start sh: No such file or directory: .*/gone"):
        async with leashed(["sh"], cwd=tmp_path / "gone"):
            raise AssertionError


async def test_no_descriptor_is_left_open() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    with trio.fail_after(60):
        async with leashed(["cat"], stdin=PIPE, stdout=PIPE, stderr=PIPE):
            pass
    assert sorted(os.listdir("/proc/self/fd")) == before
