"""Records of identity tokens that have ended: forgotten after a while, and none before."""

from __future__ import annotations

from pathlib import Path

import trio
import trio.testing

from jmp.controller.desks import issue, revoke
from jmp.controller.lab import TOKENS_AT_ONCE
from jmp.wire.records import Role
from tests.fakes.memory_lab import memory_lab

DAY = 86400.0


async def test_those_that_ended_long_ago_are_forgotten(autojump_clock: trio.testing.MockClock, tmp_path: Path) -> None:
    async with memory_lab(tmp_path) as made:
        lab = made.lab
        short = [await lab.do(lambda: issue(lab, "ci", Role.CLIENT, 1 / 24)) for _ in range(2 * TOKENS_AT_ONCE + 1)]
        long = await lab.do(lambda: issue(lab, "bo", Role.CLIENT, 365))
        revoked = await lab.do(lambda: issue(lab, "cy", Role.CLIENT, 365))
        await lab.do(lambda: revoke(lab, revoked["id"]))
        await trio.sleep(DAY / 24 * 2 - 60)
        assert len(lab.view.token) == len(short) + 2
        await trio.sleep(120)
        assert lab.view.token.keys() == {long["id"], revoked["id"]}
        await trio.sleep(365 * DAY)
        assert lab.view.revoked.keys() == {revoked["id"]}, "it could be shown until the day before"
        await trio.sleep(30 * DAY)
        assert not lab.view.token
        assert not lab.view.revoked
        assert not [record for kind, _, record in await made.store.load() if kind == "token"]
