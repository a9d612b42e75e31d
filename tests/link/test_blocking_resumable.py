"""Sessions of threads that outlive their links: a real exporter over TCP, through a proxy that cuts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

import jmp
from jmp.errors import LinkLost, Timeout
from jmp.link.blocking_resumable import ResumableBlockingLink
from jmp.link.sessions import Sessions
from jmp.rpc.blocking import fail_after
from tests.fakes.cutter import Cutter, cutter
from tests.fakes.exporters import bench, exporting


@contextmanager
def served(directory: Path) -> Iterator[int]:
    """The port of an exporter with a lamp, which runs in a thread of its own."""
    ready, ports, over = threading.Event(), [], []

    async def run() -> None:
        async with exporting(directory, bench(directory), "127.0.0.1:0") as (url, _):
            ports.append(int(url.rpartition(":")[2]))
            stop = trio.Event()
            over.append((trio.lowlevel.current_trio_token(), stop))
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=partial(trio.run, run))
    thread.start()
    try:
        assert ready.wait(60)
        yield ports[0]
    finally:
        token, stop = over[0]
        token.run_sync_soon(stop.set)
        thread.join()


@pytest.fixture
def cable(tmp_path: Path) -> Iterator[tuple[Cutter, Any]]:
    """A proxy, and the device behind it."""
    with ExitStack() as stack:
        proxy = stack.enter_context(cutter(stack.enter_context(served(tmp_path))))
        yield proxy, stack.enter_context(jmp.connect(f"ws://127.0.0.1:{proxy.port}"))


def test_calls_are_done_once_while_the_link_is_cut(cable: tuple[Cutter, Any]) -> None:
    proxy, dut = cable
    for number in range(6):
        if number % 2:
            proxy.cut()  # before the call
        cutting = threading.Timer(0.0005, proxy.cut)  # or while it is under way
        cutting.start()
        assert dut.lamp.count() == number + 1
        cutting.join()
    assert proxy.connections > 3


def test_a_stream_goes_on_both_ways(cable: tuple[Cutter, Any]) -> None:
    proxy, dut = cable
    sent = bytes(range(256)) * 20_000
    with dut.lamp.echo() as stream:
        sender = threading.Thread(target=stream.send_all, args=(sent,))
        sender.start()
        got = bytearray()
        cut_at = [len(sent) * part // 6 for part in range(1, 6)]
        while len(got) < len(sent):
            got += stream.receive_some()
            if cut_at and len(got) > cut_at[0]:
                cut_at.pop(0)
                proxy.cut()
        sender.join(60)
    assert bytes(got) == sent
    assert proxy.connections > 3


def test_several_threads_go_on_at_once(cable: tuple[Cutter, Any]) -> None:
    proxy, dut = cable
    wrong = []

    def talk(word: bytes) -> None:
        with dut.lamp.echo() as stream:
            for _ in range(100):
                stream.send_all(word)
                got = b""
                while len(got) < len(word):
                    got += stream.receive_some()
                if got != word:
                    wrong.append(got)

    threads = [threading.Thread(target=talk, args=(bytes([number]) * 1000,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for _ in range(4):
        threading.Event().wait(0.1)
        proxy.cut()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert wrong == []


def test_a_deadline_is_kept_while_there_is_no_link(cable: tuple[Cutter, Any]) -> None:
    proxy, dut = cable
    proxy.open = False
    proxy.cut()
    for _ in range(2):
        with pytest.raises(Timeout), fail_after(0.3):
            dut.lamp.state()
    proxy.open = True
    assert dut.lamp.count() == 1


def test_nobody_waits_and_the_keeper_sees_to_it(cable: tuple[Cutter, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    proxy, dut = cable
    before = proxy.connections
    proxy.cut()
    while proxy.connections == before:
        threading.Event().wait(0.01)
    assert proxy.connections == before + 1
    assert dut.lamp.count() == 1


def test_past_the_resume_time_a_call_says_what_became_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ResumableBlockingLink.__init__, "__kwdefaults__", {"token": None, "patience": 2.0})
    with served(tmp_path) as port, cutter(port) as proxy, jmp.connect(f"ws://127.0.0.1:{proxy.port}") as dut:
        proxy.open = False
        proxy.cut()
        with pytest.raises(LinkLost, match=r"during lamp\.on: .*; the session was not resumed within 2 s; .*executed"):
            dut.lamp.on()
        with pytest.raises(LinkLost, match="not resumed"):
            dut.lamp.on()


def test_a_listener_that_forgot_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jmp.exporter.serve.Sessions", lambda: Sessions(0.1))
    with served(tmp_path) as port, cutter(port) as proxy, jmp.connect(f"ws://127.0.0.1:{proxy.port}") as dut:
        proxy.open = False
        proxy.cut()
        with pytest.raises(Timeout), fail_after(0.8):
            dut.lamp.on()
        proxy.open = True
        with pytest.raises(LinkLost, match="it cannot be resumed: the other side does not know the session"):
            dut.lamp.on()
