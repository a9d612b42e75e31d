"""Networks that fail: each role on a host of its own (a network namespace), all joined by one in the middle."""

from __future__ import annotations

import itertools
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic

import pytest

from tests.e2e.product import argv
from tests.e2e.test_lab import SECONDS, add_exporter, place, run, server

__all__ = ["place"]
pytestmark = [pytest.mark.zipapp, pytest.mark.real]

FAULT_SECONDS = 18.0
"""Longer than the silence after which a link is lost."""
CONFIG = "apiVersion: jmp/v1\nkind: Exporter\nmetadata: {{name: {name}}}\nexport: {{echo: {{type: echo}}}}\n"


class Net:
    """Hosts, each with one cable to the same place, which forwards what is for the others."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._tag = f"n{os.getpid() % 100000}"
        self._hosts: list[str] = []
        self._add("hub")
        run("echo 1 > /proc/sys/net/ipv4/ip_forward", where=self.inside("hub"))

    def host(self, name: str) -> str:
        """Add one; its address."""
        self._add(name)
        self._hosts.append(name)
        number = len(self._hosts)
        far, near = f"{self._tag}h{number}", f"{self._tag}c{number}"
        run(
            f"ip link add {far} netns {self._tag}hub type veth peer name {near} netns {self._tag}{name}\n"
            f"ip -n {self._tag}hub addr add 10.98.{number}.1/24 dev {far}; ip -n {self._tag}hub link set {far} up\n"
            f"ip -n {self._tag}{name} addr add 10.98.{number}.2/24 dev {near}"
        )
        self.up(name)
        return f"10.98.{number}.2"

    def inside(self, name: str) -> list[str]:
        """What a program is run with on that host."""
        return ["ip", "netns", "exec", f"{self._tag}{name}"]

    def down(self, name: str) -> None:
        """Pull its cable."""
        self._ip(name, "link set {near} down")

    def up(self, name: str) -> None:
        number = self._number(name)
        self._ip(name, "link set {near} up")
        self._ip(name, f"route replace default via 10.98.{number}.1")

    def lose(self, name: str, percent: int) -> None:
        """Lose so much of what it sends, while it hears all that others say."""
        near = f"{self._tag}c{self._number(name)}"
        chain = f"add chain netdev lost out {{ type filter hook egress device {near} priority 0; }}"
        rule = f"add rule netdev lost out numgen random mod 100 <= {percent - 1} drop"
        run(f"nft '{'; '.join(('add table netdev lost', chain, rule))}'", where=self.inside(name))

    def lose_no_more(self, name: str) -> None:
        run("nft delete table netdev lost", where=self.inside(name))

    def spoil(self, name: str, how: str) -> None:
        """Let a cable delay, lose, repeat or reorder what goes into it at both of its ends, in the words of ``tc-netem(8)``."""
        for host, device in (("hub", f"{self._tag}h{self._number(name)}"), (name, f"{self._tag}c{self._number(name)}")):
            run(f"tc qdisc replace dev {device} root netem {how}", where=self.inside(host))

    def move(self, name: str) -> None:
        """Give it another address."""
        number = self._number(name)
        self._ip(name, f"addr add 10.98.{number}.3/24 dev {{near}}")
        self._ip(name, f"addr del 10.98.{number}.2/24 dev {{near}}")
        self._ip(
            name, f"addr replace 10.98.{number}.3/24 dev {{near}}"
        )  # gone with the first one, if it was its secondary
        self._ip(name, f"route replace default via 10.98.{number}.1")

    def _add(self, name: str) -> None:
        run(f"ip netns add {self._tag}{name}; ip -n {self._tag}{name} link set lo up")
        self._stack.callback(run, f"ip netns del {self._tag}{name}")

    def _number(self, name: str) -> int:
        return self._hosts.index(name) + 1

    def _ip(self, name: str, what: str) -> None:
        near = f"{self._tag}c{self._number(name)}"
        run(f"ip -n {self._tag}{name} {what.format(near=near)}")


class Console:
    """A device that sends back what it gets, typed at by a client: numbered lines, twenty in a second."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.heard: list[float] = []
        self.wrong: list[bytes] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._type), threading.Thread(target=self._hear)]
        self.typed = 0

    def _type(self) -> None:
        assert self.process.stdin is not None
        while not self._over.wait(0.05):
            self.process.stdin.write(b"%07d\n" % self.typed)
            self.process.stdin.flush()
            self.typed += 1
        self.process.stdin.close()

    def _hear(self) -> None:
        assert self.process.stdout is not None
        for number in itertools.count():
            line = self.process.stdout.readline()
            if line != b"%07d\n" % number:
                self.wrong.append(line)
                break
            self.heard.append(monotonic())

    def begin(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(SECONDS)
        assert self.process.wait(SECONDS) == 0

    @property
    def longest(self) -> float:
        """Seconds of its longest silence."""
        return max(after - before for before, after in itertools.pairwise(self.heard))


@contextmanager
def consoles(net: Net, place: Path, names: list[str]) -> Iterator[dict[str, Console]]:
    """A lab with a controller and two routers, and for each name an exporter and a client, on hosts of their own."""
    with ExitStack() as stack:
        address = net.host("ctl")
        serve = f"jmp controller serve --name {address} --data lab --http none --listen 0.0.0.0:8443"
        stack.enter_context(server(serve, place / "ctl.log", "controller is ready", where=net.inside("ctl")))
        run("until [ -f lab/admin.join ]; do :; done; sh lab/admin.join", where=net.inside("ctl"))
        run("jmp admin create client alice > alice.join; sh alice.join", where=net.inside("ctl"))
        for name in ("r1", "r2"):
            address = net.host(name)
            said = run(f"JMP_CLIENT_CONFIG=admin jmp admin create router {name}", where=net.inside("ctl")).stdout
            (join,) = [line for line in said.splitlines() if "jmp router serve" in line]
            token, _, rest = join.strip().partition(" ")
            (place / f"{name}.token").write_text(token.removeprefix("JMP_TOKEN="))
            serve = f"{rest} --token-file {name}.token --listen 0.0.0.0:8443 --url wss://{address}:8443 --http none"
            stack.enter_context(server(serve, place / f"{name}.log", "router is ready", where=net.inside(name)))
        typing: dict[str, Console] = {}
        for name in names:
            device, user = f"d-{name}", f"u-{name}"
            net.host(device)
            net.host(user)
            add_exporter(device, CONFIG.format(name=device), where=net.inside("ctl"))
            serve = f"jmp exporter serve ./{device}.yaml"
            stack.enter_context(server(serve, place / f"{device}.log", f"exporter {device}", where=net.inside(device)))
        run("jmp config client use alice", where=net.inside("ctl"))
        enough = f"[ $(jmp get exporters | grep -c free) = {len(names)} ]"
        run(f"until {enough}; do :; done", where=net.inside("ctl"))
        for name in names:
            process = subprocess.Popen(
                [
                    *net.inside(f"u-{name}"),
                    *argv("shell", "--name", f"d-{name}", "--for", "1h", "--", "sh", "-c", "j echo connect"),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stack.enter_context((place / f"{name}.err").open("w")),
            )
            stack.enter_context(process)
            stack.callback(process.terminate)
            typing[name] = Console(process)
        for console in typing.values():
            console.begin()
        try:
            for console in typing.values():
                while not console.heard:
                    assert console.process.poll() is None
                    threading.Event().wait(0.05)
            yield typing
        finally:
            for console in typing.values():
                console._over.set()


def test_consoles_go_on_whatever_befalls_the_network(place: Path) -> None:
    """All at once: the cables of a client, an exporter and a router are pulled, nothing that another client says arrives, one has
    a new address, and of all packets of one session a twentieth is lost, each way."""
    names = ["client", "exporter", "one-way", "address", "lossy"]
    with ExitStack() as stack:
        net = Net(stack)
        with consoles(net, place, names) as typing:
            for end in ("u-lossy", "d-lossy"):
                net.lose(end, 5)
            began = monotonic()
            net.down("u-client")
            net.down("d-exporter")
            net.lose("u-one-way", 100)
            net.move("u-address")
            net.down("r1")
            threading.Event().wait(FAULT_SECONDS)
            net.up("u-client")
            net.up("d-exporter")
            net.lose_no_more("u-one-way")
            healed = monotonic()
            for console in typing.values():
                while console.heard[-1] < healed and not console.wrong:
                    assert console.process.poll() is None
                    assert monotonic() < healed + SECONDS
                    threading.Event().wait(0.05)
            for name, console in typing.items():
                assert not console.wrong, f"{name}: {console.wrong}\n{(place / f'{name}.err').read_text()}"
            back = {
                name: round(next(at for at in console.heard if at > healed) - healed, 1)
                for name, console in typing.items()
            }
            for console in typing.values():
                while console.typed <= 100:
                    threading.Event().wait(0.05)
                console.end()
    print(f"\nafter {healed - began:.0f} s of faults: heard again after {back} s; longest silences", end=" ")
    print({name: round(console.longest, 1) for name, console in typing.items()})
    for name, console in typing.items():
        assert console.wrong == [b""], name  # the end, in order
        assert len(console.heard) == console.typed > 100, name
