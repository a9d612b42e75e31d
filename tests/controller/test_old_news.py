"""A controller whose watch is late: what it is told last is a moment ago, and others have gone on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from jmp.controller.kubernetes import KubernetesStore
from jmp.controller.store import Change, Stale
from jmp.errors import NotFound
from jmp.wire.records import Exporter, Held, Lease, Phase, State, Want
from tests.fakes.apiserver import ApiServer
from tests.fakes.memory_lab import WANT, memory_labs


def made(record: Exporter | Lease) -> Change:
    if isinstance(record, Lease):
        return Change("lease", record.id, None, record)
    return Change("exporter", record.name, None, record)


def granted(lease: Lease, exporter: Exporter) -> list[Change]:
    """Given to somebody else, or for the first time: at the next epoch."""
    held = (Held(exporter=exporter.name, epoch=exporter.epoch + 1, phase=Phase.PREPARING),)
    return [
        Change("lease", lease.id, lease, replace(lease, state=State.PREPARING, devices=held, granted=2.0)),
        Change("exporter", exporter.name, exporter, replace(exporter, epoch=exporter.epoch + 1, lease=lease.id)),
    ]


async def test_who_decides_again_does_so_by_what_is_there_now() -> None:
    """It was told, as the reason of a conflict, that a lease has a device, and not yet that the lease before it is over."""
    server = ApiServer(lambda: 0.0)
    near, far = KubernetesStore(server.api()), KubernetesStore(server.api())
    with trio.fail_after(60):
        await near.load()
        wants = (Want(exporter="board"),)
        first = Lease(id="l1", client="bo", wants=wants, duration=9.0, created=1.0, number=1)
        making = [made(first), made(replace(first, id="l2")), made(Exporter(name="board", created=1.0))]
        one, other, board = cast("list[Any]", await near.commit(making))
        one, board = cast("list[Any]", await near.commit(granted(one, board)))
        await far.load()
        idle = tuple(replace(held, phase=Phase.IDLE) for held in one.devices)
        await near.commit([Change("lease", "l1", one, replace(one, state=State.ENDED, ended=3.0, devices=idle))])
        now, _ = await near.commit(granted(other, board))
        with pytest.raises(Stale) as caught:
            await far.commit([Change("lease", "l2", other, replace(other, client="eve"))])
        known = caught.value.now["lease", "l2"]
        assert known == now
        assert isinstance(known, Lease)
        with pytest.raises(Stale) as caught:
            await far.commit(granted(replace(known, client="eve"), board))
        seen = caught.value.now["exporter", "board"]
        assert isinstance(seen, Exporter)
        assert (seen.epoch, seen.lease) == (2, "l2")
        final, _ = await far.commit(granted(replace(known, client="eve"), seen))
        assert isinstance(final, Lease)
        assert (final.client, final.devices[0].epoch) == ("eve", 3)


async def test_a_lease_that_another_controller_has_just_made_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ApiServer(lambda: 0.0)
    near, far = KubernetesStore(server.api()), KubernetesStore(server.api())
    with trio.fail_after(60):
        async with (
            memory_labs(tmp_path, {"near": near, "far": far}) as (a, b),
            a.exporter("one", others=[b]),
            a.client("alice") as alice,
            b.client("alice") as again,
        ):
            monkeypatch.setattr(far, "_hear", lambda *told: None)  # its watch says nothing any more
            lease = await alice.acquire(WANT, 6000.0)
            assert (await again.call("lease", lease.id))["id"] == lease.id
            assert (await again.release(lease.id)).reason == "released by alice"
            with pytest.raises(NotFound, match="there is no lease 'nonsense' of yours"):
                await again.call("lease", "nonsense")
