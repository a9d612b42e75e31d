"""Time that leaps when nothing is going on, in threads neither."""

from __future__ import annotations

import threading

from trio.testing import MockClock, active_thread_count

_GLANCE = 0.001  # seconds between two looks at threads that work


def leaping(threshold: float = 0.0) -> MockClock:
    """A clock of Trio's that leaps to the next deadline once all tasks have waited for ``threshold`` real seconds.

    Unlike one that Trio makes, it waits for the threads of ``trio.to_thread`` first, however long those take: to open a driver or
    keep a file takes no time of this clock. A thread that waits for this clock would wait for ever.
    """
    clock = MockClock(autojump_threshold=threshold)
    leap = clock._autojump

    def leap_if_idle() -> None:
        if active_thread_count():
            threading.Event().wait(_GLANCE)
        else:
            leap()

    clock._autojump = leap_if_idle  # type: ignore[method-assign]
    return clock
