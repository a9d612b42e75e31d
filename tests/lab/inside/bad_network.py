"""A console over a router, through a network that delays, loses, repeats and reorders packets (``tc netem``)."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from time import monotonic

import pytest

from tests.e2e.test_lab import add_exporter, run, server
from tests.e2e.test_networks import CONFIG, Console, Net

SECONDS = float(os.environ.get("JMP_TEST_NETEM_SECONDS", "2"))
"""That each kind of trouble lasts; read before tests get an environment without such things."""
TROUBLE = {
    "delay": "delay 100ms",
    "jitter": "delay 80ms 60ms 25%",  # which reorders, too
    "loss": "loss 10%",
    "bursts of loss": "loss gemodel 4% 30%",
    "reordering": "delay 30ms reorder 60% 50%",
    "repetition": "duplicate 20%",
    "corruption": "corrupt 2%",
    "a thin line": "rate 64kbit delay 20ms",
    "all": "delay 60ms 30ms loss 5% duplicate 5% corrupt 1% reorder 20%",
}


def test_a_console_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.chdir(tmp_path)
    with ExitStack() as stack:
        net = Net(stack)
        address = net.host("ctl")
        serve = f"jmp controller serve --name {address} --data lab --http none --listen 0.0.0.0:8443"
        stack.enter_context(server(serve, tmp_path / "ctl.log", "controller is ready", where=net.inside("ctl")))
        run("sh lab/admin.join; jmp admin create client alice > alice.join; sh alice.join", where=net.inside("ctl"))
        address = net.host("router")
        said = run("JMP_CLIENT_CONFIG=admin jmp admin create router r", where=net.inside("ctl")).stdout
        (join,) = [line for line in said.splitlines() if "jmp router serve" in line]
        token, _, rest = join.strip().partition(" ")
        (tmp_path / "r.token").write_text(token.removeprefix("JMP_TOKEN="))
        serve = f"{rest} --token-file r.token --listen 0.0.0.0:8443 --url wss://{address}:8443"
        stack.enter_context(server(serve, tmp_path / "r.log", "router is ready", where=net.inside("router")))
        for name in ("device", "user"):
            net.host(name)
        add_exporter("device", CONFIG.format(name="device"), where=net.inside("ctl"))
        serve = "jmp exporter serve ./device.yaml"
        stack.enter_context(server(serve, tmp_path / "d.log", "exporter device serves", where=net.inside("device")))
        shell = "JMP_CLIENT_CONFIG=alice exec jmp shell --name device --for 1h -- sh -c 'j echo connect'"
        process = stack.enter_context(
            subprocess.Popen(
                [*net.inside("user"), "sh", "-c", shell],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stack.enter_context((tmp_path / "user.err").open("w")),
            )
        )
        stack.callback(process.terminate)
        console = Console(process)
        console.begin()
        try:
            while not console.heard:
                assert process.poll() is None, (tmp_path / "user.err").read_text()
                threading.Event().wait(0.05)
            for kind, how in TROUBLE.items():
                for name in ("user", "device", "router"):
                    net.spoil(name, how)
                before = len(console.heard)
                threading.Event().wait(SECONDS)
                heard = console.heard[before - 1 :]
                longest = max([after - at for at, after in zip(heard, [*heard[1:], monotonic()], strict=True)])
                print(f"{kind}: {len(heard) - 1} lines, longest silence {longest:.2f} s")
            for name in ("user", "device", "router"):
                net.spoil(name, "delay 0ms")
            while console.typed <= 100:
                threading.Event().wait(0.05)
        finally:
            console._over.set()
        console.end()
    assert console.wrong == [b""]  # the end, in order
    assert len(console.heard) == console.typed > 100
    print(f"{console.typed} lines, none lost or doubled; longest silence was {console.longest:.1f} s")
