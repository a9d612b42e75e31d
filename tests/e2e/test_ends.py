"""How sessions end that do not end by themselves, and who gets in over the network."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.product import SECONDS, Served, argv, j, jmp, serving
from tests.e2e.streams import listening, write_config

pytestmark = pytest.mark.zipapp


@contextmanager
def shell(served: Served, *command: str) -> Iterator[subprocess.Popen[str]]:
    """A ``jmp shell`` with a command that says a line once it uses the device."""
    with subprocess.Popen(
        argv(*served.shell, "--", *command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        yield process


def test_a_killed_client_leaves_closed_drivers_and_a_free_device(folder: Path) -> None:
    (folder / "hold.py").write_text(
        "import jmp\nwith jmp.connect() as dut, dut.data.connect() as stream:\n"
        "    dut.power.on()\n    stream.send_all(b'x')\n    print('in', flush=True)\n    stream.receive_some()\n"
    )
    with listening() as server, serving(write_config(folder, server.getsockname()[1])) as served:
        with shell(served, argv()[0], "hold.py") as holder:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(SECONDS)
                assert connection.recv(1) == b"x"
                holder.kill()
                assert connection.recv(1) == b"", "what the driver had open is closed"
        after = jmp(*served.shell, "--wait", "--", "j", "power", "state")
        assert (after.stdout, after.returncode) == ("off\n", 0), "drivers are new for every session"
        assert served.log.read_text().count(" is over\n") >= 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_exporter_that_is_told_to_stop_ends_the_session(folder: Path, number: signal.Signals) -> None:
    with serving(write_config(folder, 9)) as served:
        link = f"{j()[0]} {j()[1]}"
        command = f"j power on; echo in; read line; {link} power state; exit $?"
        with shell(served, "sh", "-c", command) as client:
            served.process.send_signal(number)
            assert served.process.wait(SECONDS) == 0
            assert client.stdin is not None
            _, said = client.communicate("go on\n", timeout=SECONDS)
            assert client.returncode == 69, said
        log = served.log.read_text()
        assert " is over\n" in log
        assert "Traceback" not in log
    assert not (folder / "bench.sock").exists()


@pytest.fixture
def remote(folder: Path) -> Iterator[Served]:
    with serving(write_config(folder, 9), "--listen=127.0.0.1:0") as served:
        yield served


def test_over_the_network_with_passphrase_and_fingerprint(remote: Served, folder: Path) -> None:
    given = dict(zip(remote.shell[1::2], remote.shell[2::2], strict=True))
    passphrase = Path(given["--passphrase-file"])
    assert passphrase.stat().st_mode & 0o077 == 0
    done = jmp(*remote.shell, "--", "sh", "-c", "j power on; j power state")
    assert (done.stdout, done.returncode) == ("on\n", 0), done.stderr
    (folder / "wrong").write_text("open sesame\n")
    right, wrong = given["--fingerprint"], "0" * 64
    for options, message in (
        (("--passphrase-file", "wrong", "--fingerprint", right), "the passphrase is wrong"),
        (("--fingerprint", right), "a passphrase is needed: --passphrase-file or JMP_PASSPHRASE"),
        (("--passphrase-file", str(passphrase), "--fingerprint", wrong), f"its fingerprint is {right}"),
        (("--passphrase-file", str(passphrase)), "give its CA or its fingerprint"),
    ):
        done = jmp("shell", "--connect", remote.url, *options, "--", "true")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (77, "", 1), done.stderr
        assert message in done.stderr
    environment = {**os.environ, "JMP_PASSPHRASE": passphrase.read_text().strip()}
    assert jmp("shell", "--connect", remote.url, "--fingerprint", right, "--", "true", env=environment).returncode == 0
    assert passphrase.read_text().strip() not in remote.log.read_text()
