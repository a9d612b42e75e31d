"""Commands, files and ports of a device by SSH: OpenSSH's programs and Fabric against a real sshd."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from jmp.cli.verbs import execute
from jmp.client.adapters import meter
from jmp.client.interfaces import client_class
from jmp.client.ssh import Finished
from jmp.driver import ConfigError, DeviceError, UsageError, serve
from jmp.errors import Timeout
from jmp_drivers.network import Tcp
from jmp_drivers.ssh import Ssh
from tests.fakes.bundled import problems_in
from tests.fakes.sessions import shell_session
from tests.fakes.sshd import Sshd, sshd
from tests.fakes.terminal import Terminal

J = f'#!/bin/sh\nexec "{sys.executable}" -c "import sys; from jmp.cli.j import main; sys.exit(main())" "$@"\n'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keys and sockets of the way to the server are gone after a test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield
    assert list(tmp_path.glob("jmp-ssh-*")) == []


def driver(server: Sshd, **config: Any) -> Ssh:
    here = {"host": "127.0.0.1", "port": server.port, "user": server.user, "key": server.key}
    return Ssh(**{**here, "host_keys": [server.host_key], **config})


def on(driver: Ssh) -> Any:
    return serve(driver, class_of=client_class)


def test_a_command_has_its_input_outputs_and_status(server: Sshd) -> None:
    with on(driver(server)) as ssh:
        assert ssh.run("cat; echo no >&2; exit 3", stdin="yes") == Finished("yes", "no\n", 3)
        assert ssh.run("printf", "%s|", "a b", "$HOME").stdout == "a b|$HOME|", "words of a command are its own"
        with pytest.raises(DeviceError, match=r"^'echo why; exit 1' ended with status 1: why$"):
            ssh.run("echo why; exit 1", check=True)
        with pytest.raises(Timeout, match=r"the command did not end within 0\.5 s"):
            ssh.run("sleep 5", timeout=0.5)


async def test_the_same_under_trio(server: Sshd, tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with on(driver(server)) as ssh:
            assert await ssh.run("cat; exit 3", stdin=b"yes") == Finished("yes", "", 3)
            with pytest.raises(Timeout):
                await ssh.run("sleep 5", timeout=0.5)
            (tmp_path / "a").write_text("content")
            await ssh.put(tmp_path / "a", str(tmp_path / "b"))
            assert (tmp_path / "b").read_text() == "content"
            async with (
                ssh.tunnel(str(server.port)) as bound,
                await trio.open_tcp_stream(bound.host, bound.port) as port,
            ):
                assert (await port.receive_some()).startswith(b"SSH-2.0-OpenSSH")
            with trio.move_on_after(0.5) as patience:
                await ssh.run("sleep 5")
            assert patience.cancelled_caught


@pytest.mark.parametrize("options", ["", "Subsystem sftp /nowhere/sftp-server\n"], ids=["sftp", "without-sftp"])
def test_files_and_folders_are_copied_both_ways(tmp_path: Path, options: str) -> None:
    (tmp_path / "sshd").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a:b c").write_text("content")
    (tmp_path / "folder/a:b c").chmod(0o750)
    with ExitStack() as stack:
        server = stack.enter_context(sshd(tmp_path / "sshd"))
        if options:
            config = tmp_path / "sshd/sshd_config"
            config.write_text(config.read_text().replace("Subsystem sftp internal-sftp\n", options))
        ssh = stack.enter_context(on(driver(server)))
        ssh.put(tmp_path / "folder", str(tmp_path / "there"))
        assert (tmp_path / "there/a:b c").stat().st_mode & 0o777 == 0o750
        ssh.get(str(tmp_path / "there"), tmp_path / "back")
        assert (tmp_path / "back/a:b c").read_text() == "content"
        with pytest.raises(UsageError, match="absent cannot be copied: there is no such file"):
            ssh.put("absent")
        with pytest.raises(DeviceError, match=r"absent.*: No such file or directory") as caught:
            ssh.get("/absent", tmp_path / "back")
        assert options or str(caught.value).endswith(": /absent: No such file or directory")
        assert str(shutil.which("scp")) not in str(caught.value)


def test_it_is_told_how_far_a_copy_is(server: Sshd, tmp_path: Path) -> None:
    size = 3_000_000
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a").write_bytes(os.urandom(size))
    (tmp_path / "folder/b").write_bytes(b"b" * 1000)
    shown: list[tuple[int, int | None]] = []
    with on(driver(server)) as ssh:
        ssh.put(tmp_path / "folder", str(tmp_path / "there"), progress=lambda *at: shown.append(at))
        assert shown[-1] == (size + 1000, size + 1000)
        ssh.get(str(tmp_path / "there/a"), tmp_path / "back", progress=lambda *at: shown.append(at))
        assert shown[-1] == (size, size)


@pytest.fixture
def halting(tmp_path: Path) -> Iterator[tuple[Sshd, Path]]:
    """A server that brings 300 kB, and the rest once there is a file, which is the second."""
    (tmp_path / "sshd").mkdir()
    go = tmp_path / "go"
    (tmp_path / "sftp").write_text(
        "#!/bin/sh\n/usr/lib/openssh/sftp-server | "
        f"(stdbuf -o0 head -c 300000; until [ -e {go} ]; do sleep 0.02; done; exec cat)\n"
    )
    (tmp_path / "sftp").chmod(0o755)
    (tmp_path / "image").write_bytes(os.urandom(1024 * 1024))
    with sshd(tmp_path / "sshd") as server:
        config = tmp_path / "sshd/sshd_config"
        config.write_text(config.read_text().replace("sftp internal-sftp", f"sftp {tmp_path}/sftp"))
        try:
            yield server, go
        finally:
            go.touch()


def test_a_device_tells_how_much_there_is_to_get(
    halting: tuple[Sshd, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, go = halting
    monkeypatch.setattr(meter, "LOOK_SECONDS", 0.02)
    shown: list[tuple[int, int | None]] = []

    def progress(done: int, total: int | None) -> None:
        shown.append((done, total))
        if total is not None:
            go.touch()

    with on(driver(server)) as ssh:
        ssh.get(str(tmp_path / "image"), tmp_path / "back", progress=progress)
    (halted, *_) = (done for done, total in shown if total == 1024 * 1024)
    assert halted < 310_000, "as soon as it was known, long before all had come"
    assert shown[0][1] is None
    assert shown[-1] == (1024 * 1024, 1024 * 1024)


def test_what_progress_raises_ends_the_copy(halting: tuple[Sshd, Path], tmp_path: Path) -> None:
    server, _ = halting
    with on(driver(server)) as ssh, pytest.raises(ZeroDivisionError):
        ssh.get(str(tmp_path / "image"), tmp_path / "back", progress=lambda done, total: 1 // 0)


async def test_and_so_it_does_under_trio(halting: tuple[Sshd, Path], tmp_path: Path) -> None:
    server, _ = halting
    with trio.fail_after(60):
        async with on(driver(server)) as ssh:
            with pytest.raises(ZeroDivisionError):
                await ssh.get(str(tmp_path / "image"), tmp_path / "back", progress=lambda done, total: 1 // 0)


def test_a_terminal_shows_how_far_a_copy_is(halting: tuple[Sshd, Path], tmp_path: Path) -> None:
    server, go = halting
    (tmp_path / "j").write_text(J)
    (tmp_path / "j").chmod(0o755)
    config = (
        "apiVersion: jmp/v1\nkind: Exporter\nmetadata: {name: b}\nexport:\n"
        f"  ssh: {{type: ssh, config: {{host: 127.0.0.1, port: {server.port}, user: {server.user}, key: {server.key}}}}}\n"
    )
    with shell_session(tmp_path, config) as session:
        command = ["sh", "-c", f"exec {tmp_path}/j ssh get {tmp_path}/image {tmp_path}/back >{tmp_path}/out"]
        with Terminal(command, session | {"TERM": "xterm"}) as terminal:
            terminal.until(r"^get .*0\.3/1\.0 MiB")
            go.touch()
            assert terminal.end() == 0
    assert (tmp_path / "back").read_bytes() == (tmp_path / "image").read_bytes()
    assert (tmp_path / "out").read_text() == ""


def test_a_tunnel_leads_to_a_port_of_the_device(server: Sshd) -> None:
    with on(driver(server)) as ssh, socket.create_server(("127.0.0.1", 0)) as port:
        number = port.getsockname()[1]
        with ssh.tunnel(f"127.0.0.1:{number}") as bound, socket.create_connection((bound.host, bound.port)) as near:
            far, _ = port.accept()
            with far:
                far.sendall(b"hello")
                assert near.recv(5) == b"hello"
        for wrong in ("x", "0", "host:"):
            with pytest.raises(UsageError, match="is no port of the device"):
                ssh.tunnel(wrong)


def test_a_password_lets_in_and_a_wrong_one_does_not(tmp_path: Path) -> None:
    with sshd(tmp_path, password="it's $ecret") as server:
        with on(driver(server, user="root", key=None, password="it's $ecret")) as ssh:
            assert ssh.run("echo in").stdout == "in\n"
            with ssh.fabric() as connection:
                assert connection.run("echo in", hide=True).stdout == "in\n"
        with on(driver(server, user="root", key=None, password="guess")) as ssh:
            with pytest.raises(DeviceError, match="Permission denied") as caught:
                ssh.run("echo in")
            assert "guess" not in str(caught.value)


def test_another_server_in_its_place_is_noticed(server: Sshd, tmp_path: Path) -> None:
    with sshd(tmp_path) as other:
        impostor = replace(other, host_key=server.host_key)
        with on(driver(impostor)) as ssh, pytest.raises(DeviceError, match="Host key verification failed"):
            ssh.run("true")
        with on(driver(other, host_keys=[])) as ssh:
            assert ssh.run("true").status == 0, "without host keys, it may have any"


@pytest.fixture
def refused() -> Iterator[int]:
    """A port at which nobody listens, and nobody else will."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_what_keeps_it_from_working_is_told(server: Sshd, refused: int, tmp_path: Path) -> None:
    port = refused
    uses: list[Callable[[Any], Any]] = [
        lambda ssh: ssh.run("true"),
        lambda ssh: ssh.get("x", tmp_path),
        lambda ssh: ssh.tunnel("80").__enter__(),
        lambda ssh: execute(ssh._wrapped, ["login"]),
    ]
    with on(driver(server, port=port)) as ssh:
        for use in uses:
            with pytest.raises(DeviceError, match=rf"^cannot connect to tcp:127\.0\.0\.1:{port}: Connection refused$"):
                use(ssh)
    absent = r"cannot read the key .*absent: No such file or directory"
    with on(driver(server, key=tmp_path / "absent")) as ssh, pytest.raises(DeviceError, match=absent):
        ssh.run("true")
    with on(driver(server, host="")) as ssh, pytest.raises(DeviceError, match="neither a host nor a child"):
        ssh.run("true")
    for wrong in ({"user": "-oProxyCommand=x"}, {"port": 0}, {"host_keys": ["AAAA"]}):
        with pytest.raises(ConfigError):
            driver(server, **wrong)


def test_a_child_can_be_the_port(server: Sshd) -> None:
    behind = driver(server, host="")
    behind.children["port"] = Tcp(host="127.0.0.1", port=server.port)
    with on(behind) as ssh:
        assert ssh.run("echo in").stdout == "in\n"
        with ssh.connect() as stream:
            assert stream.receive_some().startswith(b"SSH-2.0")
        with ssh.forward() as bound, socket.create_connection((bound.host, bound.port)) as near:
            assert near.recv(7) == b"SSH-2.0"


def test_fabric(server: Sshd) -> None:
    with on(driver(server)) as ssh, ssh.fabric() as connection:
        result = connection.run("echo out; exit 2", hide=True, warn=True)
        assert (result.stdout, result.exited) == ("out\n", 2)


def test_on_the_command_line_output_passes_and_the_status_counts(
    server: Sshd, capfd: pytest.CaptureFixture[str]
) -> None:
    with on(driver(server)) as ssh:
        client = ssh._wrapped
        assert execute(client, shlex.split("run sh -c 'echo \"$1\"; echo e >&2; exit 5' -- --all")) == 5
        assert capfd.readouterr() == ("--all\n", "e\n")
        assert execute(client, ["run", "--help"]) == 0
        assert "run [COMMAND...]" in capfd.readouterr().out
        with pytest.raises(UsageError, match="run needs a command"):
            execute(client, ["run"])


def test_log_in_on_a_terminal_and_proxy_command(server: Sshd, tmp_path: Path) -> None:
    (tmp_path / "j").write_text(J)
    (tmp_path / "j").chmod(0o755)
    config = (
        "apiVersion: jmp/v1\nkind: Exporter\nmetadata: {name: b}\nexport:\n"
        f"  net: {{type: tcp, config: {{host: 127.0.0.1, port: {server.port}}}}}\n"
        f"  ssh:\n    type: ssh\n    config: {{user: {server.user}, key: {server.key}}}\n    children: {{port: {{ref: net}}}}\n"
    )
    with shell_session(tmp_path, config) as session:
        with Terminal([str(tmp_path / "j"), "ssh"], session | {"TERM": "xterm"}) as terminal:
            terminal.until(r"[#$] \Z|[#$]\Z")
            terminal.type("stty size; tty | cut -c1-9; exit 4\r")
            terminal.until("^24 80$")
            terminal.until("^/dev/pts/$")
            assert terminal.end() == 4
        by_hand = [
            *("ssh", "-F", "/dev/null", "-i", str(server.key), "-o", "StrictHostKeyChecking=no"),
            *("-o", "UserKnownHostsFile=/dev/null", "-o", f"ProxyCommand={tmp_path}/j ssh connect"),
        ]
        done = subprocess.run(
            [*by_hand, f"{server.user}@board", "echo by hand"], env=session, capture_output=True, check=False
        )
        assert done.stdout == b"by hand\n", done.stderr


def test_examples_in_the_documentation_are_valid() -> None:
    assert problems_in("docs/drivers/ssh.md") == []
