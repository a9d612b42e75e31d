"""Objects that are used for the length of a block: ``with`` for threads, ``async with`` under Trio."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")
A = TypeVar("A")


class Block(Generic[T]):
    """A ``with`` block of what ``_by_threads`` opens, anew each time that it is entered."""

    _open: AbstractContextManager[T]

    def _by_threads(self) -> AbstractContextManager[T]:
        raise NotImplementedError

    def __enter__(self) -> T:
        self._open = self._by_threads()
        return self._open.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return self._open.__exit__(kind, error, traceback)


class EitherBlock(Block[T], Generic[T, A]):
    """The same, and an ``async with`` block of what ``_by_tasks`` opens."""

    _async_open: AbstractAsyncContextManager[A]

    def _by_tasks(self) -> AbstractAsyncContextManager[A]:
        raise NotImplementedError

    async def __aenter__(self) -> A:
        self._async_open = self._by_tasks()
        return await self._async_open.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._async_open.__aexit__(kind, error, traceback)
