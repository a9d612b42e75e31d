"""Who may ask a controller for what."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from jmp.controller.serve import DESKS
from jmp.driver.driver import _MARK
from jmp.errors import NotFound, Refused
from jmp.wire import records
from jmp.wire.records import Role
from tests.fakes.memory_lab import WANT, MemoryLab, memory_lab


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[MemoryLab]:
    with trio.fail_after(60):
        async with memory_lab(tmp_path) as made:
            yield made


def methods(desk: type) -> set[str]:
    return {name for name in dir(desk) if hasattr(getattr(desk, name), _MARK)}


@pytest.mark.parametrize("role", Role)
async def test_nobody_can_do_what_another_role_can(lab: MemoryLab, role: Role) -> None:
    others = {method for desk in DESKS.values() for method in methods(desk)} - methods(DESKS[role])
    async with lab.client("somebody", role) as caller:
        for method in sorted(others):
            with pytest.raises(
                Refused, match=rf"'{method}' is for the \w+s of a lab, and this token is that of {role} somebody$"
            ):
                await caller.call(method)
        with pytest.raises(NotFound, match="@lab has no method 'lab'"):
            await caller.call("lab")
    if role is not Role.ADMIN:
        assert {"create", "issue", "revoke", "rotate"} <= others


async def test_an_admin_is_told_no_token_that_was_issued_earlier(lab: MemoryLab) -> None:
    async with lab.client("admin", Role.ADMIN) as admin:
        issued = await admin.call("issue", "boss", "admin")
        listed = await admin.call("list", "token")
    assert issued["token"] not in str(listed)
    assert issued["id"] in {token["id"] for token in listed}


async def test_a_policy_keeps_what_others_do_to_oneself(lab: MemoryLab) -> None:
    await lab.add(records.Policy(name="default", see=False))
    async with lab.exporter("one"), lab.client("alice") as alice, lab.client("bob") as bob:
        lease = await alice.acquire(WANT, 60.0)
        assert [reason["text"].split(" for ")[0] for reason in await bob.call("why", [{"selector": ""}])] == [
            "somebody has it"
        ]
        assert lease.id not in str(await bob.call("exporters"))
