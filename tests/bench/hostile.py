"""What hostile peers cost another client's calls: ``python -m tests.bench.hostile [KIND...]``, with the machine to itself.

The attacker is a process of its own. It is stopped and goes on in turn, so that both halves of a ratio are of the same minute;
what it has opened stays open. Three programs on two processors: where the attacker takes the client's or the exporter's, that is
the system's affair. So it gives way (``nice``) and stays on the client's processor, and the exporter has the other one.
``--free`` leaves all that to the system.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from time import perf_counter
from typing import Any, Final

from tests.e2e.hostile import KINDS
from tests.e2e.product import Served, serving
from tests.e2e.streams import connect, write_config

ROOT: Final = Path(__file__).parents[2]
ROUNDS: Final = 4
SECONDS: Final = 0.8
PAUSE: Final = 0.001
"""Between calls: a client that leaves its processor to others now and then."""


def calls(dut: Any, seconds: float) -> list[float]:
    """How long each call took."""
    taken, pause = [], Event()
    end = perf_counter() + seconds
    while perf_counter() < end:
        began = perf_counter()
        dut.power.on()
        taken.append(perf_counter() - began)
        pause.wait(PAUSE)
    return taken


def typical(taken: Sequence[float]) -> tuple[float, float]:
    """The median and the 99th percentile, in milliseconds."""
    times = sorted(taken)
    return 1e3 * times[len(times) // 2], 1e3 * times[len(times) * 99 // 100]


def measure(served: Served, kind: str, *, free: bool) -> str:
    """A row of the table."""
    given = dict(zip(served.shell[1::2], served.shell[2::2], strict=True))
    passphrase = Path(given["--passphrase-file"]).read_text().strip()
    command = [sys.executable, "-m", "tests.e2e.hostile", kind, served.url, passphrase]
    if not free:
        here, there = sorted(os.sched_getaffinity(0))[:2]
        command = ["nice", "-n", "19", "taskset", "--cpu-list", str(here), *command]
        os.sched_setaffinity(0, {here})
        for task in Path(f"/proc/{served.process.pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), {there})
    alone: list[float] = []
    beside: list[float] = []
    with connect(served) as dut:
        calls(dut, SECONDS)
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as hostile:
            try:
                calls(dut, SECONDS)  # it has begun by then
                for _ in range(ROUNDS):
                    for what, taken in ((signal.SIGSTOP, alone), (signal.SIGCONT, beside)):
                        hostile.send_signal(what)
                        calls(dut, SECONDS / 8)
                        taken += calls(dut, SECONDS)
                assert hostile.poll() is None
            finally:
                hostile.kill()
    (median, late), (median_beside, late_beside) = typical(alone), typical(beside)
    return (
        f"| {kind} | {median:.2f} | {median_beside:.2f} | {median_beside / median:.2f} | {late:.2f} | {late_beside:.2f}"
        f" | {late_beside / late:.2f} |"
    )


def main(arguments: Sequence[str]) -> None:
    free = "--free" in arguments
    everywhere = os.sched_getaffinity(0)
    print(
        "| | median alone, ms | beside it | ratio | 99 of 100 alone | beside it | ratio |\n|---|---|---|---|---|---|---|"
    )
    for kind in [name for name in arguments if name != "--free"] or KINDS:
        with TemporaryDirectory() as folder, suppress(KeyboardInterrupt):
            os.sched_setaffinity(0, everywhere)
            with serving(write_config(Path(folder), 9), "--listen=127.0.0.1:0") as served:
                print(measure(served, kind, free=free), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
