"""No test lasts for ever: a plugin of pytest, beside its own ``faulthandler_timeout`` and ``faulthandler_exit_on_timeout``.

When most of that time is over (it is that of one test, with what it sets up and takes down), all programs that the test has
started are killed. So whatever waits for one of them goes on: ``wait``, ``communicate``, the end of a ``with``, reading what it
says. The test fails and says where it was, also each task of Trio's, what it had opened is closed, and other tests go on. If that
does not help, pytest tells where each thread is and ends the process; pytest-xdist names the test, and has another process go on.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from _pytest.faulthandler import fault_handler_stderr_fd_key

PART = 5 / 6
"""Of the time that a test has, after which its programs end. In the rest it takes down what it has set up."""
TICK = 1 / os.sysconf("SC_CLK_TCK")
_LATE = pytest.StashKey[bool]()


def _started_since(moment: float) -> set[int]:
    """The processes that come from this one and began after that time, in seconds since the machine's start."""
    parents: dict[int, int] = {}
    began: dict[int, float] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it is gone
            words = file.read_text().rpartition(")")[2].split()
            pid = int(file.parent.name)
            parents[pid], began[pid] = int(words[1]), int(words[19]) * TICK
    ours, known = {os.getpid()}, 0
    while len(ours) > known:
        known = len(ours)
        ours |= {pid for pid, parent in parents.items() if parent in ours}
    return {pid for pid in ours - {os.getpid()} if began[pid] >= moment - TICK}


def _tasks() -> Iterator[str]:
    """Where each task of the run of Trio in this thread is, if there is one."""
    try:
        roots = [trio.lowlevel.current_root_task()]
    except RuntimeError:
        return
    left = [(0, root) for root in roots if root is not None]
    while left:
        depth, task = left.pop()
        yield f"{'  ' * depth}{task.name}"
        for frame, line in task.iter_await_frames():
            code = frame.f_code
            if not {"trio", "contextlib.py"} & {*Path(code.co_filename).parts}:
                yield f"{'  ' * depth}  {code.co_filename}:{line} in {code.co_name}"
        left += [(depth + 1, child) for nursery in task.child_nurseries for child in nursery.child_tasks]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    limit = float(item.config.getini("faulthandler_timeout")) * PART
    began = time.clock_gettime(time.CLOCK_BOOTTIME)

    def end_programs(*_: object) -> None:
        item.stash[_LATE] = True
        os.write(2, f"This takes more than {limit:g} s. What it has started is killed while it is here:\n".encode())
        faulthandler.dump_traceback(2)
        os.write(item.config.stash.get(fault_handler_stderr_fd_key, 2), "\n".join([*_tasks(), ""]).encode())
        for pid in _started_since(began):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    before = signal.signal(signal.SIGALRM, end_programs)
    signal.setitimer(signal.ITIMER_REAL, limit)  # 0: none
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if item.stash.get(_LATE, False):
        item.stash[_LATE] = False
        if report.passed:
            report.outcome = "failed"
            report.longrepr = f"{report.when} did not end in time"
    return report
