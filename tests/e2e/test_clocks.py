"""Clocks that are set by an hour while leases run: those of a controller, exporters and clients, as processes, each its own."""

from __future__ import annotations

import re
import subprocess
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import pytest

from tests.e2e.leases import kept_waiting
from tests.e2e.product import FIGURES, argv
from tests.e2e.test_lab import SECONDS, add_exporter, place, run, server
from tests.e2e.test_lab_faults import client
from tests.fakes.ports import free_port

__all__ = ["place"]
pytestmark = [pytest.mark.zipapp, pytest.mark.real]

HOUR = 3600
LEASE_SECONDS = 5.0
PHASES: tuple[dict[str, int], ...] = (
    {"controller": 0, "one": HOUR, "two": -HOUR, "alice": 0, "bob": 0},
    {"controller": HOUR, "one": HOUR, "two": 0, "alice": -HOUR, "bob": HOUR},
    {"controller": -HOUR, "one": HOUR, "two": -HOUR, "alice": 0, "bob": 0},
    {"controller": 0, "one": 0, "two": 0, "alice": HOUR, "bob": -HOUR},
)
"""What each clock is set to in the middle of the leases; the next ones begin with it."""
CONFIG = """\
apiVersion: jmp/v1
kind: Exporter
metadata: {{name: {name}}}
export: {{echo: {{type: echo}}}}
hooks:
  beforeLease: {{script: 'cat /proc/uptime >> {place}/{name}.began'}}
  afterLease: {{script: 'cat /proc/uptime >> {place}/{name}.ended'}}
"""


class Clocks:
    """The clocks of programs, by name."""

    def __init__(self, place: Path, names: list[str]) -> None:
        self._place = place
        self._library = place / "clock.so"
        source = Path(__file__).parents[1] / "fakes" / "clock.c"
        run(f"gcc -Wall -Werror -O1 -shared -fPIC -o {self._library} {source}")
        for name in names:
            self._file(name).write_bytes(bytes(4))

    def _file(self, name: str) -> Path:
        return self._place / f"{name}.clock"

    def set(self, name: str, seconds: int) -> None:
        """Let it be so much from the true time."""
        with self._file(name).open("r+b") as opened:
            opened.write(seconds.to_bytes(4, "little", signed=True))

    def of(self, name: str) -> str:
        """What a command that goes by it begins with."""
        return f"env LD_PRELOAD={self._library} CLOCK={self._file(name)}"


def seconds(file: Path) -> list[float]:
    """When something happened, by the clock that nobody can set."""
    return [float(line.split()[0]) for line in file.read_text().splitlines()]


def test_leases_last_as_long_as_they_should(place: Path) -> None:
    held = {"one": "alice", "two": "bob"}
    clocks = Clocks(place, list(PHASES[0]))
    with ExitStack() as stack:
        serve = f"jmp controller serve --name localhost --data lab --http none --listen 127.0.0.1:{free_port()}"
        log = place / "controller.log"
        stack.enter_context(server(f"{clocks.of('controller')} {serve} --router", log, "controller is ready"))
        run("until [ -f lab/admin.join ]; do :; done; sh lab/admin.join")
        for name, holder in held.items():
            run(f"JMP_CLIENT_CONFIG=admin jmp admin create client {holder} > {holder}.join; sh {holder}.join")
            add_exporter(name, CONFIG.format(name=name, place=place))
            serve = f"{clocks.of(name)} jmp exporter serve ./{name}.yaml"
            stack.enter_context(server(serve, place / f"{name}.log", f"exporter {name} serves"))
        given: dict[str, list[float]] = {name: [] for name in held}
        for phase in PHASES:
            shells = []
            stack.enter_context(waiting := ExitStack())
            kept = waiting.enter_context(kept_waiting(client("admin")))
            for name, holder in held.items():
                shell = " ".join(argv("shell", "--name", name, "--for", f"{LEASE_SECONDS}s"))
                command = f"JMP_CLIENT_CONFIG={holder} exec {clocks.of(holder)} {shell} -- sh -c 'j echo connect'"
                process = subprocess.Popen(
                    ["sh", "-c", command],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stack.enter_context((place / f"{holder}.err").open("w")),
                    text=True,
                )
                shells.append(stack.enter_context(process))
                stack.callback(process.kill)
            for word in ("before", "after"):
                for process in shells:
                    assert process.stdin is not None
                    assert process.stdout is not None
                    process.stdin.write(f"{word}\n")
                    process.stdin.flush()
                    assert process.stdout.readline() == f"{word}\n"
                if word == "before":
                    waiting.close()
                    for name in held:
                        given[name] += kept.get(name, {0: 0.0}).values()
                    for name, off in phase.items():
                        clocks.set(name, off)
            for process, holder in zip(shells, held.values(), strict=True):
                said = place / f"{holder}.err"
                assert process.wait(SECONDS) in (124, 130), (
                    said.read_text()
                )  # the lease's end, or that of a stream by it
    for name in ("controller", *held):
        times = sorted(re.findall(r"^2\S+ \S+(?=,)", (place / f"{name}.log").read_text(), re.MULTILINE))
        span = datetime.fromisoformat(times[-1]) - datetime.fromisoformat(times[0])
        assert span.total_seconds() > HOUR  # their clocks were set indeed
    for name in held:
        lasted = [
            after - before - more
            for before, after, more in zip(
                seconds(place / f"{name}.began"), seconds(place / f"{name}.ended"), given[name], strict=True
            )
        ]
        print(f"\n{name}: leases of {LEASE_SECONDS} s lasted {', '.join(f'{time:.2f}' for time in lasted)} s", end="")
        assert len(lasted) == len(PHASES)
        assert min(lasted) > LEASE_SECONDS - 0.05  # what that clock shows is cut off after 10 ms
        assert max(lasted) < LEASE_SECONDS + (10 if FIGURES else 100)  # and not an hour
        assert (place / f"{name}.log").read_text().count("ends: its time was over") == len(PHASES)
