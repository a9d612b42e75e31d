"""A nursery for drivers whose error comes out bare."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def open_nursery() -> AsyncIterator[trio.Nursery]:
    """Like ``trio.open_nursery``, but what a task raises arrives as itself and not inside an exception group.

    For a handful of tasks that do one job together, of which the first to fail ends the others: the caller wants that
    failure's type (``DeviceError``, …). Should two fail in the same instant, the first one in the group is raised.
    """
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        _, failures = group.split(trio.Cancelled)
        if failures is None:  # nothing but cancellation from outside
            raise
        raise _first(failures) from None


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    failure = group.exceptions[0]
    return _first(failure) if isinstance(failure, BaseExceptionGroup) else failure
