"""A thread of its own for what blocks often and shortly: one piece of work after another.

Trio's own threads are for what blocks now and then: each time one is found, named and counted, which takes as long as handing
over the work itself does, and two turns of the event loop more.
"""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any, Final, TypeVar

import outcome
import trio

T = TypeVar("T")

_Job = tuple[Callable[[], Any], trio.lowlevel.TrioToken, trio.lowlevel.Task]


class Worker:
    """The thread begins with the first piece of work, and ends with :meth:`close`, or with the process."""

    def __init__(self, name: str) -> None:
        self._name: Final = name
        self._jobs: Final[SimpleQueue[_Job | None]] = SimpleQueue()
        self._thread: Thread | None = None

    async def run(self, function: Callable[[], T]) -> T:
        """What ``function`` returns or raises. Whoever is cancelled meanwhile waits all the same."""
        if self._thread is None:
            self._thread = Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        self._jobs.put((function, trio.lowlevel.current_trio_token(), trio.lowlevel.current_task()))
        result: T = await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
        return result

    async def close(self) -> None:
        """End the thread, after what it is doing."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            await trio.to_thread.run_sync(thread.join)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            function, token, task = job
            token.run_sync_soon(trio.lowlevel.reschedule, task, outcome.capture(function))
