"""pexpect on the virtual board's console, from threads and under Trio."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from jmp.client.interfaces import client_class
from jmp.driver import serve
from jmp_drivers.virtual_board import VirtualBoard

PROMPT = r"root@virtual:~# "


@pytest.fixture
def board() -> Iterator[Any]:
    with serve(VirtualBoard(boot_time=0.0), class_of=client_class) as client:
        yield client


def trio_board() -> Any:
    return serve(VirtualBoard(boot_time=0.0), class_of=client_class)


def test_log_in_and_run_a_command(board: Any) -> None:
    with board.console.expect(timeout=10, prompt=PROMPT) as c:
        board.power.on()
        assert c.expect("login: ") == 0
        assert "virtual-linux 1.0" in c.before
        c.sendline("root")
        c.expect(PROMPT)
        assert c.run("echo one; echo two") == "one\ntwo\n"
        assert c.run("hostname", prompt=re.compile(PROMPT), timeout=5) == "virtual\n"


async def test_log_in_and_run_a_command_under_trio() -> None:
    with trio.fail_after(20):
        async with trio_board() as board, board.console.expect(timeout=10, prompt=PROMPT) as c:
            await board.power.on()
            assert await c.expect("login: ") == 0
            assert "virtual-linux 1.0" in c.before
            await c.sendline("root")
            await c.expect_exact(PROMPT)
            assert await c.run("echo one; echo two") == "one\ntwo\n"
            assert await c.run("hostname", prompt=re.compile(PROMPT), timeout=5) == "virtual\n"
