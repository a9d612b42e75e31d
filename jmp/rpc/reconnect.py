"""A connection that is made again whenever it breaks, for as long as it is wanted."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from jmp.errors import Cancelled, JmpError, LabError
from jmp.link import Link
from jmp.mux.connection import Connection, multiplex
from jmp.mux.protocol import Role
from jmp.mux.stream import Serve
from jmp.rpc.call import Caller

log = logging.getLogger("jmp.link")

FIRST: Final = 0.2
LONGEST: Final = 5.0
"""Seconds between attempts: doubled from the first to the longest, each drawn at random from the upper half, so that those
who lost the same server do not all come back in the same moment."""
SETTLED: Final = 1.0
"""Seconds after which a connection has been a good one: the next attempts begin at the first pause again. It is short because
there may be several servers: that this one has gone soon, too, says nothing of the others."""
DIAL_SECONDS: Final = 15.0
REASON_SECONDS: Final = 1.0
"""How long one whose call was ended waits for the other side to say why."""


async def keep_connected(
    dial: Callable[[], Awaitable[Link]],
    use: Callable[[Caller], Awaitable[None]],
    *,
    serve: Serve | None = None,
    told: Callable[[JmpError | None], None] = lambda problem: None,
    forever: bool = True,
) -> None:
    """Connect and run ``use`` for as long as the connection lasts; again, after a pause, whenever it ends. Never returns.

    ``told`` gets None when ``use`` begins, and the reason when there is no connection (a new one at each change, not at each
    attempt). Without ``forever``, what is not the lab's momentary state (a refusal, say) is raised; with it all is tried again.
    """
    pause = FIRST
    known: str | None = ""
    while True:
        began = trio.current_time()
        try:
            with trio.fail_after(DIAL_SECONDS):
                link = await dial()
            problem = await _use(link, use, serve, told)
            known = None
        except* trio.TooSlowError:
            problem = LabError(f"no answer within {DIAL_SECONDS:g} s")
        except* JmpError as errors:
            first = _first(errors)
            assert isinstance(first, JmpError)
            problem = first
        if not forever and not isinstance(problem, LabError):
            raise problem
        if problem.message != known:
            known = problem.message
            told(problem)
        if trio.current_time() - began > SETTLED:
            pause = FIRST
        await trio.sleep(random.uniform(pause / 2, pause))
        pause = min(pause * 2, LONGEST)


async def _use(
    link: Link, use: Callable[[Caller], Awaitable[None]], serve: Serve | None, told: Callable[[JmpError | None], None]
) -> JmpError:
    async with multiplex(link, Role.DIALLER, serve=serve, watch=True) as connection:
        told(None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_over, use, connection)
            error = await connection.wait_over()
            nursery.cancel_scope.cancel()
    return error


async def _until_over(use: Callable[[Caller], Awaitable[None]], connection: Connection) -> None:
    try:
        await use(Caller(connection))
    except (Cancelled, BaseExceptionGroup) as error:
        if isinstance(_first(error), Cancelled):  # one that stops ends its calls, and then says why
            with trio.move_on_after(REASON_SECONDS):
                await connection.wait_over()
                return
        raise


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
