"""A shared lab as its users have it: dist/jmp, processes, sockets, network namespaces."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic

import pytest

import build
from tests.e2e.product import FIGURES, argv, wait_for
from tests.fakes.ports import free_port

pytestmark = pytest.mark.zipapp

SECONDS = 120


@pytest.fixture
def place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, with ``jmp`` and pytest on the path and state below an empty home."""
    programs = folder.parent / "bin"
    programs.mkdir()
    script = programs / "jmp"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {build.DIST / "jmp"} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_STATE_HOME", str(folder.parent / "state"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder.parent / "run"))
    return folder


def run(script: str, *, expect: int = 0, where: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run some lines of shell to their end."""
    done = subprocess.run(
        [*(where or []), "bash", "-euo", "pipefail", "-c", script],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == expect, f"{script}\n{done.stdout}\n{done.stderr}"
    return done


@contextmanager
def server(script: str, log: Path, says: str, *, where: list[str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """A program that serves, once it says so."""
    with log.open("w") as sink:
        process = subprocess.Popen([*(where or []), "bash", "-c", f"exec {script}"], stderr=sink, text=True)
    with process:
        try:
            wait_for(log, process, says)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def test_the_tutorial_as_it_stands(place: Path) -> None:
    text = (build.ROOT / "docs/lab.md").read_text()
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    ports = f" --listen 127.0.0.1:{free_port()} --http none"  # the usual ones may be taken on this machine
    out = ""
    with ExitStack() as stack:
        for language, block in blocks:
            first, _, rest = block.partition("\n")
            if language == "python":
                (place / first.removeprefix("# ")).write_text(block)
            elif first == "# the lab's server":
                stack.enter_context(server(rest.strip() + ports, place / "server.log", "Then these print"))
            elif first == "# the lab host":
                stack.enter_context(server(rest.strip(), place / "host.log", "exporter board1 serves"))
                run("until jmp get exporters | grep -q free; do :; done")
            else:
                out += run(block).stdout
    assert "1 passed" in out
    assert re.search(r"board1\s+in-use|board1\s+available", out)


@contextmanager
def lab(place: Path) -> Iterator[str]:
    """A lab's server, with this user as its admin, and clients alice and bob; the command that starts it."""
    command = f"jmp controller serve --router --name localhost --data lab --http none --listen 127.0.0.1:{free_port()}"
    with server(command, place / "server.log", "Then these print"):
        run("sh lab/admin.join; for c in alice bob; do jmp admin create client $c > $c.join; sh $c.join; done")
        yield command


def add_exporter(name: str, config: str, where: list[str] | None = None) -> None:
    Path(f"{name}.yaml").write_text(config)
    run(f"JMP_CLIENT_CONFIG=admin jmp admin create exporter {name} > {name}.join; sh {name}.join", where=where)


MOCK = """\
apiVersion: jmp/v1
kind: Exporter
metadata: {{name: {name}, labels: {{board: mock}}}}
export:
  power: {{type: mock-power}}
  echo: {{type: echo}}
"""


def test_a_queue_a_transfer_and_what_runs_after_a_lease(place: Path) -> None:
    with lab(place):
        add_exporter(
            "one",
            MOCK.format(name="one")
            + f"hooks: {{afterLease: {{script: 'echo cleaned after $JMP_CLIENT; echo $JMP_LEASE >> {place}/after'}}}}\n",
        )
        with server("jmp exporter serve ./one.yaml", place / "one.log", "exporter one serves"):
            run("jmp config client use alice; until jmp get exporters | grep -q free; do :; done")
            lease = run("jmp lease acquire -l board=mock --for 10m").stdout.strip()
            holder = subprocess.Popen(
                [*argv("shell", "--lease", lease), "--", "sh", "-c", "j echo connect; echo over $?"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            with holder:
                assert holder.stdin is not None
                assert holder.stdout is not None
                holder.stdin.write("hello\n")
                holder.stdin.flush()
                assert holder.stdout.readline() == "hello\n"
                waiting = subprocess.Popen(
                    argv("shell", "-l", "board=mock", "--for", "5m", "--", "sh", "-c", "j power on; j power state"),
                    env={**os.environ, "JMP_CLIENT_CONFIG": "bob"},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                with waiting:
                    assert waiting.stderr is not None
                    assert "is queued: number 1, expected to start in" in waiting.stderr.readline()
                    began = monotonic()
                    run(f"jmp lease transfer {lease} bob")
                    out, err = holder.communicate(timeout=SECONDS)
                    assert not FIGURES or monotonic() - began < 10  # 1 s is the aim, besides a process that starts
                    assert "handed over to bob" in err
                    assert holder.returncode != 0
                    refused = run(f"jmp shell --lease {lease} -- true", expect=77)
                    assert "transfer it to use its devices" in refused.stderr
                    run(f"JMP_CLIENT_CONFIG=bob jmp lease release {lease}")
                    out, err = waiting.communicate(timeout=SECONDS)
                    assert (waiting.returncode, out) == (0, "on\n"), err
                    assert "[afterLease] cleaned after bob" in err
            assert (place / "after").read_text().split()[0] == lease
            assert len((place / "after").read_text().split()) == 2


BOOT = """\
def test_boot_loader(dut):
    with dut.console.expect(prompt=r"\\n=> ", timeout=120) as console:
        dut.power.on()
        console.expect("Hit any key to stop autoboot")
        console.send(" ")
        console.expect(r"\\n=> ")
        assert "Boot 20" in console.run("version")
    dut.power.off()
"""

STORY = """\
lease=$(jmp lease acquire --name one --for 10m)
JMP_CLIENT_CONFIG=bob jmp shell --name one --for 5m -- pytest -q test_device.py > bob.out 2> bob.err &
until grep -q 'is queued: number 1, expected to start in' bob.err; do :; done
jmp shell --lease $lease -- pytest -q test_device.py
jmp lease transfer $lease bob
! jmp shell --lease $lease -- true
JMP_CLIENT_CONFIG=bob jmp shell --lease $lease -- j power on
JMP_CLIENT_CONFIG=bob jmp lease release $lease
wait %1
cat bob.out
"""


@pytest.mark.real
def test_two_exporters_in_networks_that_the_client_cannot_reach(place: Path) -> None:
    """A machine under QEMU and a virtual board.

    The server's machine is in all networks, the exporters and the client are in one each, as behind firewalls.
    """
    tag = f"j{os.getpid() % 10000}"
    hosts = {"one": "10.99.1", "two": "10.99.2", "usr": "10.99.3"}
    inside = {name: ["ip", "netns", "exec", f"{tag}{name}"] for name in ("srv", *hosts)}
    with ExitStack() as stack:
        for name in inside:
            run(f"ip netns add {tag}{name}; ip -n {tag}{name} link set lo up")
            stack.callback(run, f"ip netns del {tag}{name}")
        for name, net in hosts.items():
            here, there = f"{tag}{name[0]}a", f"{tag}{name[0]}b"
            run(f"ip link add {here} netns {tag}srv type veth peer name {there} netns {tag}{name}")
            run(f"ip -n {tag}srv addr add {net}.1/24 dev {here}; ip -n {tag}srv link set {here} up")
            run(f"ip -n {tag}{name} addr add {net}.2/24 dev {there}; ip -n {tag}{name} link set {there} up")
            run(f"ip -n {tag}{name} route add default via {net}.1")  # which forwards nothing
        names = " ".join(f"--name {net}.1" for net in reversed(hosts.values()))
        serve = f"jmp controller serve --router {names} --data lab --http none --listen 0.0.0.0:8443"
        stack.enter_context(server(serve, place / "server.log", "Then these print", where=inside["srv"]))

        def user(script: str) -> str:
            return run(f"export HOME=$PWD/usr; mkdir -p $HOME; {script}", where=inside["usr"]).stdout

        user("sh lab/admin.join; for c in alice bob; do jmp admin create client $c > $c.join; sh $c.join; done")
        Path("test_device.py").write_text(BOOT)
        hook = (
            f"hooks: {{afterLease: {{script: 'echo cleaned after $JMP_CLIENT; echo $JMP_CLIENT >> {place}/after'}}}}\n"
        )
        for name, net in hosts.items():
            if name == "usr":
                continue
            user(f"jmp admin create exporter {name} > {name}.join")
            run(f"sed -i s/10.99.3.1/{net}.1/ {name}.join; HOME=$PWD/{name} sh {name}.join", where=inside[name])
            example = {"one": "qemu-uboot", "two": "virtual-board"}[name]
            config = run(f"jmp exporter example {example}").stdout.replace(f"  name: {example}", f"  name: {name}")
            Path(f"{name}.yaml").write_text(config + hook)
            serve = f"env HOME=$PWD/{name} jmp exporter serve ./{name}.yaml --listen 0.0.0.0:9000"
            stack.enter_context(server(serve, place / f"{name}.log", f"exporter {name} serves", where=inside[name]))
        user("jmp config client use alice; until [ $(jmp get exporters | grep -c free) = 2 ]; do :; done")
        user("! timeout 3 jmp shell --connect ws://10.99.1.2:9000 -- true")
        assert user(STORY).count("1 passed") == 2
        assert "[afterLease] cleaned after bob" in Path("bob.err").read_text()
        assert Path("after").read_text().split() == ["bob", "bob"]
        assert "1 passed" in user("jmp shell --name two -- pytest -q test_device.py")
        # The same file as with a device on this machine:
        assert "1 passed" in run("jmp shell --exporter-config one.yaml -- pytest -q test_device.py").stdout
