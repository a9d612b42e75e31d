"""Outlets of PDUs by SSH, which are a real sshd: one that runs commands, and one that has a prompt of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jmp.driver import ConfigError, DeviceError, serve
from jmp_drivers.ssh_power import SshPower
from tests.fakes.ports import free_port
from tests.fakes.sshd import Sshd, sshd

PROMPT = """\
#!/bin/sh
printf 'American Power Conversion\\napc>'
while read -r word outlet; do
    case $word in
    olOn) echo on >"$1"; printf 'E000: Success\\napc>' ;;
    olOff) echo off >"$1"; printf 'E000: Success\\napc>' ;;
    olStatus) printf 'E000: Success\\n%s: Outlet: %s\\napc>' "$outlet" "$(cat "$1")" ;;
    bye) exit 0 ;;
    *) printf 'E101: Command Not Found\\napc>' ;;
    esac
done
exit 1
"""


def outlet(server: Sshd, **more: Any) -> SshPower:
    given: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": server.port,
        "user": server.user,
        "identity": server.key,
        "host_key": server.host_key,
    }
    return SshPower(**(given | more))


@pytest.fixture
def state(tmp_path: Path) -> Path:
    file = tmp_path / "state"
    file.write_text("off\n")
    return file


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sshd]:
    with sshd(tmp_path) as running:
        yield running


def test_commands(server: Sshd, state: Path) -> None:
    words = {
        "on_command": f"echo on > {state}",
        "off_command": f"echo off > {state}",
        "state_command": ["cat", str(state)],
    }
    cycle = f"sleep {{wait}}; echo on again > {state}"
    with serve(outlet(server, **words, cycle_command=cycle)) as power:
        assert power.state() == "off"
        power.on()
        assert (state.read_text(), power.state()) == ("on\n", "on")
        power.cycle(wait=0.01)
        assert state.read_text() == "on again\n"
    wrong = {"on_command": "echo no outlet >&2; exit 3", "off_command": "sleep 60"}
    with serve(outlet(server, **wrong)) as power:
        with pytest.raises(
            DeviceError, match=r"the command for 'on' at 127\.0\.0\.1 failed with exit status 3: no outlet"
        ):
            power.on()
        assert power.state() == "unknown"
    with (
        serve(outlet(server, **wrong, timeout=2)) as power,
        pytest.raises(DeviceError, match=r"the command for 'off' at 127\.0\.0\.1 did not end within 2 s"),
    ):
        power.off()


def test_a_prompt_is_typed_at(tmp_path: Path, state: Path) -> None:
    (tmp_path / "pdu").write_text(PROMPT)
    (tmp_path / "pdu").chmod(0o700)
    how = {"prompt": True, "leave": "bye", "failure": "E101", "state_command": "olStatus 3", "off_command": "olOff 3"}
    with sshd(tmp_path, options=f"ForceCommand {tmp_path}/pdu {state}\n") as server:
        with serve(outlet(server, **how, on_command="olOn 3")) as power:
            assert power.state() == "off"
            power.on()
            assert (state.read_text(), power.state()) == ("on\n", "on")
        wrong = serve(outlet(server, **how, on_command="olNo 3"))
        with wrong as power, pytest.raises(DeviceError, match=r"failed: .*E101: Command Not Found"):
            power.on()


def test_who_is_not_let_in(tmp_path: Path, server: Sshd) -> None:
    words: dict[str, Any] = {"on_command": "true", "off_command": "true"}
    other = server.host_key[:-8] + "AAAAAAAA"
    for more, message in (
        (
            {"identity": None, "options": ["IdentityFile=none"]},
            r"cannot reach 127\.0\.0\.1 by ssh: .*Permission denied",
        ),
        ({"host_key": other}, "verification failed"),
        ({"port": free_port()}, "Connection refused"),
    ):
        given: dict[str, Any] = more
        with serve(outlet(server, **words, **given)) as power, pytest.raises(DeviceError, match=message):
            power.on()
    (tmp_path / "second").mkdir()
    with sshd(tmp_path / "second", password="it's $ecret") as locked:
        with serve(outlet(locked, **words, password="it's $ecret")) as power:
            power.on()
        wrong = serve(outlet(locked, **words, password="wr0ng"))
        with wrong as power, pytest.raises(DeviceError, match="Permission denied") as failure:
            power.on()
        assert "wr0ng" not in failure.value.message
    with pytest.raises(ConfigError, match="host must be"):
        SshPower(host="-oProxyCommand=x", **words)
