"""Consoles that a program gives: commands, ssh to a real sshd, conserver's client with a real conserver."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from jmp.driver import ConfigError, DeviceError, serve
from jmp_drivers._process import leashed
from jmp_drivers.command_console import CommandConsole, Conserver, SshConsole
from tests.drivers.test_telnet import listening, until
from tests.fakes.ports import free_port
from tests.fakes.sshd import sshd

EVERYTHING = bytes(range(256)) * 4


async def test_a_commands_terminal_is_the_console_and_passes_every_byte() -> None:
    with trio.fail_after(60):
        async with (
            serve(CommandConsole(command=["sh", "-c", "test -t 0 && printf ready; exec cat"])) as console,
            console.connect() as stream,
        ):
            await until(stream, b"ready")
            await stream.send_all(EVERYTHING)
            got = b""
            while len(got) < len(EVERYTHING):
                got += await stream.receive_some()
            assert got == EVERYTHING


async def test_its_end_is_told_with_its_last_words_and_it_is_started_again(tmp_path: Path) -> None:
    command = f"echo x >> {tmp_path}/starts; printf 'no such console\\n'; read line; exit 3"
    with trio.fail_after(60):
        async with serve(CommandConsole(command=command)) as console:
            async with console.connect() as stream:
                await until(stream, b"console\n")
                await stream.send_all(b"\n")
                with pytest.raises(DeviceError, match="the command echo ended with status 3: no such console"):
                    await until(stream, b"never")
            while (tmp_path / "starts").read_text() != "x\nx\n":  # noqa: ASYNC110  # another process writes it
                await trio.sleep(0.05)
        async with serve(CommandConsole(command=["no-such-program"])) as console:
            with pytest.raises(DeviceError, match="cannot start no-such-program: no such program"):
                await console.history()


async def test_its_environment_and_that_nothing_of_it_is_left(tmp_path: Path) -> None:
    command = "echo $TOKEN $(pwd) $$; exec sleep 1000"
    with trio.fail_after(60):
        async with (
            serve(CommandConsole(command=command, env={"TOKEN": "t"}, cwd=tmp_path)) as console,
            console.connect() as stream,
        ):
            token, folder, number = (await until(stream, b"\n")).split()
            assert (token, folder) == (b"t", bytes(tmp_path))
            assert Path(f"/proc/{int(number)}").exists()
        assert not Path(f"/proc/{int(number)}").exists()


async def test_ssh(tmp_path: Path) -> None:
    with sshd(tmp_path) as server, trio.fail_after(60):
        there: dict[str, Any] = {"host": "127.0.0.1", "port": server.port, "user": server.user, "key": server.key}
        command = "stty raw -echo; printf ready; exec cat"
        async with (
            serve(SshConsole(**there, host_keys=[server.host_key], command=command)) as console,
            console.connect() as stream,
        ):
            await until(stream, b"ready")
            await stream.send_all(b"\r~." + EVERYTHING)  # what would end an ssh that looks at keys
            got = b""
            while len(got) < len(EVERYTHING) + 3:
                got += await stream.receive_some()
            assert got == b"\r~." + EVERYTHING
        other = server.host_key[:-8] + "AAAAAAAA"
        for wrong, problem in (
            ({"host_keys": [other]}, "ssh to .* ended with status 255: Host key verification failed"),
            ({"key": tmp_path / "host"}, r"ssh to .* ended with status 255: .*Permission denied"),
            ({"key": tmp_path / "absent"}, "cannot read the key .*absent: there is no such file"),
        ):
            async with serve(SshConsole(**there | wrong)) as console:
                with pytest.raises(DeviceError, match=problem):
                    async with console.connect() as stream:
                        await until(stream, b"never")


async def test_ssh_with_a_password(tmp_path: Path) -> None:
    with sshd(tmp_path, password="geheim") as server, trio.fail_after(60):
        there: dict[str, Any] = {"host": "127.0.0.1", "port": server.port, "password": "geheim"}
        async with serve(SshConsole(**there, command="echo in; cat")) as console, console.connect() as stream:
            await until(stream, b"in")


@asynccontextmanager
async def conserver(folder: Path, command: str, port: int = 0) -> AsyncIterator[int]:
    """A conserver with the console ``dut``; its port."""
    port = port or free_port()
    (folder / "cf").write_text(
        "default * { master localhost; rw *; }\naccess * { trusted 127.0.0.1; }\n"
        f'console dut {{ type exec; exec "{command}"; }}\n'
    )
    (folder / "passwd").write_text("*any*:\n")
    files = ["-C", str(folder / "cf"), "-P", str(folder / "passwd")]
    async with leashed(["conserver", "-E", *files, "-p", str(port), "-M", "127.0.0.1"]):
        await listening(port)
        yield port


async def test_conserver(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with conserver(tmp_path, "sh -c 'stty raw -echo; exec cat'") as port:
            there: dict[str, Any] = {"host": "127.0.0.1", "port": port, "encrypted": False}
            async with serve(Conserver(console="dut", **there)) as console, console.connect() as stream:
                await until(stream, b"for help]")
                await stream.send_all(b"\x05c?" + EVERYTHING)  # conserver's usual escape sequence is nothing special
                got = b""
                while not got.endswith(EVERYTHING[-4:]) or len(got) < len(EVERYTHING):
                    got += await stream.receive_some()
                assert got.strip(b"\r\n") == b"\x05c?" + EVERYTHING
                await console.send_break()
                await until(stream, b"[halt sent]")
            async with serve(Conserver(console="other", **there)) as console:
                with pytest.raises(DeviceError, match=r"conserver 127\.0\.0\.1 ended with .*other"):
                    async with console.connect() as stream:
                        await until(stream, b"never")


def test_configurations_that_cannot_be() -> None:
    for make in (
        lambda: CommandConsole(command=""),
        lambda: CommandConsole(command=[]),
        lambda: SshConsole(host="-oProxyCommand=x"),
        lambda: SshConsole(host="h", port=0),
        lambda: Conserver(console="-x"),
    ):
        with pytest.raises(ConfigError):
            make()
