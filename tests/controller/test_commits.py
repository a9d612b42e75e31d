"""What is committed when: durable before anybody is told, and no more often than somebody waits for it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from jmp.controller.lab import LINGER
from jmp.mux.connection import multiplex
from jmp.mux.protocol import Role as Side
from jmp.rpc.call import Caller
from jmp.wire.records import Desired, Exporter, Observed, Phase, Role, State, from_wire, to_wire
from tests.fakes.memory_lab import WANT, MemoryLab, memory_lab


@pytest.fixture
async def lab(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> AsyncIterator[MemoryLab]:
    async with memory_lab(tmp_path) as made:
        yield made


@asynccontextmanager
async def board(lab: MemoryLab) -> AsyncIterator[list[Desired]]:
    """An exporter that is ready and free at once, without the threads of one, for which a mocked clock does not wait; what
    it is told.
    """
    told: list[Desired] = []
    await lab.add(Exporter(name="one"))
    who = await lab.identity("one", Role.EXPORTER)

    async def attend(caller: Caller) -> None:
        registration = {"labels": {"board": "lamp"}, "observed": to_wire(Observed(epoch=0))}
        lease = None
        async with aclosing(caller.items("@lab", "attend", (registration,), {})) as items:
            async for item in items:
                if "desired" in item:
                    told.append(wish := from_wire(Desired, item["desired"]))
                    phase = Phase.IDLE if wish.grant is None else Phase.READY
                    lease = lease if wish.grant is None else wish.grant.lease
                    observed = Observed(epoch=wish.epoch, lease=lease, phase=phase)
                    await caller.call("@lab", "observe", (to_wire(observed),), {})

    async with multiplex(await lab.dial(who), Side.DIALLER) as connection, trio.open_nursery() as nursery:
        nursery.start_soon(attend, Caller(connection))
        await trio.sleep(1)
        told.clear()
        yield told
        nursery.cancel_scope.cancel()


def kept(lab: MemoryLab, id: str) -> State:
    """What a controller would find that is started now."""
    state: State = lab.store.records["lease", id].state  # type: ignore[attr-defined]
    return state


async def is_kept(lab: MemoryLab, id: str, state: State) -> None:
    """Wait until it is. A moment is over soon, but the mocked clock does not wait for the thread that writes then."""
    deadline = time.monotonic() + 60
    while kept(lab, id) is not state:
        assert time.monotonic() < deadline, f"it is {kept(lab, id)}"
        await trio.sleep(LINGER)


async def test_that_a_lease_nobody_watches_is_ready_or_over_leaves_with_what_comes_next(lab: MemoryLab) -> None:
    async with board(lab), lab.client("alice") as alice:
        before = lab.store.commits
        lease = await alice.acquire(WANT, 600.0)
        assert kept(lab, lease.id) is State.PREPARING
        await trio.testing.wait_all_tasks_blocked()
        assert lab.lab.engine.leases[lease.id].state is State.READY
        assert kept(lab, lease.id) is State.PREPARING
        assert (await alice.release(lease.id)).ready is not None
        assert kept(lab, lease.id) is State.ENDING
        await trio.testing.wait_all_tasks_blocked()
        again = await alice.acquire(WANT, 600.0)
        assert kept(lab, lease.id) is State.ENDED
        assert kept(lab, again.id) is State.PREPARING
        assert lab.store.commits == before + 3


async def test_it_is_kept_within_a_moment_if_nothing_comes(lab: MemoryLab) -> None:
    async with board(lab), lab.client("alice") as alice:
        lease = await alice.acquire(WANT, 600.0)
        await is_kept(lab, lease.id, State.READY)
        await alice.release(lease.id)
        await is_kept(lab, lease.id, State.ENDED)


async def test_who_watches_is_told_what_is_kept(lab: MemoryLab) -> None:
    async with board(lab), lab.client("alice") as alice:
        course = [State.PREPARING, State.READY, State.ENDING, State.ENDED]
        lease = await alice.acquire(WANT, 600.0)
        told = []
        async for standing in alice.watch(lease.id):
            told.append(course.index(standing.lease.state))
            assert course.index(kept(lab, lease.id)) >= told[-1]
            if standing.lease.state is State.READY:
                await alice.release(lease.id)
        assert told == sorted(told)
        assert told[-1] == course.index(State.ENDED)


async def test_who_begins_to_watch_is_told_what_nobody_was_waiting_for(lab: MemoryLab) -> None:
    async with board(lab), lab.client("alice") as alice:
        lease = await alice.acquire(WANT, 600.0)
        await trio.testing.wait_all_tasks_blocked()
        assert kept(lab, lease.id) is State.PREPARING
        lab.lab.hurry(("lease", lease.id))
        await trio.testing.wait_all_tasks_blocked()
        assert kept(lab, lease.id) is State.READY


async def test_an_exporter_is_told_once_that_its_lease_is_over(lab: MemoryLab) -> None:
    async with board(lab) as told, lab.client("alice") as alice:
        lease = await alice.acquire(WANT, 600.0)
        await trio.sleep(1)
        await alice.release(lease.id)
        await trio.sleep(1)
        assert kept(lab, lease.id) is State.ENDED
        assert [(wish.grant is not None, wish.reason) for wish in told] == [(True, ""), (False, "released by alice")]
