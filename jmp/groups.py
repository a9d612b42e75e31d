"""Context managers with tasks of their own whose users need not know of them: errors come out as they are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def ungrouped(manager: Callable[P, AbstractAsyncContextManager[T]]) -> Callable[P, AbstractAsyncContextManager[T]]:
    """``manager``, without the exception group that its nursery puts around the one thing that went wrong in it or in the block.

    Groups of several, and one that comes from the block itself, stay.
    """

    @wraps(manager)
    @asynccontextmanager
    async def plain(*args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        body: BaseException | None = None
        problem: BaseException
        try:
            async with manager(*args, **kwargs) as opened:
                try:
                    yield opened
                except BaseException as error:
                    body = error  # a group that comes from the block is the user's own
                    raise
            return
        except BaseExceptionGroup as group:
            problem = group
            while isinstance(problem, BaseExceptionGroup) and len(problem.exceptions) == 1:
                if isinstance(body, BaseExceptionGroup) and problem.exceptions == body.exceptions:
                    problem = body  # itself, or what ``except*`` has made of it on its way
                    break
                problem = problem.exceptions[0]
        raise problem  # out here it keeps its own context

    return plain
