"""pexpect on the virtual board's console, from threads and under Trio."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pexpect
import pytest
import trio

from jmp.client import console
from jmp.client.adapters.expect import control
from jmp.client.interfaces import client_class
from jmp.driver import serve
from jmp.errors import Busy, Timeout, UsageError
from jmp_drivers.virtual_board import VirtualBoard

PROMPT = r"root@virtual:~# "


@pytest.fixture
def board() -> Iterator[Any]:
    with serve(VirtualBoard(boot_time=0.0), class_of=client_class) as client:
        yield client


def trio_board() -> Any:
    return serve(VirtualBoard(boot_time=0.0), class_of=client_class)


def test_log_in_and_run_a_command(board: Any) -> None:
    with board.console.expect(timeout=60, prompt=PROMPT) as c:
        board.power.on()
        assert c.expect("login: ") == 0
        assert "virtual-linux 1.0" in c.before
        c.sendline("root")
        c.expect(PROMPT)
        assert c.run("echo one; echo two") == "one\ntwo\n"
        assert c.run("hostname", prompt=re.compile(PROMPT), timeout=60) == "virtual\n"


async def test_log_in_and_run_a_command_under_trio() -> None:
    with trio.fail_after(60):
        async with trio_board() as board, board.console.expect(timeout=60, prompt=PROMPT) as c:
            await board.power.on()
            assert await c.expect("login: ") == 0
            assert "virtual-linux 1.0" in c.before
            await c.sendline("root")
            await c.expect_exact(PROMPT)
            assert await c.run("echo one; echo two") == "one\ntwo\n"
            assert await c.run("hostname", prompt=re.compile(PROMPT), timeout=60) == "virtual\n"


def test_a_time_out_says_what_was_awaited_and_what_came(board: Any) -> None:
    with board.console.expect() as c:
        board.power.on()
        c.expect("login: ", timeout=60)
        c.sendline("root")
        c.expect(PROMPT, timeout=60)
        c.sendline("echo hello")
        with pytest.raises(
            Timeout, match=r"(?s)console did not say 'never' within 2 s; it said last:.*hello"
        ) as caught:
            c.expect("never", timeout=2)
        assert isinstance(caught.value, pexpect.TIMEOUT)
        assert "hello" in c.before, "what came stays for the next one"
        assert c.expect(["never", pexpect.TIMEOUT], timeout=0) == 1


async def test_a_time_out_under_trio() -> None:
    with trio.fail_after(60):
        async with trio_board() as board, board.console.expect() as c:
            with pytest.raises(pexpect.TIMEOUT, match=r"did not say 'never' or 'ever' within 0.1 s; it said nothing"):
                await c.expect(["never", "ever"], timeout=0.1)
            assert await c.expect([pexpect.TIMEOUT, "ever"], timeout=0) == 0


def test_bytes_instead_of_text(board: Any) -> None:
    with board.console.expect(timeout=60, encoding=None, prompt=PROMPT) as c:
        board.power.on()
        c.expect(b"login: ")
        c.sendline(b"root")
        c.expect(PROMPT)
        assert c.run("echo one") == b"one\n"


def test_the_console_is_free_again_afterwards_and_taken_meanwhile(board: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with board.console.expect() as c:
        with board.console.expect() as second, pytest.raises(Busy, match="another client is writing"):
            second.expect("anything", timeout=60)
        c.sendline()
    monkeypatch.setattr("jmp_drivers.console._LEAVING", 60)
    for _ in range(20):
        with board.console.expect() as c, pytest.raises(pexpect.TIMEOUT):
            c.expect("never", timeout=0.01)


def test_taps_get_all_that_was_received_and_replay_what_came_before(
    board: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[tuple[str, bytes]] = []
    monkeypatch.setattr(console, "taps", [lambda path, data: heard.append((path, data))])
    with board.console.expect(timeout=60) as c:
        board.power.on()
        c.expect("login: ")
    with board.console.expect(timeout=60, replay=True) as c:
        c.expect_exact("virtual-linux 1.0")
    assert {path for path, _ in heard} == {"console"}
    assert b"".join(data for _, data in heard).count(b"login: ") >= 2


def test_what_cannot_be_done_is_told(board: Any) -> None:
    with board.console.expect() as c, pytest.raises(UsageError, match="needs to know the prompt"):
        c.run("true")
    assert (control("c"), control("]")) == ("\x03", "\x1d")
    with pytest.raises(UsageError, match="no control character '1'"):
        control("1")
