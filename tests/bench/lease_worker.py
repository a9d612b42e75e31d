"""Clients that acquire and release without a pause. Whoever the environment's client configuration says."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, aclosing

import trio

from jmp.client.config import current
from jmp.client.lab import Lab, open_lab_trio
from jmp.wire.records import State, Want
from tests.bench.worker import Figures, Measurement, Span, answer

CLIENTS = 16
WAITING = 200
ANY = [Want(selector="board=mock")]
ONE = [Want(exporter="single")]
TAKEN = [Want(selector="board=reserved")]
"""An exporter that somebody has for long, and that many wait for."""

Turn = Callable[[Lab], Awaitable[None]]


async def grant_and_release(lab: Lab) -> None:
    """Both durable when they have been answered."""
    lease = await lab.acquire(ANY, 3600.0)
    if lease.state is State.QUEUED:
        lease = await lab.wait_granted(lease.id)
    await lab.release(lease.id)


async def through_the_exporter(lab: Lab) -> None:
    """Until the one exporter is ready for the holder, and until it is free again."""
    lease = await lab.acquire(ONE, 3600.0)
    async with aclosing(lab.watch(lease.id)) as watching:
        async for standing in watching:
            if standing.lease.state is State.READY:
                await lab.release(lease.id)
            elif standing.lease.state is State.ENDED:
                return


async def per_second(turn: Turn, clients: int, span: Span) -> float:
    """Turns that so many clients take together."""
    done = 0
    counting = False

    async def work(lab: Lab) -> None:
        nonlocal done
        while True:
            await turn(lab)
            done += counting

    async with AsyncExitStack() as stack:
        labs = [await stack.enter_async_context(open_lab_trio(current())) for _ in range(clients)]
        nursery = await stack.enter_async_context(trio.open_nursery())
        for lab in labs:
            nursery.start_soon(work, lab)
        await trio.sleep(span.warm)
        began = time.perf_counter()
        counting = True
        await trio.sleep(2 * span.seconds if not span.short else 0.5)
        figure = done / (time.perf_counter() - began)
        nursery.cancel_scope.cancel()
    async with open_lab_trio(current()) as lab:  # whose release was not waited for
        for lease in await lab.call("leases"):
            if lease["state"] not in ("ending", "ended"):
                await lab.release(lease["id"])
    return figure


async def beside_a_queue(span: Span) -> float:
    async with open_lab_trio(current()) as lab:
        for _ in range(1 + span.size(WAITING, 5)):
            await lab.acquire(TAKEN, 3600.0)
    return await per_second(grant_and_release, 1, span)


def _run(measure: Callable[[Span], Awaitable[float]]) -> Measurement:
    def run(span: Span) -> Figures:
        return {"rate": trio.run(measure, span)}

    return run


if __name__ == "__main__":
    answer(
        {
            "lease-1": _run(lambda span: per_second(grant_and_release, 1, span)),
            "lease-16": _run(lambda span: per_second(grant_and_release, CLIENTS, span)),
            "lease-exporter": _run(lambda span: per_second(through_the_exporter, 1, span)),
            "lease-waiting": _run(beside_a_queue),
        }
    )
