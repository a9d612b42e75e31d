"""A D-Bus behind a port of this machine: a private dbus-daemon, asked by dbus-send and busctl."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from jmp.client.interfaces import client_class
from jmp.driver import DeviceError, serve
from jmp_drivers.dbus import DBus

LIST = ["--print-reply", "--dest=org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus.ListNames"]


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("bus") / "socket"
    command = [
        "dbus-daemon",
        "--session",
        "--nofork",
        "--nopidfile",
        f"--address=unix:path={path}",
        "--print-address=1",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        daemon.stdout.readline()  # it listens
        try:
            yield path
        finally:
            daemon.terminate()


def ask(command: list[str], **options: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)  # type: ignore[call-overload, no-any-return]


def test_programs_of_this_machine_use_it(bus: Path, tmp_path: Path) -> None:
    with serve(DBus(path=bus), class_of=client_class) as client, client.forward(f"unix:{tmp_path}/bus") as bound:
        sent = ask(["dbus-send", f"--bus=unix:path={bound.path}", *LIST])
        assert 'string "org.freedesktop.DBus"' in sent.stdout, sent.stderr
        listed = ask(["busctl", f"--address=unix:path={bound.path}", "list", "--no-pager"])
        assert "org.freedesktop.DBus" in listed.stdout, listed.stderr


def test_whoever_one_is_here_one_is_the_exporters_user_there(bus: Path) -> None:
    with serve(DBus(path=bus), class_of=client_class) as client, client.forward() as bound:
        sent = ask(["dbus-send", f"--bus=tcp:host=127.0.0.1,port={bound.port}", *LIST], user=65534)
        assert 'string "org.freedesktop.DBus"' in sent.stdout, sent.stderr


def test_a_bus_that_is_not_there(tmp_path: Path) -> None:
    absent = pytest.raises(DeviceError, match=r"cannot connect to unix:.*/none: No such file or directory")
    with serve(DBus(path=tmp_path / "none"), class_of=client_class) as client, absent, client.connect() as stream:
        stream.receive_some()
