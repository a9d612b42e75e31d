"""A lab whose parts are killed and stopped, as processes. ``-s`` prints how long it took to notice and to recover."""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from jmp.client.config import ClientConfig, Store, directory
from jmp.client.lab import open_lab
from jmp.errors import JmpError
from jmp.wire.records import Want
from tests.e2e.leases import kept_waiting
from tests.e2e.product import FIGURES, argv
from tests.e2e.test_lab import MOCK, SECONDS, add_exporter, lab, place, run, server

__all__ = ["place"]
pytestmark = pytest.mark.zipapp

KILLS = int(os.environ.get("JMP_TEST_KILLS", "5"))
STOPS = int(os.environ.get("JMP_TEST_STOPS", "3"))
"""How often each happens; read before tests get an environment without such things."""


def client(name: str) -> ClientConfig:
    """Who has joined the lab under this name."""
    return Store(directory() / "clients", "Client").load(name)


@contextmanager
def console(lease: str, log: Path) -> Iterator[subprocess.Popen[str]]:
    """An open console of the present client's, whose device sends back what it gets."""
    with (
        log.open("w") as sink,
        subprocess.Popen(
            argv("shell", "--lease", lease, "--", "sh", "-c", "j echo connect"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sink,
            text=True,
        ) as process,
    ):
        try:
            echoed(process, "begin")
            yield process
        finally:
            process.terminate()


def echoed(console: subprocess.Popen[str], line: str) -> float:
    """Seconds that a line takes to the device and back."""
    assert console.stdin is not None
    assert console.stdout is not None
    began = monotonic()
    console.stdin.write(f"{line}\n")
    console.stdin.flush()
    assert console.stdout.readline() == f"{line}\n"
    return monotonic() - began


def shown(what: str, seconds: list[float]) -> None:
    print(f"\n{what}: median {statistics.median(seconds):.2f} s, max {max(seconds):.2f} s, n={len(seconds)}")


class Load:
    """Threads of one client that acquire and release without a pause, and all that was acknowledged to them."""

    def __init__(self, config: ClientConfig, threads: int) -> None:
        self.acquired: list[str] = []
        self.released: list[str] = []
        self.granted: list[str] = []
        self.wrong: list[str] = []
        self._config = config
        self._holders: dict[str, str] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(f"t{number}",)) for number in range(threads)]

    @contextmanager
    def running(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(SECONDS)
            assert not thread.is_alive()

    def _work(self, tag: str) -> None:
        mine: list[str] = []
        while not (self._stop.is_set() and not mine):
            try:
                with open_lab(self._config) as lab:
                    for item in lab.call("leases"):  # one may be there whose acknowledgement was lost
                        if tag in item["tags"] and item["state"] != "ended":
                            self._release(lab, item["id"], mine)
                    mine.clear()
                    while not self._stop.is_set():
                        self._once(lab, tag, mine)
            except JmpError:
                self._stop.wait(0.05)  # the controller is away

    def _once(self, lab: Any, tag: str, mine: list[str]) -> None:
        lease = lab.acquire([Want(selector="board=mock")], 3600.0, tags=[tag]).id
        mine.append(lease)
        self.acquired.append(lease)
        device = lab.wait_granted(lease).devices[0].exporter
        with self._lock:
            self.granted.append(lease)
            if device in self._holders:
                self.wrong.append(f"{device} was given to {lease} and {self._holders[device]}")
            self._holders[device] = lease
        self._release(lab, lease, mine)

    def _release(self, lab: Any, lease: str, mine: list[str]) -> None:
        with self._lock:
            self._holders = {device: holder for device, holder in self._holders.items() if holder != lease}
        lab.release(lease)
        self.released.append(lease)
        if lease in mine:
            mine.remove(lease)


def test_a_controller_killed_at_random_moments_loses_nothing_it_has_acknowledged(place: Path) -> None:
    chance = random.Random(4)
    with ExitStack() as stack:
        entered = stack.enter_context(ExitStack())
        command = entered.enter_context(lab(place))
        for name in ("one", "two", "three"):
            add_exporter(name, MOCK.format(name=name))
            # They are used directly: the router lives, and dies, with this controller.
            serve = f"jmp exporter serve ./{name}.yaml --listen 127.0.0.1:0"
            stack.enter_context(server(serve, place / f"{name}.log", f"exporter {name} serves"))
        run("jmp config client use alice; until [ $(jmp get exporters | grep -c free) = 3 ]; do :; done")
        held = run("jmp lease acquire --name two -l board=mock --for 4h").stdout.strip()
        shell = stack.enter_context(console(held, place / "console.log"))
        load = Load(client("bob"), 4)
        serving, answers = [], []
        with load.running():
            entered.pop_all().close()  # the first server, in order; the killed ones come now
            for number in range(KILLS):
                began = monotonic()
                with server(command, place / "server.log", "controller is ready") as process:
                    with open_lab(client("alice")) as mine:
                        assert mine.call("lease", held)["state"] == "ready"
                    serving.append(monotonic() - began)
                    answers.append(echoed(shell, f"line {number}"))
                    threading.Event().wait(chance.uniform(0, 2.5))
                    while number == KILLS - 1 and not load.granted:  # it takes its time on a busy machine
                        threading.Event().wait(0.05)
                    process.send_signal(signal.SIGKILL)
                answers.append(echoed(shell, f"without {number}"))
        with server(command, place / "server.log", "controller is ready"):
            load.join()
            with open_lab(client("admin")) as admin:
                leases = {item["id"]: item for item in admin.call("leases", everybody=True, ended=True)}
            run(f"jmp lease release {held}")
    shown("serving again", serving)
    shown("a line to the console and back", answers)
    print(f"{KILLS} kills, acknowledged: {len(load.acquired)} acquired, {len(load.released)} released")
    lost = [lease for lease in load.acquired if lease not in leases]
    undone = [lease for lease in load.released if leases[lease]["state"] not in ("ending", "ended")]
    print(f"{len(lost)} lost, {len(undone)} releases undone, {len(load.granted)} seen granted, {len(load.wrong)} twice")
    assert (lost, undone, load.wrong) == ([], [], [])
    grants = [(device["exporter"], device["epoch"]) for item in leases.values() for device in item["devices"]]
    assert len(grants) == len(set(grants)), "an epoch was granted twice"
    assert load.granted
    assert leases[held]["state"] == "ready"
    assert not FIGURES or statistics.median(serving) < 10  # 2 s is the aim


def test_a_holder_that_was_stopped_past_its_lease_is_refused(place: Path) -> None:
    with lab(place):
        add_exporter("one", MOCK.format(name="one"))
        with server("jmp exporter serve ./one.yaml", place / "one.log", "exporter one serves"):
            run("jmp config client use alice; until jmp get exporters | grep -q free; do :; done")
            for number in range(STOPS):
                log = place / f"holder{number}.log"
                with open_lab(client("alice")) as mine, open_lab(client("bob")) as other:
                    with ExitStack() as stack:
                        with kept_waiting(client("admin")):
                            lease = mine.acquire([Want(selector="board=mock")], 8.0)
                            holder = stack.enter_context(console(lease.id, log))
                        tree = [holder.pid, *children(holder.pid)]
                        for pid in tree:
                            os.kill(pid, signal.SIGSTOP)
                        following = other.acquire([Want(selector="board=mock")], 600.0)
                        assert other.wait_granted(following.id).client == "bob"
                        assert holder.stdin is not None
                        assert holder.stdout is not None
                        holder.stdin.write("too late\n")
                        holder.stdin.flush()
                        for pid in tree:
                            os.kill(pid, signal.SIGCONT)
                        assert "too late" not in holder.stdout.read()
                        assert holder.wait(SECONDS) != 0
                    assert f"lease {lease.id} has ended: its time was over" in log.read_text()
                    other.release(following.id)
    print(f"\n{STOPS} stopped past their lease, {STOPS} refused")


def children(pid: int) -> list[int]:
    """All processes below one."""
    below = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return below + [lower for child in below for lower in children(child)]


@pytest.mark.parametrize("how", ["kick", "transfer", "maintenance"])
def test_the_console_of_one_who_has_lost_the_device_dies(place: Path, how: str) -> None:
    with lab(place):
        add_exporter("one", MOCK.format(name="one"))
        with server("jmp exporter serve ./one.yaml", place / "one.log", "exporter one serves"):
            run("jmp config client use alice; until jmp get exporters | grep -q free; do :; done")
            with open_lab(client("alice")) as mine, open_lab(client("admin")) as admin:
                lease = mine.acquire([Want(selector="board=mock")], 600.0).id
                with console(lease, place / "console.log") as holder:
                    assert holder.stdout is not None
                    began = monotonic()
                    if how == "kick":
                        admin.release(lease)
                    elif how == "transfer":
                        admin.call("transfer", lease, "bob")
                    else:
                        admin.call("disable", "exporter", "one", "new fan", True)
                    assert holder.stdout.read() == ""
                    took = monotonic() - began
    shown(f"console after {how}", [took])
    assert not FIGURES or took < 10  # 1 s is the aim


def test_an_exporter_that_hangs_is_offline_within_15_seconds_and_delays_nobody(place: Path) -> None:
    with lab(place), ExitStack() as stack:
        processes = {}
        for name in ("one", "two"):
            add_exporter(name, MOCK.format(name=name))
            serve = f"jmp exporter serve ./{name}.yaml"
            processes[name] = stack.enter_context(server(serve, place / f"{name}.log", f"exporter {name} serves"))
        run("jmp config client use alice; until [ $(jmp get exporters | grep -c free) = 2 ]; do :; done")
        with open_lab(client("alice")) as mine:
            before = [turn(mine) for _ in range(50)]
            processes["one"].send_signal(signal.SIGSTOP)
            stack.callback(processes["one"].send_signal, signal.SIGCONT)
            began = monotonic()
            hung: list[float] = []
            while mine.call("exporter", "one")["state"] != "offline":
                hung.append(turn(mine))
            noticed = monotonic() - began
        shown("acquire, all well", before)
        shown("acquire, one exporter hangs", hung)
        print(f"offline after {noticed:.1f} s")
        assert len(hung) > 5, "nobody waits for the one that hangs"
        if FIGURES:
            assert noticed < 15 + 5
            assert len(hung) > 50
            assert statistics.median(hung) < 2 * statistics.median(before)


def turn(lab: Any) -> float:
    """Seconds from asking for the other exporter to having it; it is released again."""
    began = monotonic()
    lease = lab.acquire([Want(exporter="two")], 60.0)
    lab.wait_granted(lease.id)
    took = monotonic() - began
    lab.release(lease.id)
    for standing in lab.watch(lease.id):
        if standing.lease.state == "ended":
            break
    return took
