"""Ctrl-C ends what a thread waits for, and never half of what it does. Light imports.

Python runs the handler of a signal between any two steps of the main thread, and the usual one for SIGINT raises there. In the
middle of a connection's bookkeeping that would leave one which does not work any more, and the ``finally`` blocks of a program
want to use it. So whatever must not be left half done is in a block of :data:`uninterrupted`, which keeps the signal for its end,
and waits by :func:`wait`, where the signal does at once what it is for. Who sends it twice is not kept waiting.
"""

from __future__ import annotations

import threading
from _signal import getsignal, signal  # type: ignore[import-not-found]  # those of signal take ten times as long
from collections.abc import Callable
from signal import SIGINT, raise_signal
from threading import get_ident
from types import FrameType
from typing import Any, Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_MAIN: Final = threading.main_thread().ident
"""Signals are handled in this thread; for the others there is nothing to do."""


class _Uninterrupted:
    """A context manager that may be entered again inside itself, and by any thread. A handler that is not Python's stays."""

    _depth = 0
    _waiting = False
    _held = False

    def __init__(self) -> None:
        self._handler: Any = None
        self._holder = self._hold

    def __enter__(self) -> None:
        if get_ident() != _MAIN:
            return
        if self._depth:
            self._depth += 1
        elif callable(handler := getsignal(SIGINT)):
            if handler is not self._holder:
                self._handler = handler
            signal(SIGINT, self._holder)
            self._depth = 1

    def __exit__(self, *_: object) -> None:
        if not self._depth or get_ident() != _MAIN:
            return
        self._depth -= 1
        if self._depth:
            return
        try:
            signal(SIGINT, self._handler)
        finally:
            held, self._held = self._held, False
        if held:
            raise_signal(SIGINT)

    def _hold(self, number: int, frame: FrameType | None) -> None:
        if self._waiting or self._held:
            self._held = False
            self._handler(number, frame)
        else:
            self._held = True

    def wait(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call what waits. It may end by the handler's exception at any moment, also when it has got what it waited for."""
        if not self._depth or get_ident() != _MAIN:
            return call(*args, **kwargs)
        before, self._waiting = self._waiting, True
        try:
            if self._held:
                self._held = False
                raise_signal(SIGINT)
            return call(*args, **kwargs)
        finally:
            self._waiting = before


uninterrupted: Final = _Uninterrupted()
wait: Final = uninterrupted.wait
