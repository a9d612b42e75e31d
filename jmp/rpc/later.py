"""Results that come later, without a task that waits for each: what a method may return in place of its result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import trio

T = TypeVar("T")
U = TypeVar("U")


class Later(Generic[T]):
    """A result or an exception, at once or later.

    Whoever resolves it calls those who listen, in that very turn: they wait for nothing and raise nothing.
    """

    __slots__ = ("_error", "_known", "_listeners", "_value")

    def __init__(self) -> None:
        self._known = False
        self._value: Any = None
        self._error: Exception | None = None
        self._listeners: list[Callable[[Later[T]], object]] = []

    def resolve(self, value: T) -> None:
        """This is the result. What comes after the first one counts for nothing, here and in :meth:`fail`."""
        self._settle(value, None)

    def fail(self, error: Exception) -> None:
        """There is none, because of this."""
        self._settle(None, error)

    def result(self) -> T:
        """What came of it, once that is known: the result, or its exception is raised."""
        assert self._known
        if self._error is not None:
            raise self._error
        value: T = self._value
        return value

    def listen(self, listener: Callable[[Later[T]], object]) -> None:
        """Call ``listener`` with this as soon as the result is known."""
        if self._known:
            listener(self)
        else:
            self._listeners.append(listener)

    def then(self, make: Callable[[T], U]) -> Later[U]:
        """What ``make`` makes of the result, when that comes; an exception of either is the exception of this one."""
        made: Later[U] = Later()

        def go_on(known: Later[T]) -> None:
            try:
                made.resolve(make(known.result()))
            except Exception as error:  # noqa: BLE001  # whoever listens has it
                made.fail(error)

        self.listen(go_on)
        return made

    async def wait(self) -> T:
        """The result. Cancelled, it is still to come."""
        if not self._known:
            known = trio.Event()
            self.listen(lambda _: known.set())
            await known.wait()
        return self.result()

    def _settle(self, value: Any, error: Exception | None) -> None:
        if self._known:
            return
        self._known, self._value, self._error = True, value, error
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener(self)
